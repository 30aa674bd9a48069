"""What a JSON-RPC message must be before the SDK sees it, and the answers to those that are none."""

import json
from typing import Any, Final

import mcp_types as types
import orjson
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from handoff.encoding import to_json
from handoff.errors import Invalid

BATCH: Final = "Batches are not served. Send each message by itself."
NO_OBJECT: Final = "A message must be a JSON object."
NO_MESSAGE: Final = 'A message must have "jsonrpc": "2.0", and a method, a result or an error.'
BAD_ID: Final = "The id of a request must be a text or an integer. Only a notification has none."


class Refused(Exception):
    """A message that is not served. `request_id` is None if it has no id that could be answered."""

    def __init__(self, code: int, message: str, request_id: str | int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id

    def as_json(self) -> bytes:
        """Return the JSON-RPC error that answers it."""
        error = {"code": self.code, "message": self.message}
        # The id may contain half of a surrogate pair, which only escapes can express.
        return json.dumps({"jsonrpc": "2.0", "id": self.request_id, "error": error}, separators=(",", ":")).encode()


def check(message: Any) -> dict[str, Any]:
    """Return the parsed JSON if it can be a message: one of JSON-RPC 2.0 whose id, if any, is a text or an integer.

    Raises Refused.
    """
    if isinstance(message, list):
        raise Refused(types.INVALID_REQUEST, BATCH)
    if not isinstance(message, dict):
        raise Refused(types.INVALID_REQUEST, NO_OBJECT)
    if message.get("jsonrpc") != "2.0" or not (
        isinstance(message.get("method"), str) or {"result", "error"} & message.keys()
    ):
        request_id = message.get("id")
        raise Refused(types.INVALID_REQUEST, NO_MESSAGE, request_id if type(request_id) in (str, int) else None)
    if "id" in message and type(message["id"]) not in (str, int) and not {"result", "error"} & message.keys():
        raise Refused(types.INVALID_REQUEST, BAD_ID)
    return message


def answer_to(body: bytes, version: str) -> tuple[int, bytes] | None:
    """Return the status and the answer to the body of an HTTP request that the SDK can't answer well, or None.

    The SDK takes a request with a wrong id for a notification in the older protocol, and its older parser reads no half of a
    surrogate pair, which emoji leave that were cut.
    """
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        message = None
    # What orjson does not read, and integers above 64 bits, which it rounds, the parser of the standard library may.
    if message is None or (isinstance(message, dict) and isinstance(message.get("id"), float)):
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return None  # the SDK refuses it
    try:
        fields = check(message)
    except Refused as refused:
        return 400, refused.as_json()
    if version not in MODERN_PROTOCOL_VERSIONS and fields.get("method") == "tools/call" and _has_half_a_pair(fields):
        return 200, _invalid_arguments(fields.get("id"))
    return None


def _has_half_a_pair(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _invalid_arguments(request_id: Any) -> bytes:
    error = Invalid(
        "invalid_arguments",
        "arguments: must be valid Unicode, without half of a surrogate pair.",
        "Send whole characters, and repeat the call. Nothing was changed.",
    )
    content = [{"type": "text", "text": to_json({"error": error.as_dict()}).decode()}]
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": {"content": content, "isError": True}}).encode()
