//! Commands that read.

use serde_json::json;
use sigil_protocol::v1;

use super::Home;
use super::fake::{deployment, eventually, line};

#[tokio::test]
async fn ls_fits_80_columns_and_its_json_is_the_promised_one() {
    let home = Home::with_agent();
    assert!(home.run(&["ls"]).await.exits(0).err.contains("no deployments yet"));
    assert_eq!(home.run(&["ls", "-o", "json"]).await.exits(0).json(), json!([]));
    home.fake.with(|s| {
        let mut broken = deployment("weather", "failed");
        broken.message = "the server exits at once with code 1: ModuleNotFoundError: no module named weather".into();
        broken.desired_release = 4;
        s.deployments =
            vec![broken, deployment("time", "ready"), deployment("a-name-of-forty-characters-aaaaaaaaaaaaaa", "ready")];
    });
    let table = home.run(&["ls"]).await.exits(0).out;
    assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
    let names: Vec<&str> = table.lines().skip(1).map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(names[1..], ["time", "weather"]);
    assert!(table.contains("3>4"), "{table}");
    let wide = home.run(&["ls", "-o", "wide"]).await.exits(0).out;
    assert!(wide.contains("no module named weather") && wide.contains("pypi:mcp-server-time==2026.1.1"), "{wide}");
    let all = home.run(&["ls", "-o", "json"]).await.exits(0).json();
    let keys: Vec<&String> = all[1].as_object().unwrap().keys().collect();
    let promised = [
        "name",
        "state",
        "ready",
        "desired",
        "release",
        "source",
        "transport",
        "endpoint",
        "health",
        "rpm",
        "p99_ms",
        "error_rate",
        "cpu_percent",
        "memory_bytes",
        "restarts",
        "created_at",
        "message",
    ];
    assert_eq!(keys[..promised.len()], promised);
    assert_eq!(all[1]["created_at"], "2023-11-14T22:13:20Z");
    let yaml = home.run(&["ls", "-o", "yaml"]).await.exits(0).out;
    assert!(yaml.contains("name: time") && yaml.contains("2023-11-14T22:13:20Z"), "{yaml}");
}

