//! Source to running: fetch, recognise, scan, build, release, start.

use jiff::Timestamp;
use sigil_core::follow::Previewed;
use sigil_core::gate::{self, Waiver};
use sigil_core::model::{
    Deployment, DeploymentId, Desired, Name, Outcome as GateOutcome, Release, ReleaseNo, ReleaseSpec, Run as Desire,
};
use sigil_core::policy::Access;
use sigil_core::recipe::{self, Origin, Recipe, RecipeError};
use sigil_core::rights::DEFAULT_TEAM;
use sigil_core::scan;
use sigil_core::source::Source;

use super::{DeployRequest, Failure, ManifestText, Outcome, Request, Run, SourceRef, WaiverRequest, bill, compose};
use crate::build::{BuildError, Built};
use crate::engine::EngineError;
use crate::inspect::Scanned;
use crate::secrets::{SecretError, Whose};
use crate::source::{Fetched, SourceError, Sources};

/// Releases kept for rollback.
const KEPT_RELEASES: usize = 20;

/// Parses a source as a caller wrote it.
pub(super) fn source(reference: &SourceRef) -> Result<Source, Failure> {
    let parsed: Source = reference
        .text
        .parse()
        .map_err(|e: sigil_core::source::BadSource| Failure::new("BAD_SOURCE", 2, e.to_string(), e.hint()))?;
    if matches!(parsed, Source::Folder { .. }) && reference.upload_id.is_none() {
        return Err(Failure::new(
            "BAD_SOURCE",
            2,
            format!("the folder '{}' was not uploaded", reference.text),
            "deploy it with `sigil deploy`, which uploads it",
        ));
    }
    Ok(parsed)
}

/// A source that has been fetched and understood.
struct Understood {
    fetched: Fetched,
    recipe: Recipe,
}

impl Run {
    pub(super) async fn scan_only(&mut self, from: SourceRef) -> Result<Outcome, Failure> {
        let fetched = self.fetch(&from).await?;
        let report = self.scan(&fetched, &[], false).await?;
        let summary =
            format!("verdict {}: {} findings in {} files", report.verdict, report.findings.len(), report.files);
        let result = serde_json::to_value(&report)
            .map_err(|e| Failure::new("STATE", 1, format!("the report cannot be written: {e}"), ""))?;
        Ok(Outcome { result, summary })
    }

    pub(super) async fn build_only(
        &mut self,
        from: SourceRef,
        manifest: Option<ManifestText>,
        dry_run: bool,
        force: bool,
    ) -> Result<Outcome, Failure> {
        let fetched = self.fetch(&from).await?;
        let understood = self.understand(fetched, manifest.as_ref()).await?;
        if dry_run {
            let text =
                self.deps().builds.dockerfile(&understood.fetched, &understood.recipe).await.map_err(build_failure)?;
            let summary = "nothing was built".to_owned();
            return Ok(Outcome { result: serde_json::json!({ "dockerfile": text }), summary });
        }
        self.scan(&understood.fetched, &[], true).await?;
        let built = self.build(&understood, force).await?;
        let summary = format!("image {} {}", built.tag, if built.reused { "reused" } else { "built" });
        let result = serde_json::json!({
            "image": built.image.id, "tag": built.tag, "dockerfile": built.dockerfile, "reused": built.reused,
            "source": understood.fetched.pinned, "bytes": built.image.size,
        });
        Ok(Outcome { result, summary })
    }

    /// What was asked for, as it can be asked for again: not what held for this one time. `None`: a folder's upload is gone
    /// by then.
    fn asked(&self) -> Option<Box<serde_json::Value>> {
        let Ok(Request::Deploy(request)) = serde_json::from_value(self.record.request.clone()) else { return None };
        if request.source.upload_id.is_some() {
            return None;
        }
        let again = DeployRequest {
            force: false,
            waivers: Vec::new(),
            timeout_ms: None,
            team: None,
            temporary_seconds: None,
            ..*request
        };
        serde_json::to_value(again).ok().map(Box::new)
    }

