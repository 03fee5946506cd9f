//! What a bundle's members offer, under names that tell them apart.
//!
//! Tools and prompts: `<member>__<name>`; a deployment's name has no underscore, so the first `__` ends it. Resources: the
//! scheme gets the member before it, `<member>+file:///x` (RFC 3986, section 3.1 allows `+` in schemes).

use serde::Deserialize;
use serde_json::value::RawValue;
use sigil_core::jsonrpc;

/// A member's tool or prompt as clients know it.
pub(super) fn prefixed(member: &str, name: &str) -> String {
    format!("{member}__{name}")
}

/// The member and its own name.
pub(super) fn split(name: &str) -> Option<(&str, &str)> {
    name.split_once("__").filter(|(member, name)| !member.is_empty() && !name.is_empty())
}

/// A member's resource as clients know it. A scheme begins with a letter, a deployment may begin with a digit.
pub(super) fn prefixed_uri(member: &str, uri: &str) -> String {
    let mark = if member.starts_with(|c: char| c.is_ascii_alphabetic()) { "" } else { "x-" };
    format!("{mark}{member}+{uri}")
}

/// The member and its own address.
pub(super) fn split_uri(uri: &str) -> Option<(&str, &str)> {
    let (member, own) = uri.split_once('+')?;
    let bare = member.strip_prefix("x-").filter(|m| m.starts_with(|c: char| c.is_ascii_digit()));
    Some((bare.unwrap_or(member), own))
}

/// Which lists there are: the method, the member of its result, and what in an item names it.
pub(super) const LISTS: [(&str, &str, Kind); 4] = [
    ("tools/list", "tools", Kind::Name),
    ("prompts/list", "prompts", Kind::Name),
    ("resources/list", "resources", Kind::Uri("uri")),
    ("resources/templates/list", "resourceTemplates", Kind::Uri("uriTemplate")),
];

/// What names an item of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Uri(&'static str),
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "uriTemplate")]
    template: Option<&'a RawValue>,
}

/// An item of a member's list under the bundle's name for it; `None` when it has none. Every other byte is kept.
pub(super) fn item(member: &str, kind: Kind, raw: &RawValue) -> Option<String> {
    let item: Item<'_> = serde_json::from_str(raw.get()).ok()?;
    let (part, new) = match kind {
        Kind::Name => {
            let name = item.name?;
            (name, prefixed(member, &jsonrpc::string(name)?))
        }
        Kind::Uri(key) => {
            let uri = if key == "uri" { item.uri? } else { item.template? };
            (uri, prefixed_uri(member, &jsonrpc::string(uri)?))
        }
    };
    jsonrpc::splice(raw.get(), &[(part.get(), &jsonrpc::quote(&new))])
}

#[derive(Deserialize)]
struct Result_<'a> {
    #[serde(borrow, default)]
    contents: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    content: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, default)]
    resource: Option<Box<Content<'a>>>,
}

/// A member's answer with its resources under the bundle's addresses; `None`: there are none in it.
pub(super) fn answer(member: &str, text: &str, result: &RawValue) -> Option<String> {
    if !result.get().contains("\"uri\"") {
        return None;
    }
    let read: Result_<'_> = serde_json::from_str(result.get()).ok()?;
    let mut parts: Vec<(&str, String)> = Vec::new();
    for raw in read.contents.iter().chain(&read.content) {
        let Ok(content) = serde_json::from_str::<Content<'_>>(raw.get()) else { continue };
        for uri in [content.uri, content.resource.as_ref().and_then(|r| r.uri)].into_iter().flatten() {
            if let Some(old) = jsonrpc::string(uri) {
                parts.push((uri.get(), jsonrpc::quote(&prefixed_uri(member, &old))));
            }
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.sort_by_key(|(part, _)| part.as_ptr() as usize);
    let parts: Vec<(&str, &str)> = parts.iter().map(|(part, new)| (*part, new.as_str())).collect();
    jsonrpc::splice(text, &parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (member, name) in [("time", "now"), ("a-b", "get__x"), ("9lives", "_x")] {
            assert_eq!(split(&prefixed(member, name)), Some((member, name)));
        }
        for (member, uri) in [("time", "file:///a+b"), ("9lives", "x:y"), ("x-ray", "a+b:c")] {
            assert_eq!(split_uri(&prefixed_uri(member, uri)), Some((member, uri)), "{member}");
        }
        assert_eq!((split("plain"), split("__x"), split_uri("file:///x")), (None, None, None));
    }

    #[test]
    fn items_and_answers_keep_their_other_bytes() {
        let raw: Box<RawValue> = serde_json::from_str(r#"{"x": 1.0,"name":"a","uri":"f:1"}"#).unwrap();
        assert_eq!(item("m", Kind::Name, &raw).unwrap(), r#"{"x": 1.0,"name":"m__a","uri":"f:1"}"#);
        assert_eq!(item("m", Kind::Uri("uri"), &raw).unwrap(), r#"{"x": 1.0,"name":"a","uri":"m+f:1"}"#);
        assert_eq!(item("m", Kind::Uri("uriTemplate"), &raw), None);
        let text = r#"{"content":[{"type":"text","text":"\"uri\""},{"type":"resource","resource":{"uri":"f:1","text":"x"}},{"type":"resource_link","uri":"f:2"}],"n":1.0}"#;
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        assert_eq!(
            answer("m", raw.get(), raw).unwrap(),
            text.replace("\"f:1\"", "\"m+f:1\"").replace("\"f:2\"", "\"m+f:2\"")
        );
        let none: &RawValue = serde_json::from_str(r#"{"content":[],"uri":"f:1"}"#).unwrap();
        assert_eq!(answer("m", none.get(), none), None);
    }
}