#[tokio::test]
async fn get_plan_and_releases_show_one_deployment_and_near_names() {
    let home = Home::with_agent();
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    let page = home.run(&["get", "time"]).await.exits(0).out;
    for part in
        ["endpoint    http://127.0.0.1:7450/mcp/time", "CONDITION", "INSTANCE", "start one replica", "generation 7"]
    {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
    assert!(!page.contains('\x1b') && page.contains("^[]0;pwned^Gboom"), "a server does not steer the terminal");
    let detail = home.run(&["get", "time", "-o", "json"]).await.exits(0).json();
    assert_eq!((&detail["name"], &detail["generation"]), (&json!("time"), &json!(7)));
    assert_eq!(detail["plan"], json!(["start one replica of release 3", "stop 01OLD"]));
    let releases = home.run(&["releases", "time", "-o", "json"]).await.exits(0).json();
    assert_eq!(releases[1]["serving"], true);
    assert!(home.run(&["releases", "time"]).await.exits(0).out.lines().nth(1).unwrap().starts_with('3'));
    assert!(home.run(&["plan", "time"]).await.exits(0).out.contains("stop 01OLD"));
    for args in [
        &["get", "tmie"][..],
        &["plan", "tmie"],
        &["releases", "tmie"],
        &["logs", "tmie"],
        &["tools", "tmie"],
        &["restart", "tmie"],
    ] {
        let ran = home.run(args).await.exits(3);
        assert_eq!(ran.err, "error: there is no deployment 'tmie'. hint: did you mean 'time'?\n", "{args:?}");
    }
    let error = home.run(&["get", "zzz", "-o", "json"]).await.exits(3).error();
    assert_eq!(error["code"], "NOT_FOUND");
    assert_eq!(error["hint"], "'sigil ls' lists what there is");
}

#[tokio::test]
async fn info_shows_the_agent_and_every_path() {
    let home = Home::with_agent();
    let info = home.run(&["info", "-o", "json"]).await.exits(0).json();
    assert_eq!(info["agent"]["who"], "ada");
    assert_eq!(info["console"]["contexts"], home.path("config/sigil/contexts.toml").display().to_string());
    assert!(home.run(&["info"]).await.exits(0).out.contains("you are     ada (admin)"));
}

#[tokio::test]
async fn log_lines_are_raw_in_a_pipe_and_objects_for_scripts() {
    let home = Home::with_agent();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready"), deployment("weather", "ready")];
        s.lines = vec![line(1, "time", b"\x1b[31mred\x1b[0m \xff"), line(5, "weather", b"five")];
        s.gaps = vec![sigil_protocol::v1::LogGap {
            deployment: "weather".into(),
            lost: 3,
            after_seq: 4,
            reason: "rotated".into(),
        }];
    });
    let output = home.command(&["logs", "time"]).output().await.unwrap();
    let first = output.stdout.split(|b| *b == b'\n').next().unwrap();
    assert_eq!(first, b"2023-11-14T22:13:20.001Z stderr \x1b[31mred\x1b[0m \xff");
    let both =
        home.run(&["logs", "time", "weather", "--tail", "7", "--since", "2023-11-14", "--grep", "e"]).await.exits(0);
    assert!(both.out.contains("Z weather stderr five\n"), "{}", both.out);
    assert!(both.out.contains("--- 3 lines of weather lost: rotated ---\n2023"), "{}", both.out);
    let asked = home.fake.with(|s| s.tails.last().cloned().unwrap());
    assert_eq!((asked.tail, asked.grep.as_str(), asked.follow), (Some(7), "e", false));
    assert_eq!(asked.since, 1_699_920_000_000_000);
    let objects = home.run(&["logs", "--all", "-o", "json"]).await.exits(0).out;
    let objects: Vec<serde_json::Value> = objects.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(objects[0]["time"], "2023-11-14T22:13:20.001Z");
    assert_eq!((&objects[0]["stream"], &objects[0]["seq"]), (&json!("stderr"), &json!(1)));
    assert_eq!(objects[1]["gap"]["lost"], 3);
    assert_eq!(objects[2]["line"], "five");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_survives_a_cut_link_without_loss_or_repetition() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let home = Home::with_agent();
    let proxy = home.proxy();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready")];
        s.lines = (1..=60).map(|seq| line(seq, "time", format!("line {seq}").as_bytes())).collect();
    });
    home.fake.limit.send_replace(20);
    let host = format!("unix://{}", proxy.path.display());
    let mut child = home.command(&["--host", &host, "logs", "-f", "time", "-o", "json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for limit in [20, 40, 60] {
        home.fake.limit.send_replace(limit);
        while seen.len() < limit {
            let read = tokio::time::timeout(std::time::Duration::from_secs(20), lines.next_line());
            let text = read.await.expect("lines go on after a cut").unwrap().expect("the follow does not end");
            seen.push(serde_json::from_str::<serde_json::Value>(&text).unwrap()["seq"].as_u64().unwrap());
        }
        if limit < 60 {
            let before = home.fake.with(|s| s.tails.len());
            proxy.cut();
            eventually("the log is asked for again", || home.fake.with(|s| s.tails.len()) > before).await;
        }
    }
    assert_eq!(seen, (1..=60).collect::<Vec<u64>>());
    let asked = home.fake.with(|s| s.tails.last().cloned().unwrap());
    assert_eq!(asked.resume[0].seq, 40);
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ran = super::Ran::from(child.wait_with_output().await.unwrap()).exits(130);
    assert!(!ran.err.contains("error:"), "to end a follow is no error: {}", ran.err);
}

#[tokio::test]
async fn a_bill_is_a_table_for_people_and_itself_for_scripts() {
    let home = Home::with_agent();
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    let table = home.run(&["sbom", "time"]).await.exits(0);
    assert!(table.out.lines().nth(1).unwrap().split_whitespace().eq([
        "mcp",
        "1.9.4",
        "pypi",
        "MIT",
        "locked,",
        "installed"
    ]));
    assert!(table.err.contains("1 packages"), "{}", table.err);
    assert_eq!(home.run(&["sbom", "time", "-o", "json"]).await.exits(0).json()["bomFormat"], "CycloneDX");
    let provenance = home.run(&["sbom", "time", "--provenance"]).await.exits(0).json();
    assert_eq!(provenance["subject"][0]["name"], "time");
    assert!(home.run(&["sbom", "tame"]).await.exits(3).err.contains("time"));
}