    /// How long the deployment is to be there, where it is not to stay.
    fn temporary(&self) -> Option<jiff::SignedDuration> {
        match serde_json::from_value(self.record.request.clone()) {
            Ok(Request::Deploy(request)) => {
                request.temporary_seconds.map(|s| jiff::SignedDuration::from_secs(s.into()))
            }
            _ => None,
        }
    }

    /// Whether it is the code of somebody who may not push to the repository.
    fn strangers(&self) -> bool {
        self.preview().is_some_and(|preview| preview.fork)
    }

    /// Whose preview is asked for.
    fn preview(&self) -> Option<Previewed> {
        match serde_json::from_value(self.record.request.clone()) {
            Ok(Request::Deploy(request)) => request.preview,
            _ => None,
        }
    }

    pub(super) async fn deploy(&mut self, mut request: DeployRequest) -> Result<Outcome, Failure> {
        if let Some(release) = self.progress_release() {
            return self.until_ready(release, false).await;
        }
        // an engine that is away is said before a long fetch, not after
        self.deps().engine.capabilities().await.map_err(|e| engine_failure(&e))?;
        let waivers = self.waivers(&request.waivers)?;
        let config = self.deps().config.borrow().clone();
        let pinned = self.record.progress.get("pinned").and_then(|p| p.as_str()).map(str::to_owned);
        if let Some(pinned) = pinned.filter(|_| request.source.upload_id.is_none()) {
            request.source.text = pinned;
        }
        let fetched = self.fetch(&request.source).await?;
        let understood = self.understand(fetched, request.manifest.as_ref()).await?;
        let name = self.name(&request, &understood)?;
        let existing = self.deps().store.by_name(&name);
        if existing.as_ref().is_some_and(|d| d.desired.run == Desire::Removed) {
            return Err(Failure::new("BUSY", 1, format!("'{name}' is being removed"), "try again in a moment"));
        }
        if let Some(preview) = &request.preview
            && let Some(other) = existing.as_ref().filter(|d| d.preview.as_deref() != Some(preview))
        {
            let what = format!("the preview's name '{}' is another deployment's", other.name);
            return Err(Failure::new("NAME_TAKEN", 2, what, "remove that one, or call the followed one otherwise"));
        }
        let parent = request.preview.and_then(|preview| self.deps().store.deployment(preview.of));
        if request.preview.is_some() && parent.is_none() {
            return Err(Failure::new(
                "NOT_FOUND",
                3,
                "the deployment that it is a preview of is gone",
                "deploy it again",
            ));
        }
        let team = request.team.clone().unwrap_or_else(|| DEFAULT_TEAM.to_owned());
        if existing.as_ref().is_some_and(|d| request.team.as_ref().is_some_and(|team| *team != d.team)) {
            // who asked was judged by the team that was meant
            let what = format!("'{name}' is there already, in another team");
            return Err(Failure::new("NAME_TAKEN", 2, what, "leave out --team, or choose another --name"));
        }
        if existing.is_none() && self.deps().store.deployments().len() >= config.limits.max_deployments as usize {
            return Err(Failure::new(
                "LIMIT",
                4,
                format!("this host allows {} deployments", config.limits.max_deployments),
                "the owner sets [limits] max_deployments in the agent's configuration",
            ));
        }
        self.within_quota(existing.as_deref(), &team, 0)?;
        // everything that a person can have got wrong is told before minutes are spent on a build
        let access = self.access(existing.as_deref().or(parent.as_deref()))?;
        compose::check(&request, &understood.recipe, &config, access, existing.as_deref())?;
        let egress = compose::egress(&request, &understood.recipe, &config)?;
        self.note(compose::reach(compose::network(&understood.recipe, &config)?, &egress, &config));
        self.check_secrets(&request, &understood.recipe, existing.as_deref(), &team)?;

        let tags = understood.recipe.manifest.tags.clone();
        if let Some(d) = existing.as_ref().filter(|d| d.tags != tags) {
            let tags = tags.clone();
            let change = move |d: &mut Deployment| {
                d.tags = tags;
                Ok(())
            };
            self.deps().store.update(d.id, None, "its tags changed", change).await?;
        }
        // what somebody answers for in the deployment holds for its previews, but not for the code of strangers
        let known = existing.as_ref().or(parent.as_ref().filter(|_| !self.strangers()));
        let waivers = gate::joined(known.map_or(&[], |d| &d.waivers), &waivers);
        self.scan(&understood.fetched, &waivers, true).await?;
        let built = self.build(&understood, request.force).await?;
        let locks = match understood.fetched.tree.clone() {
            Some(tree) => blocking(move || bill::locks(&tree)).await?,
            None => Vec::new(),
        };

        // kept before it is made, so that an agent that ends in between finds its own release again
        let next = existing.as_ref().map_or(1, |d| d.next_release());
        let making = self.number("making").unwrap_or(u64::from(next));
        self.keep("making", making);
        self.begin("release").await?;
        let mut spec = compose::spec(&request, &understood.recipe, &understood.fetched, &built, &config, access)?;
        // a name means something in its image only, and a new volume is given to a number
        spec.user =
            self.deps().engine.resolve_user(&built.image.id, &spec.user).await.map_err(|e| engine_failure(&e))?;
        let scaled = compose::scaling(&request, &understood.recipe, &config, existing.as_deref())?;
        let wanted = scaled.desired(existing.as_ref().map(|d| d.desired.replicas)).max(1);
        self.within_quota(existing.as_deref(), &team, spec.resources.memory.saturating_mul(u64::from(wanted)))?;
        let recognised = understood.recipe.why.join("; ");
        if let Some(deployment) = existing.as_ref().filter(|d| d.policy.access.is_some())
            && let Some(asked) = request.access.as_deref().and_then(|word| word.parse().ok())
        {
            // the policy's word goes before the release's, so what is asked for now has to be there
            let change = move |d: &mut Deployment| {
                d.policy.access = Some(asked);
                Ok(())
            };
            self.deps().store.update(deployment.id, None, "access changed", change).await?;
        }
        if let Some(deployment) = &existing
            && !request.force
            && let Some(number) = serves_already(deployment, &spec, &scaled)
            && deployment.desired.run == Desire::Running
        {
            self.record.deployment = Some(deployment.id);
            self.record.release = Some(number);
            self.end(&format!("release {number} already serves this"));
            return self.until_ready(number, true).await;
        }
        let made = existing.as_ref().and_then(|d| d.releases.iter().find(|r| u64::from(r.number) == making));
        let number = match (made, &existing) {
            (Some(made), Some(deployment)) if made.spec == spec => {
                self.released(deployment.id, made.number).await?;
                made.number
            }
            _ => self.release(existing.as_deref(), (&name, team, tags), spec, scaled, recognised, waivers).await?,
        };
        self.end(&format!("release {number}"));
        let outcome = self.until_ready(number, false).await?;
        let deployment = self.record.deployment.and_then(|id| self.deps().store.deployment(id));
        if let Some(release) = deployment.as_ref().and_then(|d| d.release(number)) {
            self.operate.bill_later(release, locks);
        }
        Ok(outcome)
    }

