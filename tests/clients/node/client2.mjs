// The official TypeScript SDK's second major as a client, in the manner that is asked for, over HTTP or through mcp-remote:
// lists tools and calls one, prints one JSON object, and does it again for every line of input. A session that is over is
// begun anew, once.
import { createInterface } from "node:readline";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [manner, way, url, tool, args] = process.argv.slice(2);
const mode = ["legacy", "auto"].includes(manner) ? manner : { pin: manner };
const remote = ["/client/node_modules/mcp-remote/dist/proxy.js", url, "--transport", "http-only"];
const transport = () =>
  way === "remote"
    ? new StdioClientTransport({ command: process.execPath, args: remote, stderr: "inherit" })
    : new StreamableHTTPClientTransport(new URL(url));

const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
let begun = 0;
let lost = null;
for (let more = true; more; ) {
  begun += 1;
  const client = new Client({ name: "sigil-tests", version: "2.0.0" }, { versionNegotiation: { mode } });
  const connection = transport();
  await client.connect(connection);
  while (more) {
    try {
      const tools = await client.listTools();
      const result = await client.callTool({ name: tool, arguments: JSON.parse(args) });
      const told = {
        begun,
        lost,
        server: client.getServerVersion()?.name,
        protocol: client.getNegotiatedProtocolVersion(),
        tools: tools.tools.map((t) => t.name),
        isError: Boolean(result.isError),
        text: result.content.filter((c) => c.type === "text").map((c) => c.text).join("\n"),
      };
      console.log(JSON.stringify(told));
      lost = null;
    } catch (error) {
      if (lost) throw error;
      lost = String(error);
      break;
    }
    more = !(await input.next()).done;
  }
  if (!more) await connection.terminateSession?.();
  await client.close();
}
