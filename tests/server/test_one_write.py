"""The head of a response goes out with its body, in one write, and never later than without it."""

import json
import socket
from collections.abc import Generator

import pytest

from tests.processes import PATIENCE_S, Service, serving
from tests.requests import body, headers


@pytest.fixture(scope="module")
def service(module_database_url: str) -> Generator[Service]:
    """A service that nothing else is sent to."""
    with serving(database_url=module_database_url) as running:
        yield running


@pytest.fixture
def connection(service: Service) -> Generator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S) as opened:
        yield opened


def request(method: str, path: str, content: bytes = b"", **fields: str) -> bytes:
    sent = {"Host": "localhost", "Content-Length": str(len(content)), **fields}
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content


def call() -> bytes:
    message = body("tools/call", name="get_inbox", arguments={"agent": "ada"})
    return request("POST", "/mcp", json.dumps(message).encode(), **headers("tools/call", "get_inbox"))


@pytest.mark.parametrize(
    "asked", [request("GET", "/healthz"), request("GET", "/nowhere"), call()], ids=["probe", "refusal", "call"]
)
def test_what_arrives_first_is_the_whole_answer(connection: socket.socket, asked: bytes) -> None:
    for _ in range(50):  # a client that is woken by a head alone has usually read it before the body is written
        connection.sendall(asked)
        head, _, rest = connection.recv(1 << 16).partition(b"\r\n\r\n")
        assert f"content-length: {len(rest)}\r\n".encode() in head.lower() + b"\r\n"


def test_a_head_without_a_body_is_sent_too(connection: socket.socket) -> None:
    for _ in range(3):
        connection.sendall(request("HEAD", "/healthz"))
        assert connection.recv(1 << 16).endswith(b"\r\n\r\n")
