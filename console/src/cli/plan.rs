//! `sigil plan`.

use serde_json::json;

use super::fail::{DONE, Outcome};
use super::{Ctx, text};

/// Show what the agent would do now to reach the desired state
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil plan time")]
pub struct Args {
    /// The deployment
    name: String,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let detail = match link.get(&args.name).await {
        Ok(detail) => detail,
        Err(e) => return Err(ctx.named(&link, &args.name, e).await),
    };
    let name = &detail.deployment.name;
    ctx.emit(&json!({ "name": name, "generation": detail.generation, "plan": detail.plan }), || {
        if detail.plan.is_empty() {
            return format!("{name} is as it should be (generation {})\n", detail.generation);
        }
        detail.plan.iter().map(|line| format!("{}\n", text::one_line(line))).collect()
    })?;
    Ok(DONE)
}
