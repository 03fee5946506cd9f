mod go;
mod python;
mod script;
mod tree;

use crate::scan::scan;

/// Lines of a file with what is found there; comments `#!class` and `//!class` say what should be.
fn told(path: &str, text: &str) -> [Vec<(u32, String)>; 2] {
    let found = scan(&[(path, text)]).findings.into_iter();
    let found = found.filter(|f| CLASSES.contains(&f.class.as_str())).map(|f| (f.line, f.class)).collect();
    let mut meant = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if let Some((_, class)) = line.split_once("#!").or_else(|| line.split_once("//!")) {
            meant.push((u32::try_from(at + 1).unwrap(), class.trim().to_owned()));
        }
    }
    [found, meant]
}

const CLASSES: [&str; 9] = [
    "command-injection",
    "argument-injection",
    "code-injection",
    "path-traversal",
    "ssrf",
    "sql-injection",
    "unsafe-deserialisation",
    "template-injection",
    "nosql-injection",
];

fn holds(path: &str, text: &str) {
    let [found, meant] = told(path, text);
    assert_eq!(found, meant, "{path}\n{text}");
}

#[test]
fn commands_in_python() {
    holds(
        "server.py",
        r#"
import os, subprocess, shlex, asyncio
from subprocess import run as start
from mcp.server.fastmcp import FastMCP
mcp = FastMCP("x")

@mcp.tool()
def a(host: str, count: int, how: Literal["x", "y"]) -> str:
    os.system(f"ping {host}")  #!command-injection
    os.system(f"ping -c {count} {how}")
    os.system("ping " + shlex.quote(host))
    subprocess.run("ls " + host, shell=True)  #!command-injection
    subprocess.run(["ping", host])
    subprocess.run(["ping", f"-c {host}"], shell=False)
    start(["bash", "-c", "ls %s" % host])  #!command-injection
    cmd = "ls"
    cmd += " " + host
    return os.popen(cmd).read()  #!command-injection

@mcp.tool()
async def b(cmd: str) -> str:
    await asyncio.create_subprocess_shell(cmd)  #!command-injection
    return helper(cmd)

def helper(what):
    return subprocess.check_output(f"echo {what}", shell=True)  #!command-injection

def not_reached(what):
    return subprocess.check_output(f"echo {what}", shell=True)

@mcp.tool()
def git(branch: str, other: str):
    subprocess.run(["git", "checkout", branch])  #!argument-injection
    subprocess.run(["git", "checkout", "--", branch])
    subprocess.run(f"kubectl get {branch}".split())  #!argument-injection
    subprocess.run(shlex.split(branch))  #!command-injection
    if other.startswith("-"):
        raise ValueError("no")
    subprocess.run(["git", "checkout", other])

@mcp.tool()
def c(name: str, kind: str):
    if kind not in ALLOWED:
        raise ValueError("no")
    os.system(f"x {kind}")
    if not re.fullmatch(r"[a-z]+", name):
        return "no"
    os.system(f"x {name}")
"#,
    );
}

#[test]
fn commands_in_scripts() {
    holds(
        "src/index.ts",
        r#"
import { exec, execFile, spawn } from "node:child_process";
import * as cp from "child_process";
import { promisify } from "util";
const run = promisify(exec);
const later = require("util").promisify(require("child_process").exec);

server.tool("a", "…", { host: z.string(), count: z.number(), id: z.string().regex(/^[a-z]+$/) }, async ({ host, count, id }) => {
  await run(`ping ${host}`); //!command-injection
  await run(`ping -c ${count} ${id}`);
  cp.execSync("ping " + host); //!command-injection
  execFile("ping", [host]);
  spawn("ping", [host], { shell: true }); //!command-injection
  spawn("ping", [`-c ${host}`], { shell: false });
  spawn("git", ["log", host]); //!argument-injection
  spawn("git", ["log", "--", host]);
  return { content: [] };
});

server.setRequestHandler(CallToolRequestSchema, async (request) => {
  const { name, arguments: args } = request.params;
  switch (name) {
    case "x": {
      const { stdout } = await run(`kubectl get ${args.kind}`); //!command-injection
      return stdout;
    }
    case "y":
      return handle(args);
    case "z":
      if (!/^[\w-]+$/.test(args.id)) throw new Error("no");
      return run(`x ${args.id}`);
  }
});

async function handle(args: { what: string }) {
  let command = "echo";
  command += ` ${args.what}`;
  return run(command); //!command-injection
}

class Tools {
  private async go(path: string) {
    return run("ls " + path); //!command-injection
  }
  async call(request: any) {
    return this.go(request.params.arguments.path);
  }
}

export const tool = {
  name: "t",
  description: "…",
  inputSchema: z.object({ n: z.number() }),
  execute: async (args) => {
    await run(`x ${args.n}`);
    return eval(args.code); //!code-injection
  },
};
"#,
    );
}

