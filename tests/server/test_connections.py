"""Bytes, time and connections are bounded before Host and token are checked. The service is a process of its own."""

import json
import select
import socket
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from mcp import Client
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from handoff.server.connections import FIELDS_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX
from tests.agents import Agent
from tests.processes import PATIENCE_S, Service, free_port, serving, start, stop, wait_until_ready
from tests.requests import body, headers

MIB = 1 << 20
GROWTH_BYTES_MAX = 8 * MIB  # what a connection may cost in memory, of the 32 MiB that it sends
HEAD = b"Host: localhost\r\n"
POST = b"POST /mcp HTTP/1.1\r\n" + HEAD + b"Content-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n"
ATTEMPTS = 5


@pytest.fixture(scope="module")
def service(module_database_url: str) -> Generator[Service]:
    """A service as it is by default."""
    with serving(database_url=module_database_url, page_bytes_max=16 * MIB) as running:
        yield running


@pytest.fixture(scope="module")
def strict(module_database_url: str) -> Generator[Service]:
    """A service that waits a second for anything."""
    seconds = dict.fromkeys(("receive_timeout_s", "send_timeout_s", "keep_alive_s"), 1)
    with serving(database_url=module_database_url, page_bytes_max=16 * MIB, **seconds) as running:
        yield running


@pytest.fixture(scope="module")
def small(module_database_url: str) -> Generator[Service]:
    """A service with few connections."""
    with serving(database_url=module_database_url, connections_max=16) as running:
        yield running