    /// Who may call when the request does not say: as the release before, for a new deployment holders of keys once there
    /// are keys.
    fn access(&self, existing: Option<&Deployment>) -> Result<Access, Failure> {
        if let Some(deployment) = existing {
            let released = deployment.release(deployment.desired.release).and_then(|r| r.spec.access.parse().ok());
            return Ok(released.unwrap_or(Access::Key));
        }
        let any = self.deps().access.any_keys().map_err(|e| Failure::new("ACCESS", 1, e.to_string(), e.hint()))?;
        Ok(if any { Access::Key } else { Access::Anonymous })
    }

    fn progress_release(&self) -> Option<ReleaseNo> {
        self.record.progress.get("release")?.as_u64()?.try_into().ok()
    }

    async fn fetch(&mut self, from: &SourceRef) -> Result<Fetched, Failure> {
        let parsed = source(from)?;
        self.begin("fetch").await?;
        let (out, pump) = self.output("stdout");
        let fetched =
            self.deps().sources.fetch(&parsed, from.upload_id.as_deref(), out, self.cancel.child_token()).await;
        let _ended = pump.await;
        let fetched = fetched.map_err(source_failure)?;
        if let Some(progress) = self.record.progress.as_object_mut() {
            progress.insert("pinned".into(), fetched.pinned.clone().into());
        }
        self.end(&fetched.pinned);
        Ok(fetched)
    }

