use crate::scan::told;

fn holds(path: &str, text: &str) {
    told::holds(path, text, &["missing-authentication", "dns-rebinding"]);
}

#[test]
fn all_interfaces() {
    holds(
        "server.py",
        r#"
from mcp.server.fastmcp import FastMCP
import uvicorn, argparse, os
mcp = FastMCP("x", host="0.0.0.0", port=8000)  #!missing-authentication
parser = argparse.ArgumentParser()
parser.add_argument("--host", default="0.0.0.0")  #!missing-authentication
HOST = os.getenv("HOST", "0.0.0.0")  #!missing-authentication
if HOST == "0.0.0.0":
    print("careful")
uvicorn.run(
    app,
    host="::",  #!missing-authentication
    port=8000,
)
uvicorn.run(app, host="127.0.0.1")
blocked = ["0.0.0.0", "169.254.169.254"]
server = HTTPServer(("", 8080), Handler)  #!missing-authentication
"#,
    );
    holds(
        "src/index.ts",
        r#"
import express from "express";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
const app = express();
app.listen(PORT, () => console.log("up")); //!missing-authentication
app.listen(PORT, "127.0.0.1", () => console.log("up"));
app.listen(3000); //!missing-authentication
const host = process.env.HOST || "0.0.0.0"; //!missing-authentication
httpServer.listen({ port: 1, host: "localhost" });
httpServer.listen(socketPath);
"#,
    );
    holds(
        "src/auth.ts",
        r#"
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
app.use((req, res, next) => {
  if (req.headers.authorization !== `Bearer ${KEY}`) return res.status(401).end();
  next();
});
app.listen(PORT);
"#,
    );
    holds("web.ts", "import express from 'express';\nconst app = express();\napp.listen(3000);\n");
    holds(
        "main.go",
        r#"
package main

func main() {
	s := server.NewMCPServer("x", "1")
	http.ListenAndServe(":8080", s) //!missing-authentication
	http.ListenAndServe("127.0.0.1:8080", s)
}
"#,
    );
}

#[test]
fn transports_without_a_look_at_the_origin() {
    holds(
        "src/sse.ts",
        r#"
import { SSEServerTransport } from "@modelcontextprotocol/sdk/server/sse.js";
app.get("/sse", async (req, res) => {
  const transport = new SSEServerTransport("/messages", res); //!dns-rebinding
  await server.connect(transport);
});
app.listen(3000, "127.0.0.1");
"#,
    );
    holds(
        "src/safe.ts",
        r#"
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
const transport = new StreamableHTTPServerTransport({
  sessionIdGenerator: () => randomUUID(),
  enableDnsRebindingProtection: true,
  allowedHosts: ["127.0.0.1:3000"],
});
app.listen(3000, "127.0.0.1");
"#,
    );
    holds(
        "server.py",
        r#"
from mcp.server.sse import SseServerTransport
sse = SseServerTransport("/messages/")  #!dns-rebinding
uvicorn.run(app, host="127.0.0.1")
"#,
    );
    holds(
        "server.py",
        r#"
from mcp.server.sse import SseServerTransport
sse = SseServerTransport("/messages/", security_settings=TransportSecuritySettings(allowed_hosts=["127.0.0.1:*"]))
uvicorn.run(app, host="127.0.0.1")
"#,
    );
    holds(
        "off.py",
        "from mcp.server import x\ns = TransportSecuritySettings(enable_dns_rebinding_protection=False)  #!dns-rebinding\n",
    );
}

#[test]
fn sockets_and_cors() {
    holds(
        "src/ws.ts",
        r#"
import { WebSocketServer } from "ws"; // bridge for the MCP server
const wss = new WebSocketServer({ port: 8765, host: "127.0.0.1" }); //!dns-rebinding
"#,
    );
    holds(
        "src/ws.ts",
        r#"
import { WebSocketServer } from "ws"; // bridge for the MCP server
const mcpBridge = new WebSocketServer({ port: 8765, host: "127.0.0.1", verifyClient: ({ origin }) => allowed.has(origin) });
"#,
    );
    holds(
        "app.py",
        r#"
app.add_middleware(
    CORSMiddleware,
    allow_origins=["*"],  #!dns-rebinding
    allow_credentials=True,
)
app.add_middleware(CORSMiddleware, allow_origins=["*"])
app.add_middleware(CORSMiddleware, allow_origins=["https://x.org"], allow_credentials=True)
"#,
    );
    holds(
        "a.js",
        "app.use(cors({ origin: true, credentials: true })); //!dns-rebinding\napp.use(cors({ origin: 'https://x.org', credentials: true }));\napp.use(cors());\n",
    );
}
