"""The connections of the HTTP edge, and limits on what a client may send, or leave unsent, before anyone knows who it is.

The connection is uvicorn's, which limits neither the head, nor what surrounds a chunked body, nor time, nor the number of
connections. Times are taken once per second for all connections, so that a request costs no timer. They are seconds in which
the event loop ran: when a process has been frozen or busy, nobody is cut off for it.
"""

from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from http import HTTPStatus
from typing import Any, Final, Literal, cast

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handoff.encoding import to_json
from handoff.server.asgi import CLOSE, RETRY_LATER, Refusals
from handoff.server.one_write import OneWrite
from handoff.settings import Settings
from handoff.telemetry import metrics

HEAD_BYTES_MAX: Final = 32 << 10  # as nginx allows; a request of an agent has less than 1 KiB
TARGET_BYTES_MAX: Final = 8 << 10  # path and query; RFC 9110 asks for at least 8,000
FIELDS_MAX: Final = 100  # header fields, as Apache allows
BODY_BYTES_PER_S_MIN: Final = 1 << 10  # slower ones exceed the time for a body in the end
SPARE_CONNECTIONS: Final = 16  # beyond the limit, for the probes of an orchestrator
PROBES: Final = ("/healthz", "/readyz")
_LINGER_S: Final = 2  # for which a refused client may go on sending; closing at once would take the answer from it
_DISPLACED_SHARE: Final = 64  # of the limit, displaced at once: to look for the longest idle costs time for each connection

_HEAD: Final = 0  # the head of a request is not complete; of a new connection too
_BODY: Final = 1  # its body is not complete
_WHOLE: Final = 2  # it is complete
_LAST: Final = 3  # the same, and what the client sends after it is dropped
_REFUSED: Final = 4  # it was refused here, or cut off; what the client still sends is dropped
_IDLE: Final = 5  # its answer is complete
Phase = Literal[0, 1, 2, 3, 4, 5]
Readable = Callable[[Sequence[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]]


class _Dropped(list[Any]):
    """Where trailer fields go: nobody reads them, and they must not look like headers that were checked."""

    def append(self, object: Any, /) -> None:  # noqa: A002 - the base class's name
        """Drop the field."""


_TRAILERS: Final = _Dropped()


class _Stop(Exception):
    """Ends parsing."""


class HttpConnection(HttpToolsProtocol):
    """A connection of one client."""

    def __init__(self, *args: Any, connections: "Connections", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        self._phase: Phase = _HEAD
        self._requests = 0
        self._head = 0  # bytes received of an incomplete head
        self._rest = 0  # bytes received of an incomplete body, with all that surrounds it
        self._content = 0  # bytes of that which are content
        # As of the last check:
        self._was: tuple[Phase, int] = (_HEAD, 0)
        self._since = self._drained = connections.now
        self._unsent = 0
        self.url, self.headers = b"", []

    # What uvicorn or the parser calls

    def connection_made(self, transport: Any) -> None:
        """Join the others, if there is room."""
        super().connection_made(cast("Any", OneWrite(transport)))
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the others."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, at most the rest of what a head may have at a time."""
        while self._phase < _LAST:
            room = HEAD_BYTES_MAX - self._head
            if len(data) <= room:
                self._parse(data)
                return
            self._parse(data[:room])
            data = data[room:]

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)  # pyright: ignore[reportOptionalMemberAccess] - None only once it is lost
        except httptools.HttpParserUpgrade:
            self._end_after_this_answer()
        except httptools.HttpParserError:
            if self._phase < _LAST:
                self.refuse(400, "malformed_request", "This is not a well-formed HTTP/1.1 request. Correct it.")
        if self._phase < _WHOLE:
            self._check_size(len(data))

    def on_message_begin(self) -> None:
        """Begin a request. A client must wait for an answer before it sends the next request (no pipelining)."""
        if self._requests and not self.cycle.response_complete:
            self._end_after_this_answer()
            raise _Stop
        self._phase = _HEAD
        self._requests += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start answering a request whose head is within its limits."""
        if len(self.headers) > FIELDS_MAX or len(self.url) > TARGET_BYTES_MAX:
            self._check_size(0)
            raise _Stop
        parser = cast("httptools.HttpRequestParser", self.parser)
        if parser.should_upgrade() and parser.get_method() == b"POST":  # the parser would drop its body
            self.refuse(400, "upgrade_not_supported", "This service speaks HTTP/1.1 only. Send requests without Upgrade.")
            raise _Stop
        super().on_headers_complete()
        self._phase = _BODY
        self._head = self._rest = self._content = 0
        self.headers = _TRAILERS

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._phase = _WHOLE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on reading. The time for which the connection may stay idle is taken by `check`, without a timer."""
        self.server_state.total_requests += 1
        self.transport.flush()  # pyright: ignore[reportAttributeAccessIssue] - OneWrite has it
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """Close the connection, after the answer to a request in progress."""
        if self._phase == _REFUSED:
            self.transport.abort()
        else:
            super().shutdown()

    # Limits

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress of which the head is complete, so that it may make room for another."""
        return self._now_in() in (_HEAD, _REFUSED, _IDLE) or (self._phase == _BODY and self.cycle.response_complete)

    @property
    def idle_since(self) -> int:
        """The second since which the connection does what it does now."""
        return self._since if self._was == (self._now_in(), self._requests) else self._connections.now

    def check(self, now: int) -> None:
        """End the connection if the client has exceeded a limit on time."""
        unsent = self.transport.get_write_buffer_size()
        if self._unsent == 0 or unsent < self._unsent:
            self._drained = now
        self._unsent = unsent
        settings = self._connections.settings
        if now - self._drained >= settings.send_timeout_s:
            self.cut("answer_not_read")
            return
        doing = self._now_in(), self._requests
        if doing != self._was:
            self._was, self._since = doing, now
            return
        took_s = now - self._since
        match doing[0]:
            case 0 if took_s >= settings.receive_timeout_s:
                self._refuse_slow()
            case 1 if took_s >= settings.receive_timeout_s + self._content / BODY_BYTES_PER_S_MIN:
                self._refuse_slow()
            case 4 if took_s >= _LINGER_S:
                self.transport.abort()
            case 5 if took_s >= settings.keep_alive_s and not unsent:
                self.transport.close()
            case _:  # answering takes as long as it takes
                pass

    def cut(self, reason: str) -> None:
        """End the connection without an answer."""
        self._connections.refusals.count(reason)
        self._connections.remove(self)
        self._phase = _REFUSED
        self.transport.abort()

    def refuse(self, status: int, code: str, message: str) -> None:
        """Refuse the request, if its answer has not begun, and end the connection."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self._phase != _HEAD:
            if cycle.response_started:
                self.cut(code)
                return
            cycle.disconnected = True  # the application is waiting for the body
            cycle.message_event.set()
        self._phase = _REFUSED
        self._connections.refusals.count(code)
        body = to_json({"error": {"code": code, "message": message}})
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *CLOSE]
        head = b"".join(
            b"%s: %s\r\n" % field
            for field in (*self.server_state.default_headers, *fields, *self._connections.readable(self.headers or ()))
        )
        self.flow.resume_reading()
        self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, HTTPStatus(status).phrase.encode(), head, body))
        self.transport.write_eof()

    def _refuse_slow(self) -> None:
        if self._requests == 0 or (self._phase == _BODY and self.cycle.response_complete):
            self.cut("request_timeout")  # there is nothing to answer, or it is answered already
            return
        self.refuse(408, "request_timeout", "The request was not complete in time. Send it again, and all of it at once.")

    def _check_size(self, received: int) -> None:
        """Refuse an incomplete request that is too large already."""
        if self._phase == _HEAD:
            self._head += received
            if len(self.url) > TARGET_BYTES_MAX:
                message = f"The path with its query has more than {TARGET_BYTES_MAX} bytes. Shorten the query."
                self.refuse(414, "target_too_long", message)
            elif self._head >= HEAD_BYTES_MAX or len(self.headers) > FIELDS_MAX:
                message = f"The headers have more than {HEAD_BYTES_MAX} bytes or {FIELDS_MAX} fields. Send fewer."
                self.refuse(431, "head_too_large", message)
            return
        self._rest += received
        if self._rest - self._content > 2 * HEAD_BYTES_MAX + self._content // 4:
            self.refuse(
                400,
                "chunks_too_small",
                "Chunk sizes, chunk extensions and trailers have too many bytes. Send larger chunks, or a Content-Length.",
            )
        elif self._content > self._connections.settings.body_bytes_max and self.cycle.response_complete:
            self.cut("body_too_large")

    def _now_in(self) -> Phase:
        if self._phase in (_WHOLE, _LAST) and self.cycle.response_complete:
            return _IDLE
        return self._phase

    def _end_after_this_answer(self) -> None:
        self._phase = _LAST
        self.cycle.keep_alive = False


