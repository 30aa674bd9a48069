"""Standard input and output as the wire to one client: a JSON-RPC message per line, as bytes of valid UTF-8.

Every request is answered: lines that are no message are answered here, with an error. Threads read and write, since standard
input may be a file, a pipe or a terminal; they end with the process and hold up neither its end nor the event loop.
"""

import asyncio
import json
import os
import queue
import select
import signal
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

import mcp_types as types
from pydantic import ValidationError

from handoff.server.asgi import excess
from handoff.server.messages import Refused, check

JSON_LEVELS_MAX: Final = 512
JSON_VALUES_MAX: Final = 50_000
_CHUNK_BYTES: Final = 65_536
_CHUNKS_AHEAD: Final = 4  # that are read before they are served
_WATCH_INTERVAL_S: Final = 1.0
_FLUSH_TIMEOUT_S: Final = 5.0  # for which the end waits for a client that does not read
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Id = str | int


class Wire:
    """The wire. `ending` is set when its client has gone, or the process is told to stop."""

    def __init__(self, line_bytes_max: int) -> None:
        self.ending = asyncio.Event()
        self._line_bytes_max = line_bytes_max
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue(_CHUNKS_AHEAD)
        self._buffer = bytearray()
        self._is_dropping = False  # the rest of a line that is too long
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._written = asyncio.Event()
        self._unanswered: Counter[Id] = Counter()
        self._answered = asyncio.Event()
        self._answered.set()
        self._loop = asyncio.get_running_loop()
        self._input, self._output = os.dup(0), os.dup(1)

    async def receive(self) -> types.JSONRPCMessage | None:
        """Return the next message, or None at the end of input. Lines that are no message are answered and passed over."""
        while (line := await self._line()) is not None:
            if not line.strip():
                continue
            try:
                message = parse(line)
            except Refused as refused:
                self.write(refused.as_json())
                continue
            if isinstance(message, types.JSONRPCRequest):
                self._unanswered[message.id] += 1
                self._answered.clear()
            elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
                self._settle((message.params or {}).get("requestId"))  # which is not answered any more
            return message
        return None

    def send(self, message: types.JSONRPCMessage) -> None:
        """Send a message to the client."""
        try:
            line = message.model_dump_json(by_alias=True, exclude_unset=True)
        except ValueError:  # half of a surrogate pair that was sent is repeated, which only an escape can express
            line = json.dumps(message.model_dump(by_alias=True, exclude_unset=True), separators=(",", ":"))
        self.write(line.encode())
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self._settle(message.id)

    def write(self, line: bytes) -> None:
        """Write a line, in the order of the calls. Returns at once."""
        self._outgoing.put(line)

    async def answered(self) -> None:
        """Wait until every request that was received is answered."""
        await self._answered.wait()

    async def refuse_all(self, reason: str) -> None:
        """Answer every request with an error, until the end of input."""
        while (message := await self.receive()) is not None:
            if isinstance(message, types.JSONRPCRequest):
                error = types.ErrorData(code=types.INTERNAL_ERROR, message=reason)
                self.send(types.JSONRPCError(jsonrpc="2.0", id=message.id, error=error))
        self.ending.set()

    async def flush(self) -> None:
        """Wait until everything is written, unless the client does not read."""
        self._outgoing.put(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await self._written.wait()

    def _settle(self, request_id: object) -> None:
        if isinstance(request_id, str | int) and request_id in self._unanswered:
            self._unanswered[request_id] -= 1
            self._unanswered += Counter()  # drops those that are answered
            if not self._unanswered:
                self._answered.set()

    async def _line(self) -> bytes | None:
        """Return the next line without its end, or None at the end of input. Lines that are too long are answered."""
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                if self._is_dropping:
                    self._is_dropping = False
                    continue
                if len(line) <= self._line_bytes_max:
                    return line
                self._refuse_length()
                continue
            if self._is_dropping:
                self._buffer.clear()
            elif len(self._buffer) > self._line_bytes_max:
                self._buffer.clear()
                self._is_dropping = True
                self._refuse_length()
            chunk = await self._chunks.get()
            if not chunk:
                rest, self._buffer = bytes(self._buffer), bytearray()
                await self._chunks.put(b"")  # it stays at its end
                return rest if rest and not self._is_dropping else None
            self._buffer += chunk

    def _refuse_length(self) -> None:
        text = f"The line has more than {self._line_bytes_max} bytes. Split the request over several calls."
        self.write(Refused(types.INVALID_REQUEST, text).as_json())

    def read(self) -> None:
        """Read standard input until its end. A thread runs this."""
        while True:
            try:
                chunk = os.read(self._input, _CHUNK_BYTES)
            except OSError:
                chunk = b""
            try:
                asyncio.run_coroutine_threadsafe(self._chunks.put(chunk), self._loop).result()
            except RuntimeError:  # the loop is closed
                return
            if not chunk:
                return

    def drain(self) -> None:
        """Write what is sent to standard output, until it is closed. A thread runs this."""
        with suppress(OSError):
            while (line := self._outgoing.get()) is not None:
                rest = memoryview(line + b"\n")
                while rest:
                    rest = rest[os.write(self._output, rest) :]
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._written.set)

    async def watch(self) -> None:
        """Set `ending` when the client is gone: its end of standard output is closed, or the parent process has ended."""
        parent = os.getppid()
        output = select.poll()
        output.register(self._output, 0)  # errors and hang-ups are reported always
        while os.getppid() == parent and not output.poll(0):  # noqa: ASYNC110 - neither announces itself to an event loop
            await asyncio.sleep(_WATCH_INTERVAL_S)
        self.ending.set()


