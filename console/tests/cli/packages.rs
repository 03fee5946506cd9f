//! Packages of the registry.

use serde_json::json;
use sigil_protocol::v1;

use super::Home;

fn package(name: &str) -> v1::PackageReply {
    let version = |version: &str, latest| v1::PackageVersion {
        name: name.into(),
        version: version.into(),
        latest,
        status: "active".into(),
        published_at: 1_700_000_000_000_000,
        published_by: "ada".into(),
        ..Default::default()
    };
    let meta = json!({"io.sigil.registry/package": {
        "tools": [{"name": "get_forecast", "description": "Rain\nor \u{1b}[31mshine."}],
        "secrets": [{"name": "WEATHER_KEY", "required": true}], "readme": "# Weather",
    }});
    let document = json!({"name": name, "version": "1.1.0", "repository": {"url": "https://code.example/weather"}});
    v1::PackageReply {
        package: Some(v1::Package {
            name: name.into(),
            title: "Weather".into(),
            description: "Forecasts for any town, and what to wear when it rains there for days on end.".into(),
            latest: "1.1.0".into(),
            versions: 2,
            status: "active".into(),
            runtimes: vec!["node".into()],
            transports: vec!["stdio".into()],
            secrets: vec!["WEATHER_KEY".into()],
            setup: "simple".into(),
            verdict: "safe".into(),
            origin: "own".into(),
            team: "default".into(),
            installs: 3,
            deploys: 4,
            ..Default::default()
        }),
        versions: vec![version("1.1.0", true), version("1.0.0", false)],
        version: Some(v1::PackageVersion {
            document: document.to_string(),
            meta: meta.to_string(),
            ..version("1.1.0", true)
        }),
    }
}

#[tokio::test]
async fn search_fits_80_columns_and_asks_what_was_said() {
    let home = Home::with_agent();
    home.fake
        .with(|s| s.packages = vec![package("io.example/weather"), package("io.github.somebody-with-a-name/clock")]);
    let args = ["search", "rain", "town", "--tag", "a", "--tag", "b", "--secret", "WEATHER_KEY", "--sort", "popular"];
    let found = home.run(&args).await.exits(0);
    assert!(found.out.lines().all(|line| line.chars().count() <= 80), "{}", found.out);
    assert!(found.out.contains("io.example/weather") && found.out.contains("1.1.0"), "{}", found.out);
    assert!(found.err.contains("2 of 42; --offset 2"), "{}", found.err);
    let asked = home.fake.with(|s| s.searched.pop()).unwrap();
    assert_eq!(
        (asked.text.as_str(), asked.tags.join(","), asked.sort.as_str()),
        ("rain town", "a,b".into(), "popular")
    );
    assert_eq!((asked.secret.as_str(), asked.transport.as_str(), asked.limit), ("WEATHER_KEY", "", 20));
    let all = home.run(&["search", "-o", "json"]).await.exits(0).json();
    assert_eq!((&all["total"], &all["packages"][0]["setup"]), (&json!(42), &json!("simple")));
    let wide = home.run(&["search", "-o", "wide"]).await.exits(0).out;
    assert!(wide.contains("for days on end") && wide.contains("VERDICT"), "{wide}");
    home.run(&["search", "--sort", "best"]).await.exits(2);
    home.fake.with(|s| s.packages.clear());
    assert!(home.run(&["search", "nothing"]).await.exits(0).err.contains("no package fits"));
}

#[tokio::test]
async fn a_package_is_shown_listed_and_given_another_status() {
    let home = Home::with_agent();
    home.fake.with(|s| s.packages = vec![package("io.example/weather")]);
    let sheet = home.run(&["package", "get", "io.example/weather"]).await.exits(0).out;
    for part in
        ["about", "1.1.0 (latest)", "https://code.example/weather", "get_forecast", "WEATHER_KEY", "1.0.0", "ada"]
    {
        assert!(sheet.contains(part), "{part} is not in\n{sheet}");
    }
    assert!(!sheet.contains('\u{1b}') && !sheet.contains("# Weather"), "{sheet}");
    assert!(sheet.lines().all(|line| line.chars().count() <= 90), "{sheet}");
    let readme = home.run(&["package", "get", "io.example/weather", "--readme"]).await.exits(0).out;
    assert!(readme.contains("# Weather"), "{readme}");
    let json = home.run(&["package", "get", "io.example/weather", "-o", "json"]).await.exits(0).json();
    assert_eq!(
        (&json["version"]["server"]["version"], &json["versions"][1]["version"]),
        (&json!("1.1.0"), &json!("1.0.0"))
    );
    home.run(&["package", "ls"]).await.exits(0);
    assert_eq!(home.fake.with(|s| s.searched.pop()).unwrap().origin, "own");
    home.run(&["package", "get", "io.example/other"]).await.exits(3);

    let args = ["package", "status", "io.example/weather@1.0.0", "deprecated", "--message", "use 1.1.0"];
    assert!(home.run(&args).await.exits(0).out.contains("io.example/weather@1.0.0 is deprecated"));
    let of = |n: usize| home.fake.with(|s| s.packages[0].versions[n].status.clone());
    assert_eq!((of(0).as_str(), of(1).as_str()), ("active", "deprecated"));
    let asked = home.run(&["package", "rm", "io.example/weather"]).await.exits(2);
    assert!(asked.err.contains("all versions of io.example/weather"), "{}", asked.err);
    assert_eq!(of(0), "active");
    home.run(&["package", "rm", "io.example/weather", "--yes"]).await.exits(0);
    assert_eq!((of(0).as_str(), of(1).as_str()), ("deleted", "deleted"));
}

