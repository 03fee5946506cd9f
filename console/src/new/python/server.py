"""DESCRIPTION"""

import logging
import sys

from mcp.server.fastmcp import FastMCP

# stdout belongs to the protocol: what is to be read in `sigil logs` goes to stderr
logging.basicConfig(stream=sys.stderr, level=logging.INFO)
server = FastMCP("NAME")


@server.tool()
def greet(name: str) -> str:
    """Greets a person by name."""
    logging.info("a greeting was asked for")
    return f"Hello, {name}!"


@server.tool()
def add(a: float, b: float) -> float:
    """Adds two numbers."""
    return a + b


if __name__ == "__main__":
    server.run("stdio")
