//! What is wrong now, asked of the rooms that know.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use sigil_config::agent::AgentConfig;
use sigil_core::alert::{Fact, Kind};
use sigil_core::cost::judge::What;
use sigil_core::health;
use sigil_core::model::{Deployment, Run, State};
use tokio::sync::watch;

use super::Facts;
use crate::probe::Probe;
use crate::reconcile::{Reconcile, Status};
use crate::sample::{Host, Sample};
use crate::store::Store;
use crate::usage::Usage;

/// What facts about the host are about.
const HOST: &str = "host";
/// A certificate that ends sooner is told.
const ENDS_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Certificates are read this often.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(300);

/// Who is asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which deployments there are.
    pub store: Store,
    /// How they are.
    pub reconcile: Reconcile,
    /// Whether they answer.
    pub probe: Probe,
    /// What of quotas and budgets is used up.
    pub usage: Usage,
    /// The host.
    pub sample: Sample,
    /// Certificates, and the disk that is to stay free.
    pub config: watch::Receiver<Arc<AgentConfig>>,
}

impl Asked {
    /// Asks all of them at each call.
    pub fn facts(self) -> Facts {
        let certificates: Mutex<Option<(Instant, Vec<Fact>)>> = Mutex::default();
        Arc::new(move || {
            let mut facts = Vec::new();
            let trouble = self.reconcile.engine_trouble();
            facts.extend(trouble.map(|text| Fact { kind: Kind::Engine, about: HOST.to_owned(), text }));
            for deployment in self.store.deployments().iter().filter(|d| d.desired.run == Run::Running) {
                if let Some(status) = self.reconcile.status(deployment.id) {
                    facts.extend(of_deployment(deployment, &status, &self.probe.health(deployment.id)));
                }
            }
            for crossing in self.usage.facts().borrow().iter() {
                let about = self.store.named(&crossing.whose);
                let kind = if crossing.what == What::Budget { Kind::Budget } else { Kind::Quota };
                facts.push(Fact { kind, text: crossing.sentence(&about), about });
            }
            let config = self.config.borrow().clone();
            facts.extend(of_disk(&self.sample.latest().borrow().host, config.limits.min_free_disk));
            let mut read = certificates.lock().unwrap_or_else(PoisonError::into_inner);
            if read.as_ref().is_none_or(|(at, _)| at.elapsed() > CERTIFICATES_EVERY) {
                *read = Some((Instant::now(), of_certificates(&config, Timestamp::now())));
            }
            facts.extend(read.iter().flat_map(|(_, found)| found.clone()));
            facts
        })
    }
}

fn of_deployment(deployment: &Deployment, status: &Status, probed: &crate::probe::Health) -> Vec<Fact> {
    let fact = |kind, text: String| Fact { kind, about: deployment.name.to_string(), text };
    let mut facts = Vec::new();
    if status.state == State::Failed {
        facts.push(fact(Kind::Failed, status.message.clone()));
    } else if let Some(unwell) = probed.replicas.iter().find(|replica| replica.state == health::State::Unhealthy) {
        facts.push(fact(Kind::Unhealthy, unwell.why.clone()));
    }
    if status.waits_for_room {
        facts.push(fact(Kind::Room, status.message.clone()));
    }
    let starved = status.conditions.iter().find(|c| c.kind == "MemoryEnough" && !c.ok);
    facts.extend(starved.map(|condition| fact(Kind::Memory, condition.reason.clone())));
    facts
}

fn of_disk(host: &Host, floor: u64) -> Vec<Fact> {
    let fact = |text: String| Fact { kind: Kind::Disk, about: HOST.to_owned(), text };
    let floor = if floor == 0 { host.disk_total / 20 } else { floor };
    if host.disk_total > 0 && host.disk_free < floor {
        let (free, all) = (host.disk_free >> 20, host.disk_total >> 20);
        return vec![fact(format!("{free} of {all} MiB of disk are free"))];
    }
    if host.inodes_total > 0 && host.inodes_free < host.inodes_total / 20 {
        return vec![fact(format!("{} of {} inodes are free", host.inodes_free, host.inodes_total))];
    }
    Vec::new()
}

/// Certificates that the owner gave; the agent renews its own.
fn of_certificates(config: &AgentConfig, now: Timestamp) -> Vec<Fact> {
    let given = [("gateway", &config.gateway.certificate), ("grpc", &config.grpc.certificate)];
    let given = given.into_iter().filter_map(|(which, path)| Some((which, path.as_deref()?)));
    let ends = |path: &Path| -> Option<Timestamp> {
        let text = std::fs::read(path).ok()?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(&text).ok()?;
        Timestamp::from_second(pem.parse_x509().ok()?.validity().not_after.timestamp()).ok()
    };
    let soon = given.filter_map(|(which, path)| {
        let end = ends(path).filter(|end| end.duration_since(now) < ENDS_SOON)?;
        let text = format!("the certificate in {} ends on {}", path.display(), end.strftime("%Y-%m-%d"));
        Some(Fact { kind: Kind::Certificate, about: which.to_owned(), text })
    });
    soon.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_before_it_is() {
        let host = |free, inodes| Host {
            disk_total: 100 << 30,
            disk_free: free,
            inodes_total: 100,
            inodes_free: inodes,
            ..Host::default()
        };
        assert!(of_disk(&host(6 << 30, 50), 0).is_empty());
        assert!(of_disk(&host(4 << 30, 50), 0)[0].text.starts_with("4096 of 102400 MiB"));
        assert!(of_disk(&host(4 << 30, 50), 1 << 30).is_empty(), "the owner's word");
        assert!(of_disk(&host(6 << 30, 4), 0)[0].text.contains("inodes"));
        assert!(of_disk(&Host::default(), 0).is_empty(), "what is not known is not told");
    }

    #[test]
    fn a_certificate_is_told_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem()).unwrap();
        let mut config = AgentConfig::default();
        config.gateway.certificate = Some(path);
        let far = of_certificates(&config, Timestamp::now());
        assert!(far.is_empty(), "{far:?}");
        // rcgen's certificates end in the year 4096
        let late = "4095-12-25T00:00:00Z".parse().unwrap();
        let soon = of_certificates(&config, late);
        assert!(soon[0].text.contains("ends on 4096-01-01") && soon[0].about == "gateway", "{soon:?}");
    }
}