#[tokio::test]
async fn a_document_is_checked_here_before_it_is_sent() {
    let home = Home::with_agent();
    let file = home.dir.path().join("server.json");
    let path = file.to_str().unwrap();
    std::fs::write(&file, r#"{"name": "weather", "description": "x", "version": "^1"}"#).unwrap();
    let refused = home.run(&["publish", path]).await.exits(2);
    assert!(refused.err.contains("/name: ") && refused.err.contains("server.json"), "{}", refused.err);
    home.run(&["publish", "/nowhere/server.json"]).await.exits(2);
    let document = r#"{"name": "io.example/weather", "description": "Tells it.", "version": "1.0.0"}"#;
    std::fs::write(&file, document).unwrap();
    std::fs::write(file.with_file_name("README.md"), "# Weather").unwrap();
    assert!(home.run(&["publish", "--check", path]).await.exits(0).out.contains("io.example/weather@1.0.0 can be"));
    assert!(home.fake.with(|s| s.published.is_empty()));
    let folder = home.dir.path().to_str().unwrap();
    let said = home.run(&["publish", folder, "--category", "travel", "--tag", "climate"]).await.exits(0);
    assert!(said.out.contains("io.example/weather@1.0.0 is published, the latest version"), "{}", said.out);
    let sent = home.fake.with(|s| s.published.pop()).unwrap();
    let extras: serde_json::Value = serde_json::from_str(&sent.extras).unwrap();
    assert_eq!((&extras["tags"][0], &extras["readme"]), (&json!("climate"), &json!("# Weather")));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&sent.document).unwrap()["version"], "1.0.0");
}

#[tokio::test]
async fn a_package_becomes_a_deploy() {
    let home = Home::with_agent();
    let mut reply = package("io.example/weather-now");
    let document = json!({
        "name": "io.example/weather-now", "description": "x", "version": "1.1.0",
        "packages": [
            {"registryType": "mcpb", "identifier": "https://x.example/a.mcpb", "transport": {"type": "stdio"}},
            {"registryType": "npm", "identifier": "@example/weather", "version": "1.0.2", "transport": {"type": "stdio"},
                "packageArguments": [{"type": "positional", "valueHint": "town", "isRequired": true}],
                "environmentVariables": [{"name": "WEATHER_KEY", "isSecret": true, "isRequired": true},
                    {"name": "UNITS", "default": "metric", "choices": ["metric", "imperial"]}]},
        ],
    });
    if let Some(version) = &mut reply.version {
        version.document = document.to_string();
        version.status = "deprecated".into();
        version.message = "use another".into();
    }
    home.fake.with(|s| s.packages = vec![reply]);
    let missing = home.run(&["deploy", "registry:io.example/weather-now", "--input", "UNITS=feet"]).await.exits(2);
    let parts = [
        "town has to be given",
        "UNITS is one of metric, imperial",
        "--input NAME=VALUE",
        "is deprecated: use another",
    ];
    for part in parts {
        assert!(missing.err.contains(part), "{part} is not in\n{}", missing.err);
    }
    home.run(&["deploy", "registry:io.example/none"]).await.exits(3);
    home.run(&["deploy", "npm:x", "--input", "a=b"]).await.exits(2);
    let source = "registry:io.example/weather-now@1.1.0";
    let args = ["deploy", source, "--input", "town=New York", "--env", "UNITS=imperial", "--no-wait", "--", "-v"];
    home.run(&args).await.exits(0);
    let deploy = home.fake.with(|s| match s.started.pop().unwrap().what {
        Some(v1::start_request::What::Deploy(deploy)) => deploy,
        other => panic!("{other:?}"),
    });
    assert_eq!((deploy.name.as_str(), deploy.transport.as_str()), ("weather-now", "stdio"));
    assert_eq!(deploy.source.unwrap().text, "npm:@example/weather@1.0.2");
    assert_eq!((deploy.args.join("|"), deploy.env["UNITS"].as_str()), ("New York|-v".into(), "imperial"));
    assert_eq!(deploy.secrets["WEATHER_KEY"], "WEATHER_KEY");
    assert_eq!(deploy.package, "io.example/weather-now@1.1.0");
}

