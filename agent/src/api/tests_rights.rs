//! Every call of the link and every role, on a real socket: what each may is written down here once more, by hand, so that
//! a slip in the table of rules, or in a service that does not ask, shows.

use sigil_core::rights::On;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::tests::{tls, tls_as};
use super::tests_house::{House, code, house, house_with, soon};
use super::*;
use crate::access::{self, NewToken, Principal, Role, create_token, reveal};

/// On what a call's role is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Of {
    /// Everybody who is known may.
    Nothing,
    /// The deployment that the call names.
    It,
    /// Anything at all: what is seen is what may be seen.
    Any,
    /// The whole agent.
    All,
}

use Of::{All, Any, It, Nothing};

const MATRIX: [(&str, Role, Of); 73] = [
    ("Agent/Info", Role::Caller, Nothing),
    ("Sources/Upload", Role::Deployer, Any),
    ("Operations/Start", Role::Operator, It),
    ("Operations/Get", Role::Viewer, It),
    ("Operations/List", Role::Viewer, Any),
    ("Operations/Follow", Role::Viewer, It),
    ("Operations/Cancel", Role::Operator, It),
    ("Deployments/Watch", Role::Viewer, Any),
    ("Deployments/Get", Role::Viewer, It),
    ("Deployments/Bill", Role::Viewer, It),
    ("Logs/Tail", Role::Viewer, It),
    ("Mcp/Session", Role::Caller, It),
    ("Secrets/Set", Role::Deployer, It),
    ("Secrets/List", Role::Viewer, It),
    ("Secrets/Remove", Role::Deployer, It),
    ("Secrets/SetOwn", Role::Caller, Nothing),
    ("Secrets/ListOwn", Role::Caller, Nothing),
    ("Secrets/RemoveOwn", Role::Caller, Nothing),
    ("Secrets/Rotate", Role::Deployer, It),
    ("Secrets/Reveal", Role::Admin, It),
    ("Secrets/Import", Role::Deployer, It),
    ("Secrets/Keyring", Role::Viewer, All),
    ("Keys/Create", Role::Caller, Nothing),
    ("Keys/List", Role::Caller, Nothing),
    ("Users/List", Role::Caller, Nothing),
    ("Users/Add", Role::Admin, All),
    ("Users/Remove", Role::Admin, All),
    ("Users/Enable", Role::Admin, All),
    ("Users/Grant", Role::Admin, All),
    ("Users/Revoke", Role::Admin, All),
    ("Teams/List", Role::Caller, Nothing),
    ("Teams/Create", Role::Admin, All),
    ("Teams/Remove", Role::Admin, All),
    ("Teams/Move", Role::Admin, All),
    ("Policies/Get", Role::Viewer, It),
    ("Policies/Set", Role::Deployer, It),
    ("Scaling/Get", Role::Viewer, It),
    ("Scaling/Set", Role::Deployer, It),
    ("Scaling/History", Role::Viewer, It),
    ("Scaling/Explain", Role::Viewer, It),
    ("Scaling/Trace", Role::Viewer, It),
    ("Follows/List", Role::Viewer, It),
    ("Follows/Set", Role::Deployer, It),
    ("Follows/Look", Role::Deployer, It),
    ("Git/Accounts", Role::Viewer, Any),
    ("Git/Add", Role::Admin, All),
    ("Git/Remove", Role::Admin, All),
    ("Git/Check", Role::Admin, All),
    ("Git/Repositories", Role::Deployer, Any),
    ("Git/Manifest", Role::Deployer, Any),
    ("Health/Get", Role::Viewer, It),
    ("Alerts/List", Role::Viewer, Any),
    ("Alerts/Test", Role::Admin, All),
    ("Waivers/List", Role::Viewer, It),
    ("Waivers/Add", Role::Admin, It),
    ("Waivers/Remove", Role::Admin, It),
    ("Pins/Get", Role::Viewer, It),
    ("Pins/Answer", Role::Deployer, It),
    ("Taps/Follow", Role::Operator, It),
    ("Metrics/Top", Role::Viewer, Any),
    ("Metrics/Series", Role::Viewer, It),
    ("Usage/Report", Role::Viewer, It),
    ("Usage/Limits", Role::Viewer, Any),
    ("Usage/SetLimit", Role::Admin, It),
    ("Usage/RemoveLimit", Role::Admin, It),
    ("Registry/Search", Role::Viewer, Any),
    ("Registry/Get", Role::Viewer, Any),
    ("Registry/Publish", Role::Deployer, All),
    ("Registry/SetStatus", Role::Deployer, All),
    ("Registry/Import", Role::Admin, All),
    ("Registry/Push", Role::Deployer, It),
    ("Registry/Mirrors", Role::Viewer, All),
    ("Registry/SyncMirror", Role::Admin, All),
];
/// Judged by whose key it is, on no deployment, or from this host only: in tests of their own.
const ELSEWHERE: [&str; 3] = ["Keys/Revoke", "Audit/Query", "Secrets/RotateKeys"];

type Wire = InterceptedService<Channel, Bearer>;

