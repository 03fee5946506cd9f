//! The owner's rules change while servers run.

use std::path::Path;

use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;

use crate::world::*;

/// A file of rules with one rule, put in place as an editor does it.
fn rule(path: &Path, id: &str, call: &str) {
    let text = format!(
        "[[rule]]\nid = '{id}'\nclass = 'house-rules'\nseverity = 'block'\ncall = ['{call}']\nmessage = 'm'\nimpact = 'i'\nfix = 'f'\n"
    );
    std::fs::write(path.with_extension("new"), text).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
}

async fn uploaded(agent: &Agent, files: &[(&str, &str)]) -> v1::SourceRef {
    let mut tree = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tree.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    let data = zstd::encode_all(&tree.into_inner().unwrap()[..], 1).unwrap();
    let chunk = v1::UploadChunk { request_id: "u".into(), label: "./server".into(), size: 0, data };
    let mut sources = v1::sources_client::SourcesClient::new(agent.channel.clone());
    let sent = sources.upload(futures::stream::iter([chunk])).await.unwrap().into_inner();
    v1::SourceRef { text: "./server".into(), upload_id: sent.upload_id }
}

/// Waits for what the condition says.
async fn current(agent: &Agent, what: &str, ok: bool, part: &str) -> v1::DeploymentDetail {
    let fits = |d: &v1::DeploymentDetail| {
        d.conditions.iter().any(|c| c.kind == "ScanCurrent" && c.ok == ok && c.reason.contains(part))
    };
    agent.until("folder", what, LONG, fits).await
}

async fn recorded(agent: &Agent) -> usize {
    let query = v1::AuditQuery { what: "scan.drift".into(), ..v1::AuditQuery::default() };
    let mut audit = v1::audit_client::AuditClient::new(agent.channel.clone());
    let mut batches = audit.query(query).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(batch) = batches.message().await.unwrap() {
        count += batch.lines.len();
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_scanned_again_when_rules_change_and_is_told_and_not_stopped() {
    let world = World::new();
    let rules = world.dir.path().join("rules.toml");
    rule(&rules, "no-other", "other");
    let path = rules.display().to_string();
    let env = [("SIGIL_SCAN_RULES", path.as_str())];
    let agent = world.agent_with(&env).await;
    let source = uploaded(
        &agent,
        &[
            ("Dockerfile", "FROM sim/base:1\nRUN echo built\nUSER 1000\n"),
            (
                "mcp.yaml",
                "name: folder\ntransport: http\nport: 8080\ncommand: [/server]\nbuild: { dockerfile: Dockerfile }\n",
            ),
            ("a.py", "import legacy\nlegacy.connect()\n"),
        ],
    )
    .await;
    let request = v1::DeployRequest { source: Some(source), manifest: String::new(), ..deploy("folder", &[]) };
    agent.fine(What::Deploy(request.clone())).await;
    current(&agent, "current", true, "nothing stops release 1").await;
    assert_eq!(recorded(&agent).await, 0);

    rule(&rules, "no-legacy", "legacy.connect");
    let told = "1 finding would stop a deploy of release 1 today: no-legacy a.py:2";
    let detail = current(&agent, "affected", false, told).await;
    assert_eq!(shown(&detail).state, "ready", "nothing is stopped by itself");
    assert!(shown(&detail).message.contains("sigil get folder"), "{detail:#?}");
    assert_eq!(world.running("folder").len(), 1);
    assert_eq!(recorded(&agent).await, 1);
    let again = v1::DeployRequest { force: true, ..request };
    let refused = agent.run(What::Deploy(again)).await;
    assert!(refused.error.as_ref().is_some_and(|p| p.code == "BLOCKED"), "{refused:?}");

    // a file that is no good changes nothing, and is said
    std::fs::write(&rules, "[[rule]]\nid = 'x'\n").unwrap();
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let mut client = v1::agent_client::AgentClient::new(agent.channel.clone());
        let info = client.info(v1::InfoRequest {}).await.unwrap().into_inner();
        if info.notes.iter().any(|note| note.contains("rules were not taken") && note.contains("rules.toml:1:1")) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{:?}", info.notes);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    current(&agent, "affected still", false, told).await;

    // another agent knows what was told
    rule(&rules, "no-legacy", "legacy.connect");
    agent.stop().await;
    let agent = world.agent_with(&env).await;
    current(&agent, "affected after a restart", false, told).await;
    assert_eq!(recorded(&agent).await, 1);

    // somebody answers for it
    let waiver = v1::Waiver { finding: "no-legacy".into(), reason: "known".into(), until: "2099-01-01".into() };
    let add = v1::AddWaiverRequest { request_id: "w".into(), name: "folder".into(), waiver: Some(waiver) };
    v1::waivers_client::WaiversClient::new(agent.channel.clone()).add(add).await.unwrap();
    let detail = current(&agent, "waived", true, "1 waived").await;
    assert_eq!(shown(&detail).message, "");

    // a tree that is gone cannot be looked at
    agent.stop().await;
    for entry in std::fs::read_dir(world.dir.path().join("sources")).unwrap().flatten() {
        if entry.file_name().len() == 64 {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    rule(&rules, "no-third", "third");
    let agent = world.agent_with(&env).await;
    current(&agent, "not to be had", false, "cannot be scanned again: the folder that was uploaded is no longer kept")
        .await;
    agent.stop().await;
}
