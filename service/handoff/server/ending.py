"""What a service that stops answers to the calls that it can't wait for."""

from typing import Any

import mcp_types as types
import orjson

from handoff.encoding import to_json
from handoff.errors import Unavailable
from handoff.server.catalog import tools_of


def answer(body: bytes) -> bytes | None:
    """The response to a JSON-RPC request that was cut off, None if the body is no request."""
    try:
        request: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(request, dict) or type(request.get("id")) not in (str, int):
        return None
    error = _error(request)
    found = {"code": types.INTERNAL_ERROR, "message": f"{error.message} {error.hint}", "data": error.as_dict()}
    return to_json({"jsonrpc": "2.0", "id": request["id"], "error": found})


def _error(request: dict[str, Any]) -> Unavailable:
    """The error of a call whose outcome nobody waited for. A write is retryable only with its key."""
    params = request.get("params")
    params = params if isinstance(params, dict) else {}
    tool = tools_of(admin=True).get(str(params.get("name"))) if request.get("method") == "tools/call" else None
    if tool is None or not tool.takes_key:
        return Unavailable("unavailable", "The service is stopping.", "Repeat this call unchanged in a few seconds.")
    arguments = params.get("arguments")
    if isinstance(arguments, dict) and arguments.get("idempotency_key"):
        return Unavailable(
            "unavailable",
            "The service is stopping. This call may or may not have taken effect.",
            "Repeat this call unchanged in a few seconds, with the same idempotency_key: if the first call took effect, you "
            "get its result.",
        )
    unknown = Unavailable(
        "unavailable",
        "The service is stopping. This call may or may not have taken effect, and it had no idempotency_key.",
        "In a few seconds, check with get_context or get_inbox whether it took effect, and repeat it only if it did not.",
    )
    unknown.retryable = False
    return unknown
