//! Servers in Python, as they are written: what is flawed is marked, what is not is what was done about it.

use super::holds;

#[test]
fn low_level_servers_with_a_function_for_each_tool() {
    holds(
        "src/server.py",
        r##"
import git
from pydantic import BaseModel
from mcp.server import Server

class GitLog(BaseModel):
    repo_path: str
    max_count: int = 10
    since: str

def git_log(repo: git.Repo, since: str) -> str:
    args = []
    if since:
        args.extend(["--since", since])
    return repo.git.log(*args)  #!argument-injection

def git_diff(repo: git.Repo, target: str, lines: int) -> str:
    if target.startswith("-"):
        raise BadName("no")
    return repo.git.diff(f"--unified={lines}", target)

def git_show(repo: git.Repo, revision: str):
    return repo.commit(revision)  #!argument-injection

def git_add(repo, files):
    repo.git.add("--", *files)

@server.call_tool()
async def call_tool(name: str, arguments: dict) -> list[TextContent]:
    repo = git.Repo(Path(arguments["repo_path"]))
    match name:
        case "log":
            args = GitLog(**arguments)
            return [TextContent(type="text", text=git_log(repo, args.since))]
        case "diff":
            return [TextContent(type="text", text=git_diff(repo, arguments["target"], 3))]
        case "show":
            return git_show(repo, arguments.get("revision"))
        case "add":
            return git_add(repo, arguments["files"])
"##,
    );
}

#[test]
fn handlers_in_maps_classes_and_threads() {
    holds(
        "server.py",
        r##"
import asyncio, subprocess, json
import sqlite3

class Database:
    def __init__(self, path):
        self.conn = sqlite3.connect(path)

    def describe(self, table):
        return self.conn.execute(f"PRAGMA table_info({table})").fetchall()  #!sql-injection

    def known(self, table):
        if table not in self.tables():
            raise ValueError("no")
        return self.conn.execute(f"SELECT * FROM {table}")

class ReadTool(BaseTool):
    def _run(self, path: str) -> str:
        with open(path) as f:  #!path-traversal
            return f.read()

class Server:
    def __init__(self):
        self.db = Database("x")
        self.handlers = {"ping": self._ping, "table": self._table, "known": self._known}

    async def _ping(self, args):
        def run():
            return subprocess.run(f"ping -c 1 {args['host']}", shell=True)  #!command-injection
        return await asyncio.get_event_loop().run_in_executor(None, run)

    async def _table(self, args):
        return self.db.describe(args["table"])

    async def _known(self, args):
        return self.db.known(args["table"])

    async def later(self, args):
        return await asyncio.to_thread(subprocess.check_output, "ls " + args["dir"], shell=True)  #!command-injection

    def set_up(self, server):
        @server.call_tool()
        async def call(name: str, arguments: dict):
            if name == "later":
                return await self.later(arguments)
            return await self.handlers[name](arguments)
"##,
    );
}

#[test]
fn strings_that_are_put_together_in_every_way() {
    holds(
        "server.py",
        r##"
import os, subprocess, shlex
COMMAND = "kubectl get {}"

@mcp.tool()
def a(name: str, files: list[str], extra: Optional[str] = None, count: Annotated[int, Field(ge=1)] = 1,
      word: Annotated[str, Field(pattern=r"^[a-z]+$")] = "x"):
    os.system("x %s" % name)  #!command-injection
    os.system("x {}".format(name))  #!command-injection
    os.system(COMMAND.format(name))  #!command-injection
    os.system(" ".join(["x", name]))  #!command-injection
    os.system(" ".join(shlex.quote(f) for f in files))
    os.system(f"x {count} {word}")
    cmd = ["x"]
    for f in files:
        cmd.append(f)
    subprocess.run(" ".join(cmd), shell=True)  #!command-injection
    subprocess.run(cmd)
    line = f"""
        cd /tmp && \\
        x {extra or name}
    """
    subprocess.Popen(line, shell=True)  #!command-injection
    subprocess.run(f"x {shlex.quote(name)}", shell=True)
    safe = re.sub(r"[^a-zA-Z0-9_-]", "", name)
    os.system(f"x {safe}")

def run_command(cmd, cwd=None):
    return subprocess.run(cmd, capture_output=True, cwd=cwd)

@mcp.tool()
def b(image: str):
    run_command(["sam", "build", "--name", image])
    return run_command(["docker", "pull", image])  #!argument-injection

@mcp.tool()
def c(image: str):
    if any(c in image for c in ";|&"):
        raise ValueError("no")
    run_command(["docker", "pull", "--", image])
"##,
    );
}