    async fn understand(&mut self, fetched: Fetched, given: Option<&ManifestText>) -> Result<Understood, Failure> {
        self.begin("recognise").await?;
        let origin = match (&fetched.image, &fetched.package, fetched.pinned.split(':').next()) {
            (Some(_), _, _) => Origin::Image,
            (None, Some((name, version)), Some("npm")) => Origin::Npm { name: name.clone(), version: version.clone() },
            (None, Some((name, version)), _) => Origin::Pypi { name: name.clone(), version: version.clone() },
            (None, None, Some("mcpb")) => Origin::Bundle,
            (None, None, _) => Origin::Tree,
        };
        let tree = match &fetched.tree {
            Some(path) => {
                let path = path.clone();
                blocking(move || Sources::tree(&path)).await?.map_err(source_failure)?
            }
            None => recipe::Tree::default(),
        };
        let given = given.map(|g| (g.file.as_str(), g.text.as_str()));
        let recipe = recipe::recognise(&tree, origin, given).map_err(recipe_failure)?;
        for why in &recipe.why {
            self.note(why.clone());
        }
        self.end(&recipe.why.join("; "));
        Ok(Understood { fetched, recipe })
    }

    /// What a person answers for, read before anything is fetched.
    fn waivers(&self, asked: &[WaiverRequest]) -> Result<Vec<Waiver>, Failure> {
        let (by, now) = (&self.record.created_by, Timestamp::now());
        let read = |w: &WaiverRequest| {
            Waiver::new(&w.finding, &w.reason, &w.until, by, now)
                .map_err(|e| Failure::new("BAD_INPUT", 2, e.to_string(), e.hint()))
        };
        asked.iter().map(read).collect()
    }

    /// Runs the scanner. With `gate`, findings that the policy stops and nobody answers for end the operation.
    async fn scan(&mut self, fetched: &Fetched, waivers: &[Waiver], gate: bool) -> Result<scan::Report, Failure> {
        self.begin("scan").await?;
        let Some(tree) = fetched.tree.clone() else {
            self.end("an image has no source to scan");
            return Ok(scan::scan::<String, Vec<u8>>(&[]));
        };
        // a folder's path is whatever its sender says
        // and a fork's commit is found in the repository that it was made from
        let named = (fetched.commit.is_some() || fetched.package.is_some()) && !self.strangers();
        let source = if named { fetched.pinned.as_str() } else { gate::FOLDER };
        let config = self.deps().config.borrow().clone();
        let least = gate::Least::of(source, &config.scan.block, &config.scan.trust);
        let least = least.map_err(|e| Failure::new("CONFIG", 1, format!("scan.trust: {e}"), e.hint()))?;
        let (scanner, digest) = (self.deps().scanner.clone(), fetched.digest.clone());
        let Scanned { mut report, known } = blocking(move || scanner.scan(&tree, &digest))
            .await?
            .map_err(|e| Failure::new("SOURCE", 1, format!("the source cannot be read: {e}"), "fetch it again"))?;
        report.verdict = gate::verdict(&report, least);
        for finding in report.findings.iter().filter(|f| f.severity != scan::Severity::Info) {
            self.note(format!(
                "{} {}:{} {}: {}",
                finding.severity.as_str(),
                finding.path,
                finding.line,
                finding.rule,
                finding.message
            ));
        }
        let judged = gate::judge(&report, least, waivers, Timestamp::now());
        for (finding, waiver) in &judged.waived {
            self.note(format!(
                "waived {}:{} {}: {} ({}, until {})",
                finding.path, finding.line, finding.rule, waiver.reason, waiver.by, waiver.until
            ));
        }
        if let (true, [first, rest @ ..]) = (gate, judged.stopped.as_slice()) {
            let over = judged.over.iter().map(|w| format!("; the waiver of {} ended on {}", w.finding, w.until));
            return Err(Failure {
                code: "BLOCKED".into(),
                message: format!(
                    "blocked by {} finding{}: {} in {}:{}{}",
                    judged.stopped.len(),
                    if rest.is_empty() { "" } else { "s" },
                    first.message,
                    first.path,
                    first.line,
                    over.collect::<String>()
                ),
                hint: format!("{}; or answer for it with --waive {} --reason TEXT --until DATE", first.fix, first.rule),
                details: serde_json::to_string(&report).unwrap_or_default(),
                exit_code: 6,
            });
        }
        let (verdict, findings, files) = (report.verdict, report.findings.len(), report.files);
        self.end(&format!("{verdict} ({findings} findings, {files} files, {known} of them known)"));
        Ok(report)
    }

