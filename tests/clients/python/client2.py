"""The official Python SDK's second major as a client, in the manner that is asked for: lists tools and calls one, prints
one JSON object, and does it again for every line of input. A session that is over is begun anew, once."""

import asyncio
import json
import sys

from mcp import Client, MCPError


async def main(mode: str, url: str, tool: str, arguments: dict) -> None:
    begun, lost = 0, None
    while True:
        begun += 1
        async with Client(url, mode=mode) as client:
            while True:
                try:
                    tools = await client.list_tools()
                    result = await client.call_tool(tool, arguments)
                except MCPError as error:
                    if lost:
                        raise
                    lost = f"{error.code}: {error}"
                    break
                print(json.dumps({
                    "begun": begun,
                    "lost": lost,
                    "server": client.server_info and client.server_info.name,
                    "protocol": client.protocol_version,
                    "tools": [t.name for t in tools.tools],
                    "isError": bool(result.is_error),
                    "text": "\n".join(c.text for c in result.content if c.type == "text"),
                }), flush=True)
                lost = None
                if not await asyncio.to_thread(sys.stdin.readline):
                    return


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])))
