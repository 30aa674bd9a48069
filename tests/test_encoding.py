"""Raw bytes sent to a running service, and what its logs then contain."""

import hashlib
import json
import socket
import time
from pathlib import Path

import asyncpg
import httpx2

from tests.agents import LONG_WAIT_S
from tests.processes import PATIENCE_S, Service, free_port, serving, start, stop, wait_until_ready
from tests.requests import body, headers
from tests.test_faults import is_full_of_waiters, until_a_call_waits

REGISTER = json.dumps(body("tools/call", name="register_session", arguments={"agent": "alice"})).encode()


def head(*lines: str, host: str = "host: localhost", length: object = len(REGISTER)) -> bytes:
    """Return the head of a POST request that registers a session, with additional header lines."""
    ours = [f"{name}: {value}" for name, value in headers("tools/call", "register_session").items()]
    sized = [f"content-length: {length}"] if length is not None else []
    return "\r\n".join(["POST /mcp HTTP/1.1", *filter(None, [host]), *ours, *sized, *lines, "", ""]).encode("latin-1")


def exchange(service: Service, *parts: bytes) -> tuple[int, str]:
    """The status and the body of what is answered to some bytes; the socket is then closed."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S) as wire:
        for part in parts:
            wire.sendall(part)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer) < answer.index(b"\r\n\r\n") + 4 + _length(answer):
            received = wire.recv(65_536)
            assert received, answer
            answer += received
    return int(answer.split(b" ", 2)[1]), answer.split(b"\r\n\r\n", 1)[1].decode()


def _length(answer: bytes) -> int:
    return int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])


async def test_incomplete_and_ambiguous_requests_are_refused_without_effect_but_padded_headers_are_accepted(
    database_url: str, db: asyncpg.Connection
) -> None:
    with serving(database_url=database_url, body_bytes_max=1 << 16) as service:
        refused = {
            "no host": ([head(host="")], 421, "host_not_allowed"),
            "another host": ([head(host="host: evil.example")], 421, "host_not_allowed"),
            "another host first": ([head("host: localhost", host="host: evil.example")], 400, "header_twice"),
            "another origin first": (
                [head("origin: http://evil.example", "origin: http://localhost")],
                400,
                "header_twice",
            ),
            "another origin": ([head("origin: http://evil.example")], 403, "origin_not_allowed"),
            "a length that is none": ([head(length="many")], 400, ""),
            "a length above all limits": ([head(length="9" * 30)], 400, ""),
            "two lengths": ([head(f"content-length: {len(REGISTER) + 1}")], 400, ""),
            "a length above the limit": ([head(length=(1 << 16) + 1)], 413, "body_too_large"),
            "chunks above the limit": (
                [head("transfer-encoding: chunked", length=None), *[b"2000\r\n" + b" " * 8_192 + b"\r\n"] * 9],
                413,
                "body_too_large",
            ),
            "no HTTP": ([b"\x00\xff\x16\x03 nonsense\r\n\r\n"], 400, ""),
        }
        for what, (parts, status, code) in refused.items():
            refused_by_its_head = status == 413 or not code
            found = exchange(service, *parts, *([] if refused_by_its_head else [REGISTER]))
            assert found[0] == status, (what, found)
            assert code in found[1], (what, found)
            assert "Traceback" not in found[1]

        with socket.create_connection(("127.0.0.1", service.port)) as wire:
            wire.sendall(head(length=len(REGISTER) + 1) + REGISTER)  # the JSON is complete, but the request is not
        padded = head().replace(b"mcp-name: register_session", b"mcp-name: \t register_session \t")
        status, text = exchange(service, padded, REGISTER[:50], REGISTER[50:])

    assert (status, json.loads(text)["result"]["isError"]) == (200, False)
    assert await db.fetchval("SELECT count(*) FROM session") == 1  # by the last request only


def test_neither_tokens_nor_passwords_nor_content_are_logged(database_url: str, tmp_path: Path) -> None:
    token, marker = "t0ken-of-alice", "wh1spered"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{hashlib.sha256(token.encode()).hexdigest()} alice read,write\n")
    with_password = database_url.replace("postgres@", "postgres:s3cret@", 1)
    assert with_password != database_url
    service = start(database_url=with_password, tokens_file=tokens, log_level="debug")
    try:
        wait_until_ready(service)
        with httpx2.Client(timeout=PATIENCE_S) as client:

            def post(content: object, authorization: str, tool: str = "update_context") -> int:
                sent = headers("tools/call", tool, authorization=authorization)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                return client.post(service.url, content=data, headers=sent).status_code

            entry = {"type": "message", "content": marker, "metadata": {marker: marker}}
            good = body("tools/call", name="update_context", arguments={"session_key": "s", "entries": [entry]})
            new = body("tools/call", name="register_session", arguments={"session_key": "s", "metadata": {"a": marker}})
            bad = body("tools/call", name="update_context", arguments={marker: marker, "entries": marker})
            assert post(new, f"Bearer {token}", "register_session") == 200
            assert [post(request, f"Bearer {token}") for request in (good, bad)] == [200, 200]
            assert [post(good, header) for header in (f"Basic {token}", token, f"Bearer {token}x")] == [401] * 3
            older = {"jsonrpc": "2.0", "id": marker, "method": marker, "params": {"arguments": marker}}
            for content in (json.dumps(good).encode()[:-5], json.dumps(older).encode(), f'["{marker}"]'.encode()):
                sent = {"authorization": f"Bearer {token}", "mcp-protocol-version": "2025-11-25"}
                assert client.post(service.url, content=content, headers=headers("x", **sent)).status_code < 500
    finally:
        printed = stop(service)

    assert all(json.loads(line)["event"] for line in printed.splitlines())
    for secret in (token, marker, "s3cret"):
        assert secret not in printed


def test_a_client_of_the_older_protocol_that_goes_away_does_not_go_on_waiting(database_url: str) -> None:
    arguments = {"name": "get_inbox", "arguments": {"agent": "bob", "wait_seconds": LONG_WAIT_S}}
    content = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": arguments}).encode()
    older = head(length=len(content)).replace(b"2026-07-28", b"2025-11-25")
    ops = free_port()
    with serving(database_url=database_url, waiters_max=1, telemetry="true", ops_port=ops) as service:
        with socket.create_connection(("127.0.0.1", service.port)) as wire:
            began = time.monotonic()
            wire.sendall(older + content)
            until_a_call_waits(ops)
            assert is_full_of_waiters(service)
        while is_full_of_waiters(service):
            assert time.monotonic() - began < LONG_WAIT_S, "the waiter was not let go before its own end"
