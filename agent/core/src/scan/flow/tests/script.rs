//! Servers in JavaScript and TypeScript, as they are written, compiled and bundled.

use super::holds;

#[test]
fn servers_that_switch_over_names() {
    holds(
        "src/index.ts",
        r##"
import { exec, execFile } from "child_process";
import { promisify } from "util";
const execAsync = promisify(exec);
const ScanSchema = z.object({ target: z.string(), timing: z.number(), kind: z.enum(["a", "b"]) });

async function scan(params: z.infer<typeof ScanSchema>) {
  const { target, timing, kind } = params;
  let command = `nmap -T${timing}`;
  switch (kind) {
    case "a":
      command += " -F";
      break;
    default:
      command += " -sV";
  }
  command += ` ${target}`;
  const { stdout } = await execAsync(command); //!command-injection
  return stdout;
}

async function install(packages: string[]) {
  let line = "";
  switch (MODE) {
    case "pip":
      line = `pip install ${packages.join(" ")}`;
      break;
    case "conda":
      line = "conda install";
      break;
  }
  await execAsync(line, { cwd: DIR }); //!command-injection
}

class NotesServer {
  constructor() {
    this.server.setRequestHandler(CallToolRequestSchema, async (request) => {
      switch (request.params.name) {
        case "scan": {
          const parsed = ScanSchema.safeParse(request.params.arguments);
          return scan(parsed.data);
        }
        case "install":
          return install(request.params.arguments.packages as string[]);
        case "read":
          return this.readNote(request.params.arguments);
        case "count":
          await execAsync(`wc -l ${Number(request.params.arguments.n)}`);
          return execFile("wc", ["-l", String(request.params.arguments.file)]);
      }
    });
  }

  private async readNote(args: any) {
    const file = path.join(this.root, `${args.title}.md`);
    return fs.readFile(file, "utf8"); //!path-traversal
  }
}
import * as fs from "fs/promises";
import path from "path";
"##,
    );
}

