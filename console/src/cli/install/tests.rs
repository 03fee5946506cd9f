use clap::Parser as _;
use sigil_config::client::find;

use super::*;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(words: &[&str]) -> Args {
    let words = ["x", "time", "--client", "all"].iter().chain(words);
    Line::try_parse_from(words).unwrap().args
}

fn server(access: &str, reachable: bool) -> Served {
    let url = "http://127.0.0.1:7450/mcp/time".to_owned();
    Served { name: "time".into(), url, access: access.into(), reachable }
}

fn chosen(client: &str, access: &str, words: &[&str]) -> Result<Way, String> {
    choose(find(client).unwrap(), &server(access, true), &args(words), |_| false).map_err(|failure| failure.text())
}

#[test]
fn what_works_at_once_is_chosen() {
    assert_eq!(chosen("cursor", "anonymous", &[]), Ok(Way::Open));
    assert_eq!(chosen("cursor", "oauth", &[]), Ok(Way::Open));
    assert_eq!(chosen("cursor", "anonymous", &["--stdio"]), Ok(Way::Process));
    assert_eq!(chosen("claude-desktop", "anonymous", &[]), Ok(Way::Process));
    // its makers do not say that it can
    assert_eq!(chosen("trae", "anonymous", &[]), Ok(Way::Process));
    assert_eq!(chosen("trae", "anonymous", &["--http"]), Ok(Way::Open));
    assert_eq!(chosen("vscode", "key", &[]), Ok(Way::Input));
    assert_eq!(chosen("zed", "key", &[]), Ok(Way::Process));
    assert_eq!(chosen("zed", "key", &["--write-key"]), Ok(Way::Written));
    // a variable that nobody has set yet would make the first call fail
    assert_eq!(chosen("cursor", "key", &[]), Ok(Way::Process));
    let name = "MCP_KEY_TIME_CURSOR".to_owned();
    assert_eq!(chosen("cursor", "key", &["--http"]), Ok(Way::Variable(name.clone(), true)));
    let set = choose(find("cursor").unwrap(), &server("key", true), &args(&[]), |asked| asked == name);
    assert_eq!(set.ok(), Some(Way::Variable(name, false)));
}

#[test]
fn what_cannot_work_is_refused() {
    assert!(chosen("claude-desktop", "key", &["--http"]).is_err_and(|e| e.contains("cannot ask an address")));
    assert!(chosen("zed", "key", &["--http"]).is_err_and(|e| e.contains("--write-key")));
    let far = server("anonymous", false);
    assert_eq!(choose(find("cursor").unwrap(), &far, &args(&[]), |_| false).ok(), Some(Way::Process));
    assert!(choose(find("cursor").unwrap(), &far, &args(&["--http"]), |_| false).is_err());
    assert!(Line::try_parse_from(["x", "time", "--client", "q", "--write-key", "--project"]).is_err());
    assert!(Line::try_parse_from(["x", "time", "--client", "q", "--stdio", "--http"]).is_err());
    assert!(Line::try_parse_from(["x", "time"]).is_err());
}

#[test]
fn names_of_variables_are_such() {
    assert_eq!(variable("my-time.2", "lm-studio"), "MCP_KEY_MY_TIME_2_LM_STUDIO");
}
