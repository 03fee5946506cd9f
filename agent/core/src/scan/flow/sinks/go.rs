//! What Go and its libraries call them.

use super::{Class, Found, Given, add, argv, operators, ssrf};

pub(super) fn reached(path: &str, given: &Given<'_>, all: &mut Found) {
    let first = given.at(0);
    match path {
        "os/exec.Command" => argv(all, &given.from(0)),
        "os/exec.CommandContext" => argv(all, &given.from(1)),
        "syscall.Exec" | "os.StartProcess" => add(all, Class::Command, first),
        "os.Open"
        | "os.OpenFile"
        | "os.ReadFile"
        | "os.WriteFile"
        | "os.Create"
        | "os.Remove"
        | "os.RemoveAll"
        | "os.ReadDir"
        | "os.Mkdir"
        | "os.MkdirAll"
        | "os.Truncate"
        | "io/ioutil.ReadFile"
        | "io/ioutil.WriteFile"
        | "io/ioutil.ReadDir"
        | "path/filepath.Walk"
        | "path/filepath.WalkDir" => add(all, Class::Path, first),
        "os.Rename" | "os.Link" | "os.Symlink" => {
            add(all, Class::Path, first);
            add(all, Class::Path, given.at(1));
        }
        "net/http.ServeFile" => add(all, Class::Path, given.at(2)),
        "net/http.Get" | "net/http.Post" | "net/http.Head" | "net/http.PostForm" => ssrf(all, first),
        "net/http.NewRequest" => ssrf(all, given.at(1)),
        "net/http.NewRequestWithContext" => ssrf(all, given.at(2)),
        "net/http.DefaultClient.Get" | "net/http.DefaultClient.Post" => ssrf(all, first),
        "plugin.Open" => add(all, Class::Code, first),
        "encoding/gob.NewDecoder" => add(all, Class::Deserialise, first),
        _ => {}
    }
    let client = path.starts_with("net/http.Client()") || given.spelled.to_lowercase().contains("httpclient.");
    if client && matches!(given.method, "Get" | "Post" | "Head") {
        ssrf(all, first);
    }
    // a template of the caller's choice: text/template and html/template, `template.New(…).Parse(x)`
    let template = path.starts_with("text/template.") || path.starts_with("html/template.");
    if template && given.method == "Parse" {
        add(all, Class::Template, first);
    }
    let evaluates = path.starts_with("github.com/dop251/goja") || path.starts_with("github.com/traefik/yaegi");
    if evaluates && matches!(given.method, "RunString" | "Eval" | "EvalWithContext") {
        add(all, Class::Code, given.args.last().map(|(_, value)| value));
    }
    let finds =
        ["Find", "FindOne", "Aggregate", "DeleteMany", "DeleteOne", "UpdateMany", "UpdateOne", "CountDocuments"];
    let spelled = given.spelled.to_lowercase();
    if finds.contains(&given.method) && (spelled.contains("coll") || path.contains("mongo")) {
        operators(all, given.at(1));
    }
}