    async fn build(&mut self, understood: &Understood, force: bool) -> Result<Built, Failure> {
        self.begin("build").await?;
        let (out, pump) = self.output("build");
        let built = self
            .deps()
            .builds
            .build(&understood.fetched, &understood.recipe, force, out, self.cancel.child_token())
            .await;
        let _ended = pump.await;
        let built = built.map_err(build_failure)?;
        let how = match (&understood.fetched.image, built.reused) {
            (Some(_), _) => "taken as it is",
            (None, true) => "reused: the same input was built before",
            (None, false) => "built",
        };
        self.end(&format!("image {} {how}", short(&built.image.id)));
        Ok(built)
    }

    /// The deployment's name: said, or derived and free.
    fn name(&mut self, request: &DeployRequest, understood: &Understood) -> Result<Name, Failure> {
        if let Some(name) = &request.name {
            return name
                .parse()
                .map_err(|e: sigil_core::model::BadName| Failure::new("BAD_NAME", 2, e.to_string(), ""));
        }
        let declared = understood.recipe.manifest.name.clone();
        let from_source = match understood.fetched.pinned.parse::<Source>() {
            Ok(Source::Folder { path }) => path,
            Ok(Source::Git { url, subdir, .. }) => subdir.unwrap_or_else(|| url.trim_end_matches(".git").to_owned()),
            Ok(Source::Npm { name, .. }) => name,
            Ok(Source::Pypi { name, .. }) => name.split('[').next().unwrap_or_default().to_owned(),
            Ok(Source::Bundle { url, .. }) => {
                let file = url.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
                file.trim_end_matches(".mcpb").to_owned()
            }
            Ok(Source::Image { reference }) => {
                let bare = reference.split('@').next().unwrap_or_default();
                match bare.rsplit_once(':') {
                    Some((before, after)) if !after.contains('/') => before.to_owned(),
                    _ => bare.to_owned(),
                }
            }
            Err(_) => String::new(),
        };
        let name =
            declared.as_deref().and_then(Name::derive).or_else(|| Name::derive(&from_source)).ok_or_else(|| {
                Failure::new("BAD_NAME", 2, "no name can be derived from this source", "choose one with --name")
            })?;
        if let Some(other) = self.deps().store.by_name(&name) {
            let theirs = other.releases.last().map(|r| compose::same_origin(&r.spec.source)).unwrap_or_default();
            if theirs != compose::same_origin(&understood.fetched.pinned) {
                return Err(Failure::new(
                    "NAME_TAKEN",
                    2,
                    format!("the derived name '{name}' is taken by a deployment of {theirs}"),
                    format!("choose another with --name, or say --name {name} to make a new release of that one"),
                ));
            }
        }
        self.operate.lease(name.as_str(), self.record.id)?;
        self.record.name = name.to_string();
        self.note(format!("name: {name}"));
        Ok(name)
    }

