//! `install`, `uninstall` and `clients`: what they do to the files of AI clients.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use serde_json::{Value, json};

use super::Home;
use super::fake::deployment;

const CURSOR: &str = "{\n  // mine\n  \"mcpServers\": {\n    \"other\": { \"command\": \"npx\", \"env\": { \"API_KEY\": \"sk-shown-to-nobody\" } } // theirs\n  }\n}\n";

fn home(access: &str) -> Home {
    let home = Home::with_agent();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready"), deployment("web", "ready")];
        s.access = access.into();
    });
    home
}

fn text(home: &Home, path: &str) -> String {
    std::fs::read_to_string(home.path(path)).unwrap()
}

#[tokio::test]
async fn an_entry_comes_and_goes_and_nothing_else_changes() {
    let home = home("anonymous");
    home.put(".cursor/mcp.json", CURSOR);
    std::fs::set_permissions(home.path(".cursor/mcp.json"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let ran = home.run(&["install", "time", "--client", "cursor", "--yes"]).await.exits(0);
    let after = text(&home, ".cursor/mcp.json");
    let entry = ",\n    \"time\": {\n      \"url\": \"http://127.0.0.1:7450/mcp/time\"\n    }\n  }";
    assert_eq!(
        after,
        CURSOR.replace(" // theirs\n  }", &format!(" // theirs{}", &entry[1..])).replace("} // theirs", "}, // theirs")
    );
    // the change is shown before, without what is secret in it
    assert!(ran.out.contains("+    \"time\": {") && !ran.out.contains("sk-shown"), "{}", ran.out);
    assert!(
        ran.out.contains("Cursor: time is in ~/.cursor/mcp.json") && ran.out.contains("Settings > MCP"),
        "{}",
        ran.out
    );
    let about = std::fs::metadata(home.path(".cursor/mcp.json")).unwrap();
    assert_eq!(about.mode() & 0o777, 0o640);
    // again: nothing to do, and nothing is asked
    let again = home.run(&["install", "time", "--client", "cursor"]).await.exits(0);
    assert!(again.out.contains("has time already"), "{}", again.out);
    assert!(home.fake.with(|s| s.keys.is_empty()), "who may call without a key needs none");
    let listed = home.run(&["clients", "-o", "json"]).await.exits(0).json();
    let cursor = listed.as_array().unwrap().iter().find(|c| c["client"] == "cursor").unwrap().clone();
    assert_eq!((&cursor["present"], &cursor["entries"][0]["name"]), (&json!(true), &json!("time")));
    let table = home.run(&["clients"]).await.exits(0).out;
    assert!(table.contains("cursor") && table.contains("~/.cursor/mcp.json") && !table.contains("goose"), "{table}");
    let ran = home.run(&["uninstall", "time", "--yes"]).await.exits(0);
    assert!(ran.out.contains("-    \"time\": {"), "{}", ran.out);
    assert_eq!(text(&home, ".cursor/mcp.json"), CURSOR);
    home.run(&["uninstall", "time", "--yes"]).await.exits(3);
    // what was there each time is kept, for its owner only
    let kept: Vec<_> = std::fs::read_dir(home.path("state/sigil/client-backups")).unwrap().collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|k| k.as_ref().unwrap().metadata().unwrap().mode() & 0o077 == 0));
}

#[tokio::test]
async fn a_file_that_was_not_there_is_gone_again() {
    let home = home("anonymous");
    let names = ["time", "web"];
    for client in ["codex", "goose", "gemini", "cline", "continue", "opencode"] {
        let before = tree(&home);
        home.run(&["install", names[0], names[1], "--client", client, "--yes"]).await.exits(0);
        assert_ne!(tree(&home), before, "{client}");
        // in the order in which they came, and so that the last one empties it
        home.run(&["uninstall", names[0], "--yes"]).await.exits(0);
        home.run(&["uninstall", names[1], "--yes"]).await.exits(0);
        assert_eq!(tree(&home), before, "{client}");
    }
}

