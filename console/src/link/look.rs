//! What the full-screen console's sheets ask for, put together from the calls that the command line makes.

use super::health::Wanted;
use super::{Link, LinkError};
use crate::tui::{Look, Seen};

/// Histories as long as a large terminal is wide and high.
const HEALTH: Wanted = Wanted { probes: 200, turns: 30, lives: 10 };

/// Answers one question.
pub(super) async fn look(link: &Link, what: Look) -> Result<Seen, LinkError> {
    Ok(match what {
        Look::Overview => Seen::Overview(link.alerts().await?),
        Look::Health { name } => Seen::Health(Box::new(link.health(&name, HEALTH).await?)),
    })
}
