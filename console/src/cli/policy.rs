//! `sigil policy`.

use std::io::Read as _;
use std::path::PathBuf;

use super::Ctx;
use super::fail::{DONE, Failure, Outcome};
use super::{args, output};

/// Show and set who may call a server, and which of its tools; no new release is made
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil policy get time\n  sigil policy set time --access key --deny 'delete_*' --rate 600/min\n  sigil policy set time --rename get_current_time=now\n  sigil policy set time --file policy.toml"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show it, as the TOML that set --file takes
    #[command(after_help = "Example:\n  sigil policy get time > policy.toml")]
    Get {
        /// The deployment
        name: String,
    },
    /// Change what is given, leave the rest; --file replaces all of it
    #[command(after_help = "Example:\n  sigil policy set time --access key --caller-rate 60/min")]
    Set(Box<Set>),
}

#[derive(Debug, clap::Args)]
struct Set {
    /// The deployment
    name: String,
    /// A whole policy; '-' reads stdin
    #[arg(long, value_name = "FILE", exclusive = false)]
    file: Option<PathBuf>,
    /// Who may call
    #[arg(long, value_parser = ["key", "oauth", "anonymous"])]
    access: Option<String>,
    /// Lists of tools need no key, calls do
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    open_discovery: Option<bool>,
    /// Only these tools, a pattern; may be repeated, '' stands for all
    #[arg(long = "allow", value_name = "TOOL")]
    allow: Vec<String>,
    /// Not these tools, a pattern; may be repeated, '' stands for none
    #[arg(long = "deny", value_name = "TOOL")]
    deny: Vec<String>,
    /// Show a tool by another name
    #[arg(long = "rename", value_name = "TOOL=NAME", value_parser = args::pair)]
    rename: Vec<(String, String)>,
    /// Show a tool with another description
    #[arg(long = "describe", value_name = "TOOL=TEXT", value_parser = args::pair)]
    describe: Vec<(String, String)>,
    /// Make it a member of a bundle (/mcp/@NAME); may be repeated, '' stands for none
    #[arg(long = "bundle", value_name = "NAME")]
    bundle: Vec<String>,
    /// What is done about tools that changed without a new release
    #[arg(long, value_parser = ["enforce", "warn", "off"])]
    pins: Option<String>,
    /// Most requests of all callers (600/min)
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// Most requests of each caller (60/min)
    #[arg(long, value_name = "RATE")]
    caller_rate: Option<String>,
    /// Most requests at once
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// Most calls of a tool (search=10/min)
    #[arg(long = "tool-rate", value_name = "TOOL=RATE", value_parser = args::pair)]
    tool_rate: Vec<(String, String)>,
}

impl Set {
    /// What is changed, as TOML.
    fn fragment(&self) -> toml::Table {
        let mut top = toml::Table::new();
        let mut tools = toml::Table::new();
        let text = |value: &Option<String>| value.clone().map(toml::Value::String);
        let list = |patterns: &[String]| {
            let all = patterns.iter().filter(|p| !p.is_empty()).cloned().map(toml::Value::String).collect();
            (!patterns.is_empty()).then_some(toml::Value::Array(all))
        };
        let map = |pairs: &[(String, String)]| {
            let all = pairs.iter().map(|(k, v)| (k.clone(), toml::Value::String(v.clone()))).collect();
            (!pairs.is_empty()).then_some(toml::Value::Table(all))
        };
        for (key, value) in [
            ("access", text(&self.access)),
            ("open_discovery", self.open_discovery.map(toml::Value::Boolean)),
            ("rate", text(&self.rate)),
            ("caller_rate", text(&self.caller_rate)),
            ("bundles", list(&self.bundle)),
            ("pins", text(&self.pins)),
            ("concurrency", self.concurrency.map(|n| toml::Value::Integer(n.into()))),
        ] {
            top.extend(value.map(|value| (key.to_owned(), value)));
        }
        for (key, value) in [
            ("allow", list(&self.allow)),
            ("deny", list(&self.deny)),
            ("rename", map(&self.rename)),
            ("describe", map(&self.describe)),
            ("rate", map(&self.tool_rate)),
        ] {
            tools.extend(value.map(|value| (key.to_owned(), value)));
        }
        if !tools.is_empty() {
            top.insert("tools".into(), toml::Value::Table(tools));
        }
        top
    }
}

/// A file's text; `-` is standard input.
pub(super) fn read(path: &std::path::Path) -> Result<String, Failure> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|e| Failure::io("standard input", &e))?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(|e| Failure::io(path.display().to_string(), &e))
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let (name, link, shown) = match args.verb {
        Verb::Get { name } => {
            let link = ctx.link().await?;
            let shown = link.policy(&name).await;
            (name, link, shown)
        }
        Verb::Set(set) => {
            let fragment = set.fragment();
            let (text, merge) = match (&set.file, fragment.is_empty()) {
                (Some(file), true) => (read(file)?, false),
                (None, false) => (fragment.to_string(), true),
                (Some(_), false) => {
                    return Err(Failure::usage("--file is a whole policy", "put the other flags into the file"));
                }
                (None, true) => {
                    return Err(Failure::usage("nothing is to be changed", "see 'sigil policy set --help'"));
                }
            };
            let link = ctx.link().await?;
            let shown = link.set_policy(&set.name, text, merge).await;
            (set.name, link, shown)
        }
    };
    let policy = match shown {
        Ok(policy) => policy,
        Err(error) => return Err(ctx.named(&link, &name, error).await),
    };
    let value = toml::from_str::<serde_json::Value>(&policy.text).unwrap_or_default();
    let data = serde_json::json!({ "name": policy.name, "access": policy.access, "policy": value });
    ctx.emit(&data, || policy.text.clone())?;
    if !ctx.format.is_data() {
        output::note(&format!("{}: access {}", policy.name, policy.access));
    }
    Ok(DONE)
}