/// Everything in the home but sigil's own.
fn tree(home: &Home) -> Vec<String> {
    fn walk(dir: &std::path::Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
            out.push(entry.path().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), out);
            }
        }
    }
    let mut out = Vec::new();
    walk(home.dir.path(), &mut out);
    out.retain(|path| !path.contains("/state"));
    out.sort();
    out
}

#[tokio::test]
async fn keys_are_made_once_and_revoked() {
    let home = home("key");
    home.put("config/Code/User/mcp.json", "{}");
    let ran = home.run(&["install", "time", "--client", "vscode", "--yes"]).await.exits(0);
    assert!(ran.out.contains("shown this once: sigil_text-of-k1"), "{}", ran.out);
    let value: Value = serde_json::from_str(&text(&home, "config/Code/User/mcp.json")).unwrap();
    assert_eq!(value["servers"]["time"]["headers"]["Authorization"], "Bearer ${input:sigil-time-key}");
    assert_eq!(value["inputs"][0]["id"], "sigil-time-key");
    assert_eq!(value["inputs"][0]["password"], true);
    let key = home.fake.with(|s| s.keys[0].clone());
    assert_eq!((key.role.as_str(), key.deployments.as_slice()), ("caller", &["time".to_owned()][..]));
    assert!(key.label.starts_with("client-vscode-"), "{}", key.label);
    home.run(&["install", "time", "--client", "vscode", "--yes"]).await.exits(0);
    assert_eq!(home.fake.with(|s| s.keys.len()), 1, "not twice");
    // another one when asked for, and when the first was revoked; the one before it ends
    home.run(&["install", "time", "--client", "vscode", "--yes", "--new-key"]).await.exits(0);
    assert_eq!(home.fake.with(|s| s.revoked.clone()), ["k1"]);
    // as a process: what is not needed any more goes, the key too
    home.run(&["install", "time", "--client", "vscode", "--yes", "--stdio"]).await.exits(0);
    let value: Value = serde_json::from_str(&text(&home, "config/Code/User/mcp.json")).unwrap();
    assert_eq!(value["servers"]["time"]["args"], json!(["run", "time"]));
    assert!(value["servers"]["time"]["command"].as_str().unwrap().starts_with('/'));
    assert_eq!(value.get("inputs"), None);
    assert_eq!(home.fake.with(|s| (s.keys.len(), s.revoked.len())), (0, 2));
    home.run(&["install", "time", "--client", "vscode", "--yes"]).await.exits(0);
    home.run(&["uninstall", "time", "--yes"]).await.exits(0);
    assert_eq!(text(&home, "config/Code/User/mcp.json"), "{}");
    assert_eq!(home.fake.with(|s| (s.keys.len(), s.revoked.len())), (0, 3));
}

