//! What JavaScript and its libraries call them.

use super::{Class, Found, Given, add, argv, operators, split_line, ssrf};
use crate::scan::flow::value::Value;

pub(super) fn reached(path: &str, given: &Given<'_>, all: &mut Found) {
    let first = given.at(0);
    if let Some(name) = path.strip_prefix("child_process.") {
        runs(name, given, all);
    }
    match path {
        "execa.execaCommand"
        | "execa.command"
        | "shelljs.exec"
        | "execa.execaCommandSync"
        | "execa.commandSync"
        | "shelljs.default.exec"
        | "cross-spawn-promise"
        | "child-process-promise.exec"
        | "execa.execaSync.command" => {
            if path.starts_with("execa") && !shell(given.at(1)) {
                first.into_iter().for_each(|line| split_line(all, line));
            } else {
                add(all, Class::Command, first);
            }
        }
        "execa"
        | "execa.execa"
        | "execa.execaSync"
        | "cross-spawn"
        | "cross-spawn.sync"
        | "cross-spawn.spawn"
        | "node-pty.spawn"
        | "tinyexec.x"
        | "tinyexec.exec"
        | "nano-spawn"
        | "Bun.spawn"
        | "child-process-promise.spawn"
        | "Bun.spawnSync" => {
            spawned(given, all);
        }
        "eval"
        | "Function"
        | "AsyncFunction"
        | "GeneratorFunction"
        | "vm.runInNewContext"
        | "vm.runInContext"
        | "vm.runInThisContext"
        | "vm.Script"
        | "vm.compileFunction"
        | "vm2.VM().run"
        | "vm2.NodeVM().run" => {
            let code = if path.ends_with("Function") { given.from(0) } else { first.cloned().into_iter().collect() };
            code.iter().for_each(|value| add(all, Class::Code, Some(value)));
        }
        "setTimeout" | "setInterval" => add(all, Class::Code, first.filter(|value| value.built)),
        "node-serialize.unserialize"
        | "serialize-to-js.deserialize"
        | "funcster.deepDeserialize"
        | "v8.deserialize" => {
            add(all, Class::Deserialise, first);
        }
        "js-yaml.load" | "js-yaml.loadAll" => {
            // safe since its version 4, but with a schema of functions
            let schema = given.at(1).and_then(|options| options.field("schema")).and_then(|schema| schema.path.clone());
            if schema.is_some_and(|schema| schema.contains("FULL") || schema.contains("unsafe")) {
                add(all, Class::Deserialise, first);
            }
        }
        "handlebars.compile"
        | "Handlebars.compile"
        | "handlebars.precompile"
        | "ejs.render"
        | "ejs.compile"
        | "pug.compile"
        | "pug.render"
        | "nunjucks.renderString"
        | "nunjucks.compile"
        | "nunjucks.Environment().renderString"
        | "lodash.template"
        | "_.template"
        | "dot.template"
        | "eta.renderString" => add(all, Class::Template, first),
        "fetch"
        | "globalThis.fetch"
        | "axios"
        | "got"
        | "node-fetch"
        | "undici.fetch"
        | "undici.request"
        | "http.get"
        | "https.get"
        | "http.request"
        | "https.request"
        | "request"
        | "needle"
        | "cross-fetch"
        | "ky"
        | "superagent"
        | "follow-redirects.https.get"
        | "follow-redirects.http.get"
        | "axios.request"
        | "request-promise"
        | "EventSource"
        | "cross-fetch.fetch"
        | "isomorphic-fetch"
        | "phin"
        | "undici.stream"
        | "ofetch.ofetch"
        | "ofetch" => {
            requested(first, all);
        }
        "Bun.file" | "Bun.write" | "Deno.readTextFile" | "Deno.writeTextFile" | "Deno.readFile" | "Deno.writeFile"
        | "Deno.remove" | "Deno.open" | "Deno.readDir" => add(all, Class::Path, first),
        _ => {}
    }
    if given.method == "sendFile" || given.method == "download" && path.contains("res") {
        // of a folder that express keeps them in
        let rooted = given.at(1).is_some_and(|options| options.field("root").is_some());
        if !rooted {
            add(all, Class::Path, first);
        }
    }
    if let Some((of, verb)) = path.rsplit_once('.') {
        let verbs = ["get", "post", "put", "patch", "delete", "head", "request", "options", "del", "stream"];
        let clients =
            ["axios", "axios.axios", "got", "got.got", "superagent", "needle", "ky", "request", "axios.create()"];
        if clients.contains(&of) && verbs.contains(&verb) {
            let based = of == "axios.create()";
            requested(first.filter(|url| !based || !url.built), all);
        }
        files(of, verb, given, all);
    }
    git(path, given, all);
    mongo(path, given, all);
}