class Connections:
    """All open connections of the process."""

    def __init__(
        self, settings: Settings, connections_max: int, app: ASGIApp, refusals: Refusals, readable: Readable
    ) -> None:
        """`readable` returns the headers that let a browser's page read the answer to a request with given headers."""
        self.settings = settings
        self.refusals = refusals
        self.readable = readable
        self.now = 0  # s
        self._max = connections_max
        self._app = app
        self._open: dict[HttpConnection, None] = {}  # oldest first
        metrics.HTTP_CONNECTIONS.source = lambda: [(len(self._open), ())]
        metrics.HTTP_CONNECTIONS_MAX.source = lambda: [(self._max, ())]

    def open(self, *args: Any, **kwargs: Any) -> HttpConnection:
        """Make a connection, as uvicorn asks for it."""
        return HttpConnection(*args, connections=self, **kwargs)

    def add(self, connection: HttpConnection) -> None:
        """Take a new connection in. Above the limit, idle ones make room; if there are none, it may only ask for probes."""
        if len(self._open) >= self._max:
            self._displace()
        if len(self._open) >= self._max + SPARE_CONNECTIONS:
            connection.cut("too_many_connections")
            return
        if len(self._open) >= self._max:
            connection.app = cast("Any", self._probes_only)
        self._open[connection] = None

    def remove(self, connection: HttpConnection) -> None:
        """Forget a connection that has ended."""
        self._open.pop(connection, None)

    def check(self) -> None:
        """Hold all connections to the limits on time. Called once per second."""
        self.now += 1
        for connection in list(self._open):
            connection.check(self.now)
        self.refusals.check()

    def _displace(self) -> None:
        for connection in nsmallest(1 + self._max // _DISPLACED_SHARE, self._idle(), key=lambda it: it.idle_since):
            connection.cut("connection_displaced")

    def _idle(self) -> Iterator[HttpConnection]:
        return (connection for connection in self._open if connection.is_idle)

    async def _probes_only(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        await self.refusals.refuse(
            scope,
            send,
            503,
            "too_many_connections",
            f"The service has {self._max} connections, the most it takes, and all are in use. Try again in a few seconds.",
            (*RETRY_LATER, *CLOSE, *self.readable(scope["headers"])),
        )
