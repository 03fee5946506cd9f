"""A server of one era over one transport, strict about its own: python3 server.py legacy|modern stdio|http|sse NOTES

"lax" is modern or legacy with one HTTP status for every answer: lax-modern, lax-legacy.

Over http and sse the first line of stdout is its port. What it is told to cancel, and sessions that end, are lines in NOTES."""
import base64, json, os, sys, threading, time, uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from urllib.parse import parse_qs, urlparse

ERA, TRANSPORT, NOTES = sys.argv[1:4]
LAX = ERA.startswith("lax-")
ERA = ERA.removeprefix("lax-")
META = "io.modelcontextprotocol/"
MODERN = "2026-07-28"
LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
LEVELS = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
URI = "test://a"
OFFERS = {
    "tools": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "prompts": {"listChanged": True},
    "logging": {},
    "completions": {},
}
PLACED = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
TOOLS = [{"name": n, "inputSchema": {"type": "object"}} for n in "echo progress slow log sample ask twice roots touch".split()]
TOOLS.append({"name": "placed", "inputSchema": PLACED})


def note(text):
    with open(NOTES, "a") as notes:
        notes.write(text + "\n")


class Refused(Exception):
    def __init__(self, code, message, **data):
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": data}


def text(value):
    return {"content": [{"type": "text", "text": value}]}


def notification(method, **params):
    return {"jsonrpc": "2.0", "method": method, "params": params}


QUESTIONS = {
    "sample": ("sampling/createMessage", {"messages": [{"role": "user", "content": {"type": "text", "text": "capital?"}}], "maxTokens": 9}),
    "ask": ("elicitation/create", {"message": "who?", "requestedSchema": {"type": "object", "properties": {"who": {"type": "string"}}}}),
    "roots": ("roots/list", {}),
}


def said(tool, answer):
    if tool == "sample":
        return answer["content"]["text"]
    if tool == "roots":
        return answer["roots"][0]["uri"]
    return answer["content"]["who"] if answer["action"] == "accept" else answer["action"]


def plain(method, p):
    """What both eras answer alike."""
    if method == "tools/list":
        return {"tools": TOOLS}
    if method == "resources/list":
        return {"resources": [{"uri": URI, "name": "a"}]}
    if method == "prompts/list":
        return {"prompts": [{"name": "greet", "arguments": [{"name": "who"}]}]}
    if method == "prompts/get":
        return {"messages": [{"role": "user", "content": {"type": "text", "text": "hello " + p["arguments"]["who"]}}]}
    if method == "resources/read":
        if p["uri"] != URI:
            raise Refused(-32002 if ERA == "legacy" else -32602, "no such resource", uri=p["uri"])
        return {"contents": [{"uri": URI, "text": "the text"}]}
    if method == "tools/call" and p["name"] in ("echo", "placed"):
        return text("you said " + json.dumps(p.get("arguments")) + " to " + str(os.getpid()))
    raise Refused(-32601, "no such method: " + method)


def step(p, say):
    token = (p.get("_meta") or {})["progressToken"]
    for done in (1, 2):
        say(notification("notifications/progress", progressToken=token, progress=done, total=2))