#[test]
fn folders_and_what_keeps_within_them() {
    holds(
        "server.py",
        r##"
import os
from pathlib import Path
ROOT = Path("/data").resolve()

def is_safe(path: Path) -> bool:
    return ROOT in path.absolute().parents

def is_within(path: Path) -> bool:
    try:
        path.resolve().relative_to(ROOT)
        return True
    except ValueError:
        return False

@mcp.tool()
def weak(name: str):
    path = ROOT / name
    if not is_safe(path):
        raise ValueError("no")
    return path.read_text()  #!path-traversal

@mcp.tool()
def strong(name: str):
    path = ROOT / name
    if not is_within(path):
        raise ValueError("no")
    return path.read_text()

@mcp.tool()
def parents(name: str):
    path = (ROOT / name).resolve()
    if ROOT not in path.parents:
        raise ValueError("no")
    return path.read_text()

@mcp.tool()
def tried(name: str):
    path = (ROOT / name).resolve()
    try:
        path.relative_to(ROOT)
    except ValueError:
        return "no"
    return path.open().read()

@mcp.tool()
def prefix(name: str):
    full = os.path.abspath(os.path.join("/data", name))
    if not full.startswith("/data"):
        raise ValueError("no")
    open(full)  #!path-traversal
    if os.path.commonpath(["/data", full]) != "/data":
        raise ValueError("no")
    return open(full)

@mcp.tool()
def unresolved(name: str):
    path = ROOT / name
    if not path.is_relative_to(ROOT):
        raise ValueError("no")
    return path.read_bytes()  #!path-traversal

@mcp.tool()
def among(name: str):
    full = os.path.realpath(name)
    allowed = any(full.startswith(d + os.sep) for d in DIRS)
    if not allowed:
        raise PermissionError("no")
    return open(full).read()
"##,
    );
}

#[test]
fn hosts_and_what_is_looked_at_before() {
    holds(
        "server.py",
        r##"
import httpx, requests, socket, ipaddress, aiohttp
from urllib.parse import urlparse
from urllib.request import urlopen

def scheme_only(url):
    if not url.startswith("http"):
        raise ValueError("no")

def literal(url):
    host = urlparse(url).hostname
    if ipaddress.ip_address(host).is_private:
        raise ValueError("no")

def resolves(url):
    host = urlparse(url).hostname
    for info in socket.getaddrinfo(host, 443):
        if ipaddress.ip_address(info[4][0]).is_private:
            raise ValueError("no")

def check_url(url):
    resolves(url)

@mcp.tool()
async def fetch(url: str, other: str, page: str) -> str:
    scheme_only(url)
    requests.get(url)  #!ssrf
    literal(url)
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:  #!ssrf
            await response.text()
    check_url(url)
    httpx.get(url)
    if urlparse(other).netloc not in ALLOWED:
        raise ValueError("no")
    urlopen(other)
    requests.get("https://example.org/%s" % page)
    requests.get(f"{get_base()}/x/{page}")
    if not re.match(r"^https://docs\.example\.org/", page):
        raise ValueError("no")
    return httpx.get(page).text

def get_base():
    return f"{PROTOCOL}://{HOST}:{PORT}"

@app.get("/proxy")
async def proxy(request: Request):
    target = request.headers.get("x-target")
    return requests.get(target)  #!ssrf
"##,
    );
}

#[test]
fn databases() {
    holds(
        "server.py",
        r##"
import sqlite3, mysql.connector, asyncpg
from psycopg2 import sql

@server.read_resource()
async def read(uri: AnyUrl) -> str:
    table = str(uri)[8:].split("/")[0]
    conn = mysql.connector.connect(**config)
    cursor = conn.cursor()
    cursor.execute(f"SELECT * FROM {table} LIMIT 100")  #!sql-injection
    cursor.execute("SELECT * FROM `" + table.replace("`", "``") + "`")

@mcp.tool()
async def query(statement: str, name: str, columns: list[str], limit: int):
    if not statement.lower().startswith("select"):
        raise ValueError("no")
    conn = sqlite3.connect("x")
    conn.execute(statement)  #!sql-injection
    conn.execute(f"SELECT {', '.join(columns)} FROM t")  #!sql-injection
    conn.execute("SELECT * FROM t WHERE name = ? LIMIT " + str(limit), (name,))
    conn.execute(f"SELECT * FROM t LIMIT {limit}")
    cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name)))
    where = f"name = '{name}'"
    conn.execute("SELECT * FROM t WHERE " + where)  #!sql-injection
    if not name.isidentifier():
        raise ValueError("no")
    conn.execute(f"DROP TABLE {name}")
"##,
    );
}

#[test]
fn code_and_what_becomes_it() {
    holds(
        "server.py",
        r##"
import yaml, torch, joblib, dill, ast, jinja2
env = jinja2.Environment()

@mcp.tool()
def run(code: str, path: str, text: str):
    exec(code)  #!code-injection
    ast.literal_eval(text)
    eval(f"math.{text}", {})  #!code-injection
    torch.load(path)  #!unsafe-deserialisation
    torch.load(path, weights_only=True)
    joblib.load(path)  #!unsafe-deserialisation
    yaml.load(text, Loader=yaml.FullLoader)  #!unsafe-deserialisation
    yaml.load(text, Loader=yaml.CSafeLoader)
    env.from_string(text)  #!template-injection
    collection = client["db"].collection
    collection.find(json.loads(text))  #!nosql-injection
    collection.find({"name": text})
"##,
    );
}

#[test]
fn tools_that_are_registered_by_a_call() {
    holds(
        "server.py",
        r##"
def read(path: str) -> str:
    return open(path).read()  #!path-traversal

def write(path: str) -> str:
    return open(path, "w")  #!path-traversal

def mine(path: str) -> str:
    return open(path).read()

mcp.tool()(read)
mcp.add_tool(write, name="write")
"##,
    );
}
