"""The JSON body of a request to a fake server."""

import json
from typing import Any

from starlette.requests import Request


async def json_body(request: Request) -> dict[str, Any]:
    """The body as a dictionary; {} if it is not a JSON object."""
    try:
        given = json.loads(await request.body())
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
