//! What Python and its libraries call them.

use super::{Class, Found, Given, add, argv, ends_options, operators, split_line, ssrf};
use crate::scan::flow::value::Value;

/// Clients over HTTP, and what opens one.
const CLIENTS: [&str; 12] = [
    "requests",
    "httpx",
    "requests.Session()",
    "requests.session()",
    "requests.sessions.Session()",
    "httpx.Client()",
    "httpx.AsyncClient()",
    "aiohttp.ClientSession()",
    "aiohttp.client.ClientSession()",
    "urllib3.PoolManager()",
    "niquests",
    "curl_cffi.requests",
];

pub(super) fn reached(path: &str, given: &Given<'_>, all: &mut Found) {
    let first = given.at(0).or(given.named("args")).or(given.named("cmd"));
    match path {
        "os.system"
        | "os.popen"
        | "subprocess.getoutput"
        | "subprocess.getstatusoutput"
        | "commands.getoutput"
        | "asyncio.create_subprocess_shell"
        | "asyncio.subprocess.create_subprocess_shell"
        | "pexpect.run"
        | "popen2.popen2" => add(all, Class::Command, first),
        "pty.spawn" | "pexpect.spawn" => {
            if let Some(value) = first {
                split_line(all, value);
            }
        }
        "subprocess.run"
        | "subprocess.Popen"
        | "subprocess.call"
        | "subprocess.check_call"
        | "subprocess.check_output"
        | "anyio.run_process"
        | "anyio.open_process"
        | "trio.run_process" => match first {
            Some(value) if given.named("shell").is_some_and(|shell| !shell.no) => {
                let items = value.elements();
                items.iter().for_each(|item| add(all, Class::Command, Some(item)));
            }
            Some(value) => match &value.items {
                Some(items) => argv(all, items),
                None if path.starts_with("anyio.") && value.built => add(all, Class::Command, Some(value)),
                // a line that is split: what begins it is the program
                None => split_line(all, value),
            },
            None => {}
        },
        "asyncio.create_subprocess_exec" | "asyncio.subprocess.create_subprocess_exec" => match given.list(0) {
            Some(list) => split_line(all, list),
            None => argv(all, &given.from(0)),
        },
        "os.execv" | "os.execvp" | "os.execl" | "os.execlp" | "os.spawnl" | "os.spawnv" => {
            add(all, Class::Command, first);
        }
        // what is run elsewhere, with what it is given
        "asyncio.to_thread" | "anyio.to_thread.run_sync" | "starlette.concurrency.run_in_threadpool" => {
            elsewhere(given, 0, all);
        }
        "eval"
        | "exec"
        | "builtins.eval"
        | "builtins.exec"
        | "compile"
        | "code.interact"
        | "runpy.run_path"
        | "IPython.get_ipython().run_cell" => add(all, Class::Code, first),
        "importlib.import_module" | "__import__" => add(all, Class::Code, first.filter(|value| value.leads)),
        "pickle.loads"
        | "pickle.load"
        | "cPickle.loads"
        | "dill.loads"
        | "dill.load"
        | "marshal.loads"
        | "jsonpickle.decode"
        | "yaml.unsafe_load"
        | "yaml.full_load"
        | "yaml.unsafe_load_all"
        | "shelve.open"
        | "cloudpickle.loads"
        | "cloudpickle.load"
        | "joblib.load"
        | "pandas.read_pickle"
        | "pd.read_pickle"
        | "pickle.Unpickler"
        | "torch.load"
        | "numpy.load" => {
            let weights = given.named("weights_only").is_some_and(|value| !value.no);
            let plain = path == "numpy.load" && given.named("allow_pickle").is_none_or(|value| value.no);
            if !weights && !plain {
                add(all, Class::Deserialise, first);
            }
        }
        "yaml.load" | "yaml.load_all" | "ruamel.yaml.load" => {
            let safe = given.named("Loader").or(given.at(1)).and_then(|loader| loader.path.clone());
            if !safe.is_some_and(|loader| loader.contains("Safe") || loader.contains("BaseLoader")) {
                add(all, Class::Deserialise, first);
            }
        }
        "jinja2.Template"
        | "flask.render_template_string"
        | "mako.template.Template"
        | "jinja2.Environment().from_string"
        | "tornado.template.Template"
        | "django.template.Template" => add(all, Class::Template, first),
        "open"
        | "io.open"
        | "aiofiles.open"
        | "os.remove"
        | "os.unlink"
        | "os.listdir"
        | "os.scandir"
        | "os.rmdir"
        | "os.makedirs"
        | "os.mkdir"
        | "os.walk"
        | "shutil.rmtree"
        | "shutil.copy"
        | "shutil.copy2"
        | "shutil.copyfile"
        | "shutil.move"
        | "os.rename"
        | "os.replace"
        | "codecs.open"
        | "anyio.open_file"
        | "shutil.copytree"
        | "builtins.open"
        | "os.open"
        | "aiofiles.os.remove"
        | "os.symlink"
        | "os.removedirs"
        | "flask.send_file"
        | "starlette.responses.FileResponse"
        | "fastapi.responses.FileResponse" => {
            add(all, Class::Path, given.at(0).or(given.named("file")).or(given.named("path")));
            if path.starts_with("shutil.") || matches!(path, "os.rename" | "os.replace") {
                add(all, Class::Path, given.at(1));
            }
        }
        "urllib.request.urlopen"
        | "urllib.request.Request"
        | "urllib.request.urlretrieve"
        | "wget.download"
        | "urllib2.urlopen" => ssrf(all, first.or(given.named("url"))),
        _ => {}
    }
    match given.method {
        "read_text" | "read_bytes" | "write_text" | "write_bytes" | "unlink" | "iterdir" | "rmdir" => {
            add(all, Class::Path, given.receiver);
        }
        // a path's own, not an archive's
        "open" | "mkdir" | "rename" | "rglob" if given.receiver.is_some_and(|of| of.foreign() && is_path(of)) => {
            add(all, Class::Path, given.receiver);
        }
        "run_in_executor" => elsewhere(given, 1, all),
        "from_string" if path.contains("nvironment") || path.contains("env") => {
            add(all, Class::Template, given.at(0));
        }
        _ => {}
    }
    let verbs =
        ["get", "post", "put", "patch", "delete", "head", "options", "request", "stream", "urlopen", "ws_connect"];
    if let Some((of, verb)) = path.rsplit_once('.')
        && CLIENTS.contains(&of)
        && verbs.contains(&verb)
    {
        let at = usize::from(matches!(verb, "request" | "stream"));
        ssrf(all, given.at(at).or(given.named("url")));
    }
    git_python(path, given, all);
    mongo(path, given, all);
}

