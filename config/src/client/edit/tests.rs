use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn servers() -> Slot {
    Slot::new(&["mcpServers"], Kind::Map)
}

fn entry() -> Value {
    json!({ "command": "/usr/bin/sigil", "args": ["run", "time"] })
}

/// In and out again.
#[track_caller]
fn round(format: Format, slot: &Slot, before: &str, after: &str) {
    let put = put(format, before, slot, "time", &entry()).unwrap();
    assert_eq!(put.text, after);
    assert_eq!(entries(format, &put.text, slot).unwrap().last(), Some(&("time".to_owned(), entry())));
    // a second time changes nothing
    let again = super::put(format, &put.text, slot, "time", &entry()).unwrap();
    assert_eq!((again.text.as_str(), again.made), (after, Vec::new()));
    let out = take(format, &put.text, slot, "time", &put.made).unwrap();
    assert_eq!(out.text, before);
    assert_eq!(out.made, []);
}

const PRINTED: &str = "\"time\": {\n      \"command\": \"/usr/bin/sigil\",\n      \"args\": [\"run\", \"time\"]\n    }";

#[test]
fn json_keeps_comments_commas_and_order() {
    let slot = servers();
    for (before, after) in [
        ("", "{\n  \"mcpServers\": {\n    @\n  }\n}\n"),
        ("{}", "{\n  \"mcpServers\": {\n    @\n  }\n}"),
        ("{}\n", "{\n  \"mcpServers\": {\n    @\n  }\n}\n"),
        ("// nothing yet", "// nothing yet\n{\n  \"mcpServers\": {\n    @\n  }\n}\n"),
        ("{\n  \"mcpServers\": {}\n}\n", "{\n  \"mcpServers\": {\n    @\n  }\n}\n"),
        (
            "{\n  // mine\n  \"theme\": \"dark\", /* a */\n  \"mcpServers\": {\n    // the first\n    \"a\": { \"command\": \"x\" } // its note\n    // the end\n  }\n}",
            "{\n  // mine\n  \"theme\": \"dark\", /* a */\n  \"mcpServers\": {\n    // the first\n    \"a\": { \"command\": \"x\" }, // its note\n    @\n    // the end\n  }\n}",
        ),
        (
            "{\n  \"mcpServers\": {\n    \"a\": {}, // its note\n  },\n}",
            "{\n  \"mcpServers\": {\n    \"a\": {}, // its note\n    @,\n  },\n}",
        ),
        ("{\n  \"mcpServers\": {\n    // none\n  }\n}", "{\n  \"mcpServers\": {\n    // none\n    @\n  }\n}"),
    ] {
        round(Format::Json, &slot, before, &after.replace('@', PRINTED));
        let (before, after) = (before.replace('\n', "\r\n"), after.replace('@', PRINTED).replace('\n', "\r\n"));
        if before.contains('\n') {
            round(Format::Json, &slot, &before, &after);
            round(Format::Json, &slot, &format!("{BOM}{before}"), &format!("{BOM}{after}"));
        }
    }
    let line = r#""time": {"command": "/usr/bin/sigil", "args": ["run", "time"]}"#;
    for (before, after) in [
        (r#"{"a":1,"mcpServers":{"b":{}}}"#, r#"{"a":1,"mcpServers":{"b":{}, @}}"#),
        (r#"{"a":1,"mcpServers":{}}"#, r#"{"a":1,"mcpServers":{@}}"#),
        (r#"{"a":1}"#, r#"{"a":1, "mcpServers": {@}}"#),
        (r#"{"mcpServers":{"b":{} , } }"#, r#"{"mcpServers":{"b":{} , @, } }"#),
    ] {
        round(Format::Json, &slot, before, &after.replace('@', line));
    }
}

#[test]
fn json_indents_as_the_file_does() {
    let edited = put(Format::Json, "{\n\t\"a\": 1\n}\n", &servers(), "t", &json!({ "url": "u" })).unwrap();
    assert_eq!(edited.text, "{\n\t\"a\": 1,\n\t\"mcpServers\": {\n\t\t\"t\": {\n\t\t\t\"url\": \"u\"\n\t\t}\n\t}\n}\n");
}

#[test]
fn a_dot_in_a_key_is_a_dot() {
    let slot = Slot::new(&["amp.mcpServers"], Kind::Map);
    let before = "{\n  \"amp\": { \"mcpServers\": {} }\n}\n";
    let edited = put(Format::Json, before, &slot, "a.b", &json!({})).unwrap();
    assert_eq!(read(Format::Json, &edited.text).unwrap()["amp.mcpServers"]["a.b"], json!({}));
    assert_eq!(take(Format::Json, &edited.text, &slot, "a.b", &edited.made).unwrap().text, before);
    let slot = Slot::new(&["mcp_servers"], Kind::Map);
    let edited = put(Format::Toml, "", &slot, "a.b", &json!({ "x": 1 })).unwrap();
    assert_eq!(edited.text, "[mcp_servers.\"a.b\"]\nx = 1\n");
}

#[test]
fn lists_are_told_apart_by_a_field() {
    let slot = Slot::new(&["inputs"], Kind::List("id"));
    let input = json!({ "id": "key", "type": "promptString" });
    for before in [
        "{}",
        "{\n  \"inputs\": []\n}",
        "{\n  \"inputs\": [\n    { \"id\": \"other\" } // x\n  ]\n}",
        "{\"inputs\":[1]}",
    ] {
        let edited = put(Format::Json, before, &slot, "key", &input).unwrap();
        assert_eq!(entries(Format::Json, &edited.text, &slot).unwrap().last().unwrap().1, input);
        assert_eq!(take(Format::Json, &edited.text, &slot, "key", &edited.made).unwrap().text, before);
    }
}

#[test]
fn toml_gets_a_table_at_its_end() {
    let slot = Slot::new(&["mcp_servers"], Kind::Map);
    let block = "[mcp_servers.time]\ncommand = \"/usr/bin/sigil\"\nargs = [\"run\", \"time\"]";
    for (before, after) in [
        ("", "@\n"),
        ("# mine\nmodel = \"o\"\n", "# mine\nmodel = \"o\"\n\n@\n"),
        ("model = \"o\"", "model = \"o\"\n\n@"),
        (
            "[mcp_servers.a] # a\ncommand = \"x\"\n\n[mcp_servers.a.env]\nK = '''\n[mcp_servers.time]\n'''\n\n# end\n",
            "[mcp_servers.a] # a\ncommand = \"x\"\n\n[mcp_servers.a.env]\nK = '''\n[mcp_servers.time]\n'''\n\n# end\n\n@\n",
        ),
        ("a = 1\n\n\n", "a = 1\n\n\n\n@\n"),
    ] {
        round(Format::Toml, &slot, before, &after.replace('@', block));
        if before.contains('\n') {
            round(Format::Toml, &slot, &before.replace('\n', "\r\n"), &after.replace('@', block).replace('\n', "\r\n"));
        }
    }
    let line = r#"time = { command = "/usr/bin/sigil", args = ["run", "time"] }"#;
    round(Format::Toml, &slot, "mcp_servers = {}\nb = 1\n", &format!("mcp_servers = {{{line}}}\nb = 1\n"));
    round(
        Format::Toml,
        &slot,
        "mcp_servers = { a = { url = 'x' } } # n\n",
        &format!("mcp_servers = {{ a = {{ url = 'x' }}, {line} }} # n\n"),
    );
}

#[test]
fn toml_removes_what_a_client_wrote_anew() {
    let slot = Slot::new(&["mcp_servers"], Kind::Map);
    let text = "a = 1\n\n[mcp_servers.time]\ncommand = \"x\" # c\n\n[mcp_servers.time.env]\nK = \"v\"\n\n[mcp_servers.b]\ncommand = \"y\"\n";
    let out = take(Format::Toml, text, &slot, "time", &[]).unwrap();
    assert_eq!(out.text, "a = 1\n\n[mcp_servers.b]\ncommand = \"y\"\n");
    let text = "[mcp_servers]\n# first\ntime = { command = \"x\" }\nb = { command = \"y\" }\n";
    let out = take(Format::Toml, text, &slot, "time", &[]).unwrap();
    assert_eq!(out.text, "[mcp_servers]\n# first\nb = { command = \"y\" }\n");
    let text = "mcp_servers.time.command = \"x\"\n";
    assert!(matches!(take(Format::Toml, text, &slot, "time", &[]), Err(EditError::Form(_))));
}

#[test]
fn toml_lists_of_tables_and_empty_lists() {
    let slot = Slot::new(&["mcp_servers"], Kind::List("name"));
    let value = json!({ "name": "time", "transport": "stdio", "command": "sigil" });
    for (before, after) in [
        (
            "mcp_servers = []\nx = 1\n",
            "mcp_servers = [\n    { name = \"time\", transport = \"stdio\", command = \"sigil\" }\n]\nx = 1\n",
        ),
        (
            "x = 1\n[[mcp_servers]]\nname = \"a\"\n",
            "x = 1\n[[mcp_servers]]\nname = \"a\"\n\n[[mcp_servers]]\nname = \"time\"\ntransport = \"stdio\"\ncommand = \"sigil\"\n",
        ),
    ] {
        let edited = put(Format::Toml, before, &slot, "time", &value).unwrap();
        assert_eq!(edited.text, after);
        assert_eq!(take(Format::Toml, after, &slot, "time", &edited.made).unwrap().text, before);
    }
}

#[test]
fn yaml_maps_and_lists() {
    let map = Slot::new(&["extensions"], Kind::Map);
    let block = "time:\n    command: /usr/bin/sigil\n    args:\n      - run\n      - time";
    for (before, after) in [
        ("", "extensions:\n  @\n"),
        ("# only this\n", "# only this\nextensions:\n  @\n"),
        ("a: 1", "a: 1\nextensions:\n  @"),
        ("extensions: {} # none\nb: 1\n", "extensions: # none\n  @\nb: 1\n"),
        ("extensions:\nb: 1\n", "extensions:\n  @\nb: 1\n"),
        (
            "GOOSE: x\nextensions:\n  a:\n    text: |\n      one\n\n      two\n\n  # after\nb: 1\n# end\n",
            "GOOSE: x\nextensions:\n  a:\n    text: |\n      one\n\n      two\n  @\n\n  # after\nb: 1\n# end\n",
        ),
        ("extensions:\n  a: {x: 1} # c\n\nb: é\n", "extensions:\n  a: {x: 1} # c\n  @\n\nb: é\n"),
    ] {
        round(Format::Yaml, &map, before, &after.replace('@', block));
        if before.contains('\n') {
            round(Format::Yaml, &map, &before.replace('\n', "\r\n"), &after.replace('@', block).replace('\n', "\r\n"));
        }
    }
    let list = Slot::new(&["mcpServers"], Kind::List("name"));
    let value = json!({ "name": "time", "command": "sigil", "args": ["run", "time"], "env": { "A B": "no" } });
    let block =
        "- name: time\n    command: sigil\n    args:\n      - run\n      - time\n    env:\n      \"A B\": \"no\"";
    for (before, after) in [
        ("name: x\nmcpServers: []\n", "name: x\nmcpServers:\n  @\n"),
        (
            "mcpServers:\n  - name: a\n    command: b\nmodels:\n- m\n",
            "mcpServers:\n  - name: a\n    command: b\n  @\nmodels:\n- m\n",
        ),
        ("models:\n  - name: m", "models:\n  - name: m\nmcpServers:\n  @"),
    ] {
        let edited = put(Format::Yaml, before, &list, "time", &value).unwrap();
        assert_eq!(edited.text, after.replace('@', block));
        assert_eq!(take(Format::Yaml, &edited.text, &list, "time", &edited.made).unwrap().text, before);
    }
    let flow = "{\"extensions\": {\"a\": {}}, \"b\": 1}\n";
    let edited = put(Format::Yaml, flow, &map, "t", &json!({ "cmd": "x" })).unwrap();
    assert_eq!(edited.text, "{\"extensions\": {\"a\": {}, \"t\": {\"cmd\": \"x\"}}, \"b\": 1}\n");
    assert_eq!(take(Format::Yaml, &edited.text, &map, "t", &edited.made).unwrap().text, flow);
}

#[test]
fn odd_files_are_refused() {
    let slot = servers();
    let refused =
        |format, text: &str, slot: &Slot| put(format, text, slot, "t", &json!({ "a": 1 })).unwrap_err().to_string();
    assert_eq!(refused(Format::Json, "{\n  \"a\": tru\n}", &slot), "line 2, column 8: Unexpected word");
    assert_eq!(refused(Format::Json, "[]", &slot), "'the file' is a list, not a map");
    assert_eq!(refused(Format::Json, "{\"mcpServers\": []}", &slot), "'mcpServers' is a list, not a map");
    assert!(refused(Format::Json, "{\"mcpServers\": {}, \"mcpServers\": {}}", &slot).contains("twice"));
    assert!(refused(Format::Json, "{\"a\": 1 \"b\": 2}", &slot).starts_with("line 1, column"));
    assert!(refused(Format::Json, "{\"a\": 'x'}", &slot).starts_with("line 1, column"));
    let slot = Slot::new(&["mcp_servers"], Kind::Map);
    assert_eq!(refused(Format::Toml, "mcp_servers = 3", &slot), "'mcp_servers' is a number, not a map");
    assert!(refused(Format::Toml, "a = 1\na = 2", &slot).starts_with("line 2, column 1: "));
    assert!(refused(Format::Toml, "mcp_servers.t.command = 'x'", &slot).contains("cannot be written"));
    let slot = Slot::new(&["extensions"], Kind::Map);
    assert_eq!(refused(Format::Yaml, "extensions: [a]", &slot), "'extensions' is a list, not a map");
    assert!(refused(Format::Yaml, "a: 1\n---\nb: 2\n", &slot).contains("second document"));
    assert!(refused(Format::Yaml, "a: [1\n", &slot).starts_with("line "));
    assert!(refused(Format::Yaml, "a: &x {b: {}}\nextensions: *x\n", &slot).contains("alias"));
}

/// A source of choices from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

const KEYS: [&str; 8] = ["a", "theme", "größe", "x.y", "with space", "mcp", "z9", "-"];
const TEXTS: [&str; 7] = ["v", "ü", "a // b", "{", "# no", "\\\" ,", "it's: so"];

struct JsonStyle {
    unit: &'static str,
    colon: &'static str,
    comments: bool,
    trailing: bool,
    spread: bool,
}

fn json_text(dice: &mut Dice, style: &JsonStyle, depth: usize, slot: Option<&[String]>) -> String {
    if slot.is_none() && (depth > 3 || dice.below(3) > 0) {
        return match dice.below(4) {
            0 => Value::from(dice.one(&TEXTS)).to_string(),
            1 => dice.below(99).to_string(),
            2 => dice.one(&["true", "null", "-1.5e3", "{}", "[]", "{ }"]).to_owned(),
            _ => "[1, {\"n\": [\"x\"]}]".to_owned(),
        };
    }
    let mut keys: Vec<&str> = Vec::new();
    for _ in 0..dice.below(4) {
        let key = dice.one(&KEYS);
        if !keys.contains(&key) && slot.is_none_or(|path| path.first().is_none_or(|known| known != key)) {
            keys.push(key);
        }
    }
    let next = slot.and_then(|path| path.split_first());
    if let Some((key, _)) = next.filter(|_| dice.below(4) > 0) {
        keys.insert(dice.below(keys.len() as u64 + 1) as usize, key);
    }
    let gap = |depth: usize| if style.spread { format!("\n{}", style.unit.repeat(depth)) } else { " ".to_owned() };
    let note = |dice: &mut Dice| {
        if !style.comments || dice.below(3) > 0 {
            String::new()
        } else if style.spread && dice.below(2) > 0 {
            format!(" // {}", dice.one(&TEXTS))
        } else {
            format!(" /* {} */", dice.one(&TEXTS))
        }
    };
    let mut text = "{".to_owned();
    for (i, key) in keys.iter().enumerate() {
        let rest = next.filter(|(known, _)| known.as_str() == *key).map(|(_, rest)| rest);
        text.push_str(&note(dice));
        text.push_str(&gap(depth + 1));
        text.push_str(&format!("{}{}{}", Value::from(*key), style.colon, json_text(dice, style, depth + 1, rest)));
        if i + 1 < keys.len() || style.trailing {
            text.push(',');
        }
    }
    text.push_str(&note(dice));
    if !keys.is_empty() || text.len() > 1 {
        text.push_str(&gap(depth));
    }
    text + "}"
}

fn toml_text(dice: &mut Dice) -> String {
    let mut text = String::new();
    let value = |dice: &mut Dice| {
        dice.one(&[
            "1",
            "\"x # y\"",
            "'''\n[mcp_servers.no]\n'''",
            "[1, 2]",
            "[\n  \"a\", # c\n]",
            "{ a = 1 }",
            "2020-01-01",
            "true",
        ])
    };
    let notes = ["", " # note", "  "];
    for key in ["model", "\"a b\"", "x"].iter().take(dice.below(4) as usize) {
        text.push_str(&format!("{key} = {}{}\n", value(dice), dice.one(&notes)));
    }
    for table in
        ["[tools]", "[mcp_servers.other]", "[mcp_servers.other.env]", "[[list]]", "[[list]]", "[mcp_servers.\"d.t\"]"]
    {
        if dice.below(2) == 0 {
            continue;
        }
        text.push_str(dice.one(&["", "\n", "# before\n", "\n\n"]));
        text.push_str(&format!("{table}{}\n", dice.one(&notes)));
        for key in ["k", "l.m"].iter().take(dice.below(3) as usize) {
            text.push_str(&format!("{key} = {}{}\n", value(dice), dice.one(&notes)));
        }
    }
    text + dice.one(&["", "# the end\n", "\n"])
}

fn yaml_text(dice: &mut Dice, slot: &Slot) -> String {
    let mut sections: Vec<String> = Vec::new();
    let notes = ["", " # note", "  "];
    let value = |dice: &mut Dice, deep: &str| {
        let one = dice.one(&[
            " x",
            " \"a: b\"",
            " {p: [1, 2]}",
            " |\n@text # no\n\n@more",
            " >-\n@folded",
            "",
            "\n@p: 1\n@q:\n@- z",
            "\n@- 1\n@- b: 2",
        ]);
        one.replace('@', deep)
    };
    for key in ["A", "\"b c\"", "zz"].iter().take(dice.below(4) as usize) {
        sections.push(format!("{key}:{}{}", value(dice, "  "), "\n"));
    }
    let key = &slot.path[0];
    let ours = match (dice.below(5), slot.kind) {
        (0, _) => None,
        (1, _) => Some(format!("{key}:{}\n", dice.one(&notes))),
        (2, Kind::Map) => Some(format!("{key}: {{}}{}\n", dice.one(&notes))),
        (2, Kind::List(_)) => Some(format!("{key}: []{}\n", dice.one(&notes))),
        (_, Kind::Map) => {
            let deep = dice.one(&["  ", "    ", " "]);
            let mut text = format!("{key}:{}\n", dice.one(&notes));
            for name in ["one", "\"t w\""].iter().take(1 + dice.below(2) as usize) {
                text.push_str(&format!(
                    "{deep}{name}:\n{deep}  k:{}\n{deep}  # inner\n",
                    value(dice, &format!("{deep}    "))
                ));
            }
            Some(text)
        }
        (_, Kind::List(field)) => {
            let deep = dice.one(&["", "  ", "    "]);
            let mut text = format!("{key}:{}\n", dice.one(&notes));
            for name in ["one", "two"].iter().take(1 + dice.below(2) as usize) {
                text.push_str(&format!("{deep}- {field}: {name}\n{deep}  k:{}\n", value(dice, &format!("{deep}    "))));
            }
            Some(text)
        }
    };
    if let Some(ours) = ours {
        sections.insert(dice.below(sections.len() as u64 + 1) as usize, ours);
    }
    let mut text = dice.one(&["", "# top\n", "---\n"]).to_owned();
    for section in sections {
        text.push_str(&section);
        text.push_str(dice.one(&["", "\n", "# between\n"]));
    }
    text
}

/// Two entries in and out, in both orders, one of them changed in between.
fn there_and_back(
    format: Format,
    slot: &Slot,
    before: &str,
    name: impl Fn(&str) -> Value,
) -> Result<(), TestCaseError> {
    let fail = |e: EditError| TestCaseError::fail(format!("{e}: {before:?}"));
    let first = put(format, before, slot, "time", &name("time")).map_err(fail)?;
    let mut made = first.made.clone();
    let second = put(format, &first.text, slot, "we.ather", &name("we.ather")).map_err(fail)?;
    prop_assert_eq!(&second.made, &Vec::new());
    let mut changed = name("time");
    changed["more"] = json!({ "k": [1, "two"] });
    let third = put(format, &second.text, slot, "time", &changed).map_err(fail)?;
    prop_assert_eq!(
        &entries(format, &third.text, slot).map_err(fail)?.iter().filter(|(known, _)| known == "time").count(),
        &1
    );
    for order in [["time", "we.ather"], ["we.ather", "time"]] {
        let mut text = third.text.clone();
        for name in order {
            let out = take(format, &text, slot, name, &made).map_err(fail)?;
            (text, made) = (out.text, out.made);
        }
        prop_assert_eq!(&text, before);
        prop_assert_eq!(&made, &Vec::new());
        made.clone_from(&first.made);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn json_is_the_same_after_coming_and_going(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let style = JsonStyle {
            unit: dice.one(&["  ", "    ", "\t"]),
            colon: dice.one(&[":", ": ", " : "]),
            comments: dice.below(2) > 0,
            trailing: dice.below(2) > 0,
            spread: dice.below(4) > 0,
        };
        let slot = Slot::new(dice.one(&[&["mcpServers"][..], &["amp.mcpServers"], &["mcp", "servers"], &["projects", "/a b", "mcpServers"]]), Kind::Map);
        let mut text = json_text(&mut dice, &style, 0, Some(&slot.path));
        text.push_str(dice.one(&["", "\n", " // end", "\n\n"]));
        if dice.below(4) == 0 {
            text = text.replace('\n', "\r\n");
        }
        there_and_back(Format::Json, &slot, &text, |_| entry())?;
    }

    #[test]
    fn toml_is_the_same_after_coming_and_going(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let mut text = toml_text(&mut dice);
        if dice.below(3) == 0 {
            text = text.trim_end().to_owned();
        }
        if dice.below(4) == 0 {
            text = text.replace('\n', "\r\n");
        }
        there_and_back(Format::Toml, &Slot::new(&["mcp_servers"], Kind::Map), &text, |_| entry())?;
        let slot = Slot::new(&["servers"], Kind::List("name"));
        there_and_back(Format::Toml, &slot, &text, |name| json!({ "name": name, "command": "x" }))?;
    }

    #[test]
    fn yaml_is_the_same_after_coming_and_going(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let slot = if dice.below(2) == 0 { Slot::new(&["extensions"], Kind::Map) } else { Slot::new(&["mcpServers"], Kind::List("name")) };
        let mut text = yaml_text(&mut dice, &slot);
        if dice.below(3) == 0 {
            text = text.trim_end().to_owned();
        }
        if dice.below(4) == 0 {
            text = text.replace('\n', "\r\n");
        }
        there_and_back(Format::Yaml, &slot, &text, |name| match slot.kind {
            Kind::Map => entry(),
            Kind::List(_) => json!({ "name": name, "command": "x", "args": ["run", name] }),
        })?;
    }
}
