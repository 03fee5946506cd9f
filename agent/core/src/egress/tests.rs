use proptest::prelude::*;

use super::*;

fn list(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

fn rules(texts: &[&str]) -> Rules {
    Rules::parse(&list(texts)).unwrap()
}

fn owners(texts: &[&str]) -> Rules {
    Rules::owners(&list(texts)).unwrap()
}

fn limits(allow: &[&str], deny: &[&str]) -> Limits {
    let allow = (!allow.is_empty()).then(|| owners(allow));
    Limits { allow, deny: owners(deny), agent: vec![7450], ..Limits::default() }
}

/// The answer to a connection to `host:port` whose name resolves to `address`.
fn ask(asked: &[&str], limits: &Limits, host: &str, port: u16, address: &str) -> Result<(), Refusal> {
    let (asked, trusted) = (rules(asked), Rules::default());
    let walls = Walls { asked: &asked, trusted: &trusted, owned: false, limits };
    let host: Host = host.parse().map_err(|_| Refusal::NoHost)?;
    walls.before(&host, port)?;
    let address = match host {
        Host::Address(literal) => literal,
        Host::Name(_) => address.parse().unwrap(),
    };
    // these play this host's own addresses, beside the loopback
    let own = ["10.9.9.9", "93.184.216.99"].iter().any(|a| a.parse::<IpAddr>().unwrap() == address);
    walls.at(&host, port, address, own)
}

const PUBLIC: &str = "93.184.216.34";

#[test]
fn nothing_is_reached_that_is_not_listed() {
    let none = limits(&[], &[]);
    assert_eq!(ask(&[], &none, "api.example", 443, PUBLIC), Err(Refusal::Unlisted));
    assert_eq!(ask(&[], &none, PUBLIC, 443, ""), Err(Refusal::Unlisted));
    let asked = ["api.example", "*.tiles.example:443", "1.1.1.1:853"];
    for (host, port, fine) in [
        ("api.example", 443, true),
        ("API.Example.", 80, true),
        ("api.example", 8443, false),
        ("evil.api.example", 443, false),
        ("a.tiles.example", 443, true),
        ("a.tiles.example", 80, false),
        ("tiles.example", 443, false),
        ("1.1.1.1", 853, true),
        ("0x01010101", 853, true),
        ("1.1.1.1", 443, false),
        ("1.0.0.1", 853, false),
    ] {
        let answer = ask(&asked, &none, host, port, PUBLIC);
        assert_eq!(answer, if fine { Ok(()) } else { Err(Refusal::Unlisted) }, "{host}:{port}");
    }
    assert_eq!(ask(&["*"], &none, "anything.example", 443, PUBLIC), Ok(()));
    assert_eq!(ask(&["*"], &none, PUBLIC, 443, ""), Ok(()));
    assert_eq!(ask(&["*"], &none, "anything.example", 25, PUBLIC), Err(Refusal::Unlisted));
    let open = Limits { open: true, ..none };
    assert_eq!(ask(&[], &open, "anything.example", 25, PUBLIC), Ok(()));
    assert_eq!(ask(&[], &open, PUBLIC, 25, ""), Ok(()));
}

#[test]
fn addresses_inside_are_refused_whatever_the_name_and_however_they_are_written() {
    let everything = Limits { open: true, ..limits(&[], &[]) };
    for (address, kind) in [
        ("127.0.0.1", Kind::Loopback),
        ("127.88.0.9", Kind::Loopback),
        ("0.0.0.0", Kind::Unspecified),
        ("0.1.2.3", Kind::Unspecified),
        ("10.0.0.1", Kind::Private),
        ("172.16.0.1", Kind::Private),
        ("172.31.255.255", Kind::Private),
        ("192.168.1.1", Kind::Private),
        ("100.64.0.1", Kind::Shared),
        ("169.254.1.1", Kind::LinkLocal),
        ("169.254.169.254", Kind::Metadata),
        ("100.100.100.200", Kind::Metadata),
        ("168.63.129.16", Kind::Metadata),
        ("192.0.0.192", Kind::Metadata),
        ("192.0.0.1", Kind::Reserved),
        ("192.0.2.1", Kind::Documentation),
        ("198.19.0.1", Kind::Documentation),
        ("198.51.100.1", Kind::Documentation),
        ("203.0.113.1", Kind::Documentation),
        ("224.0.0.1", Kind::Multicast),
        ("239.255.255.255", Kind::Multicast),
        ("240.0.0.1", Kind::Reserved),
        ("255.255.255.255", Kind::Multicast),
        ("::", Kind::Unspecified),
        ("::1", Kind::Loopback),
        ("::ffff:127.0.0.1", Kind::Loopback),
        ("::ffff:10.0.0.1", Kind::Private),
        ("::ffff:169.254.169.254", Kind::Metadata),
        ("::10.0.0.1", Kind::Private),
        ("::93.184.216.34", Kind::Reserved),
        ("64:ff9b::10.0.0.1", Kind::Private),
        ("64:ff9b::169.254.169.254", Kind::Metadata),
        ("64:ff9b:1::1", Kind::Private),
        ("2002:7f00:1::", Kind::Loopback),
        ("2002:a9fe:a9fe::1", Kind::Metadata),
        ("2001:470::5efe:10.0.0.1", Kind::Private),
        ("2001::1", Kind::Reserved),
        ("2001:db8::1", Kind::Documentation),
        ("3fff::1", Kind::Documentation),
        ("fc00::1", Kind::Private),
        ("fd00:ec2::254", Kind::Metadata),
        ("fd00:ec2::255", Kind::Private),
        ("fe80::1", Kind::LinkLocal),
        ("fec0::1", Kind::Private),
        ("ff02::1", Kind::Multicast),
        ("4000::1", Kind::Reserved),
    ] {
        let answer = ask(&["*:*"], &everything, "rebound.example", 443, address);
        let Err(Refusal::Special(found, _)) = answer else { panic!("{address}: {answer:?}") };
        assert_eq!(found, kind, "{address}");
        assert!(matches!(ask(&["*:*"], &everything, address, 443, ""), Err(Refusal::Special(..))), "{address}");
    }
    for text in ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:7f00:1]", "①②⑦.0.0.1"] {
        let answer = ask(&["*:*"], &everything, text, 443, "");
        assert!(matches!(answer, Err(Refusal::Special(Kind::Loopback, _))), "{text}: {answer:?}");
    }
    for address in
        [PUBLIC, "2606:4700::1111", "64:ff9b::93.184.216.34", "2002:5db8:d822::1", "100.128.0.1", "172.32.0.1"]
    {
        assert_eq!(ask(&["*:*"], &everything, "good.example", 443, address), Ok(()), "{address}");
    }
}

