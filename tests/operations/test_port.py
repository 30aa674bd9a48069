"""The operations port bounds its connections, which need no token."""

import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from time import monotonic, sleep

import anyio.to_thread
import httpx2
import pytest

from handoff.context import App
from handoff.operations import port
from handoff.operations.port import OperationsPort
from tests.processes import PATIENCE_S

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
in_thread = anyio.to_thread.run_sync


@pytest.fixture
async def number(app: App) -> AsyncGenerator[int]:
    """The port's number."""
    bound = OperationsPort(app.settings.model_copy(update={"ops_port": 0}))
    with bound.serving(app):
        yield int(bound.address.rpartition(":")[2])
    bound.close()


def connected(number: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", number), PATIENCE_S)


def exchanged(number: int, request: bytes) -> bytes:
    """Send a request; return everything that comes until the connection is closed."""
    received = b""
    with connected(number) as connection, suppress(ConnectionError):
        connection.sendall(request)
        while part := connection.recv(1 << 16):
            received += part
    return received


async def test_a_head_that_is_too_large_is_refused(number: int) -> None:
    few = GET + b"Connection: close\r\n" + b"X: %s\r\n" % (b"y" * 1_000) * 10 + b"\r\n"
    many = GET + b"Connection: close\r\n" + b"X: %s\r\n" % (b"y" * 1_000) * 20 + b"\r\n"

    assert b" 200 " in (await in_thread(exchanged, number, few)).partition(b"\r\n")[0]
    assert b" 431 " in (await in_thread(exchanged, number, many)).partition(b"\r\n")[0]


async def test_a_connection_beyond_the_limit_replaces_the_oldest(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handoff.operations.port._Handler.timeout", PATIENCE_S * 2)  # silence ends none

    def ask() -> None:
        with ExitStack() as stack:
            for _ in range(2 * port._CONNECTIONS_MAX):
                stack.enter_context(connected(number))
            assert httpx2.get(f"http://127.0.0.1:{number}/healthz", timeout=PATIENCE_S).status_code == 200
            give_up = monotonic() + PATIENCE_S
            while sum("process_request_thread" in thread.name for thread in threading.enumerate()) > port._CONNECTIONS_MAX:
                assert monotonic() < give_up, "the connections are not limited"
                sleep(0.05)

    await in_thread(ask)


async def test_a_connection_that_sends_slowly_and_never_ends_is_closed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "_CONNECTION_S_MAX", 0.5)

    def drip() -> bytes:
        with connected(number) as connection:
            connection.settimeout(0.1)
            for _ in range(PATIENCE_S * 10):
                with suppress(TimeoutError):
                    connection.sendall(b"x")
                    return connection.recv(1)
        return b"never closed"

    with suppress(ConnectionError):
        assert await in_thread(drip) == b""