@asynccontextmanager
async def open_wire(line_bytes_max: int) -> AsyncGenerator[Wire]:
    """Take standard input and output as the wire. Until the end of the block, fd 0 is empty and fd 1 is standard error."""
    wire = Wire(line_bytes_max)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    threads = [threading.Thread(target=run, daemon=True) for run in (wire.read, wire.drain)]
    for thread in threads:
        thread.start()
    watching = asyncio.create_task(wire.watch())
    try:
        yield wire
    finally:
        watching.cancel()
        await wire.flush()


def end_at_signals(wire: Wire) -> None:
    """Let the first signal end the service in order, and the second one at once."""
    loop = asyncio.get_running_loop()

    def end(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        wire.ending.set()

    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(number, end, number)


def parse(line: bytes) -> types.JSONRPCMessage:
    """Return the message in a line. Raises Refused."""
    try:
        line.decode()
    except UnicodeDecodeError:
        raise Refused(types.PARSE_ERROR, "Parse error: the line is not UTF-8. Nothing was done.") from None
    too_much = excess(line, values_max=JSON_VALUES_MAX, levels_max=JSON_LEVELS_MAX)
    if too_much == "levels":
        raise Refused(types.PARSE_ERROR, f"Parse error: JSON is nested deeper than {JSON_LEVELS_MAX} levels.")
    if too_much == "values":
        raise Refused(types.INVALID_REQUEST, f"The line has more than {JSON_VALUES_MAX} JSON values. Split it.")
    try:
        message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError:
        pass
    else:
        if not (isinstance(message, types.JSONRPCNotification) and b'"id"' in line):  # its id may be of another type
            return message
    try:
        value = json.loads(line)  # which reads half a surrogate pair too, so that the tool can refuse it by its name
    except (ValueError, RecursionError):
        raise Refused(types.PARSE_ERROR, "Parse error: the line is not JSON.") from None
    fields = check(value)
    try:
        return types.jsonrpc_message_adapter.validate_python(fields, by_name=False)
    except ValidationError:
        pass
    request_id = fields.get("id")
    text = "This is no JSON-RPC 2.0 message: jsonrpc or method is missing, or a part has the wrong type."
    raise Refused(types.INVALID_REQUEST, text, request_id)
