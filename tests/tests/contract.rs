//! One suite for every engine: Docker, the distribution's Podman, and the fake that other tests stand on.
//! A missing engine fails; nothing here is skipped.

#[path = "contract/cases.rs"]
mod cases;
#[path = "contract/lab.rs"]
mod lab;

use lab::{FakeLab, Lab, RealLab};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker() {
    let lab = RealLab::docker().await;
    cases::run(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman() {
    let lab = RealLab::podman().await;
    cases::run(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fake() {
    let lab = FakeLab::new();
    assert!(lab.facts("none").await.is_none());
    cases::run(&lab).await;
}