#[test]
fn an_address_inside_needs_both_lists_and_an_entry_that_means_it() {
    let lan = limits(&["*", "10.1.0.0/16", "169.254.0.0/16", "0.0.0.0/0"], &[]);
    // the name alone opens nothing, the address alone does not let the name be asked for
    assert!(matches!(ask(&["db.corp"], &lan, "db.corp", 443, "10.1.2.3"), Err(Refusal::Special(Kind::Private, _))));
    assert_eq!(ask(&["10.1.2.3"], &lan, "db.corp", 443, "10.1.2.3"), Err(Refusal::Unlisted));
    assert_eq!(ask(&["db.corp", "10.1.2.3"], &lan, "db.corp", 443, "10.1.2.3"), Ok(()));
    assert_eq!(ask(&["db.corp:5432", "10.1.0.0/16:5432"], &lan, "db.corp", 5432, "10.1.2.3"), Ok(()));
    assert!(ask(&["db.corp:5432", "10.1.0.0/16"], &lan, "db.corp", 5432, "10.1.2.3").is_err());
    assert_eq!(ask(&["10.1.2.3:22"], &lan, "10.1.2.3", 22, ""), Ok(()));
    // not the owner's, or not meant
    assert!(ask(&["10.2.0.1"], &lan, "10.2.0.1", 443, "").is_err());
    assert!(ask(&["0.0.0.0/0:*"], &lan, "10.1.2.3", 443, "").is_err());
    assert!(ask(&["10.1.2.3"], &limits(&[], &[]), "10.1.2.3", 443, "").is_err());
    assert!(ask(&["10.1.2.3"], &limits(&["0.0.0.0/0"], &[]), "10.1.2.3", 443, "").is_err());
    // a wider range does not mean the metadata in it
    assert_eq!(ask(&["169.254.0.0/16"], &lan, "169.254.1.1", 80, ""), Ok(()));
    assert!(ask(&["169.254.0.0/16"], &lan, "169.254.169.254", 80, "").is_err());
    let meta = limits(&["169.254.169.254"], &[]);
    assert_eq!(ask(&["169.254.169.254"], &meta, "169.254.169.254", 80, ""), Ok(()));
    assert_eq!(ask(&["*"], &lan, "metadata.google.internal", 80, PUBLIC), Err(Refusal::Metadata));
}