#[tokio::test]
async fn secrets_are_referenced_or_written_where_only_the_owner_reads() {
    let home = home("key");
    // nothing set: the process form, which works at once
    let ran = home.run(&["install", "time", "--client", "codex", "--yes", "-o", "json"]).await.exits(0).json();
    assert_eq!((&ran[0]["form"], &ran[0]["key"]), (&json!("stdio"), &Value::Null));
    let ran = home.run(&["install", "time", "--client", "codex", "--yes", "--http"]).await.exits(0);
    assert!(ran.out.contains("export MCP_KEY_TIME_CODEX=sigil_text-of-k1"), "{}", ran.out);
    let codex = text(&home, ".codex/config.toml");
    let entry =
        "[mcp_servers.time]\nurl = \"http://127.0.0.1:7450/mcp/time\"\nbearer_token_env_var = \"MCP_KEY_TIME_CODEX\"\n";
    assert_eq!(codex, entry);
    let env = [("MCP_KEY_TIME_GEMINI", "mine")];
    home.run_with(&["install", "time", "--client", "gemini", "--yes"], &env).await.exits(0);
    assert!(text(&home, ".gemini/settings.json").contains("\"Authorization\": \"Bearer ${MCP_KEY_TIME_GEMINI}\""));
    assert_eq!(home.fake.with(|s| s.keys.len()), 1, "the caller's own is used");
    // Zed cannot reference one
    let refused = home.run(&["install", "time", "--client", "zed", "--yes", "--http"]).await.exits(2);
    assert!(refused.err.contains("--write-key"), "{}", refused.err);
    home.put("config/zed/settings.json", "{ \"theme\": \"One\" }\n");
    let open = home.run(&["install", "time", "--client", "zed", "--yes", "--write-key"]).await.exits(1);
    assert!(open.err.contains("chmod 600"), "{}", open.err);
    std::fs::set_permissions(home.path("config/zed/settings.json"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let ran = home.run(&["install", "time", "--client", "zed", "--yes", "--write-key"]).await.exits(0);
    assert!(!ran.out.contains("sigil_text"), "{}", ran.out);
    let zed = text(&home, "config/zed/settings.json");
    assert!(zed.contains("Bearer sigil_text-of-k2"), "{zed}");
    assert_eq!(std::fs::metadata(home.path("config/zed/settings.json")).unwrap().mode() & 0o777, 0o600);
    home.run(&["install", "time", "--client", "zed", "--yes", "--write-key"]).await.exits(0);
    assert_eq!(text(&home, "config/zed/settings.json"), zed, "the key stays");
    home.run(&["uninstall", "time", "--client", "zed", "--yes"]).await.exits(0);
    assert_eq!(text(&home, "config/zed/settings.json"), "{ \"theme\": \"One\" }\n");
    assert_eq!(home.fake.with(|s| s.revoked.clone()), ["k2"]);
    assert!(text(&home, ".codex/config.toml").contains("time"));
}

#[tokio::test]
async fn a_key_that_cannot_be_revoked_is_told() {
    let home = home("key");
    let host = format!("unix://{}", home.path("proxy.sock").display());
    let _proxy = home.proxy();
    home.run(&["--host", &host, "install", "time", "--client", "vscode", "--yes"]).await.exits(0);
    std::fs::remove_file(home.path("proxy.sock")).unwrap();
    let ran = home.run(&["uninstall", "time", "--yes"]).await.exits(5);
    assert!(ran.err.contains("the entries are out") && ran.err.contains("sigil key revoke k1"), "{}", ran.err);
    assert!(!home.path("config/Code/User/mcp.json").exists());
}

#[tokio::test]
async fn links_are_followed_and_the_agent_is_named() {
    let home = home("anonymous");
    home.put("dotfiles/claude.json", "{\n  \"numStartups\": 3\n}");
    symlink("dotfiles/claude.json", home.path(".claude.json")).unwrap();
    let host = format!("unix://{}", home.socket().display());
    home.run(&["context", "add", "lab", &host]).await.exits(0);
    let args = [
        "--host",
        "lab",
        "install",
        "time",
        "--client",
        "claude",
        "--client",
        "claude-code",
        "--stdio",
        "--name",
        "clock",
        "--yes",
    ];
    home.run(&args).await.exits(0);
    assert!(home.path(".claude.json").is_symlink());
    let value: Value = serde_json::from_str(&text(&home, "dotfiles/claude.json")).unwrap();
    assert_eq!(value["mcpServers"]["clock"]["args"], json!(["run", "time", "--host", "lab"]));
    assert_eq!(value["mcpServers"]["clock"]["type"], "stdio");
    assert!(text(&home, "config/Claude/claude_desktop_config.json").contains("\"clock\""));
    home.run(&["uninstall", "clock", "--yes"]).await.exits(0);
    assert_eq!(text(&home, "dotfiles/claude.json"), "{\n  \"numStartups\": 3\n}");
    assert!(!home.path("config/Claude").exists());
}

#[tokio::test]
async fn projects_have_files_of_their_own() {
    let home = home("anonymous");
    home.put("work/src/x", "");
    let clients = "claude-code,vscode,cursor,codex,copilot-cli,zed,continue,junie,kiro,amp,factory";
    let ran = home.run(&["install", "time", "--client", clients, "--project", "work", "--yes"]).await.exits(0);
    assert!(ran.err.contains("GitHub Copilot CLI reads the same file as Claude Code"), "{}", ran.err);
    for file in [
        ".mcp.json",
        ".vscode/mcp.json",
        ".cursor/mcp.json",
        ".codex/config.toml",
        ".zed/settings.json",
        ".continue/mcpServers/sigil.json",
    ] {
        assert!(text(&home, &format!("work/{file}")).contains("time"), "{file}");
    }
    assert!(
        home.run(&["install", "time", "--client", "windsurf", "--project", "--yes"])
            .await
            .exits(2)
            .err
            .contains("has no file in projects")
    );
    home.run(&["uninstall", "time", "--project", "work", "--yes"]).await.exits(0);
    assert_eq!(std::fs::read_dir(home.path("work")).unwrap().count(), 1);
}

#[tokio::test]
async fn what_cannot_be_understood_is_left_alone() {
    let home = home("anonymous");
    for (path, client, body) in [
        (".cursor/mcp.json", "cursor", "{ \"mcpServers\": { \"a\": } }"),
        (".codex/config.toml", "codex", "a = 1\na = 2\n"),
        ("config/goose/config.yaml", "goose", "extensions: [1, 2]\n"),
        (".gemini/settings.json", "gemini", "{ \"mcpServers\": \"none\" }"),
    ] {
        home.put(path, body);
        let ran = home.run(&["install", "time", "--client", client, "--yes"]).await.exits(1);
        assert!(ran.err.contains(path) && ran.err.contains("nothing was changed"), "{}", ran.err);
        assert_eq!(text(&home, path), body);
    }
    let listed = home.run(&["clients"]).await.exits(0).out;
    assert!(listed.contains("cursor"), "{listed}");
    // another's entry of that name
    home.put(".kiro/settings/mcp.json", "{ \"mcpServers\": { \"time\": { \"command\": \"uvx\" } } }");
    let ran = home.run(&["install", "time", "--client", "kiro", "--yes"]).await.exits(1);
    assert!(ran.err.contains("another server called 'time'") && ran.err.contains("--name"), "{}", ran.err);
    home.run(&["install", "time", "--client", "kiro", "--name", "clock", "--yes"]).await.exits(0);
    // nothing is asked where nobody can answer, and nothing written before
    let before = text(&home, ".kiro/settings/mcp.json");
    home.run(&["install", "web", "--client", "kiro"]).await.exits(2);
    home.run(&["install", "web", "--client", "kiro", "--dry-run"]).await.exits(0);
    assert_eq!(text(&home, ".kiro/settings/mcp.json"), before);
    assert!(home.run(&["install", "time", "--client", "curser"]).await.exits(3).err.contains("'cursor'"));
    assert!(home.run(&["install", "tiem", "--client", "cursor"]).await.exits(3).err.contains("'time'"));
    let pasted = home.run(&["install", "time", "--client", "jetbrains"]).await.exits(0).out;
    assert!(pasted.contains("\"mcpServers\"") && pasted.contains("As JSON"), "{pasted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_lose_none() {
    let home = home("anonymous");
    let names: Vec<String> = (0..12).map(|n| format!("s{n}")).collect();
    home.fake.with(|s| s.deployments = names.iter().map(|name| deployment(name, "ready")).collect());
    home.put(".cursor/mcp.json", CURSOR);
    let runs: Vec<_> = names
        .iter()
        .map(|name| home.command(&["install", name, "--client", "cursor,codex", "--yes"]).spawn().unwrap())
        .collect();
    for run in runs {
        let output = run.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (cursor, codex) = (text(&home, ".cursor/mcp.json"), text(&home, ".codex/config.toml"));
    for name in &names {
        assert!(cursor.contains(&format!("\"{name}\": {{")), "{name}: {cursor}");
        assert!(codex.contains(&format!("[mcp_servers.{name}]\n")), "{name}: {codex}");
    }
    let runs: Vec<_> = names.iter().map(|name| home.command(&["uninstall", name, "--yes"]).spawn().unwrap()).collect();
    for run in runs {
        assert!(run.wait_with_output().await.unwrap().status.success());
    }
    assert_eq!(text(&home, ".cursor/mcp.json"), CURSOR);
    assert!(!home.path(".codex").exists());
}
