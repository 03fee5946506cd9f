use crate::scan::told;

fn holds(path: &str, text: &str) {
    told::holds(path, text, &["session-hijacking"]);
}

#[test]
fn ids_that_can_be_guessed() {
    holds(
        "src/http.ts",
        r#"
import express from "express";
import { randomUUID, createHash } from "node:crypto";
const app = express();
let counter = 0;

function createSessionId(user: string) {
  return createHash("md5").update(user + Date.now()).digest("hex"); //!session-hijacking
}

app.post("/mcp", async (req, res) => {
  const sessionId = `session_${Date.now()}`; //!session-hijacking
  const other = { sessionId: Math.random().toString(36).slice(2) }; //!session-hijacking
  const good = { sessionId: `${Date.now()}-${randomUUID()}` };
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: () => randomUUID() });
  const bad = new StreamableHTTPServerTransport({ sessionIdGenerator: () => String(++counter) }); //!session-hijacking
  const same = new StreamableHTTPServerTransport({ sessionIdGenerator: () => "default-session" }); //!session-hijacking
  const requestId = Date.now();
});
"#,
    );
    holds(
        "server.py",
        r#"
import random, secrets, time, uuid, hashlib
from fastapi import FastAPI, Request
app = FastAPI()

def generate_session_id():
    return "".join(random.choice("abcdef0123456789") for _ in range(32))  #!session-hijacking

class Sessions:
    def open(self, user):
        session_id = hashlib.sha256(f"{user}{time.time()}".encode()).hexdigest()  #!session-hijacking
        self.sessions[session_id] = user
        session_id = secrets.token_urlsafe(32)
        session_id = str(uuid.uuid4())
        session_id = str(uuid.uuid1())  #!session-hijacking
        session_id = f"s-{len(self.sessions) + 1}"  #!session-hijacking
        created_at = time.time()
        return session_id
"#,
    );
    // a name for a browser or a terminal is no credential
    holds("tool.py", "def open_terminal():\n    session_id = f'term-{int(time.time())}'\n    return session_id\n");
}

#[test]
fn sessions_that_belong_to_nobody() {
    let server = |check: &str, mark: &str| {
        format!(
            r#"
import express from "express";
import {{ requireBearerAuth }} from "@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js";
const transports = {{}};
const owners = {{}};
app.post("/mcp", requireBearerAuth({{ verifier }}), async (req, res) => {{
  const sessionId = req.headers["mcp-session-id"] as string | undefined;
  let transport;
  if (sessionId && transports[sessionId]) {{
    {check}
    transport = transports[sessionId];{mark}
  }} else if (!sessionId && isInitializeRequest(req.body)) {{
    transport = new StreamableHTTPServerTransport({{
      sessionIdGenerator: () => randomUUID(),
      onsessioninitialized: (sessionId) => {{ transports[sessionId] = transport; owners[sessionId] = req.auth.clientId; }},
    }});
  }}
  await transport.handleRequest(req, res, req.body);
}});
"#
        )
    };
    holds("src/index.ts", &server("", " //!session-hijacking"));
    holds("src/index.ts", &server("if (owners[sessionId] !== req.auth.clientId) return res.status(404).end();", ""));
    // without anybody who logs in there is no owner
    holds(
        "src/index.ts",
        &server("", "")
            .replace("requireBearerAuth({ verifier }), ", "")
            .replace(
                "import { requireBearerAuth } from \"@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js\";",
                "",
            )
            .replace("req.auth.clientId", "1"),
    );

    let python = |check: &str, mark: &str| {
        format!(
            r#"
from fastapi import Depends, FastAPI, HTTPException, Request
@app.post("/messages")
async def messages(request: Request, user: User = Depends(get_current_user)):
    session_id = request.query_params.get("session_id")
    session = sessions.get(session_id){mark}
    if session is None:
        raise HTTPException(404)
    {check}
    await session.send(await request.json())
"#
        )
    };
    holds("server.py", &python("pass", "  #!session-hijacking"));
    holds("server.py", &python("if session.owner_id != user.id:\n        raise HTTPException(404)", ""));
    holds("server.py", &python("pass", "").replace("sessions.get(session_id)", "sessions.get((user.id, session_id))"));
}

#[test]
fn ids_that_callers_choose() {
    holds(
        "src/server.js",
        r#"
import express from "express";
app.post("/mcp", (req, res) => {
  const sessionId = req.headers["mcp-session-id"] || randomUUID(); //!session-hijacking
  let session = sessions.get(sessionId);
  res.setHeader("mcp-session-id", sessionId);
});
app.post("/start", (req, res) => {
  sessions[req.body.sessionId] = { created: Date.now() }; //!session-hijacking
});
app.post("/update", (req, res) => {
  const sessionId = req.headers["mcp-session-id"];
  if (!sessions.has(sessionId)) {
    return res.status(404).end();
  }
  sessions.set(sessionId, { touched: Date.now() });
});
app.post("/new", (req, res) => {
  const sessionId = randomUUID();
  sessions.set(sessionId, { created: Date.now() });
});
"#,
    );
    holds(
        "server.py",
        r#"
from starlette.requests import Request
async def handle(request: Request):
    session_id = request.headers.get("mcp-session-id") or str(uuid.uuid4())  #!session-hijacking
    session_id = request.headers.get("mcp-session-id", str(uuid.uuid4()))  #!session-hijacking
    session_id = request.headers.get("mcp-session-id")
    if session_id is None:
        session_id = str(uuid.uuid4())
"#,
    );
}

#[test]
fn sessions_that_stand_in_for_a_login() {
    holds(
        "src/auth.ts",
        r#"
import express from "express";
export function authenticate(req, res, next) {
  const sessionId = req.headers["mcp-session-id"];
  if (sessionId && sessions.has(sessionId)) { //!session-hijacking
    return next();
  }
  const token = req.headers.authorization;
  if (!verifyToken(token)) return res.status(401).end();
  next();
}
export function careful(req, res, next) {
  const token = req.headers.authorization;
  if (!verifyToken(token)) return res.status(401).end();
  next();
}
"#,
    );
    holds(
        "auth.py",
        r#"
from starlette.middleware.base import BaseHTTPMiddleware
class AuthMiddleware(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        session_id = request.headers.get("mcp-session-id")
        if session_id in active_sessions:  #!session-hijacking
            return await call_next(request)
        token = request.headers.get("authorization")
        if not await verify_token(token):
            return JSONResponse({}, status_code=401)
        return await call_next(request)
"#,
    );
}

#[test]
fn ids_in_addresses() {
    holds(
        "src/login.ts",
        r#"
import express from "express";
app.get("/login/done", (req, res) => {
  const session = makeSession();
  res.redirect(`/app?session_token=${session.token}`); //!session-hijacking
  res.redirect("/app?page=1");
});
"#,
    );
}