#[test]
fn the_host_and_the_agent_need_more() {
    let all = limits(&["*", "10.0.0.0/8", "127.0.0.0/8"], &[]);
    // a network of neighbours does not mean this host's own address in it
    let answer = ask(&["10.0.0.0/8"], &all, "10.9.9.9", 443, "");
    assert!(matches!(answer, Err(Refusal::Special(Kind::Host, _))), "{answer:?}");
    let answer = ask(&["*"], &all, "public.example", 443, "93.184.216.99");
    assert!(matches!(answer, Err(Refusal::Special(Kind::Host, _))), "{answer:?}");
    assert_eq!(ask(&["10.9.9.9"], &limits(&["10.9.9.9"], &[]), "10.9.9.9", 443, ""), Ok(()));
    assert_eq!(ask(&["127.0.0.1:5432"], &all, "127.0.0.1", 5432, ""), Ok(()));
    // the agent's own port: only where both say that very port
    assert_eq!(ask(&["127.0.0.0/8:7450"], &all, "127.0.0.1", 7450, ""), Err(Refusal::Agent));
    assert_eq!(ask(&["127.0.0.1:*"], &limits(&["127.0.0.1:7450"], &[]), "127.0.0.1", 7450, ""), Err(Refusal::Agent));
    assert_eq!(ask(&["127.0.0.1:7450"], &limits(&["127.0.0.1:7450"], &[]), "127.0.0.1", 7450, ""), Ok(()));
    assert_eq!(ask(&["10.9.9.9:7450"], &limits(&["10.9.9.9"], &[]), "10.9.9.9", 7450, ""), Err(Refusal::Agent));
    // elsewhere it is a port like others
    assert_eq!(ask(&["far.example:7450"], &all, "far.example", 7450, PUBLIC), Ok(()));
}

#[test]
fn the_owners_lists_hold_whatever_a_deployment_asks() {
    let some = limits(&["*.corp.example", "pypi.org"], &["bad.corp.example", "93.184.0.0/16", "10.0.0.0/8"]);
    assert_eq!(ask(&["a.corp.example:9"], &some, "a.corp.example", 9, "1.1.1.1"), Ok(()));
    assert_eq!(ask(&["*"], &some, "other.example", 443, "1.1.1.1"), Err(Refusal::Limit));
    assert_eq!(ask(&["*:*"], &some, "1.1.1.1", 443, ""), Err(Refusal::Limit));
    assert_eq!(ask(&["*"], &some, "bad.corp.example", 443, "1.1.1.1"), Err(Refusal::Denied));
    assert_eq!(ask(&["*"], &some, "a.corp.example", 443, PUBLIC), Err(Refusal::Denied));
    assert_eq!(ask(&["*"], &some, "a.corp.example", 443, "10.0.0.1"), Err(Refusal::Denied));
    assert_eq!(ask(&["*"], &limits(&[], &["*"]), "a.example", 443, PUBLIC), Err(Refusal::Denied));
    assert_eq!(ask(&["*"], &Limits::closed(), "a.example", 443, PUBLIC), Err(Refusal::Limit));
    let open = Limits { open: true, ..some };
    assert_eq!(ask(&[], &open, "other.example", 443, "1.1.1.1"), Err(Refusal::Limit));
}

#[test]
fn what_goes_beyond_the_limits_is_named() {
    let named = |asked: &[&str], limits: &Limits| {
        limits.beyond(&rules(asked)).into_iter().map(|(entry, _)| entry).collect::<Vec<_>>()
    };
    let asked = ["a.example", "*.b.example:443", "*", "8.8.8.8:53", "10.0.0.5:5432", "169.254.169.254", "0.0.0.0/0"];
    assert_eq!(named(&asked, &limits(&[], &[])), ["10.0.0.5:5432", "169.254.169.254"]);
    assert_eq!(named(&asked, &limits(&["*", "10.0.0.0/8"], &[])), ["169.254.169.254"]);
    let narrow = limits(&["a.example", "*.b.example", "8.8.8.8"], &[]);
    assert_eq!(named(&asked, &narrow), ["*", "10.0.0.5:5432", "169.254.169.254", "0.0.0.0/0"]);
    let ports = limits(&["a.example:443"], &[]);
    assert_eq!(named(&["a.example", "a.example:443", "a.example:*"], &ports), ["a.example", "a.example:*"]);
    assert_eq!(named(&["a.example"], &limits(&["a.example:443", "a.example:80"], &[])), Vec::<String>::new());
    assert_eq!(named(&["a.example", "b.example"], &limits(&[], &["a.example"])), ["a.example"]);
    assert_eq!(named(&["10.1.0.0/16"], &limits(&["10.0.0.0/8"], &["10.0.0.0/9"])), ["10.1.0.0/16"]);
    assert_eq!(named(&["metadata.google.internal"], &limits(&["*"], &[])), ["metadata.google.internal"]);
    assert_eq!(named(&["metadata.google.internal"], &limits(&["metadata.google.internal"], &[])), Vec::<String>::new());
}