class Legacy:
    """One session."""

    def __init__(self, out):
        self.out, self.greeted, self.level, self.id = out, None, "debug", uuid.uuid4().hex
        self.watched, self.slow, self.asked = set(), {}, {}

    def take(self, m, say):
        id, method, p = m.get("id"), m.get("method"), m.get("params") or {}
        if method is None:
            return self.asked.pop(id).put(m)
        if id is None:
            if method == "notifications/cancelled" and p["requestId"] in self.slow:
                note("cancelled")
                self.slow[p["requestId"]].set()
            return
        try:
            result = self.answer(id, method, p, say)
            if result is not None:
                say({"jsonrpc": "2.0", "id": id, "result": result})
        except Refused as refused:
            say({"jsonrpc": "2.0", "id": id, "error": refused.error})

    def ask(self, tool, say):
        id, answers = "srv-" + uuid.uuid4().hex, Queue()
        self.asked[id] = answers
        method, params = QUESTIONS[tool]
        say({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        answer = answers.get(timeout=20)
        return said(tool, answer["result"]) if "result" in answer else "refused"

    def answer(self, id, method, p, say):
        if method == "initialize":
            self.greeted = p["capabilities"]
            version = p["protocolVersion"] if p["protocolVersion"] in LEGACY else LEGACY[-1]
            return {"protocolVersion": version, "capabilities": OFFERS, "serverInfo": {"name": "legacy", "version": "1"}, "instructions": "be kind"}
        if method == "ping":
            return {}
        if self.greeted is None:
            raise Refused(-32600, "not before initialize")
        if META + "protocolVersion" in (p.get("_meta") or {}) and method == "server/discover":
            raise Refused(-32601, "no such method")
        if method == "logging/setLevel":
            self.level = p["level"]
            return {}
        if method in ("resources/subscribe", "resources/unsubscribe"):
            (self.watched.add if method.endswith("/subscribe") else self.watched.discard)(p["uri"])
            return {}
        tool = p.get("name") if method == "tools/call" else None
        if tool == "progress":
            step(p, say)
        elif tool == "slow":
            self.slow[id] = threading.Event()
            say(notification("notifications/message", level="emergency", data="begun"))
            self.slow[id].wait(20)
            return None
        elif tool == "log":
            for level in ("debug", "warning"):
                if LEVELS.index(level) >= LEVELS.index(self.level):
                    say(notification("notifications/message", level=level, data="a " + level))
        elif tool in ("session", "forget"):
            return text(self.id)
        elif tool == "twice":
            return text(self.ask("ask", say) + " and " + self.ask("ask", say))
        elif tool in QUESTIONS:
            return text(self.ask(tool, say))
        elif tool == "touch":
            self.out(notification("notifications/tools/list_changed"))
            for uri in sorted(self.watched):
                self.out(notification("notifications/resources/updated", uri=uri))
        else:
            return plain(method, p)
        return text("done")


class Modern:
    """No session: what it knows is of requests that are open."""

    def __init__(self):
        self.slow, self.listening = {}, {}

    def take(self, m, say, gone=None):
        id, method, p = m.get("id"), m["method"], m.get("params") or {}
        if id is None:
            if method == "notifications/cancelled":
                self.cancel(p["requestId"])
            return
        try:
            result = self.answer(id, method, p, say, gone)
            if result is not None:
                say({"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete", **result}})
        except Refused as refused:
            say({"jsonrpc": "2.0", "id": id, "error": refused.error})

    def cancel(self, id):
        if id in self.slow:
            note("cancelled")
            self.slow[id].set()
        self.listening.pop(id, None)

    def input(self, p, meta, key, tool, state):
        """The answer to a question, or the question."""
        given = p.get("inputResponses")
        if given is None or key not in given:
            need = QUESTIONS[tool][0].split("/")[0]
            if need not in meta[META + "clientCapabilities"]:
                raise Refused(-32021, "needs " + need, requiredCapabilities={need: {}})
            method, params = QUESTIONS[tool]
            return None, {"resultType": "input_required", "requestState": state, "inputRequests": {key: {"method": method, "params": params}}}
        if p.get("requestState") != state:
            raise Refused(-32602, "a foreign state: " + str(p.get("requestState")))
        return said(tool, given[key]), None

    def answer(self, id, method, p, say, gone):
        meta = p.get("_meta") or {}
        if meta.get(META + "protocolVersion") != MODERN:
            raise Refused(-32022, "only " + MODERN, supported=[MODERN], requested=str(p.get("protocolVersion")))
        if not isinstance(meta.get(META + "clientCapabilities"), dict):
            raise Refused(-32602, "no clientCapabilities")
        lists = {"ttlMs": 0, "cacheScope": "private"}
        if method == "server/discover":
            about = {META + "serverInfo": {"name": "modern", "version": "1"}}
            return {"supportedVersions": [MODERN], "capabilities": {**OFFERS, "extensions": {"x/y": {}}}, "instructions": "be kind", "_meta": about, **lists}
        if method == "subscriptions/listen":
            self.listening[id] = (say, p["notifications"])
            say(notification("notifications/subscriptions/acknowledged", notifications=p["notifications"], _meta={META + "subscriptionId": id}))
            if gone is not None:
                gone.wait()
                self.listening.pop(id, None)
            return None
        tool = p.get("name") if method == "tools/call" else None
        level = meta.get(META + "logLevel")
        if tool == "progress":
            step(p, say)
        elif tool == "slow":
            self.slow[id] = gone or threading.Event()
            token = meta.get("progressToken")
            if token is not None:
                say(notification("notifications/progress", progressToken=token, progress=1))
            if self.slow[id].wait(20) and gone is not None:
                note("cancelled")
            return None
        elif tool == "log":
            for each in ("debug", "warning"):
                if level is not None and LEVELS.index(each) >= LEVELS.index(level):
                    say(notification("notifications/message", level=each, data="a " + each))
        elif tool == "ever":
            return self.input({}, meta, "k", "ask", "again")[1]
        elif tool == "twice":
            first = (p.get("requestState") or "").split(" ", 1)
            if len(first) == 2 and first[0] == "second":
                answer, asks = self.input(p, meta, "two", "ask", p["requestState"])
                return asks or text(first[1] + " and " + answer)
            answer, asks = self.input(p, meta, "one", "ask", "first \u00e9\"")
            if asks:
                return asks
            return self.input({}, meta, "two", "ask", "second " + answer)[1]
        elif tool in QUESTIONS:
            answer, asks = self.input(p, meta, "k", tool, "state \u00e9\"")
            return asks or text(answer)
        elif tool == "touch":
            for listener, (tell, wanted) in list(self.listening.items()):
                tag = {META + "subscriptionId": listener}
                try:
                    for uri in wanted.get("resourceSubscriptions", []):
                        tell(notification("notifications/resources/updated", uri=uri, _meta=tag))
                    if wanted.get("toolsListChanged"):
                        tell(notification("notifications/tools/list_changed", _meta=tag))
                except OSError:
                    # a client that has just left
                    self.listening.pop(listener, None)
        else:
            cached = method.endswith("/list") or method == "resources/read"
            return {**plain(method, p), **(lists if cached else {})}
        return text("done")


def stdio():
    lock = threading.Lock()

    def out(m):
        with lock:
            sys.stdout.write(json.dumps(m) + "\n")
            sys.stdout.flush()

    server = Legacy(out) if ERA == "legacy" else Modern()
    for line in sys.stdin:
        m = json.loads(line)
        if m.get("method") == "tools/call":
            threading.Thread(target=server.take, args=(m, out), daemon=True).start()
        else:
            server.take(m, out)


SESSIONS = {}
SERVER = Modern()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def whole(self, status, body, **headers):
        data = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data.encode())))
        self.end_headers()
        self.wfile.write(data.encode())

    def events(self):
        """An answer that is a stream, and how to write to it."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        lock = threading.Lock()

        def write(data):
            with lock:
                self.wfile.write(data.encode())
                self.wfile.flush()

        return write

    def gone(self, write):
        """Set when the client has closed the stream."""
        event = threading.Event()

        def watch():
            try:
                while not event.wait(0.02):
                    write(": alive\n\n")
            except OSError:
                event.set()

        threading.Thread(target=watch, daemon=True).start()
        return event

    def pump(self, session, write):
        try:
            while True:
                m = session.queue.get()
                if m is None:
                    return
                write("data: " + json.dumps(m) + "\n\n")
        except OSError:
            pass

    def do_GET(self):
        if TRANSPORT == "sse":
            session = Legacy(None)
            session.queue = Queue()
            session.out = session.queue.put
            id = uuid.uuid4().hex
            SESSIONS[id] = session
            write = self.events()
            write("event: endpoint\ndata: /messages?s=" + id + "\n\n")
            return self.pump(session, write)
        session = SESSIONS.get(self.headers.get("Mcp-Session-Id"))
        if ERA == "modern" or session is None:
            return self.whole(405 if ERA == "modern" else 404, "")
        write = self.events()
        if self.headers.get("Last-Event-ID") == "two":
            return write("data: " + json.dumps(session.rest) + "\n\n")
        self.pump(session, write)

    def do_DELETE(self):
        if SESSIONS.pop(self.headers.get("Mcp-Session-Id"), None) is None:
            return self.whole(404 if ERA == "legacy" else 405, "")
        note("ended")
        self.whole(200, "")

    def do_POST(self):
        m = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if TRANSPORT == "sse":
            session = SESSIONS[parse_qs(urlparse(self.path).query)["s"][0]]
            threading.Thread(target=session.take, args=(m, session.out), daemon=True).start()
            return self.whole(202, "")
        self.modern(m) if ERA == "modern" else self.legacy(m)

    def modern(self, m):
        p = m.get("params") or {}
        want = {"MCP-Protocol-Version": (p.get("_meta") or {}).get(META + "protocolVersion"), "Mcp-Method": m["method"]}
        if m["method"] in ("tools/call", "prompts/get"):
            want["Mcp-Name"] = p["name"]
        if m["method"] == "resources/read":
            want["Mcp-Name"] = p["uri"]
        if p.get("name") == "placed":
            want["Mcp-Param-Region"] = p["arguments"]["region"]
        for name, value in want.items():
            told = self.headers.get(name)
            if told is not None and told.startswith("=?base64?"):
                told = base64.b64decode(told[9:-2]).decode()
            if told != value:
                error = {"code": -32020, "message": name + " is " + str(told)}
                return self.whole(400, {"jsonrpc": "2.0", "id": m.get("id"), "error": error})
        if m["method"] in ("tools/call", "subscriptions/listen"):
            write = self.events()
            try:
                SERVER.take(m, lambda m: write("data: " + json.dumps(m) + "\n\n"), self.gone(write))
            except OSError:
                pass
            return
        answers = []
        SERVER.take(m, answers.append)
        code = (answers[0].get("error") or {}).get("code")
        self.whole(200 if LAX else {None: 200, -32601: 404, -32602: 200}.get(code, 400), answers[0])

    def refuse(self, m, why):
        if LAX:
            return self.whole(200, {"jsonrpc": "2.0", "id": m.get("id"), "error": {"code": -32600, "message": why}})
        self.whole(400, why, Content_Type="text/plain")

    def legacy(self, m):
        id, version = self.headers.get("Mcp-Session-Id"), self.headers.get("MCP-Protocol-Version")
        if version is not None and version not in LEGACY:
            return self.refuse(m, "Bad Request: Unsupported protocol version")
        if m.get("method") == "initialize":
            id, session = uuid.uuid4().hex, Legacy(None)
            session.queue = Queue()
            session.out = session.queue.put
            SESSIONS[id] = session
            answers = []
            session.take(m, answers.append)
            return self.whole(200, answers[0], Mcp_Session_Id=id)
        if id is None:
            return self.refuse(m, "Bad Request: no session")
        session = SESSIONS.get(id)
        if session is None:
            return self.whole(404, "no such session", Content_Type="text/plain")
        if m.get("id") is None or m.get("method") is None:
            session.take(m, None)
            return self.whole(202, "")
        if m["method"] == "tools/call" and m["params"]["name"] == "forget":
            for other in list(SESSIONS):
                SESSIONS.pop(other).queue.put(None)
        write = self.events()
        if m["method"] == "tools/call" and m["params"]["name"] == "parts":
            # the rest is for who comes back for it
            write("id: one\nretry: 10\ndata: \n\n")
            step(m["params"], lambda m: write("id: two\ndata: " + json.dumps(m) + "\n\n"))
            session.rest = {"jsonrpc": "2.0", "id": m["id"], "result": text("the rest")}
            return
        try:
            session.take(m, lambda m: write("data: " + json.dumps(m) + "\n\n"))
        except OSError:
            pass


if TRANSPORT == "stdio":
    stdio()
else:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
