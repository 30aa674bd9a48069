"""The load generator: prebuilt raw HTTP/1.1 requests over keep-alive connections, in a process and on a core of its own.

Reads a plan as JSON from standard input and prints its measurements as JSON. Any answer that is not a success fails the run.
"""

import asyncio
import json
import os
import sys
import time
from itertools import count
from typing import Any

import uvloop

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Connection(asyncio.Protocol):
    """A connection with one request in flight; it sends the next one as soon as an answer is complete."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        start = head.index(b"content-length:") + 15
        end = head.find(b"\r\n", start)
        length = int(head[start : end if end > 0 else head_end])
        if len(self._buffer) < head_end + 4 + length:
            return
        body = self._buffer[head_end + 4 :]
        self._buffer = b""
        if not head.startswith(b"http/1.1 200") or b'"error"' in body or b'"isError":true' in body:
            self._load.fail(body)
            return
        self._load.latencies.append(time.perf_counter() - self._sent)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(b"the server closed the connection")

    def _next(self) -> None:
        begins_at = self._load.begins_at()
        if (waits := begins_at - time.perf_counter()) > 0:
            asyncio.get_running_loop().call_later(waits, self._send, begins_at)
        else:
            self._send(begins_at)

    def _send(self, begins_at: float) -> None:
        request = self._load.request()
        if request is None:
            self._transport.abort()
            self._load.finished()
            return
        self._sent = begins_at
        self._transport.write(request)


class Load:
    """A run of a plan: port, in_flight, seconds, tool, arguments (one set per session, used in turn) and token.

    With a `rate`, the calls begin at this many per second. A call that has to wait for a connection is late from then on.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.latencies: list[float] = []
        self._open = plan["in_flight"]
        self._done = asyncio.get_running_loop().create_future()
        self._numbers = count()
        self._until = time.perf_counter() + plan["seconds"]
        self._rate: float = plan.get("rate", 0.0)
        self._slot = time.perf_counter()
        self._requests = [self._build(arguments) for arguments in plan["arguments"]]

    def begins_at(self) -> float:
        """Return when the next call should begin: at once, or in its turn."""
        if not self._rate:
            return time.perf_counter()
        self._slot += 1 / self._rate
        return self._slot

    def request(self) -> bytes | None:
        """Return the next request, or None if the time is up."""
        if time.perf_counter() > self._until:
            return None
        return self._requests[next(self._numbers) % len(self._requests)]

    def finished(self) -> None:
        """Record that a connection has sent its last request."""
        self._open -= 1
        if self._open == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self, why: bytes) -> None:
        """Fail the run."""
        if self._open > 0 and not self._done.done() and time.perf_counter() <= self._until:
            self._done.set_exception(RuntimeError(why[:500].decode(errors="replace")))

    async def run(self) -> dict[str, float]:
        """Send until the time is up; return calls per second, latencies in ms, and the share of a core that this used."""
        loop = asyncio.get_running_loop()
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(self.plan["in_flight"]):
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.plan["port"])
        await self._done
        took = time.perf_counter() - began
        ordered = sorted(self.latencies)
        return {
            "calls": len(ordered),
            "calls_per_s": len(ordered) / took,
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
            "client_core": (time.process_time() - cpu) / took,
        }

    def _build(self, arguments: dict[str, Any]) -> bytes:
        tool = self.plan["tool"]
        params = {"name": tool, "arguments": arguments, "_meta": META}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        headers = {
            "Host": f"127.0.0.1:{self.plan['port']}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": "tools/call",
            "Mcp-Name": tool,
            "Authorization": f"Bearer {self.plan['token']}",
            "Content-Length": str(len(body)),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST /mcp HTTP/1.1\r\n{lines}\r\n".encode() + body


async def _main() -> None:
    os.sched_setaffinity(0, {int(os.environ["BENCH_LOAD_CORE"])})
    print(json.dumps(await Load(json.load(sys.stdin)).run()))


if __name__ == "__main__":
    uvloop.run(_main())
