"""The operations port: what it serves, that it bounds its connections, which need no token, and its names."""

import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic, sleep

import anyio.to_thread
import httpx2
import pytest

from handoff.context import App
from handoff.operations import port
from handoff.operations.port import OperationsPort
from tests.processes import PATIENCE_S, free_port, serving, start, stop, wait_until_ready

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


async def test_a_connection_that_was_kept_for_long_ends_with_an_answer_that_says_so(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = GET + b"\r\n" + GET + b"Connection: close\r\n\r\n"
    kept = await in_thread(exchanged, number, request)
    monkeypatch.setattr(port, "_KEPT_S_MAX", 0)
    ended = await in_thread(exchanged, number, request)

    assert (kept.count(b" 200 "), kept.lower().count(b"connection: close")) == (2, 0)
    assert (ended.count(b" 200 "), ended.lower().count(b"connection: close")) == (1, 1)


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        (b"localhost", True),
        (b"LOCALHOST:9464", True),
        (b"127.0.0.1:9464", True),
        (b"[::1]:9464", True),
        (b"10.2.3.4:9464", True),  # a name leads here by DNS, an address does not
        (b"service:9464", True),
        (socket.gethostname().encode() + b":9464", True),
        (b"evil.example", False),
        (b"evil.example:9464", False),
        (b"localhost.evil.example", False),
        (b"127.0.0.1.evil.example", False),
        (b"[::1", False),
        (b"", False),
        (b"localhost\r\nHost: evil.example", False),
    ],
)
async def test_a_host_that_is_none_of_its_names_is_refused(app: App, host: bytes, is_ours: bool) -> None:  # noqa: FBT001 - a parameter of the test
    bound = OperationsPort(app.settings.model_copy(update={"ops_port": 0, "allowed_hosts": ("service:8642",)}))
    try:
        with bound.serving(app):
            request = b"GET /targets HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
            answer = await in_thread(exchanged, int(bound.address.rpartition(":")[2]), request)
            assert (b" 200 " if is_ours else b" 421 ") in answer.partition(b"\r\n")[0]
            assert is_ours or b"HANDOFF_ALLOWED_HOSTS" in answer
    finally:
        await in_thread(bound.close)


async def test_a_request_without_a_host_is_refused(number: int) -> None:
    assert b" 421 " in (await in_thread(exchanged, number, b"GET /metrics HTTP/1.0\r\n\r\n")).partition(b"\r\n")[0]


def test_the_operations_port_serves_health_targets_and_metrics(database_url: str) -> None:
    ops = free_port()
    with (
        serving(database_url=database_url, telemetry="true", ops_port=ops, heartbeat_interval_s=0.2),
        httpx2.Client(base_url=f"http://127.0.0.1:{ops}", timeout=PATIENCE_S) as http,
    ):
        assert http.get("/healthz").json() == {"status": "alive"}
        assert http.get("/nothing").status_code == 404
        give_up = monotonic() + PATIENCE_S
        while http.get("/targets").json() != [{"targets": [f"127.0.0.1:{ops}"], "labels": {"kind": "service"}}]:
            assert monotonic() < give_up
            sleep(0.1)
        asked = http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert asked.headers["content-type"].startswith("application/openmetrics-text")
        assert asked.text.endswith("# EOF\n")
        metrics = http.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert 'service_name="handoff"' in metrics.text


def test_a_malformed_request_to_the_operations_port_leaves_only_json_in_the_log(database_url: str) -> None:
    ops = free_port()
    service = start(database_url=database_url, telemetry="true", ops_port=ops)
    try:
        wait_until_ready(service)
        with socket.create_connection(("127.0.0.1", ops), PATIENCE_S) as connection:
            connection.sendall(b"NO REQUEST AT ALL\r\n\r\n")
            assert b"400" in connection.recv(200)
    finally:
        printed = stop(service)
    assert [line for line in printed.splitlines() if not line.startswith("{")] == []


def test_an_operations_port_that_is_taken_ends_in_a_clear_message(database_url: str, tmp_path: Path) -> None:
    import subprocess

    from tests.processes import HANDOFF, environment

    ops = free_port()
    with serving(database_url=database_url, telemetry="true", ops_port=ops):
        settings = environment(database_url=database_url, telemetry="true", ops_port=ops, port=free_port())
        done = subprocess.run(
            [HANDOFF, "work"], env=settings, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == 1
    assert "HANDOFF_OPS_PORT" in done.stderr
    assert "Traceback" not in done.stderr