#[tokio::test]
async fn a_source_is_started_published_and_taken_away_again() {
    let home = Home::with_agent();
    let missing = home.run(&["publish", "npm:some-server"]).await.exits(2);
    assert!(
        missing.err.contains("name, description") && missing.err.contains("--name, --description"),
        "{}",
        missing.err
    );
    home.run(&["publish", "npm:x", "--check"]).await.exits(2);
    home.fake.with(|s| {
        let mut made = super::fake::deployment("kept", "ready");
        made.source = "npm:some-server@2.1.0".into();
        s.deployments = vec![made];
        s.script = vec![super::fake::done(1, r#"{"name":"kept","release":1}"#, None)];
    });
    let args =
        ["publish", "npm:some-server", "--name", "io.example/some", "--description", "Some.", "--deploy", "kept"];
    let said = home.run(&args).await.exits(0);
    assert!(said.out.contains("io.example/some@2.1.0 is published"), "{}", said.out);
    let sent = home.fake.with(|s| s.published.pop()).unwrap();
    assert_eq!(sent.deployment, "kept");
    let document: serde_json::Value = serde_json::from_str(&sent.document).unwrap();
    assert_eq!(document["packages"][0]["identifier"], "some-server");
    assert_eq!(document["packages"][0]["version"], "2.1.0");
    let kinds = home.fake.with(|s| s.started.len());
    assert_eq!(kinds, 1, "what is kept is not taken away");
}

#[tokio::test]
async fn another_registrys_packages_come_from_a_file() {
    let home = Home::with_agent();
    let file = home.dir.path().join("servers.json");
    let path = file.to_str().unwrap();
    std::fs::write(
        &file,
        r#"{"servers": [{"server": {"name": "a/b", "version": "1"}}, {"name": "a/c", "version": "2"}]}"#,
    )
    .unwrap();
    let said = home.run(&["mirror", "import", path, "--as", "official"]).await.exits(0);
    assert!(said.out.contains("2 versions are new") && said.err.contains("a/b: it has no version"), "{said:?}");
    let sent = home.fake.with(|s| s.imported.pop()).unwrap();
    assert_eq!((sent.mirror.as_str(), sent.items.len(), sent.last), ("official", 2, true));
    std::fs::write(&file, "nothing").unwrap();
    home.run(&["mirror", "import", path, "--as", "official"]).await.exits(2);
}

#[tokio::test]
async fn mirrors_are_shown_and_read_when_asked() {
    let home = Home::with_agent();
    let said = home.run(&["mirror", "ls"]).await.exits(0);
    assert!(said.out.contains("no registry is mirrored"), "{said:?}");
    home.fake.with(|s| {
        s.mirrors = vec![
            v1::Mirror {
                name: "official".into(),
                url: "https://r.example".into(),
                passes: 1,
                last_read: 7,
                last_new: 4,
                last_changed: 1,
                last_refusals: 2,
                last_refused: vec!["a/b: it has no description".into()],
                ..Default::default()
            },
            v1::Mirror { name: "broken".into(), trouble: "it answers 500".into(), failures: 3, ..Default::default() },
        ];
    });
    let said = home.run(&["mirror", "ls"]).await.exits(0);
    assert!(said.out.contains("https://r.example") && said.out.contains("it answers 500"), "{said:?}");
    let said = home.run(&["mirror", "ls", "official"]).await.exits(0);
    assert!(!said.out.contains("broken") && said.err.contains("a/b: it has no description"), "{said:?}");
    let said = home.run(&["mirror", "sync", "official", "--whole"]).await.exits(0);
    assert!(said.out.contains("7 versions were read") && said.out.contains("4 versions are new"), "{said:?}");
    let asked = home.fake.with(|s| s.synced.pop()).unwrap();
    assert_eq!((asked.name.as_str(), asked.whole), ("official", true));
    let said = home.run(&["mirror", "sync", "broken"]).await.exits(1);
    assert!(said.err.contains("it answers 500"), "{said:?}");
    home.run(&["mirror", "sync", "broken", "--no-wait"]).await.exits(0);
}

#[tokio::test]
async fn copilots_allow_list_is_the_deployments_addresses() {
    let home = Home::with_agent();
    home.fake.with(|s| s.deployments = ["time", "clock"].map(|name| super::fake::deployment(name, "ready")).into());
    let said = home.run(&["package", "allow-list", "--url", "https://mcp.example.org"]).await.exits(0);
    let list: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let entries = list["allowedMcpServers"].as_array().unwrap();
    let urls: Vec<&str> = entries.iter().map(|e| e["serverUrl"].as_str().unwrap()).collect();
    assert_eq!(urls, ["https://mcp.example.org/mcp/clock", "https://mcp.example.org/mcp/time"]);
    let near = home.run(&["package", "allow-list", "time"]).await.exits(0);
    assert!(near.err.contains("--url says what others call the gateway by"), "{near:?}");
    home.run(&["package", "allow-list", "nobody"]).await.exits(3);
    home.run(&["package", "allow-list", "--url", "nowhere"]).await.exits(2);
}