#[derive(Clone)]
struct Bearer(String);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value: MetadataValue<_> = format!("Bearer {}", self.0).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// A connection from elsewhere.
async fn far(house: &House, token: &str) -> Wire {
    let (address, _) = house.api.tls().unwrap();
    let connect = tower::service_fn(move |_| async move {
        Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls(address).await.0))
    });
    let channel = Endpoint::from_static("http://agent").connect_with_connector(connect).await.unwrap();
    InterceptedService::new(channel, Bearer(token.to_owned()))
}

/// A user with roles, and the text of a key of theirs that is good for everything.
async fn user(house: &House, name: &str, grants: &[(Role, &str)]) -> String {
    let made = access::add_user(&house.store, name, &Principal::owner()).await.unwrap();
    for (role, on) in grants {
        access::grant(&house.store, name, *role, on.parse().unwrap(), &Principal::owner()).await.unwrap();
    }
    key(house, &made.id, Role::Admin)
}

fn key(house: &House, user: &str, role: Role) -> String {
    let new = NewToken { user: user.to_owned(), ..NewToken::new("key", role) };
    reveal(&create_token(house.dir.path(), new).unwrap().0).to_owned()
}

fn fresh() -> String {
    ulid::Ulid::generate().to_string()
}

/// A name that nobody has.
fn other() -> String {
    format!("n{}", fresh().to_ascii_lowercase())
}

fn named(name: &str) -> v1::NameRequest {
    v1::NameRequest { name: name.to_owned() }
}

fn restart(name: &str) -> v1::StartRequest {
    let what = v1::start_request::What::Restart(named(name));
    v1::StartRequest { request_id: fresh(), what: Some(what) }
}