    fn check_secrets(
        &self,
        request: &DeployRequest,
        recipe: &Recipe,
        existing: Option<&Deployment>,
        team: &str,
    ) -> Result<(), Failure> {
        let uses = compose::secrets(request, recipe)?;
        let (id, team) = (existing.map(|d| d.id), existing.map_or(team, |d| &d.team));
        let preview = existing.and_then(|d| d.preview.as_deref()).or(request.preview.as_ref());
        let whose = Whose::new(id, team, preview);
        let missing = self.deps().secrets.missing(&whose, &uses);
        if missing.is_empty() {
            let typed = self.deps().secrets.check_types(&whose, &uses, "this deploy");
            return typed.map_err(|error| match error {
                SecretError::Mistyped(_) => {
                    let hint = "set it anew, or change its `type` in the manifest";
                    Failure::new("INVALID_SECRETS", 2, error.to_string(), hint)
                }
                other => Failure::new("SECRETS", 1, other.to_string(), other.hint()),
            });
        }
        let first = &missing[0];
        Err(Failure::new(
            "MISSING_SECRETS",
            2,
            format!("missing secrets: {}", missing.join(", ")),
            format!("set each with `sigil secret set {first}` (the value is read from stdin or a prompt)"),
        ))
    }

    async fn release(
        &mut self,
        existing: Option<&Deployment>,
        (name, team, tags): (&Name, String, Vec<String>),
        spec: ReleaseSpec,
        scaled: compose::Scaled,
        recognised: String,
        waivers: Vec<Waiver>,
    ) -> Result<ReleaseNo, Failure> {
        let store = self.deps().store.clone();
        let who = self.record.created_by.clone();
        let now = Timestamp::now();
        let asked = self.asked();
        let until = self.temporary().map(|time| now.saturating_add(time).unwrap_or(now));
        let preview = self.preview();
        let policy = preview.and_then(|preview| store.deployment(preview.of)).map(|parent| parent.policy.clone());
        let make = move |number| Release {
            number,
            created_at: now,
            created_by: who.clone(),
            spec: spec.clone(),
            outcome: GateOutcome::Pending,
            recognised: recognised.clone(),
            asked: asked.clone(),
        };
        let deployment = match existing {
            None => {
                let deployment = Deployment {
                    id: DeploymentId(ulid::Ulid::generate()),
                    name: name.clone(),
                    team,
                    tags,
                    created_by: self.record.created_by.clone(),
                    created_at: now,
                    generation: 1,
                    reason: "deployed".into(),
                    changed_at: now,
                    desired: Desired { run: Desire::Running, replicas: scaled.desired(None), release: 1, restart: 0 },
                    serving: None,
                    releases: vec![make(1)],
                    policy: policy.unwrap_or_default(),
                    waivers,
                    scaling: scaled.policy,
                    follow: None,
                    until,
                    preview: preview.map(Box::new),
                };
                store.create(deployment).await?
            }
            Some(old) => {
                let number = old.next_release();
                let add = make(number);
                // the autoscaler may have made a step while this was built: that is no change to refuse over
                let now = store.deployment(old.id);
                let stepped = now.filter(|now| {
                    let replicas = old.desired.replicas;
                    now.next_release() == number && Desired { replicas, ..now.desired.clone() } == old.desired
                });
                let seen = stepped.map_or(old.generation, |now| now.generation);
                store
                    .update(old.id, Some(seen), &format!("release {number} deployed"), move |d| {
                        // the newest are kept, and the one to fall back to
                        while d.releases.len() >= KEPT_RELEASES {
                            let serving = d.serving;
                            match d.releases.iter().position(|r| Some(r.number) != serving) {
                                Some(oldest) => drop(d.releases.remove(oldest)),
                                None => break,
                            }
                        }
                        d.releases.push(add);
                        // whoever deploys it to stay keeps it
                        d.until = d.until.and(until);
                        d.waivers = waivers;
                        d.desired.release = number;
                        d.desired.run = Desire::Running;
                        d.desired.replicas = scaled.desired(Some(d.desired.replicas));
                        d.scaling = scaled.policy;
                        Ok(())
                    })
                    .await?
            }
        };
        self.released(deployment.id, deployment.desired.release).await?;
        Ok(deployment.desired.release)
    }

