"""The official Python SDK as a client: lists tools and calls one; prints one JSON object."""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(url: str, tool: str, arguments: dict) -> None:
    async with streamablehttp_client(url) as (read, write, _):
        async with ClientSession(read, write) as session:
            hello = await session.initialize()
            tools = await session.list_tools()
            result = await session.call_tool(tool, arguments)
            print(json.dumps({
                "server": hello.serverInfo.name,
                "protocol": hello.protocolVersion,
                "tools": [t.name for t in tools.tools],
                "isError": bool(result.isError),
                "text": "\n".join(c.text for c in result.content if c.type == "text"),
            }))


asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
