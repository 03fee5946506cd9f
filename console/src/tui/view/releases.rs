//! Releases of a deployment, and what going back to the one under the cursor would change.

use super::super::sheet::Released;
use super::super::theme::Role;
use super::super::update::differences;
use super::moment;
use super::sheet::{About, Pen};

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, released: &Released) {
    if released.releases.is_empty() {
        pen.line(&[("There is no release yet.", Role::Title)]);
        return pen.text("The first one is made when its source is built: 7 shows how far that is.", Role::Text);
    }
    pen.line(&[("RELEASE  OUTCOME  SERVES  MADE         BY            SOURCE", Role::Title)]);
    let mut all: Vec<_> = released.releases.iter().rev().collect();
    pen.ordered(&mut all);
    for r in &all {
        let role = match r.outcome.as_str() {
            "good" => Role::Good,
            "failed" => Role::Bad,
            _ => Role::Busy,
        };
        let serves = if r.serving { "now" } else { "" };
        let why = if r.why.is_empty() { String::new() } else { format!("  {}", r.why) };
        let made = moment(pen.model, r.created_at);
        let by = super::fit(pen.model, &r.created_by, 12);
        pen.row(
            About { key: format!("release {}", r.number), ..About::default() },
            &[
                (&format!("{:>7}  ", r.number), Role::Title),
                (&format!("{:<7}  ", r.outcome), role),
                (&format!("{serves:<6}  "), Role::Good),
                (&format!("{made:<11}  {by:<12}  "), Role::Dim),
                (&r.source, Role::Text),
                (&why, Role::Bad),
            ],
        );
    }
    let chosen = pen.sheet.row.as_ref().and_then(|key| key.strip_prefix("release ")).and_then(|n| n.parse().ok());
    let Some(number) = chosen.or_else(|| all.first().map(|r| r.number)) else { return };
    pen.head(&format!("What release {number} differs in from the one that serves"), "  b goes back to it");
    for (text, role) in differences(released, number) {
        pen.line(&[(&text, role)]);
    }
}
