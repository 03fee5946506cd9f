"""What the users of the official Python SDK are shown, both majors: for each line of input (a case, JSON) connects, calls the
tool and prints one JSON object with the words of whatever was raised."""

import asyncio
import importlib.metadata
import json
import logging
import sys

FIRST = importlib.metadata.version("mcp").startswith("1.")
logging.disable(logging.CRITICAL)


def words(error, depth=0):
    """An exception as a traceback shows it: groups opened, causes named."""
    inner = getattr(error, "exceptions", None)
    if inner:
        return " | ".join(words(e, depth + 1) for e in inner)
    return f"{type(error).__name__}: {error}"


async def first(case):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async with streamablehttp_client(case["url"], headers=case["headers"]) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            if case.get("wait"):
                print(json.dumps({"ready": True}), flush=True)
                await asyncio.to_thread(sys.stdin.readline)
            result = await session.call_tool(case["tool"], case["arguments"])
            return result.isError, " ".join(c.text for c in result.content if c.type == "text")


async def second(case):
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    http = httpx2.AsyncClient(headers=case["headers"], timeout=60)
    async with Client(streamable_http_client(case["url"], http_client=http), mode=case["mode"]) as client:
        if case.get("wait"):
            print(json.dumps({"ready": True}), flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        result = await client.call_tool(case["tool"], case["arguments"])
        return bool(result.is_error), " ".join(c.text for c in result.content if c.type == "text")


async def main():
    for line in iter(sys.stdin.readline, ""):
        case = json.loads(line)
        try:
            failed, text = await asyncio.wait_for((first if FIRST else second)(case), case.get("patience", 20))
            told = {"raised": False, "text": text, "failed": failed}
        except BaseException as error:
            told = {"raised": True, "text": words(error)}
        print(json.dumps(told), flush=True)


asyncio.run(main())
