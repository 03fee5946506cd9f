//! `sigil deploy`.

pub(crate) mod registry;

pub(super) use registry::line;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sigil_core::model::Name;

use super::args::{WaitArgs, env_pair, pair, secret_pair};
use super::fail::{DONE, Failure, Outcome, USAGE};
use super::folder::{self, Purpose};
use super::source::{self, Given};
use super::{Ctx, init, output, text, wait};
use crate::link::{Change, Deploy, GivenManifest, Link, Operation, SourceRef};

/// Source to running, waiting until it is ready; the same name makes a new release
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil deploy pypi:mcp-server-time --name time\n  sigil deploy ./server --env LOG=debug --secret API_KEY\n  sigil deploy npm:@modelcontextprotocol/server-filesystem --volume data:/data -- /data\n  sigil deploy git+https://example.org/org/repo@v1.2#servers/time\n  sigil deploy registry:io.example/weather@1.0.0 --input units=metric"
)]
pub struct Args {
    /// ./dir, git+https://host/org/repo[@ref][#subdir], npm:name[@version], pypi:name[==version],
    /// mcpb:https://host/file#sha256=HASH, image:ref or registry:name[@version]
    source: String,
    /// Name of the deployment; without it one is derived
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// A manifest instead of the source's own
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// micro, router, standard, processor or compute
    #[arg(long, value_name = "T", default_value = "", hide_default_value = true)]
    tier: String,
    /// How the server speaks
    #[arg(long, value_parser = ["http", "sse", "stdio"])]
    transport: Option<String>,
    /// Port that the server listens on
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Environment variable
    #[arg(long, value_name = "K=V", value_parser = env_pair)]
    env: Vec<(String, String)>,
    /// What a package of the registry asks for; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    input: Vec<(String, String)>,
    /// Which of a registry package's parts
    #[arg(long, value_name = "KIND", value_parser = ["npm", "pypi", "mcpb", "oci"])]
    part: Option<String>,
    /// Secret, as an environment variable
    #[arg(long, value_name = "NAME[=ENV]", value_parser = secret_pair)]
    secret: Vec<(String, String)>,
    /// Configuration value, with a dotted key
    #[arg(long, value_name = "K=V", value_parser = pair)]
    config: Vec<(String, String)>,
    /// Volume
    #[arg(long, value_name = "V:/path[:ro]", value_parser = volume)]
    volume: Vec<String>,
    /// Host that the server may reach; it reaches no other
    #[arg(long, value_name = "HOST[:PORT]")]
    egress: Vec<String>,
    /// Who may call
    #[arg(long, value_parser = ["key", "oauth", "anonymous"])]
    access: Option<String>,
    /// Scaling preset
    #[arg(long, value_name = "PRESET", default_value = "", hide_default_value = true)]
    scaling: String,
    /// Team of a new deployment; your only one when left out, else default
    #[arg(long, value_name = "TEAM", default_value = "", hide_default_value = true)]
    team: String,
    /// How many replicas
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// A new release even when nothing changed
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: WaitArgs,
    /// Build in spite of a finding
    #[arg(long, value_name = "FINDING", requires = "reason", requires = "until")]
    waive: Vec<String>,
    /// Why it is waived
    #[arg(long, value_name = "TEXT", requires = "waive")]
    reason: Option<String>,
    /// Until when it is waived
    #[arg(long, value_name = "DATE", requires = "waive")]
    until: Option<String>,
    /// Arguments of the server
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// `V:/path[:ro]`
fn volume(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' is not V:/path[:ro]");
    let (name, rest) = text.split_once(':').ok_or_else(wrong)?;
    let path = match rest.split_once(':') {
        Some((path, "ro")) => path,
        Some(_) => return Err(wrong()),
        None => rest,
    };
    if name.is_empty() || !path.starts_with('/') {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

/// Largest manifest, bytes.
const MANIFEST_MAX: u64 = 1 << 20;

/// Reads `--manifest`.
pub fn read_manifest(file: Option<&Path>) -> Result<GivenManifest, Failure> {
    let Some(file) = file else { return Ok(GivenManifest::default()) };
    let shown = file.display();
    let bad = |why: String| Failure::new(USAGE, "BAD_MANIFEST", format!("manifest {shown}: {why}"), "check --manifest");
    let length = std::fs::metadata(file).map_err(|e| bad(e.to_string()))?.len();
    if length > MANIFEST_MAX {
        return Err(bad("it is larger than 1 MiB".to_owned()));
    }
    let text = std::fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    if text.trim().is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(GivenManifest { name, text })
}

/// Later ones win, as with every flag.
fn map(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    if let Some(name) = &args.name {
        let hint = "a name is a DNS label: a-z, 0-9 and '-', at most 40 characters";
        name.parse::<Name>().map_err(|e| Failure::new(USAGE, "BAD_NAME", e.to_string(), hint))?;
    }
    let manifest = read_manifest(args.manifest.as_deref())?;
    let package = args.source.strip_prefix(registry::PREFIX).map(str::to_owned);
    if package.is_none() && (!args.input.is_empty() || args.part.is_some()) {
        let hint = "--env, --config and arguments after -- are for other sources";
        return Err(Failure::usage("--input and --part are for packages of the registry", hint));
    }
    let given = match &package {
        Some(_) => None,
        None => Some(source::parse(&args.source)?),
    };
    let waivers = args
        .waive
        .iter()
        .map(|w| (w.clone(), args.reason.clone().unwrap_or_default(), args.until.clone().unwrap_or_default()))
        .collect();
    let mut deploy = Deploy {
        name: args.name.clone().unwrap_or_default(),
        source: SourceRef::default(),
        manifest,
        tier: args.tier,
        transport: args.transport.unwrap_or_default(),
        port: args.port.unwrap_or(0),
        env: map(args.env),
        secrets: map(args.secret),
        config: map(args.config),
        volumes: args.volume,
        egress: args.egress,
        access: args.access.unwrap_or_default(),
        scaling: args.scaling,
        replicas: args.replicas,
        force: args.force,
        args: args.args,
        waivers,
        team: args.team,
        timeout_ms: u64::try_from(args.wait.timeout.as_millis()).unwrap_or(u64::MAX),
        package: String::new(),
        temporary_seconds: 0,
    };
    let link = match given {
        Some(Given::Folder { text, root }) => folder_source(ctx, &mut deploy, text, root).await?,
        Some(Given::Remote(text)) => {
            deploy.source.text = text;
            ctx.link().await?
        }
        None => {
            let link = ctx.link().await?;
            let said = registry::Said { inputs: args.input, part: args.part.unwrap_or_default() };
            registry::fill(ctx, &link, &package.unwrap_or_default(), said, &mut deploy).await?;
            link
        }
    };
    let said = !deploy.name.is_empty();
    let operation = link.start(Change::Deploy(Box::new(deploy))).await?;
    if !said && !operation.deployment.is_empty() && !ctx.format.is_data() {
        output::note(&format!("name: {} (derived; --name chooses another)", text::one_line(&operation.deployment)));
    }
    if args.wait.no_wait {
        let id = &operation.id;
        ctx.emit(&operation, || format!("operation {id} started\nfollow it with: sigil ops {id} -f\n"))?;
        return Ok(DONE);
    }
    let operation = wait::finish(ctx, &link, &operation, Some(args.wait.timeout)).await?;
    show(ctx, &link, &operation).await
}

/// Everything that a folder's deploy can get wrong is said before the agent hears of it.
pub(super) async fn folder_source(
    ctx: &Ctx,
    deploy: &mut Deploy,
    text: String,
    root: PathBuf,
) -> Result<Link, Failure> {
    let folder = folder::walk(&root, Purpose::Build)?;
    let tree = folder.tree()?;
    let beside = &deploy.manifest;
    let given = (!beside.text.is_empty()).then_some((beside.name.as_str(), beside.text.as_str()));
    let recipe = init::recognise(&tree, given)?;
    if deploy.name.is_empty() {
        // the agent never sees the folder's own name
        let own = recipe.manifest.name.as_deref().and_then(Name::derive).map(|n| n.as_str().to_owned());
        let (name, from) = match own {
            Some(name) => (name, "its manifest's name"),
            None => {
                let none = || Failure::new(USAGE, "BAD_NAME", "no name can be derived from the folder", "give --name");
                (init::folder_name(&root).ok_or_else(none)?, "the folder's name")
            }
        };
        if !ctx.format.is_data() {
            output::note(&format!("name: {name} (from {from}; --name chooses another)"));
        }
        deploy.name = name;
    }
    let link = ctx.link().await?;
    let upload = folder.upload(ctx, &link, &text).await?;
    deploy.source = SourceRef { text, upload: Some(upload.id) };
    Ok(link)
}

async fn show(ctx: &Ctx, link: &Link, operation: &Operation) -> Outcome {
    let result = operation.result.clone().unwrap_or_default();
    let word = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = Some(word("name")).filter(|n| !n.is_empty()).unwrap_or_else(|| operation.deployment.clone());
    let release = result.get("release").and_then(Value::as_u64).unwrap_or(u64::from(operation.release));
    let unchanged = result.get("unchanged").and_then(Value::as_bool).unwrap_or(false);
    let mut endpoint = word("endpoint");
    if endpoint.is_empty() {
        // an agent that does not know its own address at that moment still does a moment later
        endpoint = link.get(&name).await.map(|d| d.deployment.endpoint).unwrap_or_default();
    }
    let data = json!({
        "name": name, "release": release, "endpoint": endpoint, "unchanged": unchanged, "operation": operation.id,
    });
    ctx.emit(&data, || {
        let name = text::one_line(&name);
        let first = if unchanged {
            format!("release {release} already serves this")
        } else {
            format!("{name} is ready: release {release}")
        };
        format!(
            "{first}\nendpoint    {}\nnext        sigil tools {name}\n            sigil call {name} TOOL --arg k=v\n            sigil logs -f {name}\n",
            text::one_line(&endpoint)
        )
    })?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_a_name_and_an_absolute_path() {
        for text in ["data:/data", "data:/data:ro", "/srv/x:/data"] {
            assert!(volume(text).is_ok(), "{text}");
        }
        for text in ["data", ":/data", "data:relative", "data:/x:rw", "data:/x:ro:y"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }
}
