//! `sigil sbom`.

use serde::Deserialize;
use serde_json::Value;

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Format, Table, cell};
use super::{Ctx, text};

/// Show what is in a deployment's image, and where it came from
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Packages are those that the source locks and those that the image has installed. `-o json` is the whole bill of materials: CycloneDX 1.5, for scanners of vulnerabilities and licences. --provenance is an in-toto statement with SLSA provenance: source, commit, digests, builder.\n\nExample:\n  sigil sbom time\n  sigil sbom time -o json > time.cdx.json\n  sigil sbom time --release 2\n  sigil sbom time --provenance"
)]
pub struct Args {
    /// The deployment
    name: String,
    /// Another release than the one that serves
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    release: u32,
    /// Where the image came from, as JSON
    #[arg(long)]
    provenance: bool,
}

#[derive(Deserialize)]
struct Bill {
    #[serde(default)]
    components: Vec<Component>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    component: Option<Component>,
}

#[derive(Deserialize)]
struct Component {
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    purl: String,
    #[serde(default)]
    licenses: Vec<Value>,
    #[serde(default)]
    properties: Vec<Property>,
}

#[derive(Deserialize)]
struct Property {
    name: String,
    value: String,
}

impl Component {
    fn property(&self, name: &str) -> String {
        let found = self.properties.iter().filter(|p| p.name == name).map(|p| p.value.as_str());
        found.collect::<Vec<_>>().join(", ")
    }

    fn licence(&self) -> String {
        let one = |l: &Value| {
            let text = l["expression"].as_str().or(l["license"]["id"].as_str()).or(l["license"]["name"].as_str());
            text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
        };
        self.licenses.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let (bill, provenance) = match link.bill(&args.name, args.release).await {
        Ok(both) => both,
        Err(error) => return Err(ctx.named(&link, &args.name, error).await),
    };
    let whole = if args.provenance { provenance } else { bill };
    if args.provenance && !ctx.format.is_data() || ctx.format == Format::Json {
        // as it was written, byte for byte: it may be signed
        output::write(whole.as_bytes())?;
        output::write(b"\n")?;
        return Ok(DONE);
    }
    let unread = |e: serde_json::Error| {
        Failure::new(
            super::fail::FAILED,
            "BAD_ANSWER",
            format!("the agent's answer cannot be read: {e}"),
            "use -o json",
        )
    };
    if ctx.format.is_data() {
        output::data(ctx.format, &serde_json::from_str::<Value>(&whole).map_err(unread)?)?;
        return Ok(DONE);
    }
    let bill: Bill = serde_json::from_str(&whole).map_err(unread)?;
    let mut table = Table::new(&["PACKAGE", "VERSION", "KIND", "LICENCE", "FOUND"], "LICENCE");
    for c in &bill.components {
        let kind = c.purl.strip_prefix("pkg:").and_then(|rest| rest.split('/').next()).unwrap_or_default();
        table.row(vec![
            cell(text::one_line(&c.name)),
            cell(text::one_line(&c.version)),
            cell(text::one_line(kind)),
            cell(text::one_line(&c.licence())),
            cell(text::one_line(&c.property("sigil:found"))),
        ]);
    }
    output::write(table.text(ctx.width(), ctx.term.colour).as_bytes())?;
    let of = bill.metadata.and_then(|m| m.component);
    let notes = of.map(|c| c.property("sigil:note")).unwrap_or_default();
    let notes = if notes.is_empty() { String::new() } else { format!("; {}", text::one_line(&notes)) };
    output::note(&format!("{} packages{notes}", bill.components.len()));
    Ok(DONE)
}
