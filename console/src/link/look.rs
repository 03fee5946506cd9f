//! What the full-screen console's sheets ask for, put together from the calls that the command line makes.

use super::health::Wanted;
use super::{Link, LinkError, findings, keeping, tools};
use crate::tui::{Look, Released, Scaled, Seen};

/// Histories as long as a large terminal is wide and high.
const HEALTH: Wanted = Wanted { probes: 200, turns: 30, lives: 10 };
/// Decisions that did or refused something.
const DECISIONS: u32 = 200;
/// Newest operations that are shown.
const OPERATIONS: u32 = 100;
/// Time after a letter in which another one may come.
const TYPING: std::time::Duration = std::time::Duration::from_millis(120);

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
        Look::Tools { name } => Seen::Tools(Box::new(tools::toolbox(link, &name).await?)),
        Look::Registry { query } => {
            // Whoever still types has not asked yet.
            tokio::time::sleep(TYPING).await;
            Seen::Registry(Box::new(link.search(*query).await?))
        }
        Look::Package { name, version } => Seen::Package(Box::new(link.package(&name, &version).await?)),
        Look::Builds => Seen::Builds(link.operations("", OPERATIONS).await?),
        Look::Releases { name } => {
            let detail = link.get(&name).await?;
            let pins = detail.releases.iter().map(|r| link.pins(&name, r.number));
            // Tools of a release that was never ready are not known.
            let pins = futures::future::join_all(pins).await.into_iter().map(Result::ok).collect();
            Seen::Releases(Box::new(Released { releases: detail.releases, pins }))
        }
        Look::Findings { name, known } => Seen::Findings(Box::new(findings::found(link, &name, known).await?)),
    })
}
