"""Reads the bodies of requests, and limits how many bytes of them the process holds at a time.

A body is held until its request is answered: its parsed form and what is sent to Postgres last as long. Memory is a small
multiple of what is held, so this limit keeps the process within its container, however many connections there are.
"""

from typing import Literal

from starlette.types import Message, Receive, Scope, Send

from handoff.server.asgi import CLOSE, RETRY_LATER, Refusals
from handoff.settings import Settings
from handoff.telemetry import metrics


class RequestCutOff(Exception):
    """The client disconnected before its request was complete."""


class BodyRefused(Exception):
    """The body is not read on: it is too large itself, its caller's are together, or everybody's are."""

    def __init__(self, too_large: Literal["body", "share", "total"]) -> None:
        super().__init__(too_large)
        self.too_large = too_large


class Bodies:
    """The bodies of requests in progress. What is received counts, not what a Content-Length announces."""

    def __init__(self, settings: Settings) -> None:
        self.total_max = settings.bodies_bytes_max
        self.per_caller_max = max(settings.body_bytes_max, int(self.total_max * settings.agent_share))
        self._held = 0
        metrics.HTTP_BODIES.source = lambda: [(self._held, ())]
        metrics.HTTP_BODIES_MAX.source = lambda: [(self.total_max, ())]
        self._of: dict[str, int] = {}  # by the caller that a token names; callers without a token can't be told apart

    async def read(self, receive: Receive, headers: dict[str, str], caller: str | None, bytes_max: int) -> bytes:
        """Read a body, which is held from then on: `give_back` it once the request is answered.

        Raises RequestCutOff, and BodyRefused without reading on; nothing is held then.
        """
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            self._check(int(length), caller, bytes_max)
        message = await _part(receive)
        body: bytes = message.get("body", b"")
        self._hold(len(body), 0, caller, bytes_max)
        if not message.get("more_body", False):
            return body
        chunks = bytearray(body)
        try:
            while message.get("more_body", False):
                message = await _part(receive)
                part: bytes = message.get("body", b"")
                self._hold(len(part), len(chunks), caller, bytes_max)
                chunks += part
        except BaseException:
            self.give_back(len(chunks), caller)
            raise
        return bytes(chunks)

    def give_back(self, size_bytes: int, caller: str | None) -> None:
        """No longer hold a body of this size."""
        self._held -= size_bytes
        if caller is not None and size_bytes:
            left = self._of[caller] - size_bytes
            if left:
                self._of[caller] = left
            else:
                del self._of[caller]

    async def refuse_body(self, refusals: Refusals, scope: Scope, send: Send, refused: BodyRefused, too_large: str) -> int:
        """Refuse a request whose body was not read on; `too_large` says so of the body itself. Return the status."""
        if refused.too_large == "body":
            return await refusals.refuse(scope, send, 413, "body_too_large", too_large, CLOSE)
        if refused.too_large == "share":
            return await refusals.refuse(
                scope,
                send,
                503,
                "share_used_up",
                f"Your requests in progress would have more than {self.per_caller_max} bytes together, which is "
                "your whole share. Send this request again when one of them has been answered, and send fewer at a time.",
                (*RETRY_LATER, *CLOSE),
            )
        return await refusals.refuse(
            scope,
            send,
            503,
            "bodies_too_large",
            f"The requests in progress would have more than {self.total_max} bytes together, the most that the "
            "service takes. Send this request again in a few seconds.",
            (*RETRY_LATER, *CLOSE),
        )

    def _hold(self, more: int, read: int, caller: str | None, bytes_max: int) -> None:
        if read + more > bytes_max:
            raise BodyRefused("body")
        self._check(more, caller, bytes_max)
        self._held += more
        if caller is not None and more:
            self._of[caller] = self._of.get(caller, 0) + more

    def _check(self, more: int, caller: str | None, bytes_max: int) -> None:
        if more > bytes_max:
            raise BodyRefused("body")
        if caller is not None and self._of.get(caller, 0) + more > self.per_caller_max:
            raise BodyRefused("share")
        if self._held + more > self.total_max:
            raise BodyRefused("total")


async def _part(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestCutOff
    return message