    /// Keeps that the release is made: a later agent only waits for it.
    async fn released(&mut self, deployment: DeploymentId, number: ReleaseNo) -> Result<(), Failure> {
        self.record.deployment = Some(deployment);
        self.record.release = Some(number);
        self.keep("release", u64::from(number));
        Ok(self.deps().store.put_operation(self.record.clone()).await?)
    }

    /// Follows the roll-out of a release until it serves, or did not.
    async fn until_ready(&mut self, number: ReleaseNo, unchanged: bool) -> Result<Outcome, Failure> {
        self.begin("start").await?;
        let name = self.record.name.clone();
        let Some(id) = self.record.deployment else { return Err(Failure::no_deployment(&name)) };
        let reconcile = self.deps().reconcile.clone();
        let mut changes = reconcile.changes();
        let mut records = self.deps().store.changes();
        let mut told = String::new();
        loop {
            changes.mark_unchanged();
            records.mark_unchanged();
            let Some(deployment) = self.deps().store.deployment(id) else {
                return Err(Failure::new(
                    "SUPERSEDED",
                    1,
                    format!("'{name}' was removed meanwhile"),
                    "deploy it again",
                ));
            };
            let status = reconcile.status(id);
            let release = deployment.release(number);
            if let Some(Release { outcome: GateOutcome::Failed { why }, .. }) = release {
                let back = deployment.serving.filter(|s| *s != number);
                // reconcile shows the output before it keeps the verdict; after a restart there is a verdict only
                let output = status.as_ref().map(|s| s.last_output.as_slice()).unwrap_or_default();
                return Err(not_ready(&name, why, output, back));
            }
            let superseded = deployment.desired.release != number
                && !matches!(release, Some(Release { outcome: GateOutcome::Failed { .. }, .. }));
            if superseded || deployment.desired.run != Desire::Running {
                let what = "something else was asked of it meanwhile";
                return Err(Failure::new("SUPERSEDED", 1, what, format!("look with `sigil get {name}`")));
            }
            if let Some(status) = &status
                && status.generation >= deployment.generation
            {
                let serving = status.serving == Some(number);
                let all = status.replicas.iter().filter(|r| r.release == number && r.state == "ready").count();
                if serving
                    && all >= deployment.desired.replicas.min(1).max(u32::from(!unchanged)) as usize
                    && status.state == sigil_core::model::State::Ready
                {
                    break;
                }
                if let Some(newest) = status.replicas.iter().rfind(|r| r.release == number)
                    && newest.state != told
                {
                    told.clone_from(&newest.state);
                    self.note(format!("{} {}", newest.state, newest.instance));
                }
                // an unchanged release that sleeps or loops is what the caller asked about, not something to wait for
                if unchanged && !status.message.is_empty() && status.state == sigil_core::model::State::Failed {
                    return Err(not_ready(&name, &status.message, &status.last_output, None));
                }
            }
            tokio::select! {
                Ok(()) = changes.changed() => {}
                Ok(()) = records.changed() => {}
                else => std::future::pending().await,
            }
        }
        let endpoint = format!("{}/mcp/{name}", self.deps().gateway_url);
        self.end(&format!("ready at {endpoint}"));
        let summary = if unchanged {
            format!("release {number} already serves this")
        } else {
            format!("release {number} of {name} serves at {endpoint}")
        };
        let result =
            serde_json::json!({ "name": name, "release": number, "endpoint": endpoint, "unchanged": unchanged });
        Ok(Outcome { result, summary })
    }
}