def connected(service: Service, *, receive_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(PATIENCE_S)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(("127.0.0.1", service.port))
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """Everything that the service sends until it closes the connection."""
    received = bytearray()
    try:
        while part := connection.recv(1 << 16):
            received += part
    except ConnectionError:  # closed while this side was sending
        pass
    return bytes(received)


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """Read one answer with a Content-Length; return its status and body."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(1 << 16)
        assert part, f"closed after {received!r}"
        received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(rest) < length:
        part = connection.recv(1 << 16)
        assert part, "closed within the body"
        rest += part
    return int(head.split()[1]), rest


def refused(answer: bytes) -> tuple[int, str]:
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(rest)["error"]["code"]


def called(tool: str, **arguments: Any) -> bytes:
    """A tool call as bytes."""
    content = json.dumps(body("tools/call", name=tool, arguments=arguments)).encode()
    fields = {**headers("tools/call", tool), "host": "localhost", "content-length": str(len(content))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /mcp HTTP/1.1\r\n{lines}\r\n".encode() + content


def peak_bytes(service: Service) -> int:
    """The most memory that the service has used so far."""
    with Path(f"/proc/{service.process.pid}/status").open() as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


PAGE = "http://localhost"  # the origin of a page that may call
needs_proc = pytest.mark.skipif(not psutil.LINUX, reason="reads /proc")
FLOODS = {
    "one header": (b"GET /healthz HTTP/1.1\r\nX: ", b"x" * MIB, 431, "head_too_large"),
    "small headers": (b"GET /healthz HTTP/1.1\r\n", b"x: y\r\n" * (MIB // 6), 431, "head_too_large"),
    "a URL": (b"GET /", b"x" * MIB, 414, "target_too_long"),
    "one trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nX: ", b"x" * MIB, 400, "chunks_too_small"),
    "small trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x: y\r\n" * (MIB // 6), 400, "chunks_too_small"),
    "a chunk extension": (CHUNKED + b"2;x=", b"x" * MIB, 400, "chunks_too_small"),
    "small chunks": (CHUNKED, b"1\r\n \r\n" * (MIB // 6), 400, "chunks_too_small"),
}


def test_open_connections_are_a_metric_beside_their_limit(module_database_url: str) -> None:
    port = free_port()
    with (
        serving(database_url=module_database_url, telemetry=True, ops_port=port, connections_max=20) as service,
        ExitStack() as stack,
    ):
        for _ in range(5):
            connection = stack.enter_context(connected(service))
            connection.sendall(GET)
            assert answered(connection)[0] == 200

        lines = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S).text.splitlines()
    shown = {line.split("{")[0].split(" ")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[:1] != "#"}
    assert (shown["handoff_http_connections"], shown["handoff_http_connections_max"]) == (5, 20)


@needs_proc
def test_the_bodies_in_progress_are_bounded_together_and_the_rest_are_refused_for_now(module_database_url: str) -> None:
    whole = called("search_context", agent="a", query="x", session_key="x" * (MIB - 1_000))
    with (
        serving(database_url=module_database_url, body_bytes_max=MIB, bodies_bytes_max=4 * MIB) as service,
        ExitStack() as stack,
    ):
        before = peak_bytes(service)
        incomplete: list[socket.socket] = []
        for _ in range(64):
            connection = stack.enter_context(connected(service))
            incomplete.append(connection)
            with suppress(ConnectionError):  # refused while this side was sending
                connection.sendall(whole[:-1])
        ended: list[socket.socket] = []
        give_up = time.monotonic() + PATIENCE_S
        while len(ended) < 60:
            assert time.monotonic() < give_up, f"only {len(ended)} were refused"
            ended, _, _ = select.select(incomplete, [], [], 0.1)
        grown = peak_bytes(service) - before
        held = [connection for connection in incomplete if connection not in ended]
        announced = stack.enter_context(connected(service))
        announced.sendall(whole[: whole.index(b"{")])  # the head alone: refused before its body is read

        assert grown < 24 * MIB
        assert refused(until_closed(announced)) == (503, "bodies_too_large")
        assert 1 <= len(held) <= 4
        for connection in held:
            connection.sendall(whole[-1:])
            assert answered(connection)[0] == 200  # and says that the arguments are wrong
        again = stack.enter_context(connected(service))
        again.sendall(whole)
        assert answered(again)[0] == 200


@needs_proc
@pytest.mark.parametrize("what", FLOODS)
def test_32_mib_that_are_no_body_are_refused_and_cost_no_memory(service: Service, what: str) -> None:
    begin, more, status, code = FLOODS[what]
    assert service.status("/healthz") == 200
    before = peak_bytes(service)

    with connected(service) as connection:
        try:
            for part in (begin, *repeat(more, 32)):
                connection.sendall(part)
        except ConnectionError:
            pass  # it was cut off while it was still sending
        answer = until_closed(connection)

    assert peak_bytes(service) - before < GROWTH_BYTES_MAX
    assert answer == b"" or refused(answer) == (status, code)
    assert service.status("/healthz") == 200


@pytest.mark.parametrize(
    ("request_head", "expected"),
    [
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X: y\r\n" * FIELDS_MAX + b"\r\n", (431, "head_too_large")),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", (431, "head_too_large")),
        (b"GET /" + b"x" * TARGET_BYTES_MAX + b" HTTP/1.1\r\n" + HEAD + b"\r\n", (414, "target_too_long")),
        (b"G\0T /healthz HTTP/1.1\r\n" + HEAD + b"\r\n", (400, "malformed_request")),
        (POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}", (400, "upgrade_not_supported")),
    ],
)
def test_a_head_that_can_not_be_served_is_refused_with_a_code(
    service: Service, request_head: bytes, expected: tuple[int, str]
) -> None:
    with connected(service) as connection:
        connection.sendall(request_head)
        assert refused(until_closed(connection)) == expected


@pytest.mark.parametrize(("origin", "may_read"), [(PAGE, True), ("https://elsewhere.example", False)])
def test_a_page_of_an_allowed_origin_can_read_why_its_head_was_refused(
    service: Service, origin: str, *, may_read: bool
) -> None:
    with connected(service) as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: "
            + origin.encode()
            + b"\r\n"
            + b"X: y\r\n" * FIELDS_MAX
            + b"\r\n"
        )
        answer = until_closed(connection)
    assert refused(answer) == (431, "head_too_large")
    assert (b"access-control-allow-origin: " + origin.encode() in answer) == may_read


def test_a_large_head_within_the_limits_is_served(service: Service) -> None:
    fields = b"".join(b"X-%d: y\r\n" % number for number in range(FIELDS_MAX - 2))
    target = b"/healthz?" + b"x" * (TARGET_BYTES_MAX - 9)
    rest = b"GET " + target + b" HTTP/1.1\r\n" + HEAD + fields + b"X: "
    with connected(service) as connection:
        for _ in range(2):  # the limit is that of one request, not of the connection
            connection.sendall(rest + b"y" * (HEAD_BYTES_MAX - len(rest) - 5) + b"\r\n\r\n")
            assert answered(connection)[0] == 200


def test_trailers_do_not_count_as_headers(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"2\r\n{}\r\n0\r\nOrigin: http://evil.example\r\nHost: evil.example\r\n\r\n")
        status, _ = answered(connection)

    assert status == 200  # an Origin that is not allowed is refused, and so is a second Host


def begun(service: Service, begin: bytes, *, drip: bool) -> bytes:
    """What the service says to a request that does not become complete, silent or a byte at a time."""
    with connected(service) as connection:
        connection.sendall(begin)
        while drip and not select.select([connection], [], [], 0.2)[0]:
            try:
                connection.sendall(b"x" if begin else b"\n")
            except ConnectionError:
                break
        return until_closed(connection)


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (b"", None),
        (b"GET /hea", (408, "request_timeout")),
        (b"GET /healthz HTTP/1.1\r\nHost: local", (408, "request_timeout")),
        (POST + b"Content-Length: 9000\r\n\r\n{", (408, "request_timeout")),
        (CHUNKED + b"2000\r\n{", (408, "request_timeout")),
        (GET, (200, "")),
        (GET + b"GET /hea", (200, "")),
    ],
)
def test_a_request_that_does_not_become_complete_is_ended(
    strict: Service, begin: bytes, expected: tuple[int, str] | None, *, drip: bool
) -> None:
    answer = b""
    for _ in range(ATTEMPTS):
        answer = begun(strict, begin, drip=drip)
        if (
            answer or not begin
        ):  # of what came too late on a busy machine the service knew nothing, and so it answered nothing
            break

    if expected is None:
        assert answer == b""
    elif expected[0] == 200:
        assert answer.startswith(b"HTTP/1.1 200")
    else:
        assert refused(answer) == expected


def test_a_body_that_arrives_slowly_but_steadily_is_taken(strict: Service) -> None:
    content = json.dumps(body("tools/list")).encode() + b" " * (64 << 10)  # a second for each KiB
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers("tools/list").items()).encode()
    with connected(strict) as connection, connected(strict) as silent:
        connection.sendall(b"POST /mcp HTTP/1.1\r\n" + HEAD + fields + b"Content-Length: %d\r\n\r\n" % len(content))
        connection.sendall(content[:-1])
        silent.sendall(POST + b"Content-Length: 9000\r\n\r\n{")
        until_closed(silent)  # the time is up for one that sends less
        connection.sendall(content[-1:])
        assert answered(connection)[0] == 200


def test_an_idle_connection_is_closed(strict: Service) -> None:
    with connected(strict) as connection:
        connection.sendall(GET)
        assert answered(connection)[0] == 200
        assert until_closed(connection) == b""


def test_only_a_client_that_does_not_read_is_cut_off(service: Service, strict: Service) -> None:
    with connected(strict) as connection:
        connection.sendall(called("register_session", agent="alice", session_key="unread"))
        assert answered(connection)[0] == 200
    for _ in range(10):
        with connected(strict) as connection:
            entries = [{"type": "message", "content": "x" * (MIB - 100)}]
            connection.sendall(called("update_context", agent="alice", session_key="unread", entries=entries))
            assert answered(connection)[0] == 200
    asked = called("get_context", agent="alice", session_key="unread", view="entries")

    with connected(strict, receive_bytes=4096) as unread:
        unread.sendall(asked)
        give_up = time.monotonic() + PATIENCE_S
        while any(it.laddr.port == strict.port and it.raddr == unread.getsockname() for it in connections_of(strict)):
            assert time.monotonic() < give_up, "the connection stays open"
            time.sleep(0.05)
    with connected(service) as connection:  # they share a database
        connection.sendall(asked)
        assert len(answered(connection)[1]) > 10 * (MIB - 100)


def connections_of(service: Service) -> list[Any]:
    found = psutil.Process(service.process.pid).net_connections("tcp")
    return [it for it in found if it.status == psutil.CONN_ESTABLISHED]


def test_a_request_sent_before_the_answer_to_the_last_one_is_not_read(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(GET * 3)
        answer = until_closed(connection)

    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer


def test_a_connection_that_asks_for_another_protocol_is_answered_in_this_one(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n")
        answer = until_closed(connection)

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer


def test_a_call_that_waits_is_not_cut_off(strict: Service) -> None:
    with connected(strict) as connection:
        connection.sendall(called("get_inbox", agent="bob", wait_seconds=5))
        status, answer = answered(connection)

    assert status == 200
    assert json.loads(answer)["result"]["isError"] is False


async def test_a_subscription_is_not_cut_off(strict: Service) -> None:
    async with Client(strict.url) as client, Client(strict.url) as other:
        uri = "handoff://agents/bob/inbox"
        async with client.listen(resource_subscriptions=[uri]) as changes:
            agent = Agent(other)
            await agent.ok("get_inbox", agent="carol", wait_seconds=5)  # longer than every limit of this service
            await agent.offer(await agent.session())
            async for change in changes:
                assert getattr(change, "uri", None) == uri
                break


def test_idle_connections_make_room_for_new_ones(small: Service) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(small)) for _ in range(60)]
        for number, connection in enumerate(idle):
            if number % 2:
                with suppress(ConnectionError):  # it had to make room already
                    connection.sendall(b"GET /healthz HTTP/1.1\r\n")

        assert small.status("/readyz") == 200
        assert until_closed(idle[0]) == b""


def test_probes_are_answered_when_all_connections_are_in_use(small: Service) -> None:
    with ExitStack() as stack:
        for number in range(16):
            waiting = stack.enter_context(connected(small))
            waiting.sendall(called("get_inbox", agent=f"agent-{number}", wait_seconds=30))
        give_up = time.monotonic() + PATIENCE_S
        while small.status("/nothing") != 503:  # until all have arrived, it is 404
            assert time.monotonic() < give_up

        assert small.status("/healthz") == 200
        assert small.status("/readyz") == 200
        of_a_page = headers("tools/list") | {"origin": PAGE}
        answer = httpx2.post(small.url, json=body("tools/list"), headers=of_a_page)

        assert answer.status_code == 503
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.json()["error"]["code"] == "too_many_connections"
        assert int(answer.headers["retry-after"]) > 0


def test_connections_leave_file_descriptors_for_the_database(module_database_url: str) -> None:
    limited = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
    service = start(database_url=module_database_url, under=limited)
    try:
        wait_until_ready(service)
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(connected(service))
            for _ in range(3):
                assert service.status("/readyz") == 200
            with connected(service) as connection:
                connection.sendall(called("register_session", agent="alice", session_key="limited"))
                assert answered(connection)[0] == 200
    finally:
        printed = stop(service)
    assert "http.connections_limited" in printed


def test_a_service_with_unfinished_requests_stops_on_a_signal(module_database_url: str) -> None:
    service = start(database_url=module_database_url)
    wait_until_ready(service)
    with ExitStack() as stack:
        for begin in (b"", b"GET /hea", POST + b"Content-Length: 9000\r\n\r\n{", b"G\0T / HTTP/1.1\r\n\r\n"):
            stack.enter_context(connected(service)).sendall(begin)
        stop(service)

    assert service.process.returncode == 0


def test_refused_requests_are_logged_once_per_minute_and_reason(module_database_url: str) -> None:
    service = start(database_url=module_database_url)
    wait_until_ready(service)
    for _ in range(20):
        with connected(service) as connection:
            connection.sendall(b"G\0T / HTTP/1.1\r\n\r\n")
            until_closed(connection)
    lines = [json.loads(line) for line in stop(service).splitlines()]

    assert [line["reason"] for line in lines if line["event"] == "http.refused"] == ["malformed_request"]
    assert not [line for line in lines if line["level"] == "error"]


async def test_uvicorn_has_what_the_connection_is_made_of() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    made = HttpToolsProtocol(Config(app, ws="none"), ServerState(), {})
    for name in ("parser", "cycle", "flow", "headers", "app", "transport", "server_state", "on_response_complete"):
        assert hasattr(made, name), f"uvicorn's HttpToolsProtocol has no {name} any more: mend server/connections.py"
