"""What the HTTP edge is built of: looking at bodies, and sending JSON and refusals."""

from collections import Counter
from contextlib import suppress
from json.decoder import scanstring  # pyright: ignore[reportAttributeAccessIssue] - its stub leaves it out
from time import monotonic
from typing import Final, Literal

import structlog
from starlette.types import Message, Receive, Scope, Send

from handoff.encoding import to_json
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

LOG_EVERY_S: Final = 60
JSON_DEPTH_MAX: Final = 512  # Python 3.11 reads a little less than 1,000 levels, orjson 1,024, Python 3.14 many more
_PATH_CHARS_MAX: Final = 200  # of a path in a log line
_JSON: Final = (b"content-type", b"application/json")
_ONCE: Final = frozenset({b"host", b"origin", b"authorization"})  # the one that is checked must be the only one
_SCANNED_STRINGS: Final = 1_000
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def has_duplicates(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether one of the headers that are checked appears more than once."""
    names = [name for name, _ in headers if name in _ONCE]
    return len(names) != len(set(names))


def excess(body: bytes, *, values_max: int, levels_max: int) -> Literal["values", "levels"] | None:
    """What JSON has too much of, if anything. This is known before it is parsed.

    `values_max` limits values and names together. What parsers can nest differs from one to another and between Python's
    versions, so none of them may decide.
    """
    opened = body.count(b"[") + body.count(b"{")
    # A body of ordinary size or with few brackets and commas is within the limits, whatever its strings contain.
    if opened <= levels_max and (len(body) <= values_max or _separators(body) + opened < values_max):
        return None
    bare = _without_strings(body, strings_max=values_max)
    if bare is None or _separators(bare) + bare.count(b"[") + bare.count(b"{") >= values_max:
        return "values"
    depth = 0
    for bracket in bare.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > levels_max:
            return "levels"
    return None


def _without_strings(body: bytes, *, strings_max: int) -> bytes | None:
    """What of JSON is in no string; None if more than `strings_max` strings are certain."""
    if b"\0" in body:  # UTF-16 or UTF-32, where a byte that looks like a quote may be half of a character
        return body
    parts: list[bytes] = []
    at = 0
    with suppress(ValueError):  # a string that no parser can read
        # This is the cheapest for long strings, and the most expensive for many short ones.
        text = body.decode("latin-1")
        for _ in range(_SCANNED_STRINGS):
            quote = text.find('"', at)
            if quote < 0:
                return b"".join((*parts, body[at:]))
            end = scanstring(text, quote + 1, False)[1]  # noqa: FBT003 - it takes no keyword
            parts.append(body[at:quote])
            at = end
    rest = body[at:]
    if rest.count(b'"') - rest.count(b'\\"') > 2 * strings_max:  # a string begins with a quote that no backslash precedes
        return None
    # Without escapes, quotes are only where strings begin and end. An escape begins with the first backslash of a row.
    return b"".join((*parts, *rest.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]))


def _separators(json: bytes) -> int:
    return json.count(b",") + json.count(b":")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body, already read, and then whatever `receive` returns."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(send: Send, status: int, body: bytes, further: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    """Send a JSON response with `further` headers; return its status."""
    headers = [_JSON, (b"content-length", b"%d" % len(body)), *further]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return status


CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="handoff"'),)
ALLOW_POST: Final = ((b"allow", b"POST"),)
RETRY_LATER: Final = ((b"retry-after", b"5"),)
CLOSE: Final = ((b"connection", b"close"),)


class Refusals:
    """Counts the requests and connections that are refused before they become a call, and logs them.

    A reason is logged when it occurs, and then at most once per LOG_EVERY_S with the number of times.
    """

    def __init__(self) -> None:
        self._unlogged: Counter[str] = Counter()
        self._log_from: dict[str, float] = {}

    def count(self, reason: str, **fields: object) -> None:
        """Count a refusal. The fields are logged with it, if it is logged at once."""
        metrics.REFUSALS.add(1, reason)
        self._unlogged[reason] += 1
        self._log(reason, fields)

    def check(self) -> None:
        """Log what has waited for long enough. Called once per second."""
        for reason in list(self._unlogged):
            self._log(reason, {})

    def _log(self, reason: str, fields: dict[str, object]) -> None:
        now = monotonic()
        if now >= self._log_from.get(reason, 0.0):
            log.warning("http.refused", reason=reason, count=self._unlogged.pop(reason), **fields)
            self._log_from[reason] = now + LOG_EVERY_S

    async def refuse(
        self, scope: Scope, send: Send, status: int, code: str, message: str, further: tuple[tuple[bytes, bytes], ...] = ()
    ) -> int:
        """Refuse a request before it becomes a call: count and log the refusal, and send an error. Returns the status."""
        client = scope.get("client")
        self.count(
            code, status=status, path=scope["path"][:_PATH_CHARS_MAX], client=client[0] if client is not None else None
        )
        return await respond(send, status, to_json({"error": {"code": code, "message": message}}), further)