fn requested(url: Option<&Value>, all: &mut Found) {
    let url = url.and_then(|value| match &value.fields {
        Some(_) => ["url", "uri", "hostname", "host"].iter().find_map(|key| value.field(key)),
        None => Some(value),
    });
    ssrf(all, url);
}

/// Whether options ask for a shell.
fn shell(options: Option<&Value>) -> bool {
    options.and_then(|options| options.field("shell")).is_some_and(|shell| !shell.no)
}

fn runs(name: &str, given: &Given<'_>, all: &mut Found) {
    match name {
        "exec" | "execSync" => add(all, Class::Command, given.at(0)),
        "spawn" | "spawnSync" | "execFile" | "execFileSync" | "fork" => spawned(given, all),
        _ => {}
    }
}

/// A program with a list of arguments.
fn spawned(given: &Given<'_>, all: &mut Found) {
    let mut items: Vec<Value> = given.at(0).map(Value::elements).unwrap_or_default();
    if let Some(rest) = given.at(1).filter(|rest| rest.fields.is_none()) {
        items.extend(rest.elements());
    }
    if shell(given.at(2)) || shell(given.at(1)) {
        items.iter().for_each(|item| add(all, Class::Command, Some(item)));
    } else {
        argv(all, &items);
    }
}

fn files(of: &str, verb: &str, given: &Given<'_>, all: &mut Found) {
    let modules = ["fs", "fs/promises", "fs.promises", "fs-extra", "graceful-fs", "jsonfile", "fs-extra.promises"];
    let files = [
        "readFile",
        "readFileSync",
        "writeFile",
        "writeFileSync",
        "appendFile",
        "appendFileSync",
        "unlink",
        "unlinkSync",
        "rm",
        "rmSync",
        "rmdir",
        "rmdirSync",
        "readdir",
        "readdirSync",
        "createReadStream",
        "createWriteStream",
        "open",
        "openSync",
        "copyFile",
        "copyFileSync",
        "rename",
        "renameSync",
        "mkdir",
        "mkdirSync",
        "cp",
        "cpSync",
        "remove",
        "removeSync",
        "readJson",
        "readJsonSync",
        "outputFile",
        "writeJson",
        "readJSON",
        "move",
        "copy",
        "emptyDir",
        "truncate",
        "opendir",
        "symlink",
        "ensureDir",
    ];
    if modules.contains(&of) && files.contains(&verb) {
        add(all, Class::Path, given.at(0));
        if matches!(verb, "copyFile" | "copyFileSync" | "rename" | "renameSync" | "cp" | "cpSync" | "move" | "copy") {
            add(all, Class::Path, given.at(1));
        }
    }
}

/// simple-git hands arguments to the program as they are.
fn git(path: &str, given: &Given<'_>, all: &mut Found) {
    let own = path.contains("simple-git") || path.contains("simpleGit");
    let hands = [
        "raw",
        "clone",
        "checkout",
        "diff",
        "log",
        "show",
        "fetch",
        "pull",
        "push",
        "branch",
        "merge",
        "rebase",
        "reset",
        "add",
        "tag",
        "stash",
        "checkoutBranch",
        "checkoutLocalBranch",
        "revparse",
        "blame",
        "addRemote",
    ];
    if !own || !hands.contains(&given.method) {
        return;
    }
    for value in given.from(0) {
        if value.text.as_deref() == Some("--") {
            return;
        }
        if value.leads && value.fields.is_none() {
            add(all, Class::Argument, Some(&value));
        }
    }
}

/// A filter that is a client's own can hold operators that run code.
fn mongo(path: &str, given: &Given<'_>, all: &mut Found) {
    let finds = [
        "find",
        "findOne",
        "aggregate",
        "deleteMany",
        "deleteOne",
        "updateMany",
        "updateOne",
        "countDocuments",
        "findOneAndUpdate",
        "findOneAndDelete",
        "replaceOne",
        "bulkWrite",
    ];
    if !finds.contains(&given.method) {
        return;
    }
    let of = path.to_lowercase();
    let spelled = given.spelled.to_lowercase();
    let collection = ["collection", "mongo", "coll."].iter().any(|word| of.contains(word) || spelled.contains(word))
        || given.receiver.and_then(|of| of.path.as_deref()).is_some_and(|path| path.ends_with("collection()"));
    if collection {
        operators(all, given.at(0));
    }
}
