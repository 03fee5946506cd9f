use super::{Code, Through, parse};
use crate::scan::File;

fn with<T>(path: &str, text: &str, ask: impl FnOnce(&Code<'_>) -> T) -> T {
    let file = File { path, text };
    let (lang, tree) = parse(&file).unwrap();
    ask(&Code::read(&file, lang, &tree))
}

#[test]
fn paths_are_the_same_however_they_are_spelled() {
    let paths = |path: &str, text: &str| {
        with(path, text, |code| code.sets.iter().map(|set| code.path(set.value)).collect::<Vec<_>>())
    };
    let script = "a = req.headers.authorization;\nb = req.headers['Authorization'];\nc = req.headers?.get(\"Authorization\");\nd = (await x.y()).z!;\ne = process.env['A_B'];\n";
    assert_eq!(
        paths("a.ts", script),
        [
            "req.headers.authorization",
            "req.headers.authorization",
            "req.headers.authorization",
            "x.y().z",
            "process.env.a_b"
        ]
    );
    let python = "a = request.headers.get('Authorization', '')\nb = os.environ['A']\nc = os.getenv('A')\n";
    assert_eq!(paths("a.py", python), ["request.headers.authorization", "os.environ.a", "os.environ.a"]);
    assert_eq!(
        paths("a.go", "package a\nfunc f() { a := r.Header.Get(\"Authorization\") }\n"),
        ["r.header.authorization"]
    );
}

#[test]
fn texts_are_put_together() {
    let folded = |path: &str, text: &str| {
        with(path, text, |code| code.sets.last().map(|set| code.fold_partly(set.value)).unwrap_or_default())
    };
    for (path, text) in [
        ("a.py", "x = 'ab' + \"cd\""),
        ("a.py", "p = 'ab'\nx = f'{p}cd'"),
        ("a.py", "x = ('ab'\n 'cd')"),
        ("a.py", "x = ''.join(['ab', 'cd'])"),
        ("a.py", "x = base64.b64decode('YWJjZA==').decode()"),
        ("a.py", "x = '\\x61\\u0062cd'"),
        ("a.ts", "const p = 'ab'; const x = `${p}cd`;"),
        ("a.ts", "const x = ['ab', 'cd'].join('');"),
        ("a.ts", "const x = Buffer.from('YWJjZA==', 'base64').toString('utf8');"),
        ("a.js", "const x = atob('YWJjZA==');"),
        ("a.js", "const T = { a: 'abcd' }; const x = T.a;"),
    ] {
        assert_eq!(folded(path, text), "abcd", "{text}");
    }
    assert_eq!(folded("a.py", "x = f'a{unknown}'"), "a\u{fffc}");
}

#[test]
fn values_are_traced_through_names_functions_and_patterns() {
    let traced = |path: &str, text: &str| {
        with(path, text, |code| {
            let value = code.sets.last().map(|set| set.value).unwrap();
            code.traces(value, Through::Text, &|path| path == "req.headers.authorization")
        })
    };
    for text in [
        "const { headers } = req; x = headers.authorization;",
        "const { authorization: a } = req.headers; x = a;",
        "const h = req.headers; const t = h['authorization'].split(' ')[1]; x = `Bearer ${t}`;",
        "function take(r) { return req.headers.authorization; } x = take(1);",
        "const o = {}; o.a = req.headers.authorization; x = o;",
        "const f = () => req.headers.authorization; x = f();",
    ] {
        assert!(traced("a.ts", text), "{text}");
    }
    for text in [
        "x = req.headers.authorization === key;",
        "x = !!req.headers.authorization;",
        "x = lookUp(req.headers.authorization);",
        "function f(req) { const a = req.headers.authorization; } const a = 1; x = a;",
    ] {
        assert!(!traced("a.ts", text), "{text}");
    }
}
