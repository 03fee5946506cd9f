//! What schemas become, what is typed into them, and what comes out.

use serde_json::json;

use super::*;

fn names(form: &Form) -> Vec<String> {
    form.rows().iter().map(|r| format!("{}{}", "-".repeat(r.depth), r.label)).collect()
}

fn at(form: &mut Form, label: &str) {
    let at = form.rows().iter().position(|r| r.label == label);
    form.focus = at.unwrap_or_else(|| panic!("no field {label} in {:?}", names(form)));
}

fn typed(form: &mut Form, label: &str, text: &str) {
    at(form, label);
    assert!(form.edit(|t| {
        t.delete_head();
        t.insert(text);
    }));
}

fn problems(form: &mut Form) -> Vec<(String, String)> {
    assert!(form.check().is_err(), "nothing is wrong");
    form.problems.iter().map(|p| (p.pointer.clone(), p.text.clone())).collect()
}

fn everything() -> Value {
    json!({
        "type": "object",
        "properties": {
            "note": { "type": "string", "maxLength": 5, "description": "what it says" },
            "days": { "type": "integer", "minimum": 1, "maximum": 10, "default": 3 },
            "ratio": { "type": "number", "exclusiveMinimum": 0 },
            "verbose": { "type": "boolean" },
            "unit": { "enum": ["c", "f", 7] },
            "tags": { "type": "array", "items": { "type": "string" }, "maxItems": 2 },
            "size": { "$ref": "#/$defs/size" },
            "limit": { "anyOf": [{ "type": "integer" }, { "type": "null" }] },
            "target": { "oneOf": [
                { "title": "by name", "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] },
                { "title": "by id", "type": "object", "properties": { "id": { "type": "integer" } }, "required": ["id"] },
            ]},
            "extra": { "type": "object" },
            "id": { "type": ["string", "number"] },
            "pass": { "type": "string", "format": "password" },
        },
        "$defs": { "size": { "type": "object", "properties": {
            "w": { "type": "integer" }, "deep": { "$ref": "#/$defs/size" } }, "required": ["w"] } },
        "required": ["note"],
        "additionalProperties": false,
    })
}

#[test]
fn a_schema_becomes_fields_those_that_are_needed_first() {
    let form = Form::new(&everything(), None, &["Call"]);
    let all = ["note", "days", "ratio", "verbose", "unit", "tags", "size", "limit", "target", "extra", "id", "pass"];
    assert_eq!(names(&form), all);
    let hint = |name: &str| form.rows().iter().find(|r| r.label == name).unwrap().node.hint.clone();
    assert_eq!(hint("note"), "text, at most 5 characters");
    assert_eq!(hint("days"), "whole number, 1 to 10");
    assert_eq!(hint("ratio"), "number, above 0");
    assert_eq!(hint("unit"), "one of c, f, 7");
    assert_eq!(hint("target"), "by name or by id");
    assert!(form.is_checked());
    // Nothing is sent but what was given, and defaults.
    assert_eq!(form.draft(), json!({ "days": 3 }));
}

#[test]
fn what_is_typed_becomes_what_the_schema_asks_for() {
    let mut form = Form::new(&everything(), None, &[]);
    typed(&mut form, "note", "42");
    typed(&mut form, "days", "7");
    typed(&mut form, "ratio", "0.5");
    typed(&mut form, "extra", "{\"a\": [1]}");
    typed(&mut form, "id", "12");
    typed(&mut form, "limit", "5");
    at(&mut form, "verbose");
    assert!(form.turn(true));
    at(&mut form, "unit");
    assert!(form.pick('f'));
    at(&mut form, "size");
    assert!(form.open());
    typed(&mut form, "w", "3");
    at(&mut form, "tags");
    assert!(form.open());
    assert!(form.edit(|t| t.insert("a")));
    at(&mut form, "tags");
    assert!(form.open());
    assert!(form.edit(|t| t.insert("b")));
    at(&mut form, "tags");
    assert!(!form.open(), "at most two");
    at(&mut form, "target");
    assert!(form.turn(true));
    assert!(form.turn(true));
    typed(&mut form, "id", "x");
    let wanted = json!({
        "note": "42", "days": 7, "ratio": 0.5, "verbose": true, "unit": "f", "tags": ["a", "b"], "size": { "w": 3 },
        "limit": 5, "extra": { "a": [1] }, "id": 12,
    });
    // The second 'id' is the one of the shape.
    let (value, id) = (form.check(), problems(&mut form));
    assert!(value.is_err());
    assert_eq!(id, [("/target/id".to_owned(), "must be a whole number".to_owned())]);
    typed(&mut form, "id", "8");
    let mut value = form.check().unwrap();
    assert_eq!(value["target"], json!({ "id": 8 }));
    value.as_object_mut().unwrap().remove("target");
    assert_eq!(value, wanted);
    // And back into a form.
    let again = Form::new(&everything(), Some(&form.draft()), &[]);
    assert_eq!(again.draft(), form.draft());
}

#[test]
fn what_is_wrong_is_said_beside_its_field() {
    let mut form = Form::new(&everything(), None, &[]);
    assert_eq!(problems(&mut form), [("/note".to_owned(), "has to be given".to_owned())]);
    assert_eq!(form.focused().unwrap().key, "note", "the cursor goes there");
    typed(&mut form, "note", "far too long");
    assert!(form.problem("/note").unwrap().contains("longer than 5"), "{:?}", form.problems);
    typed(&mut form, "note", "ok");
    assert!(form.problems.is_empty(), "what is mended is no longer told");
    for (field, text, part) in [
        ("days", "0", "less than the minimum"),
        ("days", "x", "must be a whole number"),
        ("ratio", "-1", "less than or equal"),
        ("extra", "{", "is no JSON"),
        ("extra", "[]", "is not of type"),
    ] {
        typed(&mut form, field, text);
        let found = problems(&mut form);
        assert!(found.len() == 1 && found[0].0 == format!("/{field}") && found[0].1.contains(part), "{found:?}");
        typed(&mut form, field, "");
    }
    // What a list holds is named by its place.
    let lists = json!({ "properties": { "a": { "type": "array", "items": { "type": "integer", "minimum": 2 } } } });
    let mut form = Form::new(&lists, Some(&json!({ "a": [5, 1] })), &[]);
    assert_eq!(problems(&mut form)[0].0, "/a/1");
    assert!(form.remove());
    assert_eq!(form.check(), Ok(json!({ "a": [5] })));
}

#[test]
fn a_field_that_is_left_says_what_is_wrong_but_not_that_it_is_empty() {
    let mut form = Form::new(&everything(), None, &["Call"]);
    form.go(1);
    assert!(form.problems.is_empty());
    typed(&mut form, "days", "99");
    form.go(1);
    assert_eq!(form.problems.len(), 1, "{:?}", form.problems);
    form.go(-1);
    typed(&mut form, "days", "9");
    form.go(1);
    assert!(form.problems.is_empty());
    form.go_edge(true);
    assert_eq!((form.row(), form.button()), (None, Some(0)));
}

#[test]
fn what_is_left_out_stays_out_and_null_is_null() {
    let schema = json!({
        "type": "object",
        "properties": {
            "a": { "type": ["string", "null"] }, "b": { "type": ["integer", "null"] },
            "o": { "type": "object", "properties": { "x": { "type": "integer", "default": 1 } } },
            "k": { "const": "fixed" },
            "mode": { "oneOf": [{ "const": 1, "title": "slow" }, { "const": 2 }] },
        },
        "required": ["a", "k"],
    });
    let mut form = Form::new(&schema, None, &[]);
    assert_eq!(form.check(), Ok(json!({ "a": null, "k": "fixed" })));
    at(&mut form, "o");
    form.open();
    assert_eq!(form.check(), Ok(json!({ "a": null, "k": "fixed", "o": { "x": 1 } })));
    at(&mut form, "o");
    form.open();
    at(&mut form, "mode");
    form.turn(true);
    assert_eq!(form.check(), Ok(json!({ "a": null, "k": "fixed", "mode": 1 })));
    form.turn(false);
    assert_eq!(form.check(), Ok(json!({ "a": null, "k": "fixed" })));
}

#[test]
fn all_of_is_one_and_a_schema_without_fields_takes_none_or_json() {
    let schema = json!({ "allOf": [
        { "properties": { "a": { "type": "string" } }, "required": ["a"] },
        { "$ref": "#/$defs/more" },
    ], "$defs": { "more": { "properties": { "b": { "type": "integer" } } } } });
    assert_eq!(names(&Form::new(&schema, None, &[])), ["a", "b"]);
    let none = Form::new(&json!({ "type": "object" }), None, &[]);
    assert_eq!((names(&none).len(), none.draft()), (0, json!({})));
    let map = json!({ "type": "object", "additionalProperties": { "type": "integer" } });
    let mut form = Form::new(&map, None, &[]);
    assert_eq!(names(&form), ["JSON"]);
    form.edit(|t| {
        t.delete_head();
        t.insert("{\"a\": \"x\"}");
    });
    assert_eq!(problems(&mut form).len(), 1);
}

#[test]
fn hostile_schemas_end() {
    // Each level refers to the next one twice.
    let mut defs = serde_json::Map::new();
    for i in 0..40 {
        let next = json!({ "$ref": format!("#/$defs/d{}", i + 1) });
        defs.insert(
            format!("d{i}"),
            json!({ "type": "object", "properties": { "a": next, "b": next }, "required": ["a", "b"] }),
        );
    }
    let bomb = json!({ "$ref": "#/$defs/d0", "$defs": defs });
    let form = Form::new(&bomb, None, &[]);
    assert_eq!(names(&form), ["JSON"]);
    assert!(!form.is_checked());
    let itself = json!({ "properties": { "a": { "$ref": "#" } }, "required": ["a"] });
    Form::new(&itself, None, &[]).rows();
    let circle = json!({ "properties": { "a": { "$ref": "#/properties/a" } } });
    Form::new(&circle, None, &[]).rows();
    let many = json!({ "properties": { "a": { "type": "array", "items": {}, "minItems": 1_000_000_000u64 } }, "required": ["a"] });
    assert!(Form::new(&many, None, &[]).rows().len() < 100);
    // A pattern that other engines take years for.
    let slow = json!({ "properties": { "a": { "type": "string", "pattern": "^(a+)+$" } } });
    let mut form = Form::new(&slow, None, &[]);
    typed(&mut form, "a", &format!("{}!", "a".repeat(200)));
    let begun = std::time::Instant::now();
    assert!(form.check().is_err());
    assert!(begun.elapsed().as_secs() < 2);
    // And one that this one does not know: the server checks it.
    let behind = json!({ "properties": { "a": { "type": "string", "pattern": "(?=x)" } } });
    assert!(!Form::new(&behind, None, &[]).is_checked());
}

#[test]
fn text_is_edited_where_the_cursor_is_and_never_dumped() {
    let mut form = Form::new(&everything(), None, &[]);
    at(&mut form, "pass");
    form.edit(|t| t.insert("hünter2 x"));
    form.edit(|t| {
        t.delete_word();
        t.go(-2);
        t.backspace();
    });
    form.edit(|t| {
        t.go_edge(false);
        t.delete();
        t.insert("Hü\n");
    });
    assert_eq!(form.draft()["pass"], json!("Hü\nünte2 "));
    assert!(form.focused().unwrap().masked);
    assert!(!format!("{form:?}").contains("nte2"), "{form:?}");
}

#[test]
fn a_schema_is_told_in_words() {
    let words = described(&everything()).join("\n");
    for part in
        ["note (required): text, at most 5 characters", "    what it says", "size", "with w, deep", "days: whole"]
    {
        assert!(words.contains(part), "{part} is not in\n{words}");
    }
}
