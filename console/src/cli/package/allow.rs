//! `sigil package allow-list`: what managed settings of GitHub Copilot (`managed-settings.json`) let its clients use.

use serde_json::{Value as Json, json};
use url::Url;

use crate::cli::fail::{Failure, NOT_FOUND, USAGE};
use crate::cli::{Ctx, output, text};
use crate::link::Link;

/// What is to be let through.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Deployments; all when left out
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// What clients call the gateway by, where it is not as the agent says
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// As processes ('sigil run NAME') that clients start, too
    #[arg(long)]
    stdio: bool,
}

pub async fn run(ctx: &Ctx, link: &Link, args: Args) -> Result<(), Failure> {
    let base = args.url.as_deref().map(base).transpose()?;
    let mut all = link.deployments().await?;
    if let Some(missing) = args.names.iter().find(|name| all.iter().all(|d| d.name != **name)) {
        let what = format!("there is no deployment '{}'", text::one_line(missing));
        return Err(Failure::new(NOT_FOUND, "NOT_FOUND", what, "`sigil ls` lists them"));
    }
    all.retain(|d| args.names.is_empty() || args.names.contains(&d.name));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let named = all.iter().map(|d| (d.name.as_str(), d.endpoint.as_str()));
    let list = settings(named, base.as_ref(), args.stdio);
    if list["allowedMcpServers"].as_array().is_none_or(Vec::is_empty) {
        output::note("nothing is allowed by this list: Copilot's clients refuse every server but their own");
    }
    let near = all.iter().filter(|d| base.is_none() && is_loopback(&d.endpoint));
    if near.count() > 0 {
        output::note("addresses of the agent's own machine are in it: --url says what others call the gateway by");
    }
    ctx.emit(&list, || format!("{}\n", serde_json::to_string_pretty(&list).unwrap_or_default()))
}

fn base(text: &str) -> Result<Url, Failure> {
    let bad = || {
        let what = format!("'{text}' is no address of a gateway");
        Failure::new(USAGE, "BAD_URL", what, "such as https://mcp.example.org")
    };
    let url = Url::parse(text).map_err(|_| bad())?;
    let plain = url.username().is_empty() && url.query().is_none() && url.fragment().is_none();
    (matches!(url.scheme(), "http" | "https") && url.has_host() && plain).then_some(url).ok_or_else(bad)
}

fn is_loopback(endpoint: &str) -> bool {
    let url = Url::parse(endpoint).ok();
    match url.as_ref().and_then(Url::host) {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// The part of the settings that lists servers. An entry matches one server: no patterns are made.
fn settings<'a>(all: impl Iterator<Item = (&'a str, &'a str)>, base: Option<&Url>, stdio: bool) -> Json {
    let mut allowed = Vec::new();
    for (name, endpoint) in all {
        let own = Url::parse(endpoint).ok();
        let address = match (base, own) {
            (Some(base), Some(own)) => {
                let mut address = base.clone();
                address.set_path(&format!("{}{}", base.path().trim_end_matches('/'), own.path()));
                Some(address)
            }
            (_, own) => own,
        };
        if let Some(address) = address {
            allowed.push(json!({ "serverUrl": address.as_str() }));
        }
        if stdio {
            allowed.push(json!({ "serverCommand": ["sigil", "run", name] }));
        }
    }
    json!({ "allowedMcpServers": allowed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_one_server_by_what_clients_call_it() {
        let all = [("clock", "http://127.0.0.1:7450/mcp/clock"), ("new", "")];
        assert_eq!(
            settings(all.into_iter(), None, false),
            json!({"allowedMcpServers": [{"serverUrl": "http://127.0.0.1:7450/mcp/clock"}]})
        );
        let base = base("https://mcp.example.org/tools/").unwrap();
        assert_eq!(
            settings(all.into_iter().take(1), Some(&base), true),
            json!({"allowedMcpServers": [
                {"serverUrl": "https://mcp.example.org/tools/mcp/clock"},
                {"serverCommand": ["sigil", "run", "clock"]},
            ]})
        );
        for wrong in ["mcp.example.org", "ftp://x", "https://a@b", "https://x/?y"] {
            assert!(super::base(wrong).is_err(), "{wrong}");
        }
        assert!(
            is_loopback("http://[::1]:1/") && is_loopback("http://localhost/x") && !is_loopback("https://x.example/")
        );
    }
}
