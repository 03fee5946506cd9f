// What the users of the official TypeScript SDK are shown, both majors: for each line of input (a case, JSON) connects, calls
// the tool and prints one JSON object with the words of whatever was thrown.
import { createInterface } from "node:readline";

const first = process.argv[2] === "1";
const { Client } = await import(first ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const { StreamableHTTPClientTransport } = await import(
  first ? "@modelcontextprotocol/sdk/client/streamableHttp.js" : "@modelcontextprotocol/client"
);
const mode = (text) => (["legacy", "auto"].includes(text) ? text : { pin: text });

const words = (error) => {
  const causes = [];
  for (let e = error; e; e = e.cause) causes.push(String(e));
  return causes.join(" | ");
};

const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
for (let line = await input.next(); !line.done; line = await input.next()) {
  const test = JSON.parse(line.value);
  const options = first ? {} : { versionNegotiation: { mode: mode(test.mode) } };
  const client = new Client({ name: "sigil-tests", version: "1.0.0" }, options);
  try {
    await client.connect(new StreamableHTTPClientTransport(new URL(test.url), { requestInit: { headers: test.headers } }));
    if (test.wait) {
      console.log(JSON.stringify({ ready: true }));
      await input.next();
    }
    const result = await client.callTool({ name: test.tool, arguments: test.arguments }, ...(first ? [undefined] : []), { timeout: 20000 });
    const text = result.content.map((c) => c.text ?? "").join(" ");
    console.log(JSON.stringify({ raised: false, text, failed: Boolean(result.isError) }));
  } catch (error) {
    console.log(JSON.stringify({ raised: true, text: words(error) }));
  }
  await client.close().catch(() => {});
}
process.exit(0);
