//! The contract only grows: every message, field, enum value and call that a release had is still there, unchanged.
//!
//! The baseline is text, a fact a line, so that a change to it is read in review. With `SIGIL_PROTO_BASELINE=write` the
//! test writes it anew: at a release, never to make this test pass.

use std::collections::BTreeSet;
use std::path::PathBuf;

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

fn enumeration(e: &EnumDescriptorProto, scope: &str, out: &mut BTreeSet<String>) {
    for value in &e.value {
        out.insert(format!("value {scope}.{} {} = {}", e.name(), value.name(), value.number()));
    }
}

fn message(m: &DescriptorProto, scope: &str, out: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", m.name());
    out.insert(format!("message {name}"));
    for f in &m.field {
        let kind = match f.type_name() {
            "" => format!("{:?}", f.r#type()),
            other => other.to_owned(),
        };
        // an `optional` of proto3 is a oneof of one: its name is no part of the contract
        let group = match f.oneof_index {
            Some(_) if f.proto3_optional() => " optional".to_owned(),
            Some(i) => format!(" oneof {}", m.oneof_decl[i as usize].name()),
            None => String::new(),
        };
        out.insert(format!("field {name} {} = {} {kind} {:?}{group}", f.number(), f.name(), f.label()));
    }
    for inner in &m.nested_type {
        message(inner, &name, out);
    }
    for e in &m.enum_type {
        enumeration(e, &name, out);
    }
}

/// Everything that a peer may rely on.
fn facts(descriptors: &[u8]) -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(descriptors).expect("the descriptors decode");
    let mut out = BTreeSet::new();
    for file in set.file.iter().filter(|f| f.package().starts_with("sigil.")) {
        for m in &file.message_type {
            message(m, file.package(), &mut out);
        }
        for e in &file.enum_type {
            enumeration(e, file.package(), &mut out);
        }
        for service in &file.service {
            for m in &service.method {
                let stream = |yes| if yes { "stream " } else { "" };
                out.insert(format!(
                    "call {}.{}/{} ({}{}) -> ({}{})",
                    file.package(),
                    service.name(),
                    m.name(),
                    stream(m.client_streaming()),
                    m.input_type(),
                    stream(m.server_streaming()),
                    m.output_type(),
                ));
            }
        }
    }
    out
}

fn lost(before: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    before.difference(now).cloned().collect()
}

#[test]
fn the_contract_only_grows() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/proto/v1.txt");
    let now = facts(sigil_protocol::DESCRIPTORS);
    if std::env::var("SIGIL_PROTO_BASELINE").is_ok_and(|v| v == "write") {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).expect("the baseline is written");
    }
    let baseline = std::fs::read_to_string(&path).expect("tests/fixtures/proto/v1.txt is there");
    let before: BTreeSet<String> = baseline.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
    assert!(before.len() > 100, "the baseline is empty or cut");
    let lost = lost(&before, &now);
    assert!(lost.is_empty(), "consoles and agents in use rely on what is gone or changed:\n{}", lost.join("\n"));
}

/// The check itself: each kind of break is seen, growth is not one.
#[test]
fn every_break_is_seen() {
    let change = |edit: &dyn Fn(&mut FileDescriptorSet)| {
        let mut set = FileDescriptorSet::decode(sigil_protocol::DESCRIPTORS).expect("the descriptors decode");
        edit(&mut set);
        lost(&facts(sigil_protocol::DESCRIPTORS), &facts(&set.encode_to_vec())).len()
    };
    fn deployment(set: &mut FileDescriptorSet) -> &mut DescriptorProto {
        set.file
            .iter_mut()
            .flat_map(|f| &mut f.message_type)
            .find(|m| m.name() == "Deployment")
            .expect("Deployment is there")
    }
    assert_eq!(change(&|_| {}), 0);
    assert_eq!(change(&|s| deployment(s).field[2].number = Some(99)), 1, "renumbered");
    assert_eq!(change(&|s| deployment(s).field[2].name = Some("other".into())), 1, "renamed");
    assert_eq!(change(&|s| deployment(s).field[2].r#type = Some(5)), 1, "another type");
    assert_eq!(change(&|s| drop(deployment(s).field.remove(2))), 1, "removed");
    assert_eq!(change(&|s| drop(s.file[0].service[0].method.remove(0))), 1, "a call removed");
    assert_eq!(change(&|s| s.file[0].service[0].method[0].server_streaming = Some(true)), 1, "a call that streams");
    let grown = change(&|s| {
        let mut field = deployment(s).field[2].clone();
        field.number = Some(1000);
        field.name = Some("new".into());
        deployment(s).field.push(field);
    });
    assert_eq!(grown, 0, "growth");
}