/// Makes one call about a deployment; `operation` is one of it.
async fn call(rpc: &str, wire: Wire, on: &str, operation: &str) -> Result<(), Status> {
    use v1::*;
    let of = on.to_owned();
    let id = OperationId { id: operation.to_owned() };
    match rpc {
        "Agent/Info" => agent_client::AgentClient::new(wire).info(InfoRequest {}).await.map(drop),
        "Sources/Upload" => {
            let chunk = UploadChunk { request_id: fresh(), data: vec![1], ..Default::default() };
            sources_client::SourcesClient::new(wire).upload(futures::stream::iter([chunk])).await.map(drop)
        }
        "Operations/Start" => operations_client::OperationsClient::new(wire).start(restart(on)).await.map(drop),
        "Operations/Get" => operations_client::OperationsClient::new(wire).get(id).await.map(drop),
        "Operations/List" => {
            operations_client::OperationsClient::new(wire).list(ListOperationsRequest::default()).await.map(drop)
        }
        "Operations/Follow" => {
            let asked = FollowRequest { id: id.id, after: 0 };
            operations_client::OperationsClient::new(wire).follow(asked).await.map(drop)
        }
        "Operations/Cancel" => operations_client::OperationsClient::new(wire).cancel(id).await.map(drop),
        "Deployments/Watch" => {
            deployments_client::DeploymentsClient::new(wire).watch(WatchRequest::default()).await.map(drop)
        }
        "Deployments/Get" => deployments_client::DeploymentsClient::new(wire).get(named(on)).await.map(drop),
        "Deployments/Bill" => {
            let asked = BillRequest { name: of, release: 0 };
            deployments_client::DeploymentsClient::new(wire).bill(asked).await.map(drop)
        }
        "Logs/Tail" => {
            let asked = TailRequest { deployments: vec![of], ..Default::default() };
            logs_client::LogsClient::new(wire).tail(asked).await.map(drop)
        }
        "Mcp/Session" => {
            let frame = McpFrame { deployment: of, ..Default::default() };
            mcp_client::McpClient::new(wire).session(futures::stream::iter([frame])).await.map(drop)
        }
        "Secrets/Set" => {
            let asked = SetSecretRequest {
                request_id: fresh(),
                name: "TOKEN".into(),
                value: b"x".to_vec(),
                deployment: of,
                ..Default::default()
            };
            secrets_client::SecretsClient::new(wire).set(asked).await.map(drop)
        }
        "Secrets/SetOwn" => {
            let asked = SetSecretRequest {
                request_id: fresh(),
                name: "OWN".into(),
                value: b"x".to_vec(),
                ..Default::default()
            };
            secrets_client::SecretsClient::new(wire).set_own(asked).await.map(drop)
        }
        "Secrets/ListOwn" => {
            secrets_client::SecretsClient::new(wire).list_own(ListSecretsRequest::default()).await.map(drop)
        }
        "Secrets/RemoveOwn" => {
            let asked = RemoveSecretRequest { request_id: fresh(), name: "OWN".into(), ..Default::default() };
            secrets_client::SecretsClient::new(wire).remove_own(asked).await.map(drop)
        }
        "Secrets/Rotate" => {
            let secret = SetSecretRequest {
                request_id: fresh(),
                name: "TOKEN".into(),
                value: b"x".to_vec(),
                deployment: of,
                ..Default::default()
            };
            let asked = RotateSecretRequest { secret: Some(secret), no_roll: true };
            secrets_client::SecretsClient::new(wire).rotate(asked).await.map(drop)
        }
        "Secrets/Reveal" => {
            let asked = RevealSecretRequest { name: "TOKEN".into(), deployment: of, ..Default::default() };
            secrets_client::SecretsClient::new(wire).reveal(asked).await.map(drop)
        }
        "Secrets/Import" => {
            let one = ImportedSecret { name: "MORE".into(), value: b"x".to_vec() };
            let asked =
                ImportSecretsRequest { request_id: fresh(), secrets: vec![one], deployment: of, ..Default::default() };
            secrets_client::SecretsClient::new(wire).import(asked).await.map(drop)
        }
        "Usage/Report" => {
            let asked = UsageRequest { deployment: of, ..Default::default() };
            usage_client::UsageClient::new(wire).report(asked).await.map(drop)
        }
        "Usage/Limits" => usage_client::UsageClient::new(wire).limits(LimitsRequest {}).await.map(drop),
        "Usage/SetLimit" => {
            let whose = format!("deployment:{of}");
            let asked = SetLimitRequest { request_id: fresh(), whose, requests: Some(5), ..Default::default() };
            usage_client::UsageClient::new(wire).set_limit(asked).await.map(drop)
        }
        "Usage/RemoveLimit" => {
            let whose = format!("deployment:{of}");
            let asked = RemoveLimitRequest { request_id: fresh(), whose, quota: true, budget: false };
            usage_client::UsageClient::new(wire).remove_limit(asked).await.map(drop)
        }
        "Metrics/Top" => metrics_client::MetricsClient::new(wire).top(TopRequest {}).await.map(drop),
        "Metrics/Series" => {
            let asked = SeriesRequest { deployment: of, ..Default::default() };
            metrics_client::MetricsClient::new(wire).series(asked).await.map(drop)
        }
        "Secrets/Keyring" => secrets_client::SecretsClient::new(wire).keyring(KeyringRequest {}).await.map(drop),
        "Secrets/List" => {
            let asked = ListSecretsRequest { deployment: of };
            secrets_client::SecretsClient::new(wire).list(asked).await.map(drop)
        }
        "Secrets/Remove" => {
            let asked =
                RemoveSecretRequest { request_id: fresh(), name: "TOKEN".into(), deployment: of, ..Default::default() };
            secrets_client::SecretsClient::new(wire).remove(asked).await.map(drop)
        }
        "Keys/Create" => {
            let asked = CreateKeyRequest { request_id: fresh(), label: other(), ..Default::default() };
            keys_client::KeysClient::new(wire).create(asked).await.map(drop)
        }
        "Keys/List" => keys_client::KeysClient::new(wire).list(ListKeysRequest {}).await.map(drop),
        "Users/List" => users_client::UsersClient::new(wire).list(ListUsersRequest {}).await.map(drop),
        "Users/Add" => {
            users_client::UsersClient::new(wire).add(UserRequest { request_id: fresh(), name: other() }).await.map(drop)
        }
        "Users/Remove" => {
            let asked = UserRequest { request_id: fresh(), name: other() };
            users_client::UsersClient::new(wire).remove(asked).await.map(drop)
        }
        "Users/Enable" => {
            let asked = EnableUserRequest { request_id: fresh(), name: other(), disabled: true };
            users_client::UsersClient::new(wire).enable(asked).await.map(drop)
        }
        "Users/Grant" | "Users/Revoke" => {
            let asked = GrantRequest { request_id: fresh(), user: "nobody".into(), role: "viewer".into(), on: of };
            let mut client = users_client::UsersClient::new(wire);
            if rpc == "Users/Grant" { client.grant(asked).await } else { client.revoke(asked).await }.map(drop)
        }
        "Teams/List" => teams_client::TeamsClient::new(wire).list(ListTeamsRequest {}).await.map(drop),
        "Teams/Create" => teams_client::TeamsClient::new(wire)
            .create(TeamRequest { request_id: fresh(), name: other() })
            .await
            .map(drop),
        "Teams/Remove" => teams_client::TeamsClient::new(wire)
            .remove(TeamRequest { request_id: fresh(), name: other() })
            .await
            .map(drop),
        "Teams/Move" => {
            let asked = MoveRequest { request_id: fresh(), deployment: of, team: "default".into() };
            teams_client::TeamsClient::new(wire).r#move(asked).await.map(drop)
        }
        "Policies/Get" => policies_client::PoliciesClient::new(wire).get(named(on)).await.map(drop),
        "Policies/Set" => {
            let asked = SetPolicyRequest { request_id: fresh(), name: of, merge: true, ..Default::default() };
            policies_client::PoliciesClient::new(wire).set(asked).await.map(drop)
        }
        "Scaling/Get" => scaling_client::ScalingClient::new(wire).get(named(on)).await.map(drop),
        "Scaling/Set" => {
            let asked = SetScalingRequest { request_id: fresh(), name: of, off: true, ..Default::default() };
            scaling_client::ScalingClient::new(wire).set(asked).await.map(drop)
        }
        "Scaling/History" => {
            let asked = ScalingHistoryRequest { name: of, ..Default::default() };
            scaling_client::ScalingClient::new(wire).history(asked).await.map(drop)
        }
        "Scaling/Explain" => scaling_client::ScalingClient::new(wire).explain(named(on)).await.map(drop),
        "Scaling/Trace" => scaling_client::ScalingClient::new(wire).trace(named(on)).await.map(drop),
        "Follows/List" => follows_client::FollowsClient::new(wire).list(FollowsRequest { name: of }).await.map(drop),
        "Follows/Set" => {
            let asked = SetFollowRequest { request_id: fresh(), name: of, off: true, ..Default::default() };
            follows_client::FollowsClient::new(wire).set(asked).await.map(drop)
        }
        "Follows/Look" => {
            let asked = LookRequest { request_id: fresh(), name: of };
            follows_client::FollowsClient::new(wire).look(asked).await.map(drop)
        }
        "Git/Accounts" => git_client::GitClient::new(wire).accounts(GitAccountsRequest {}).await.map(drop),
        "Git/Add" => {
            // of a kind that there is not: nothing is kept
            let asked = AddGitAccountRequest { request_id: fresh(), name: of, kind: "x".into(), ..Default::default() };
            git_client::GitClient::new(wire).add(asked).await.map(drop)
        }
        "Git/Remove" => {
            let asked = RemoveGitAccountRequest { request_id: fresh(), name: of };
            git_client::GitClient::new(wire).remove(asked).await.map(drop)
        }
        "Git/Check" => git_client::GitClient::new(wire).check(named(on)).await.map(drop),
        "Git/Repositories" => {
            let asked = RepositoriesRequest { account: of, ..Default::default() };
            git_client::GitClient::new(wire).repositories(asked).await.map(drop)
        }
        "Git/Manifest" => {
            let asked = RepositoryManifestRequest { account: of, path: "a/b".into(), ..Default::default() };
            git_client::GitClient::new(wire).manifest(asked).await.map(drop)
        }
        "Health/Get" => {
            let asked = HealthRequest { name: of, probes: 1, turns: 1, lives: 1 };
            health_client::HealthClient::new(wire).get(asked).await.map(drop)
        }
        "Alerts/List" => alerts_client::AlertsClient::new(wire).list(AlertsRequest {}).await.map(drop),
        "Alerts/Test" => {
            alerts_client::AlertsClient::new(wire).test(TestAlertRequest { request_id: fresh() }).await.map(drop)
        }
        "Waivers/List" => waivers_client::WaiversClient::new(wire).list(named(on)).await.map(drop),
        "Waivers/Add" => {
            let waiver = Waiver { finding: "ssrf".into(), reason: "why".into(), until: "2999-01-01".into() };
            let asked = AddWaiverRequest { request_id: fresh(), name: of, waiver: Some(waiver) };
            waivers_client::WaiversClient::new(wire).add(asked).await.map(drop)
        }
        "Waivers/Remove" => {
            let asked = RemoveWaiverRequest { request_id: fresh(), name: of, finding: "ssrf".into() };
            waivers_client::WaiversClient::new(wire).remove(asked).await.map(drop)
        }
        "Pins/Get" => {
            pins_client::PinsClient::new(wire).get(GetPinsRequest { name: of, ..Default::default() }).await.map(drop)
        }
        "Pins/Answer" => {
            let asked = AnswerPinsRequest { request_id: fresh(), name: of, ..Default::default() };
            pins_client::PinsClient::new(wire).answer(asked).await.map(drop)
        }
        "Taps/Follow" => taps_client::TapsClient::new(wire).follow(named(on)).await.map(drop),
        "Registry/Search" => {
            registry_client::RegistryClient::new(wire).search(SearchRequest::default()).await.map(drop)
        }
        "Registry/Get" => {
            let asked = GetPackageRequest { name: "io.example/clock".into(), ..Default::default() };
            registry_client::RegistryClient::new(wire).get(asked).await.map(drop)
        }
        "Registry/Publish" => {
            let document = r#"{"name":"io.example/clock","description":"Tells the time.","version":"1.0.0"}"#.into();
            let asked = PublishRequest { request_id: fresh(), document, ..Default::default() };
            registry_client::RegistryClient::new(wire).publish(asked).await.map(drop)
        }
        "Registry/Import" => {
            let asked = ImportPackagesRequest { request_id: fresh(), mirror: "other".into(), ..Default::default() };
            registry_client::RegistryClient::new(wire).import(asked).await.map(drop)
        }
        "Registry/Push" => {
            let asked = PushRequest { request_id: fresh(), deployment: of, reference: "none".into() };
            registry_client::RegistryClient::new(wire).push(asked).await.map(drop)
        }
        "Registry/Mirrors" => {
            registry_client::RegistryClient::new(wire).mirrors(MirrorsRequest::default()).await.map(drop)
        }
        "Registry/SyncMirror" => {
            let asked = SyncMirrorRequest { request_id: fresh(), name: "other".into(), ..Default::default() };
            registry_client::RegistryClient::new(wire).sync_mirror(asked).await.map(drop)
        }
        "Registry/SetStatus" => {
            let asked = PackageStatusRequest {
                request_id: fresh(),
                name: "io.example/clock".into(),
                status: "deprecated".into(),
                ..Default::default()
            };
            registry_client::RegistryClient::new(wire).set_status(asked).await.map(drop)
        }
        "Audit/Query" => audit_client::AuditClient::new(wire).query(AuditQuery::default()).await.map(drop),
        other => panic!("{other} is in the contract and not in the matrix"),
    }
}

