//! Servers of either era over stdio, for the tests.

/// A server of the era with a handshake, with one tool for every manner that matters.
pub(super) const SERVER: &str = r#"
import sys, json, os
cancelled = []
held = []
subscribed = set()
def out(m):
    sys.stdout.write(json.dumps(m) + "\n")
    sys.stdout.flush()
def ok(id, **r):
    out({"jsonrpc": "2.0", "id": id, "result": r})
for line in sys.stdin:
    line = line.rstrip("\n")
    m = json.loads(line)
    method, id = m.get("method"), m.get("id")
    if method == "initialize":
        out({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        ok(id, protocolVersion=m["params"]["protocolVersion"], capabilities={"tools": {}, "tasks": {}}, serverInfo={"name": "py", "version": "1"})
    elif method == "notifications/cancelled":
        cancelled.append(m["params"]["requestId"])
    elif method == "notifications/poke":
        out({"jsonrpc": "2.0", "method": "notifications/poked"})
    elif method == "tools/list":
        if (m.get("params") or {}).get("cursor") == "2":
            ok(id, tools=[{"name": "c"}])
        else:
            ok(id, tools=[{"name": "a", "xVendor": 1.0}, {"name": "echo"}], nextCursor="2")
    elif method == "tools/call":
        tool = m["params"]["name"]
        if tool == "echo":
            ok(id, pid=os.getpid(), line=line)
            for h in held: ok(h)
            held = []
        elif tool == "after-next": held.append(id)
        elif tool == "progress":
            token = m["params"]["_meta"]["progressToken"]
            out({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})
            out({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}})
            ok(id)
        elif tool == "late":
            out({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "given-up", "progress": 1}})
            ok(id)
        elif tool == "ask":
            asked = id
            out({"jsonrpc": "2.0", "id": "srv-1", "method": "elicitation/create", "params": {"message": "who?"}})
        elif tool == "cancelled": ok(id, cancelled=cancelled)
        elif tool == "subscribed":
            ok(id, subscribed=sorted(subscribed))
            out({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            for uri in sorted(subscribed): out({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri}})
        elif tool == "die": sys.exit(3)
        elif tool == "hush": os.close(1)
        elif tool == "garbage":
            print("hello from print")
            print('{"not": "rpc"}')
            ok(id)
        elif tool == "large": ok(id, text="x" * (3 << 20))
    elif method is None and id == "srv-1":
        ok(asked, got=m.get("result"), refused=m.get("error"))
    elif method in ("resources/subscribe", "resources/unsubscribe"):
        (subscribed.add if method.endswith("/subscribe") else subscribed.discard)(m["params"]["uri"])
        ok(id)
    elif method == "resources/read":
        out({"jsonrpc": "2.0", "id": id, "error": {"code": -32002, "message": "no such resource"}})
    elif method == "logging/setLevel":
        ok(id)
    elif method == "server/discover":
        out({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method"}})
"#;

/// A server of the stateless era only.
pub(super) const MODERN: &str = r#"
import sys, json, os
def out(m): print(json.dumps(m), flush=True)
cancelled, listening, held = [], [], []
V = "io.modelcontextprotocol/"
for line in sys.stdin:
    m = json.loads(line)
    id, method, p = m.get("id"), m["method"], m.get("params") or {}
    meta = p.get("_meta") or {}
    def ok(id, **r): out({"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete", **r}})
    def note(method, **params): out({"jsonrpc": "2.0", "method": method, "params": params})
    def error(code, message, **data): out({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message, "data": data}})
    if method == "notifications/cancelled": cancelled.append(p["requestId"])
    elif method == "notifications/poke":
        for l in listening: note("notifications/tools/list_changed", _meta={V + "subscriptionId": l})
        note("notifications/tools/list_changed")
    elif meta.get(V + "protocolVersion") != "2026-07-28": error(-32022, "only 2026-07-28", supported=["2026-07-28"])
    elif method == "server/discover":
        ok(id, supportedVersions=["2026-07-28"], _meta={V + "serverInfo": {"name": "m", "version": "1"}})
    elif method == "tools/list":
        schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
        ok(id, tools=[{"name": "echo"}, {"name": "placed", "inputSchema": schema}])
    elif method == "subscriptions/listen":
        listening.append(id)
        note("notifications/subscriptions/acknowledged", _meta={V + "subscriptionId": id})
    elif method == "tools/call":
        tool = p["name"]
        if tool in ("echo", "placed"):
            ok(id, pid=os.getpid(), own=id, line=line.rstrip("\n"))
            for h in held: ok(h)
            held = []
        elif tool == "after-next": held.append(id)
        elif tool == "progress":
            if V + "logLevel" in meta: note("notifications/message", level="info", data="for " + str(meta.get("progressToken")))
            note("notifications/progress", progressToken=meta["progressToken"], progress=1)
            ok(id)
        elif tool == "cancelled": ok(id, cancelled=cancelled)
        elif tool == "hush": os.close(1)
        elif tool == "capability": error(-32021, "needs sampling", requiredCapabilities={"sampling": {}})
        elif tool == "die": sys.exit(3)
    else: error(-32601, "no " + method)
"#;