#[test]
fn paths() {
    holds(
        "server.py",
        r#"
import os
from pathlib import Path

@server.call_tool()
async def call(name: str, arguments: dict):
    if name == "a":
        with open(arguments["path"]) as f:  #!path-traversal
            return f.read()
    full = os.path.join(BASE, arguments["path"])
    open(full)  #!path-traversal
    real = os.path.realpath(full)
    if not real.startswith(BASE):
        raise ValueError("no")
    open(real)  #!path-traversal
    if not real.startswith(BASE + os.sep):
        raise ValueError("no")
    return open(real)

@mcp.resource("notes://{name}")
def note(name: str):
    Path(name).read_text()  #!path-traversal
    p = (ROOT / name).resolve()
    if not p.is_relative_to(ROOT):
        raise ValueError("no")
    p.read_text()
    (ROOT / name).write_text("")
    Path(os.path.basename(name)).read_text()

@mcp.tool()
def within(name: str):
    p = inside(name)
    return p.read_text()

def inside(name):
    p = (ROOT / name).resolve()
    if os.path.commonpath([ROOT, p]) != ROOT:
        raise ValueError("no")
    return p
"#,
    );
    holds(
        "server.js",
        r#"
import fs from "fs/promises";
import path from "node:path";
server.registerTool("read", { inputSchema: { file: z.string() } }, async ({ file }) => {
  await fs.readFile(path.join(ROOT, file)); //!path-traversal
  const full = path.resolve(ROOT, file);
  if (!full.startsWith(ROOT)) throw new Error("no");
  await fs.writeFile(full, ""); //!path-traversal
  if (!full.startsWith(ROOT + path.sep)) throw new Error("no");
  return fs.readFile(full);
});
server.registerTool("rel", {}, async ({ file }) => {
  const full = path.resolve(ROOT, file);
  const rel = path.relative(ROOT, full);
  if (rel.startsWith("..") || path.isAbsolute(rel)) throw new Error("no");
  return fs.readFile(full);
});
app.get("/files/:name", (req, res) => {
  res.sendFile(path.join(ROOT, req.params.name)); //!path-traversal
});
"#,
    );
}

#[test]
fn addresses_queries_and_the_rest() {
    holds(
        "server.py",
        r#"
import requests, httpx, yaml, pickle, sqlite3, jinja2

@mcp.tool()
async def a(url: str, q: str, table: str, text: str):
    requests.get(url)  #!ssrf
    requests.get(f"https://api.example.com/{q}")
    requests.get(f"https://{q}/x")  #!ssrf
    requests.get(f"{BASE}/x/{q}")
    async with httpx.AsyncClient() as client:
        await client.get(url)  #!ssrf
        await client.get("https://x.org/" + q)
    if not is_allowed_url(url):
        raise ValueError("no")
    requests.get(url)
    conn = sqlite3.connect("x")
    cursor = conn.cursor()
    cursor.execute(f"SELECT * FROM t WHERE name = '{q}'")  #!sql-injection
    cursor.execute("SELECT * FROM t WHERE name = ?", (q,))
    cursor.execute("PRAGMA table_info(" + table + ")")  #!sql-injection
    store = Store("x")
    store.look_up(q)
    yaml.load(text)  #!unsafe-deserialisation
    yaml.load(text, Loader=yaml.SafeLoader)
    yaml.safe_load(text)
    pickle.loads(text)  #!unsafe-deserialisation
    jinja2.Template(text).render()  #!template-injection
    jinja2.Template("{{ x }}").render(x=text)
    eval(text)  #!code-injection
    exec(int(text))

class Store:
    def look_up(self, query):
        with closing(sqlite3.connect(self.path)) as conn:
            with closing(conn.cursor()) as cursor:
                cursor.execute(query)  #!sql-injection
"#,
    );
    holds(
        "server.ts",
        r#"
import axios from "axios";
server.tool("a", { url: z.string(), q: z.string() }, async (args) => {
  await fetch(args.url); //!ssrf
  await fetch(`https://api.example.com/v1/${args.q}`);
  await fetch(`${API}/v1/${args.q}`);
  await axios.get(args.url, {}); //!ssrf
  await axios({ url: args.url }); //!ssrf
  await pool.query(`SELECT * FROM t WHERE a = '${args.q}'`); //!sql-injection
  await pool.query("SELECT * FROM t WHERE a = $1", [args.q]);
  await prisma.$queryRaw`SELECT ${args.q}`;
  new Function(args.q)(); //!code-injection
  args.q.split(",").map((one) => eval(one)); //!code-injection
});
"#,
    );
}

#[test]
fn whatever_is_written_is_read_in_time() {
    let deep = format!("x = {}1{}\n", "(".repeat(20_000), ")".repeat(20_000));
    let nested = format!("{}pass\n", (0..400).map(|n| format!("{}if x:\n", " ".repeat(n))).collect::<String>());
    let calls = format!("@mcp.tool()\ndef a(x):\n    {}x{}\n", "f(".repeat(3000), ")".repeat(3000));
    let many: String =
        (0..300).map(|n| format!("def f{n}(x):\n    return f{}(x) + f{}(x)\n", n + 1, (n + 7) % 300)).collect();
    let long = format!("x = '{}'\n", "a".repeat(900_000));
    let wide = format!("x = [{}]\n", "f(a), ".repeat(150_000));
    let sums = format!("x = {}1\n", "a + ".repeat(200_000));
    // texts, lists, records and arrivals that double
    let doubles: String = (0..60).map(|_| "    x = x + x\n    l = l + l\n    d = {**d, **d}\n").collect();
    let doubles = format!("@mcp.tool()\ndef a(x, d):\n    l = [x]\n{doubles}    os.system('ls ' + x)\n");
    let calls_twice: String =
        (0..60).map(|n| format!("def f{n}(x):\n    f{0}(x)\n    f{0}(x + 'y')\n", n + 1)).collect();
    let calls_twice = format!("{calls_twice}def f60(x):\n    os.system(x)\n@mcp.tool()\ndef t(x):\n    f50(x)\n");
    let texts = [&deep, &nested, &calls, &many, &long, &wide, &sums, &doubles, &calls_twice];
    for text in texts {
        for path in ["a.py", "a.ts", "a.js", "a.tsx", "a.go"] {
            scan(&[(path, text)]);
        }
    }
}
