// The official TypeScript SDK as a client: lists tools and calls one; prints one JSON object.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, tool, args] = process.argv.slice(2);
const client = new Client({ name: "sigil-tests", version: "1.0.0" });
const transport = new StreamableHTTPClientTransport(new URL(url));
await client.connect(transport);
const tools = await client.listTools();
const result = await client.callTool({ name: tool, arguments: JSON.parse(args) });
console.log(
  JSON.stringify({
    server: client.getServerVersion()?.name,
    tools: tools.tools.map((t) => t.name),
    isError: Boolean(result.isError),
    text: result.content.filter((c) => c.type === "text").map((c) => c.text).join("\n"),
  }),
);
await transport.terminateSession();
await client.close();