#[tokio::test]
async fn top_is_a_table_that_fits_and_once_into_a_pipe() {
    let home = Home::with_agent();
    let replica = |instance: &str, paused: bool| v1::ReplicaUse {
        instance: instance.into(),
        ready: !paused,
        paused,
        cpu_percent: 12.5,
        memory_bytes: 64 << 20,
        memory_total_bytes: 80 << 20,
        memory_limit_bytes: 256 << 20,
        oom_kills: 2,
        ..Default::default()
    };
    let used = |name: &str, cpu: f64, rpm: f64| v1::DeploymentUse {
        name: name.into(),
        state: "ready".into(),
        ready: 1,
        cpu_percent: cpu,
        cpu_limit_percent: 50.0,
        memory_bytes: 64 << 20,
        rpm,
        error_rate: 0.25,
        received_per_second: 2048.0,
        replicas: vec![replica(&format!("01{}", name.to_uppercase()), name == "asleep")],
        ..Default::default()
    };
    let host = v1::HostUse {
        cpus: 4,
        cpu_percent: 25.0,
        memory_bytes: 8 << 30,
        pressure_cpu: Some(1.5),
        ..Default::default()
    };
    home.fake.with(|s| {
        s.top = v1::TopReply {
            at: 1_700_000_000_000_000,
            host: Some(host),
            deployments: vec![used("asleep", 0.0, 90.0), used("busy", 12.5, 3.0)],
        };
    });
    let once = home.run(&["top"]).await.exits(0);
    assert!(once.out.starts_with("host   25% of 4 CPUs"), "{}", once.out);
    assert!(once.out.contains("waiting for CPU 1.5%, memory -"), "{}", once.out);
    assert!(once.out.lines().all(|l| l.chars().count() <= 80), "{}", once.out);
    assert!(once.out.contains("P99") && !once.out.contains("DISK"), "a narrow one has less columns: {}", once.out);
    let names = |out: &str| {
        let rows = out.lines().skip_while(|l| !l.starts_with("NAME")).skip(1).take(2);
        rows.map(|l| l.split_whitespace().next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&once.out), ["busy", "asleep"], "the busiest first");
    assert_eq!(names(&home.run(&["top", "--sort", "rpm"]).await.exits(0).out), ["asleep", "busy"]);
    let wide = home.run(&["top", "-o", "wide"]).await.exits(0).out;
    assert!(wide.contains("01ASLEEP") && wide.contains("paused"), "{wide}");
    let json = home.run(&["top", "-o", "json"]).await.exits(0).json();
    assert_eq!(json["deployments"][0]["replicas"][0]["oom_kills"], 2);
    assert_eq!(json["host"]["pressure_memory_percent"], serde_json::Value::Null);
}

#[tokio::test]
async fn usage_is_a_table_a_spreadsheet_and_advice() {
    let home = Home::with_agent();
    let row = v1::UsageRow {
        month: "2027-01".into(),
        name: "clock".into(),
        requests: 20_000,
        errors: 3,
        cpu_seconds: 36.0,
        memory_gb_hours: 5.0,
        egress_bytes: 1 << 30,
        cost: 7.15,
        forecast_cost: 21.5,
        ..Default::default()
    };
    let advice = v1::UsageAdvice {
        deployment: "clock".into(),
        tier: "standard".into(),
        advised: "micro".into(),
        larger: false,
        why: "in 100 hours a replica used at most 86 MiB".into(),
    };
    home.fake.with(|s| {
        s.deployments = vec![deployment("clock", "ready")];
        s.usage =
            v1::UsageReply { currency: "EUR".into(), rows: vec![row], advice: vec![advice], ..Default::default() };
    });
    let table = home.run(&["usage"]).await.exits(0);
    let cells: Vec<&str> = table.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, ["clock", "20000", "3", "36", "s", "5.000", "1.0", "GiB", "7.15", "21.50"]);
    assert!(table.out.contains("total 7.15 EUR, 21.50 at the month's end"), "{}", table.out);
    assert!(table.err.contains("micro would do: in 100 hours"), "{}", table.err);
    let csv = home.run(&["usage", "clock", "--by", "user", "--month", "2027-01", "-o", "csv"]).await.exits(0).out;
    assert!(csv.starts_with("month,name,"), "{csv}");
    assert!(csv.lines().nth(1).unwrap().starts_with("2027-01,clock,,false,20000,3,36.000000,5.000000,"), "{csv}");
    let asked = home.fake.with(|s| s.usage_asked.last().cloned().unwrap());
    assert_eq!((asked.by.as_str(), asked.month.as_str(), asked.deployment.as_str()), ("user", "2027-01", "clock"));
    assert_eq!(home.run(&["usage", "-o", "json"]).await.exits(0).json()["rows"][0]["requests"], 20_000);
    assert!(home.run(&["usage", "clack"]).await.exits(3).err.contains("clock"));
    home.run(&["ls", "-o", "csv"]).await.exits(2);
}

#[tokio::test]
async fn quotas_and_budgets_are_set_listed_and_taken_away() {
    let home = Home::with_agent();
    assert!(home.run(&["quota", "ls"]).await.exits(0).err.contains("no quota is set"));
    home.run(&["quota", "set", "user:ada"]).await.exits(2);
    let set = home.run(&["quota", "set", "user:ada", "--requests", "500", "--memory", "4GiB"]).await.exits(0);
    let cells: Vec<&str> = set.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, ["user:ada", "-", "4.0", "GiB", "500", "-", "ada"]);
    home.run(&["quota", "set", "user:ada", "--egress", "much"]).await.exits(2);
    assert!(home.run(&["budget", "set", "all", "12.5", "--stop"]).await.exits(0).out.contains("12.50"));
    home.run(&["budget", "set", "all", "0"]).await.exits(2);
    let json = home.run(&["budget", "ls", "-o", "json"]).await.exits(0).json();
    assert_eq!((json[0]["budget"].as_f64(), json.as_array().unwrap().len()), (Some(12.5), 1));
    assert!(home.run(&["budget", "rm", "all"]).await.exits(0).err.contains("no budget is set"));
}