/// The release that is what is asked for, already.
fn serves_already(deployment: &Deployment, spec: &ReleaseSpec, scaled: &compose::Scaled) -> Option<ReleaseNo> {
    let release = deployment.release(deployment.desired.release)?;
    let same = release.spec == *spec
        && scaled.replicas.is_none_or(|r| r == deployment.desired.replicas)
        && scaled.policy == deployment.scaling;
    (same && !matches!(release.outcome, GateOutcome::Failed { .. })).then_some(release.number)
}

/// The failure of something that did not become ready.
pub(super) fn not_ready(name: &str, why: &str, output: &[String], back: Option<ReleaseNo>) -> Failure {
    let mut message = format!("'{name}' did not become ready: {why}");
    if let Some(back) = back {
        message.push_str(&format!("; release {back} goes on serving"));
    }
    Failure {
        code: "NOT_READY".into(),
        message,
        hint: format!("its output: `sigil logs {name} --previous`"),
        details: serde_json::json!({ "output": output }).to_string(),
        exit_code: 1,
    }
}

fn short(id: &str) -> &str {
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    bare.get(..12).unwrap_or(bare)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Failure::new("INTERNAL", 1, format!("a task ended early: {e}"), "look at the agent's log"))
}

fn source_failure(error: SourceError) -> Failure {
    let message = error.to_string();
    match error {
        SourceError::NotFound { hint, .. } => Failure::new("SOURCE_NOT_FOUND", 3, message, hint),
        SourceError::Refused { hint, .. } => Failure::new("SOURCE_REFUSED", 2, message, hint),
        SourceError::Failed { hint, .. } => Failure::new("SOURCE_FAILED", 1, message, hint),
        SourceError::Cancelled => Failure::cancelled(),
    }
}

fn recipe_failure(error: RecipeError) -> Failure {
    let message = error.to_string();
    match error {
        RecipeError::Unrecognised { looked_for } => Failure::new(
            "UNRECOGNISED",
            2,
            message,
            format!("looked for {}; `sigil init` writes an mcp.yaml to say what it is", looked_for.join(", ")),
        ),
        RecipeError::Manifest(flaws) => Failure {
            code: "BAD_MANIFEST".into(),
            message,
            hint: "mend the manifest; `sigil build --dry-run` checks it".into(),
            details: serde_json::json!({ "flaws": flaws }).to_string(),
            exit_code: 2,
        },
        RecipeError::Unclear { hint, .. } => Failure::new("UNCLEAR", 2, message, hint),
        RecipeError::Escapes { .. } => Failure::new("BAD_MANIFEST", 2, message, "paths stay inside the source tree"),
    }
}

pub(super) fn engine_failure(error: &EngineError) -> Failure {
    let (code, exit) = match error {
        EngineError::Unreachable { .. } => ("ENGINE_UNREACHABLE", 1),
        EngineError::Permission { .. } => ("ENGINE_PERMISSION", 4),
        EngineError::TooOld { .. } => ("ENGINE_TOO_OLD", 1),
        EngineError::Cancelled => return Failure::cancelled(),
        _ => ("ENGINE", 1),
    };
    Failure::new(code, exit, error.to_string(), error.hint())
}

fn build_failure(error: BuildError) -> Failure {
    let message = error.to_string();
    match error {
        BuildError::Failed { hint, .. } => Failure::new("BUILD_FAILED", 1, message, hint),
        BuildError::Refused { hint, .. } => Failure::new("SOURCE_REFUSED", 2, message, hint),
        BuildError::TooLong(_) => Failure::new(
            "BUILD_TOO_LONG",
            1,
            message,
            "the owner sets [builder] timeout_seconds in the agent's configuration",
        ),
        BuildError::DiskFull(_) => {
            Failure::new("DISK_FULL", 1, message, "free disk space on the agent's host, or set [limits] min_free_disk")
        }
        BuildError::Cancelled => Failure::cancelled(),
        BuildError::Engine(error) => engine_failure(&error),
    }
}
