//! What only shows when the files of a tree are seen together.

use crate::scan::{Severity, scan};

/// (path, line, class) of what is found in a tree.
fn found(files: &[(&str, &str)]) -> Vec<(String, u32, String, Severity)> {
    let found = scan(files).findings.into_iter().filter(|f| super::CLASSES.contains(&f.class.as_str()));
    found.map(|f| (f.path, f.line, f.class, f.severity)).collect()
}

fn is(found: &[(String, u32, String, Severity)], meant: &[(&str, u32, &str, Severity)]) {
    let found: Vec<(&str, u32, &str, Severity)> =
        found.iter().map(|(path, line, class, severity)| (path.as_str(), *line, class.as_str(), *severity)).collect();
    assert_eq!(found, meant);
}

#[test]
fn calls_are_followed_by_the_files_that_they_name() {
    let index = "import { readNote } from './files.js';\nimport * as git from './git/index.js';\n\
        import { Store } from '@/store';\nconst store = new Store();\n\
        server.tool('x', {}, async ({ a, b }) => {\n  await readNote(a);\n  git.diff(b);\n  store.remove(a);\n\
        git.fine('HEAD');\n  await readNote(path.basename(a));\n});\n";
    let files = "import fs from 'fs';\nexport async function readNote(name) {\n  return fs.readFileSync(`/n/${name}`);\n}\n\
        export function other(name) {\n  return fs.readFileSync(name);\n}\n";
    let barrel = "export * from './diff.js';\nexport { fine } from './fine.js';\n";
    let diff = "import { execSync } from 'child_process';\nexport const diff = (ref) => execSync(`git diff ${ref}`);\n";
    let fine = "import { execSync } from 'child_process';\nexport const fine = (ref) => execSync(`git show ${ref}`);\n";
    let store = "import fs from 'fs';\nexport class Store {\n  remove(name) {\n    fs.unlinkSync(name);\n  }\n}\n";
    let all = found(&[
        ("src/index.ts", index),
        ("src/files.ts", files),
        ("src/git/index.ts", barrel),
        ("src/git/diff.ts", diff),
        ("src/git/fine.ts", fine),
        ("src/store.ts", store),
    ]);
    is(
        &all,
        &[
            ("src/files.ts", 3, "path-traversal", Severity::Error),
            ("src/git/diff.ts", 2, "command-injection", Severity::Block),
            ("src/store.ts", 4, "path-traversal", Severity::Error),
        ],
    );
}

#[test]
fn packages_of_python_are_followed() {
    let server = "from .tools import shell\nfrom pkg.db import Database\ndb = Database()\n\
        @mcp.tool()\ndef run(cmd: str, table: str):\n    shell.start('ls ' + cmd)\n    return db.rows(table)\n";
    let shell = "import subprocess\ndef start(line):\n    return subprocess.run(line, shell=True)\n";
    let db =
        "class Database:\n    def rows(self, table):\n        return self.conn.execute(f'SELECT * FROM {table}')\n";
    let all = found(&[("src/pkg/server.py", server), ("src/pkg/tools/shell.py", shell), ("src/pkg/db.py", db)]);
    is(
        &all,
        &[
            ("src/pkg/db.py", 3, "sql-injection", Severity::Error),
            ("src/pkg/server.py", 6, "command-injection", Severity::Block),
            ("src/pkg/tools/shell.py", 3, "command-injection", Severity::Block),
        ],
    );
}

#[test]
fn packages_of_go_are_followed() {
    let main = "package main\nimport \"example.org/x/internal/git\"\n\
        func log(ctx context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {\n\
        \tref, _ := request.RequireString(\"ref\")\n\tgit.Log(ref)\n\treturn helper(ref), nil\n}\n";
    let helper = "package main\nimport \"os\"\nfunc helper(name string) *mcp.CallToolResult {\n\tos.Remove(name)\n\treturn nil\n}\n";
    let git =
        "package git\nimport \"os/exec\"\nfunc Log(ref string) {\n\texec.Command(\"git\", \"log\", ref).Run()\n}\n";
    let all = found(&[("main.go", main), ("helper.go", helper), ("internal/git/git.go", git)]);
    is(
        &all,
        &[
            ("helper.go", 4, "path-traversal", Severity::Error),
            ("internal/git/git.go", 4, "argument-injection", Severity::Error),
        ],
    );
}

#[test]
fn files_that_have_nothing_to_do_with_each_other_are_not_joined() {
    let one = "import { read } from './a.js';\nserver.tool('x', {}, async ({ p }) => { read(p); });\n";
    let other = "import fs from 'fs';\nexport function read(p) { return fs.readFileSync(p); }\n";
    is(&found(&[("one/index.ts", one), ("two/a.ts", other)]), &[]);
}

#[test]
fn who_runs_whole_commands_by_design_is_not_blocked() {
    let shell = "@mcp.tool()\ndef run(command: str):\n    return subprocess.run(command, shell=True)\n";
    let query = "@mcp.tool()\ndef query(sql: str):\n    return conn.execute(sql)\n";
    let built = "@mcp.tool()\ndef run(name: str):\n    return subprocess.run(f'ls {name}', shell=True)\n";
    is(
        &found(&[("a.py", shell), ("b.py", query), ("c.py", built)]),
        &[
            ("a.py", 3, "command-injection", Severity::Error),
            ("b.py", 3, "sql-injection", Severity::Warning),
            ("c.py", 3, "command-injection", Severity::Block),
        ],
    );
}

#[test]
fn what_other_files_give_back_is_followed() {
    let helper = "export function commandFor(name) {\n  return `convert ${name} out.png`;\n}\n\
        export function plain(name) {\n  if (!/^[a-z]+$/.test(name)) { throw new Error('no'); }\n  return name;\n}\n\
        export function fixed(name) {\n  return 'ls';\n}\nexport const place = (name) => path.join('/srv', name);\n";
    let server = "import { execSync } from 'child_process';\nimport fs from 'fs';\n\
        import { commandFor, plain, fixed, place } from './helper.js';\n\
        server.tool('x', {}, async ({ a }) => {\n  execSync(commandFor(a));\n  execSync(plain(a));\n  execSync(fixed(a));\n  \
        fs.readFileSync(place(a));\n});\n";
    let all = found(&[("src/server.ts", server), ("src/helper.ts", helper)]);
    let lines: Vec<(u32, &str)> = all.iter().map(|(_, line, class, _)| (*line, class.as_str())).collect();
    assert_eq!(lines, [(5, "command-injection"), (8, "path-traversal")]);

    let server = "from mcp.server.fastmcp import FastMCP\nimport os\nfrom .paths import locate, inside\nmcp = FastMCP('x')\n\n\
        @mcp.tool()\ndef read(name: str):\n    return open(locate(name)).read()\n\n\
        @mcp.tool()\ndef fine(name: str):\n    return open(inside(name)).read()\n";
    let paths = "import os\n\ndef locate(name):\n    return os.path.join('/srv', name)\n\n\
        def inside(name):\n    full = os.path.realpath(os.path.join('/srv', name))\n    \
        if os.path.commonpath([full, '/srv']) != '/srv':\n        raise ValueError('outside')\n    return full\n";
    let all = found(&[("pkg/server.py", server), ("pkg/paths.py", paths)]);
    let lines: Vec<(u32, &str)> = all.iter().map(|(_, line, class, _)| (*line, class.as_str())).collect();
    assert_eq!(lines, [(8, "path-traversal")]);
}