/// Whether a call was let in; what it then found is another matter.
fn admitted(answer: &Result<(), Status>) -> bool {
    match answer {
        Ok(()) => true,
        Err(status) => {
            let (code, _) = code(status);
            let hidden = ["no deployment", "no operation"].iter().any(|what| status.message().starts_with(what));
            !(code == "FORBIDDEN" || code == "UNAUTHENTICATED" || (code == "NOT_FOUND" && hidden))
        }
    }
}

fn enough(role: Role, least: Role) -> bool {
    match least {
        Role::Caller => role != Role::Viewer,
        least => role >= least,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_and_every_role() {
    let mut rows: Vec<String> = MATRIX.iter().map(|(path, ..)| format!("/sigil.v1.{path}")).collect();
    rows.extend(ELSEWHERE.map(|path| format!("/sigil.v1.{path}")));
    rows.sort();
    let mut rules: Vec<&str> = rules::RULES.iter().map(|rule| rule.path).collect();
    rules.sort_unstable();
    assert_eq!(rows, rules, "each call is in the matrix once");

    let house = house().await;
    let mut operations = Vec::new();
    for name in ["mine", "other"] {
        house.stopped(name).await;
        let mut client = v1::operations_client::OperationsClient::new(house.channel.clone());
        operations.push(client.start(restart(name)).await.unwrap().into_inner().id);
    }
    // the gateway's table is made of the reconciler's
    soon("routes", async {
        let mut taps = v1::taps_client::TapsClient::new(house.channel.clone());
        while taps.follow(named("other")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut checked = 0;
    for role in Role::ALL {
        let narrow = far(&house, &user(&house, &format!("{role}-mine"), &[(role, "mine")]).await).await;
        let wide = far(&house, &user(&house, &format!("{role}-all"), &[(role, "all")]).await).await;
        for (rpc, least, of) in MATRIX {
            for (wire, everywhere) in [(&narrow, false), (&wide, true)] {
                for (name, operation) in ["mine", "other"].iter().zip(&operations) {
                    let answer = soon(rpc, call(rpc, wire.clone(), name, operation)).await;
                    let reaches = match of {
                        Nothing | Any => true,
                        It => everywhere || *name == "mine",
                        All => everywhere,
                    };
                    let expected = of == Nothing || (reaches && enough(role, least));
                    assert_eq!(
                        admitted(&answer),
                        expected,
                        "{role} (everywhere: {everywhere}) {rpc} {name}: {answer:?}"
                    );
                    checked += 1;
                }
            }
        }
    }
    let nothing = far(&house, &user(&house, "none", &[]).await).await;
    let gone = user(&house, "gone", &[(Role::Admin, "all")]).await;
    access::set_disabled(&house.store, "gone", true).await.unwrap();
    let gone = far(&house, &gone).await;
    for (rpc, _, of) in MATRIX {
        for name in ["mine", "other"] {
            let answer = soon(rpc, call(rpc, nothing.clone(), name, &operations[0])).await;
            assert_eq!(admitted(&answer), of == Nothing, "none {rpc}: {answer:?}");
            let answer = soon(rpc, call(rpc, gone.clone(), name, &operations[0])).await;
            assert!(!admitted(&answer), "disabled {rpc}");
            checked += 2;
        }
    }
    println!("{checked} calls of {} kinds by {} roles", MATRIX.len(), Role::ALL.len());
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_show_what_may_be_seen_and_a_change_of_roles_ends_them() {
    let house = house().await;
    for name in ["mine", "other"] {
        house.stopped(name).await;
        let mut client = v1::operations_client::OperationsClient::new(house.channel.clone());
        client.start(restart(name)).await.unwrap();
    }
    let ada = far(&house, &user(&house, "ada", &[(Role::Viewer, "mine")]).await).await;
    let mut watch = v1::deployments_client::DeploymentsClient::new(ada.clone())
        .watch(v1::WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = soon("rows", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.changed.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    let mut operations = v1::operations_client::OperationsClient::new(ada.clone());
    let seen = operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner().operations;
    assert_eq!(seen.iter().map(|op| op.deployment.as_str()).collect::<Vec<_>>(), ["mine"]);
    let logs = v1::TailRequest { all: true, ..Default::default() };
    let mut logs = v1::logs_client::LogsClient::new(ada.clone()).tail(logs).await.unwrap().into_inner();
    while let Some(batch) = soon("logs", logs.message()).await.unwrap() {
        assert!(batch.lines.iter().all(|line| line.deployment == "mine"));
    }
    let info = v1::agent_client::AgentClient::new(ada.clone()).info(v1::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.who.as_str(), info.role.as_str()), ("ada", "viewer"));
    assert_eq!((info.grants[0].role.as_str(), info.grants[0].on.as_str()), ("viewer", "mine"));

    access::grant(&house.store, "ada", Role::Viewer, On::All, &Principal::owner()).await.unwrap();
    let ended = soon("the end of the list", async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        }
    });
    assert_eq!(ended.await.unwrap_err().code(), Code::Unavailable);
    // a list with fewer rights is another list: its revisions mean nothing here
    let resume = v1::WatchRequest { epoch: first.epoch, revision: first.revision };
    let mut watch =
        v1::deployments_client::DeploymentsClient::new(ada.clone()).watch(resume).await.unwrap().into_inner();
    let all = soon("rows", watch.message()).await.unwrap().unwrap();
    assert!(all.resync && all.changed.len() == 2, "{all:?}");
    access::set_disabled(&house.store, "ada", true).await.unwrap();
    let ended = soon("the end of the list", async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        }
    });
    assert_eq!(ended.await.unwrap_err().code(), Code::PermissionDenied);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teams_have_admins_of_their_own() {
    let house = house().await;
    house.stopped("mine").await;
    let owner = Principal::owner();
    for name in ["search", "maps"] {
        access::make_team(&house.store, name, &owner).await.unwrap();
    }
    let directory = house.store.directory();
    let on = |team: &str| On::Team(directory.team_id(team).unwrap()).to_string();
    let ada = far(&house, &user(&house, "ada", &[(Role::Admin, &on("search"))]).await).await;
    user(&house, "bob", &[]).await;
    let mut users = v1::users_client::UsersClient::new(ada.clone());
    let ask = |role: &str, on: &str| v1::GrantRequest {
        request_id: fresh(),
        user: "bob".into(),
        role: role.into(),
        on: on.into(),
    };
    let bob = users.grant(ask("deployer", "team:search")).await.unwrap().into_inner();
    assert_eq!((bob.grants[0].role.as_str(), bob.grants[0].on.as_str()), ("deployer", "team:search"));
    for (role, on, refused) in [
        ("deployer", "team:maps", "FORBIDDEN"),
        ("viewer", "all", "FORBIDDEN"),
        ("viewer", "mine", "FORBIDDEN"),
        ("caller", "tag:prod", "FORBIDDEN"),
        ("owner", "team:search", "INVALID"),
        ("viewer", "team:nobody", "NOT_FOUND"),
        ("viewer", "host:x", "INVALID"),
    ] {
        assert_eq!(code(&users.grant(ask(role, on)).await.unwrap_err()).0, refused, "{role} {on}");
    }
    // a role on something takes the place of the one before; calling stands beside it
    users.grant(ask("viewer", "team:search")).await.unwrap();
    let bob = users.grant(ask("caller", "team:search")).await.unwrap().into_inner();
    assert_eq!(bob.grants.iter().map(|g| g.role.as_str()).collect::<Vec<_>>(), ["caller", "viewer"]);
    let bob = users.revoke(ask("caller", "team:search")).await.unwrap().into_inner();
    assert_eq!(bob.grants.len(), 1);
    assert_eq!(code(&users.revoke(ask("caller", "team:search")).await.unwrap_err()).0, "NOT_FOUND");

    // deployments and secrets go where the team is
    let mut teams = v1::teams_client::TeamsClient::new(house.channel.clone());
    let moved = v1::MoveRequest { request_id: fresh(), deployment: "mine".into(), team: "search".into() };
    let mut mine = v1::deployments_client::DeploymentsClient::new(ada.clone());
    assert_eq!(mine.get(named("mine")).await.unwrap_err().code(), Code::NotFound);
    teams.r#move(moved).await.unwrap();
    assert!(mine.get(named("mine")).await.is_ok());
    let mut secrets = v1::secrets_client::SecretsClient::new(ada.clone());
    let set =
        v1::SetSecretRequest { request_id: fresh(), name: "A".into(), value: b"x".to_vec(), ..Default::default() };
    assert!(secrets.set(set).await.unwrap().into_inner().scope.contains("search"), "her only team");
    let source = v1::SetSecretRequest {
        request_id: fresh(),
        name: "git.example.org".into(),
        value: b"x".to_vec(),
        purpose: "source".into(),
        ..Default::default()
    };
    assert_eq!(code(&secrets.set(source).await.unwrap_err()).0, "FORBIDDEN");
    let listed = teams.list(v1::ListTeamsRequest {}).await.unwrap().into_inner().teams;
    let search = listed.iter().find(|team| team.name == "search").unwrap();
    assert_eq!((search.members.join(", "), search.deployments.len()), ("ada (admin), bob (viewer)".to_owned(), 1));
    let theirs = v1::teams_client::TeamsClient::new(ada.clone()).list(v1::ListTeamsRequest {}).await.unwrap();
    assert_eq!(theirs.into_inner().teams.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["search"]);

    let remove = |name: &str| v1::TeamRequest { request_id: fresh(), name: name.into() };
    let full = teams.remove(remove("search")).await.unwrap_err();
    assert!(full.message().contains("deployment mine") && full.message().contains("secret A"), "{}", full.message());
    assert_eq!(code(&teams.remove(remove("default")).await.unwrap_err()).0, "IN_USE");
    teams.remove(remove("maps")).await.unwrap();
    assert_eq!(code(&teams.create(remove("search")).await.unwrap_err()).0, "NAME_TAKEN");
    house.end().await;
}

fn deploy(name: &str, team: &str) -> v1::StartRequest {
    let deploy = v1::DeployRequest {
        name: name.into(),
        team: team.into(),
        source: Some(v1::SourceRef { text: "pypi:nothing".into(), upload_id: String::new() }),
        ..Default::default()
    };
    v1::StartRequest { request_id: fresh(), what: Some(v1::start_request::What::Deploy(deploy)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_deploy_where() {
    let house = house().await;
    house.stopped("theirs").await;
    access::make_team(&house.store, "search", &Principal::owner()).await.unwrap();
    let team = On::Team(house.store.directory().team_id("search").unwrap()).to_string();
    let ada = user(&house, "ada", &[(Role::Deployer, &team), (Role::Deployer, "dev-*")]).await;
    let bob = user(&house, "bob", &[(Role::Deployer, "all")]).await;
    let mut ada = v1::operations_client::OperationsClient::new(far(&house, &ada).await);
    for (name, team, outcome) in [
        ("new", "search", Ok(())),
        // her only team
        ("another", "", Ok(())),
        ("dev-a", "default", Ok(())),
        ("more", "default", Err("FORBIDDEN")),
        ("more", "nobody", Err("NOT_FOUND")),
        // it may turn out to be called as somebody else's is
        ("", "search", Err("INVALID")),
        ("theirs", "search", Err("NAME_TAKEN")),
    ] {
        let answer = ada.start(deploy(name, team)).await.map(drop);
        assert_eq!(answer.map_err(|e| code(&e).0), outcome.map_err(str::to_owned), "{name} {team}");
    }
    let mut waived = deploy("new2", "search");
    if let Some(v1::start_request::What::Deploy(deploy)) = &mut waived.what {
        deploy.waivers.push(v1::Waiver { finding: "ssrf".into(), reason: "r".into(), until: "2999-01-01".into() });
    }
    assert_eq!(code(&ada.start(waived).await.unwrap_err()).0, "FORBIDDEN", "a waiver takes an admin");
    let what = |what| v1::StartRequest { request_id: fresh(), what: Some(what) };
    let remove = what(v1::start_request::What::Remove(named("theirs")));
    assert_eq!(code(&ada.start(remove).await.unwrap_err()).0, "NOT_FOUND");
    let mut bob = v1::operations_client::OperationsClient::new(far(&house, &bob).await);
    bob.start(deploy("", "")).await.unwrap();
    bob.start(deploy("theirs", "")).await.unwrap();
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_their_users_own_and_end_with_them() {
    let house = house().await;
    let ada = user(&house, "ada", &[(Role::Operator, "all")]).await;
    let bob = user(&house, "bob", &[(Role::Viewer, "mine")]).await;
    let mut hers = v1::keys_client::KeysClient::new(far(&house, &ada).await);
    let mut his = v1::keys_client::KeysClient::new(far(&house, &bob).await);
    let ask = |label: &str, user: &str, role: &str| v1::CreateKeyRequest {
        request_id: fresh(),
        label: label.into(),
        user: user.into(),
        role: role.into(),
        ..Default::default()
    };
    let made = his.create(ask("laptop", "", "admin")).await.unwrap().into_inner();
    assert_eq!(made.key.as_ref().unwrap().user, "bob");
    // a key may no more than its user, whatever it is called
    let mut through = v1::agent_client::AgentClient::new(far(&house, &made.text).await);
    assert_eq!(through.info(v1::InfoRequest {}).await.unwrap().into_inner().role, "viewer");
    assert_eq!(code(&his.create(ask("x", "ada", "caller")).await.unwrap_err()).0, "FORBIDDEN");
    assert_eq!(code(&his.create(ask("x", "nobody", "caller")).await.unwrap_err()).0, "FORBIDDEN");
    let listed = |reply: tonic::Response<v1::ListKeysReply>| {
        reply.into_inner().keys.iter().map(|key| format!("{} {}", key.user, key.label)).collect::<Vec<_>>()
    };
    assert_eq!(listed(his.list(v1::ListKeysRequest {}).await.unwrap()), ["bob key", "bob laptop"]);
    assert_eq!(listed(hers.list(v1::ListKeysRequest {}).await.unwrap()).len(), 3, "she looks at everything");
    let revoke = |key: &str| v1::RevokeKeyRequest { request_id: fresh(), key: key.into() };
    assert_eq!(code(&hers.revoke(revoke("laptop")).await.unwrap_err()).0, "NOT_FOUND");
    his.revoke(revoke("laptop")).await.unwrap();
    // keys of this host are changed on this host, whoever asks from elsewhere
    let carol = user(&house, "carol", &[(Role::Admin, "all")]).await;
    let mut secrets = v1::secrets_client::SecretsClient::new(far(&house, &carol).await);
    let rotate = v1::RotateKeysRequest { request_id: fresh(), ..Default::default() };
    assert_eq!(code(&secrets.rotate_keys(rotate).await.unwrap_err()).0, "FORBIDDEN");
    // and an operator of everything reads no audit log
    let mut audit = v1::audit_client::AuditClient::new(far(&house, &ada).await);
    assert_eq!(code(&audit.query(v1::AuditQuery::default()).await.unwrap_err()).0, "FORBIDDEN");

    let mut users = v1::users_client::UsersClient::new(house.channel.clone());
    let gone = users.remove(v1::UserRequest { request_id: fresh(), name: "bob".into() }).await.unwrap().into_inner();
    assert_eq!((gone.name.as_str(), gone.keys), ("bob", 1));
    assert_eq!(his.list(v1::ListKeysRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let words: Vec<String> = house.recorded().await.into_iter().map(|record| record.what).collect();
    for word in ["key.create", "key.revoke", "user.remove"] {
        assert!(words.iter().any(|w| w == word), "{word} in {words:?}");
    }
    house.end().await;
}

/// The status that the gateway answers a call with.
async fn posted(house: &House, path: &str, key: &str) -> u16 {
    let mut stream = tokio::net::TcpStream::connect(house.gateway).await.unwrap();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\naccept: application/json, text/event-stream\r\n\
         content-length: {}\r\n\r\n{body}",
        house.gateway,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon(path, stream.read_to_end(&mut answer)).await.unwrap();
    let head = String::from_utf8_lossy(&answer).into_owned();
    head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{head}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_asks_for_the_same_roles() {
    let house = house().await;
    for name in ["mine", "other"] {
        let d = house.stopped(name).await;
        let change = |d: &mut sigil_core::model::Deployment| {
            d.policy.access = Some(sigil_core::policy::Access::Key);
            Ok(())
        };
        house.store.update(d.id, None, "keys", change).await.unwrap();
    }
    let owner = key(&house, "", Role::Admin);
    soon("routes", async {
        while [404, 503].contains(&posted(&house, "/mcp/nobody", &owner).await)
            && posted(&house, "/mcp/other", &owner).await == 404
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let refused = |code: u16| code == 401 || code == 403;
    for role in Role::ALL {
        let grants = [(role, "mine")];
        let text = user(&house, &format!("{role}-mine"), &grants).await;
        let of = house.store.directory().user(&format!("{role}-mine")).unwrap().0.id.clone();
        for cap in Role::ALL {
            let capped = key(&house, &of, cap);
            let calls = role != Role::Viewer && cap != Role::Viewer;
            assert_eq!(!refused(posted(&house, "/mcp/mine", &capped).await), calls, "{role} by a key of {cap}");
            assert!(refused(posted(&house, "/mcp/other", &capped).await), "{role} by a key of {cap}");
        }
        access::set_disabled(&house.store, &of, true).await.unwrap();
        assert!(refused(posted(&house, "/mcp/mine", &text).await), "{role}, disabled");
        assert!(refused(posted(&house, "/mcp", &text).await), "{role}, disabled, in a bundle");
    }
    // of keys that are nobody's in the directory their own role decides, as ever
    for role in Role::ALL {
        let nobodys = key(&house, "laptop", role);
        assert_eq!(refused(posted(&house, "/mcp/mine", &nobodys).await), role == Role::Viewer, "{role}");
    }
    house.end().await;
}

/// An authority for consoles' certificates.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap())
    }

    fn of(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &*self.0).unwrap(), key)
    }
}

/// What an agent says to `Info` over a connection with a certificate: who that is, or the code of its refusal.
async fn told(house: &House, identity: (rcgen::Certificate, rcgen::KeyPair), token: Option<&str>) -> String {
    let (address, _) = house.api.tls().unwrap();
    let Ok((io, _)) = tls_as(address, Some(identity)).await else { return "no connection".to_owned() };
    let mut io = Some(hyper_util::rt::TokioIo::new(io));
    let connect =
        tower::service_fn(move |_| std::future::ready(io.take().ok_or_else(|| std::io::Error::other("once"))));
    let Ok(channel) = Endpoint::from_static("http://agent").connect_with_connector(connect).await else {
        return "no connection".to_owned();
    };
    let mut request = Request::new(v1::InfoRequest {});
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    match v1::agent_client::AgentClient::new(channel).info(request).await {
        Ok(info) => {
            let info = info.into_inner();
            format!("{} {}", info.who, info.role)
        }
        // TLS 1.3: a refused certificate is told behind the client's end of the handshake
        Err(status) if status.details().is_empty() => "no connection".to_owned(),
        Err(status) => code(&status).0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_names_its_user() {
    let (ours, others) = (Authority::new(), Authority::new());
    for required in [false, true] {
        let house = house_with(|dir, config| {
            std::fs::write(dir.join("clients.pem"), ours.0.pem()).unwrap();
            config.grpc.client_ca = Some(dir.join("clients.pem"));
            config.grpc.require_client_certificate = required;
        })
        .await;
        let hers = user(&house, "ada", &[(Role::Operator, "all")]).await;
        user(&house, "bob", &[(Role::Admin, "all")]).await;
        assert_eq!(told(&house, ours.of("ada"), None).await, "ada operator");
        assert_eq!(told(&house, ours.of("ada"), Some(&hers)).await, "ada operator");
        assert_eq!(told(&house, ours.of("bob"), Some(&hers)).await, "UNAUTHENTICATED", "her key, his certificate");
        assert_eq!(told(&house, ours.of("eve"), None).await, "FORBIDDEN");
        let id = house.store.directory().user("bob").unwrap().0.id.clone();
        assert_eq!(told(&house, ours.of(&id), None).await, "FORBIDDEN", "an id is no name");
        assert_eq!(told(&house, others.of("bob"), None).await, "no connection");
        access::set_disabled(&house.store, "bob", true).await.unwrap();
        assert_eq!(told(&house, ours.of("bob"), None).await, "FORBIDDEN");
        // without a certificate
        let connected = soon("a connection", async {
            let (address, _) = house.api.tls().unwrap();
            let connect = tower::service_fn(move |_| async move {
                tls_as(address, None).await.map(|(io, _)| hyper_util::rt::TokioIo::new(io))
            });
            let Ok(channel) = Endpoint::from_static("http://agent").connect_with_connector(connect).await else {
                return false;
            };
            let channel = InterceptedService::new(channel, Bearer(hers.clone()));
            v1::agent_client::AgentClient::new(channel).info(v1::InfoRequest {}).await.is_ok()
        });
        assert_eq!(connected.await, !required);
        house.end().await;
    }
}
