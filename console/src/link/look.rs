//! What the full-screen console's sheets ask for, put together from the calls that the command line makes.

use super::health::Wanted;
use super::{Link, LinkError, findings, keeping};
use crate::tui::{Look, Scaled, Seen};

/// Histories as long as a large terminal is wide and high.
const HEALTH: Wanted = Wanted { probes: 200, turns: 30, lives: 10 };
/// Decisions that did or refused something.
const DECISIONS: u32 = 200;

/// Answers one question.
pub(super) async fn look(link: &Link, what: Look) -> Result<Seen, LinkError> {
    Ok(match what {
        Look::Overview => Seen::Overview(link.alerts().await?),
        Look::Health { name } => Seen::Health(Box::new(link.health(&name, HEALTH).await?)),
        Look::Scaling { name, load } => {
            let (scaling, explained, decisions) = tokio::try_join!(
                link.scaling(&name),
                link.explain_scaling(&name),
                link.scaling_history(&name, DECISIONS, true),
            )?;
            let load = if load { Some(link.scaling_load(&name).await?) } else { None };
            Seen::Scaling(Box::new(Scaled { scaling, explained, decisions, load }))
        }
        Look::Secrets => Seen::Secrets(Box::new(keeping::kept(link).await?)),
        Look::Access { since } => Seen::Access(Box::new(keeping::access(link, since).await)),
        Look::Findings { name, known } => Seen::Findings(Box::new(findings::found(link, &name, known).await?)),
    })
}