#[test]
fn a_trusted_name_resolves_where_it_may_but_not_to_the_agent_or_metadata() {
    let limits = limits(&["nothing.example"], &["10.6.6.0/24"]);
    let (asked, mut trusted) = (rules(&["*"]), Rules::default());
    trusted.push("pypi.corp:8081".parse().unwrap());
    trusted.push("10.3.3.3:4873".parse().unwrap());
    let walls = Walls { asked: &asked, trusted: &trusted, owned: true, limits: &limits };
    let go = |host: &str, port, address: &str| {
        let host: Host = host.parse().unwrap();
        walls.before(&host, port).and_then(|()| walls.at(&host, port, address.parse().unwrap(), false))
    };
    assert_eq!(go("pypi.corp", 8081, "10.2.2.2"), Ok(()));
    assert_eq!(go("10.3.3.3", 4873, "10.3.3.3"), Ok(()));
    assert_eq!(go("deb.example", 80, PUBLIC), Ok(()));
    for (host, port, address) in [
        ("pypi.corp", 8081, "169.254.169.254"),
        ("pypi.corp", 8081, "10.6.6.6"),
        ("pypi.corp", 7450, "127.0.0.1"),
        ("pypi.corp", 443, "10.2.2.2"),
        ("deb.example", 80, "10.2.2.2"),
        ("10.3.3.3", 80, "10.3.3.3"),
    ] {
        assert!(go(host, port, address).is_err(), "{host}:{port} {address}");
    }
}

fn any_rule() -> impl Strategy<Value = String> {
    let port = prop_oneof![Just(String::new()), Just(":443".to_owned()), Just(":*".to_owned())];
    let host = prop_oneof![
        Just("*".to_owned()),
        "[a-c]\\.example",
        Just("*.example".to_owned()),
        any::<[u8; 4]>().prop_map(|a| Ipv4Addr::from(a).to_string()),
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(a, l)| Network::new(Ipv4Addr::from(a).into(), l).to_string()),
    ];
    (host, port).prop_map(|(host, port)| format!("{host}{port}"))
}

proptest! {
    /// Whatever a deployment lists, nothing that is not public opens by itself.
    #[test]
    fn no_list_of_a_deployment_opens_what_the_owner_did_not(
        asked in proptest::collection::vec(any_rule(), 0..6), address: u32, port: u16, open: bool,
    ) {
        let address = IpAddr::from(Ipv4Addr::from(address));
        let asked = Rules::parse(&asked).unwrap();
        let limits = Limits { open, ..Limits::default() };
        let trusted = Rules::default();
        let walls = Walls { asked: &asked, trusted: &trusted, owned: false, limits: &limits };
        for host in [Host::Address(address), Host::Name("a.example".into())] {
            let through = walls.before(&host, port).and_then(|()| walls.at(&host, port, address, false));
            prop_assert!(through.is_err() || special(address).is_none());
            prop_assert!(walls.at(&host, port, address, true).is_err(), "this host's own address");
        }
    }

    /// More limits never let more through.
    #[test]
    fn limits_only_narrow(
        asked in proptest::collection::vec(any_rule(), 0..6), allow in proptest::collection::vec(any_rule(), 1..4),
        deny in proptest::collection::vec(any_rule(), 0..3), address: u32, port in prop_oneof![Just(443u16), any::<u16>()],
    ) {
        let address = IpAddr::from(Ipv4Addr::from(address));
        let asked = Rules::parse(&asked).unwrap();
        let wide = Limits { allow: Some(Rules::owners(&allow).unwrap()), ..Limits::default() };
        let narrow = Limits { deny: Rules::owners(&deny).unwrap(), ..wide.clone() };
        let trusted = Rules::default();
        for host in [Host::Address(address), Host::Name("a.example".into())] {
            let go = |limits: &Limits| {
                let walls = Walls { asked: &asked, trusted: &trusted, owned: false, limits };
                walls.before(&host, port).and_then(|()| walls.at(&host, port, address, false))
            };
            prop_assert!(go(&wide).is_ok() || go(&narrow).is_err());
        }
    }

    /// A list that the deploy let pass is not cut by the same limits: what it names exactly can be reached.
    #[test]
    fn what_passes_the_deploy_works(rule in any_rule(), allow in proptest::collection::vec(any_rule(), 0..4), deny in proptest::collection::vec(any_rule(), 0..3)) {
        let asked = Rules::parse(&[rule]).unwrap();
        let allow = (!allow.is_empty()).then(|| Rules::owners(&allow).unwrap());
        let limits = Limits { allow, deny: Rules::owners(&deny).unwrap(), ..Limits::default() };
        let trusted = Rules::default();
        let walls = Walls { asked: &asked, trusted: &trusted, owned: false, limits: &limits };
        if limits.beyond(&asked).is_empty() {
            for rule in asked.iter() {
                if let Target::Name(name) = &rule.target {
                    let host = Host::Name(name.clone());
                    let answer = walls.before(&host, 443);
                    prop_assert!(answer.is_ok() || answer == Err(Refusal::Denied), "{answer:?}");
                }
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,40}") {
        let _ = text.parse::<Rule>();
        let _ = text.parse::<Host>();
    }
}
