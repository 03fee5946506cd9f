// DESCRIPTION
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { z } from "zod";

const server = new McpServer({ name: "NAME", version: "0.1.0" });

server.registerTool(
  "greet",
  { description: "Greets a person by name.", inputSchema: { name: z.string().max(200) } },
  async ({ name }) => {
    // stdout belongs to the protocol: what is to be read in `sigil logs` goes to stderr
    console.error("a greeting was asked for");
    return { content: [{ type: "text", text: `Hello, ${name}!` }] };
  },
);

server.registerTool(
  "add",
  { description: "Adds two numbers.", inputSchema: { a: z.number(), b: z.number() } },
  async ({ a, b }) => ({ content: [{ type: "text", text: String(a + b) }] }),
);

await server.connect(new StdioServerTransport());