fn is_path(value: &Value) -> bool {
    value.path.as_deref().is_some_and(|path| path.contains("Path"))
}

fn elsewhere(given: &Given<'_>, at: usize, all: &mut Found) {
    let Some(of) = given.at(at).and_then(|value| value.path.clone()) else { return };
    let args = given.args.get(at + 1..).unwrap_or_default();
    let method = of.rsplit('.').next().unwrap_or_default();
    reached(&of, &Given { args, method, receiver: None, spelled: &of }, all);
}

/// GitPython hands arguments to the program as they are.
fn git_python(path: &str, given: &Given<'_>, all: &mut Found) {
    let own = path.contains(".git.") || path.contains("git.Repo().git") || given.spelled.contains(".git.");
    let clones = path.ends_with("Repo.clone_from");
    // names that are handed to `git rev-parse`, `git branch` and the like
    let repository =
        path.strip_prefix("git.Repo().").or(path.strip_prefix("git.repo.base.Repo().")).unwrap_or_default();
    let names = matches!(repository, "commit" | "create_head" | "rev_parse" | "iter_commits" | "create_tag");
    if !own && !clones && !names {
        return;
    }
    for (name, value) in given.args {
        if clones && name.is_some() {
            continue;
        }
        for value in value.elements() {
            if value.text.as_deref().is_some_and(ends_options) {
                return;
            }
            if value.leads && name.as_deref().is_none_or(|name| name == "*") {
                add(all, Class::Argument, Some(&value));
            }
        }
    }
}

/// A filter that is a client's own can hold operators that run code.
fn mongo(path: &str, given: &Given<'_>, all: &mut Found) {
    let finds = [
        "find",
        "find_one",
        "aggregate",
        "delete_many",
        "delete_one",
        "update_many",
        "update_one",
        "count_documents",
        "find_one_and_update",
        "find_one_and_delete",
        "replace_one",
    ];
    let of = path.to_lowercase();
    let spelled = given.spelled.to_lowercase();
    let collection =
        ["collection", "mongo", "db[", "coll."].iter().any(|word| of.contains(word) || spelled.contains(word));
    if finds.contains(&given.method) && collection {
        operators(all, given.at(0));
    }
}