#[test]
fn wrappers_and_lists() {
    holds(
        "src/git.ts",
        r##"
import { spawn, execSync, execFileSync, spawnSync } from "node:child_process";

function run(command: string) {
  return execSync(command).toString(); //!command-injection
}

server.tool("diff", { ref: z.string(), file: z.string().optional() }, async ({ ref, file }) => {
  run(`git diff ${ref}`); //!command-injection
  run("git status");
  const args = ["diff"];
  if (file) {
    args.push(file);
  }
  execFileSync("git", args); //!argument-injection
  execFileSync("git", ["diff", "--", ...args]);
  execFileSync("git", ["log", "-n", ref]);
  if (ref.startsWith("-")) throw new Error("no");
  execFileSync("git", ["diff", ref]);
  spawn("ls", [file], { shell: true }); //!command-injection
  spawn("ls", [file]);
  spawnSync("kubectl", ["get", "pods", "-n", file]);
  spawnSync("kubectl", ["get", file]); //!argument-injection
  execFileSync("sh", ["-c", `ls ${file}`]); //!command-injection
  return { content: [{ type: "text", text: "" }] };
});

server.tool("quoted", { name: z.string() }, async ({ name }) => {
  execSync(`ls "${name.replace(/"/g, '\\"')}"`); //!command-injection
  execSync(`ls '${name.replace(/'/g, "'\\''")}'`);
  execSync(`ls ${name.replace(/[^a-zA-Z0-9_-]/g, "")}`);
  if (/[;&|`$<>]/.test(name)) throw new Error("no");
  execSync(`ls ${name}`);
  return { content: [] };
});
"##,
    );
}

#[test]
fn what_compilers_and_bundlers_make_of_it() {
    holds(
        "dist/index.js",
        r##"
"use strict";
const child_process_1 = require("child_process");
const util_1 = require("util");
const fs = __importStar(require("fs"));
const path_1 = __importDefault(require("path"));
const execAsync = (0, util_1.promisify)(child_process_1.exec);
server.setRequestHandler(types_js_1.CallToolRequestSchema, async (request) => {
    const { name, arguments: args } = request.params;
    await execAsync(`simctl boot ${args.udid}`); //!command-injection
    (0, child_process_1.execSync)(`ls ${args.dir}`); //!command-injection
    fs.readFileSync(path_1.default.join(ROOT, args.file)); //!path-traversal
    (0, child_process_1.execFileSync)("ls", [args.dir]);
});
server.tool("x", {}, (args) => __awaiter(void 0, void 0, void 0, function* () {
    yield execAsync(`ls ${args.dir}`); //!command-injection
}));
"##,
    );
    holds(
        "dist/bundle.mjs",
        r##"
import{exec as a}from"child_process";import{promisify as b}from"util";
var c=b(a);s.setRequestHandler(T,async e=>{let{name:t,arguments:n}=e.params;return await c(`ls ${n.dir}`)}); //!command-injection
var __toESM=(x)=>x,import_child_process=__toESM(require("child_process"));
s.tool("y",{},async({d:t})=>{(0,import_child_process.exec)("ls "+t)}); //!command-injection
var r=e=>e.exec("ls "+e);r(/x/.exec("y"));
"##,
    );
}

#[test]
fn folders_and_what_keeps_within_them() {
    holds(
        "src/files.ts",
        r##"
import fs from "fs";
import path from "path";
const ROOT = path.resolve(process.env.ROOT ?? ".");

async function validatePath(requested: string): Promise<string> {
  const absolute = path.isAbsolute(requested) ? path.resolve(requested) : path.resolve(process.cwd(), requested);
  const normalized = path.normalize(absolute);
  const isAllowed = dirs.some((dir) => normalized.startsWith(dir));
  if (!isAllowed) throw new Error("no");
  return normalized;
}

async function validateWell(requested: string): Promise<string> {
  const absolute = path.resolve(requested);
  const isAllowed = dirs.some((dir) => absolute === dir || absolute.startsWith(dir + path.sep));
  if (!isAllowed) throw new Error("no");
  return fs.promises.realpath(absolute);
}

server.registerTool("read", { inputSchema: { file: z.string() } }, async ({ file }) => {
  const weak = await validatePath(file);
  fs.readFileSync(weak); //!path-traversal
  const well = await validateWell(file);
  return fs.readFileSync(well);
});

server.registerTool("dots", {}, async ({ file }) => {
  if (file.includes("..")) throw new Error("no");
  fs.readFileSync(path.join(ROOT, file));
  fs.readFileSync(path.resolve(ROOT, file)); //!path-traversal
  fs.readFileSync(`${ROOT}/${file}`);
  fs.readFileSync(file); //!path-traversal
});

server.registerTool("sep", {}, async ({ file }) => {
  const full = path.resolve(ROOT, file);
  if (full !== ROOT && !full.startsWith(`${ROOT}${path.sep}`)) throw new Error("no");
  return fs.readFileSync(full);
});

server.registerTool("raw", {}, async ({ file }) => {
  if (!file.startsWith(ROOT + "/")) throw new Error("no");
  return fs.readFileSync(file); //!path-traversal
});
"##,
    );
}

#[test]
fn addresses() {
    holds(
        "src/fetch.ts",
        r##"
import axios from "axios";
import dns from "node:dns/promises";
import isPrivate from "private-ip";

function validateUrl(url: string) {
  const parsed = new URL(url);
  if (isPrivate(parsed.hostname)) throw new Error("no");
}

async function checkResolved(url: string) {
  const { address } = await dns.lookup(new URL(url).hostname);
  if (isPrivate(address)) throw new Error("no");
}

server.tool("fetch", { url: z.string().url(), id: z.string() }, async ({ url, id }) => {
  validateUrl(url);
  await fetch(url); //!ssrf
  await axios.get(url); //!ssrf
  await axios({ method: "get", url }); //!ssrf
  await axios.get(`https://api.example.com/items/${id}`);
  await fetch(new URL(`/items/${id}`, BASE));
  await checkResolved(url);
  await fetch(url);
  return { content: [] };
});

server.tool("hosts", { url: z.string() }, async ({ url }) => {
  const parsed = new URL(url);
  if (!ALLOWED.includes(parsed.hostname)) throw new Error("no");
  await fetch(url);
  await fetch(parsed);
  return { content: [] };
});

server.tool("mine", { url: z.string() }, async ({ url }) => {
  if (!url.startsWith("https://api.example.com/")) throw new Error("no");
  return fetch(url);
});

app.post("/mcp", async (req, res) => {
  const target = req.headers["x-upstream"];
  await fetch(target); //!ssrf
});
"##,
    );
}

#[test]
fn databases_code_and_templates() {
    holds(
        "src/db.ts",
        r##"
import Database from "better-sqlite3";
import pg from "pg";
import vm from "node:vm";
import Handlebars from "handlebars";
const db = new Database("x");
const pool = new pg.Pool();

export const handlers = {
  describe: async (args: any) => db.prepare(`PRAGMA table_info(${args.table})`).all(), //!sql-injection
  count: async (args: any) => db.prepare("SELECT count(*) FROM t WHERE a = ?").get(args.a),
};

server.setRequestHandler(CallToolRequestSchema, async (request) => {
  const args = request.params.arguments;
  const sql = args.sql as string;
  if (!sql.trim().toLowerCase().startsWith("select")) throw new Error("no");
  const client = await pool.connect();
  await client.query("BEGIN TRANSACTION READ ONLY");
  await client.query(sql); //!sql-injection
  await client.query(`SELECT * FROM ${args.table} WHERE ${args.where}`); //!sql-injection
  await client.query("SELECT * FROM t WHERE id = $1", [args.id]);
  await client.query(`SELECT * FROM ${escapeIdentifier(args.table)}`);
  if (!/^[a-z_]+$/.test(args.order)) throw new Error("no");
  await client.query(`SELECT * FROM t ORDER BY ${args.order}`);
  vm.runInNewContext(args.code); //!code-injection
  new Function("x", args.code); //!code-injection
  Handlebars.compile(args.template); //!template-injection
  await mongo.collection("x").find(args.filter); //!nosql-injection
  await mongo.collection("x").find({ id: args.id });
  return handlers[request.params.name](args);
});
"##,
    );
}

#[test]
fn tools_that_are_objects_and_classes() {
    holds(
        "src/tools/read.ts",
        r##"
import { readFile } from "fs/promises";
import { execSync } from "child_process";

export class ReadTool extends MCPTool<Input> {
  name = "read";
  async execute(input: Input) {
    return readFile(input.path); //!path-traversal
  }
}

export const ping = {
  name: "ping",
  description: "…",
  inputSchema: { type: "object" },
  handler: async ({ host, count = 4 }: { host: string; count?: number }) => {
    return execSync(`ping ${host}`); //!command-injection
  },
};

export async function handleList(args: ListArgs) {
  const out = execSync(`ls ${args.dir}`); //!command-injection
  return { content: [{ type: "text", text: out.toString() }] };
}

export function textResult(text: string) {
  return { content: [{ type: "text", text }] };
}

export function loadConfig(file: string) {
  return readFile(file);
}
"##,
    );
}

#[test]
fn what_others_could_hand_to_a_module() {
    holds(
        "src/utils/shell.ts",
        r##"
import { exec, execSync } from "child_process";

export function diff(ref: string) {
  return execSync(`git diff ${ref}`); //!command-injection
}

export function run(command: string) {
  return execSync(command);
}

export function resize(width: number) {
  return execSync(`convert -resize ${width} a.png`);
}

function own(ref: string) {
  return execSync(`git diff ${ref}`);
}

export function version() {
  return execSync("git --version");
}
"##,
    );
}
