"""Recognises the request that nearly every request is: a well-formed `tools/call` of the current protocol.

The SDK's own functions decide. What they say of a client's `_meta` is remembered, because a client sends the same one with
every call, and reading it costs more than the rest of the request.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import orjson
from mcp.shared.inbound import InboundModernRoute, classify_inbound_request
from mcp_types.methods import CLIENT_REQUESTS
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from handoff.server.record import TOOLS_CALL
from handoff.server.standards import accepts, is_json

_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"000000000")
_TWENTY_DIGITS: Final = b"0" * 20  # an integer with fewer fits into 64 bits
_REQUEST: Final = frozenset({"jsonrpc", "id", "method", "params"})
_PARAMS: Final = frozenset({"name", "arguments", "_meta"})
_CHANGING: Final = ("traceparent", "progressToken")  # members of `_meta` that differ from call to call
_REMEMBERED_BYTES_MAX: Final = 2_048  # of a `_meta`


def common_call(http_method: str, headers: Mapping[str, str], headers_sent: int, body: bytes) -> dict[str, Any] | None:
    """The request in a body, if it is a well-formed tool call of the current protocol; None if the SDK must answer it."""
    version = headers.get("mcp-protocol-version")
    if (
        headers.get("mcp-method") != TOOLS_CALL
        or http_method != "POST"
        or version not in MODERN_PROTOCOL_VERSIONS
        or not is_json(headers.get("content-type", ""))
        or not accepts(headers.get("accept", ""), "application/json")
        or len(headers) != headers_sent  # a header was sent twice
    ):
        return None
    if b"metadata" in body and _TWENTY_DIGITS in body.translate(_DIGITS_ALIKE):
        return None  # it may hold an integer above 64 bits, which orjson would round but the SDK's parser does not
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or request.get("method") != TOOLS_CALL:
        return None
    if type(request.get("id")) not in (str, int):
        return None
    return request if _is_well_formed(version, headers, request) else None


def _is_well_formed(version: str, headers: Mapping[str, str], request: dict[str, Any]) -> bool:
    params = request.get("params")
    if type(params) is dict and params.keys() == _PARAMS and request.keys() == _REQUEST:
        name, arguments, meta = params["name"], params["arguments"], _text(params["_meta"])
        if meta is not None and type(name) is str and type(arguments) is dict:
            return _suits(version, headers.get("mcp-name"), name, meta)
    return _judged(version, headers, request)


def _text(meta: object) -> bytes | None:
    """A `_meta` as text, if it is worth remembering."""
    if type(meta) is not dict or any(member in meta for member in _CHANGING):
        return None
    try:
        text = orjson.dumps(meta)
    except orjson.JSONEncodeError:  # too deep
        return None
    return text if len(text) <= _REMEMBERED_BYTES_MAX else None


@lru_cache(maxsize=256)
def _suits(version: str, name_sent: str | None, name: str, meta: bytes) -> bool:
    """Whether a tool call with such headers, such a name and such a `_meta` is well-formed, whatever its arguments."""
    headers = {"mcp-protocol-version": version, "mcp-method": TOOLS_CALL}
    if name_sent is not None:
        headers["mcp-name"] = name_sent
    params = {"name": name, "arguments": {}, "_meta": orjson.loads(meta)}
    return _judged(version, headers, {"jsonrpc": "2.0", "id": 0, "method": TOOLS_CALL, "params": params})


def _judged(version: str, headers: Mapping[str, str], request: dict[str, Any]) -> bool:
    """Whether the SDK finds a tool call well-formed."""
    if not isinstance(classify_inbound_request(request, headers=headers), InboundModernRoute):
        return False
    try:
        CLIENT_REQUESTS[TOOLS_CALL, version].model_validate(request, by_name=False)
    except ValidationError:
        return False
    return True
