//! Steps that cannot have what they need, told before anything is built: a credential, or syntax of another builder.

use sigil_core::recipe::{self, Builder, Need, Origin, Recipe, Tree};

use super::{BuildError, Builds, Plan, context};
use crate::source::Fetched;

/// Refuses what cannot be built. Answers the hosts with a credential from which most is public all the same: whether
/// a step needs the credential shows when it fails.
pub(super) async fn check(
    builds: &Builds,
    fetched: &Fetched,
    recipe: &Recipe,
    plan: &Plan,
) -> Result<Vec<Need>, BuildError> {
    let own = recipe.dockerfile.as_deref();
    if let Some(path) = own {
        let engine = builds.inner.engine.capabilities().await?;
        let builder = Builder::of(&engine.name, &engine.api_version);
        let steps = recipe::unbuildable(&plan.dockerfile, builder, |name| plan.args.contains_key(name));
        if let Some(first) = steps.first() {
            let lines: Vec<String> =
                steps.iter().map(|s| format!("{path}:{}: step `{}` {}", s.line, s.step, s.why)).collect();
            return Err(BuildError::Refused { what: lines.join("\n"), hint: first.hint.to_owned() });
        }
    }
    let packaged = matches!(recipe.origin, Origin::Npm { .. } | Origin::Pypi { .. });
    let tree = match &fetched.tree {
        // a package's own files are not in the context: its index is configured
        Some(root) if !packaged => {
            let within = recipe.context.clone();
            context::tree(root, move |path| recipe::needed(&within, path)).await?
        }
        _ => Tree::default(),
    };
    let proxied = !builds.config().builder.go_proxy.is_empty();
    let mut needs = recipe::needs(&tree, &plan.dockerfile, own, &recipe.context, proxied);
    needs.retain(|need| builds.login(&need.host).is_some());
    let (suspects, certain): (Vec<Need>, Vec<Need>) = needs.into_iter().partition(|need| need.public);
    if certain.is_empty() {
        return Ok(suspects);
    }
    let lines: Vec<String> = certain.iter().map(Need::message).collect();
    Err(BuildError::Refused { what: lines.join("\n"), hint: Need::hint().to_owned() })
}

/// A failed build of something that may be private on a public host: says that this can be why.
pub(super) fn explain(error: BuildError, suspects: &[Need]) -> BuildError {
    match (error, suspects.first()) {
        (BuildError::Failed { what, hint }, Some(need)) => {
            let hint = format!(
                "{hint}; {}:{} names {}: when that is private, a build step cannot have its credential: {}",
                need.file,
                need.line,
                need.host,
                Need::hint()
            );
            BuildError::Failed { what, hint }
        }
        (error, _) => error,
    }
}
