"""The operations port: metrics, health and discovery, for Prometheus and operators.

It has a thread of its own, so it answers while the event loop is busy, and before the database does. It asks for no token,
so bind it to an address that only Prometheus and operators can reach. It checks Host, so that no web page can read it by a
name that leads here: a name must be one of ours, and an address can't be such a name.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from ipaddress import ip_address
from time import monotonic
from typing import Any, cast
from urllib.parse import urlsplit

import structlog
from prometheus_client.exposition import choose_encoder

from handoff.context import App
from handoff.encoding import to_json
from handoff.operations.health import ANSWER_S
from handoff.settings import LOOPBACK_HOSTS, Settings

log = structlog.get_logger(__name__)

_SILENCE_S = 5  # after which a connection is closed
_CONNECTIONS_MAX = 32  # each has a thread; a further one replaces the oldest
_CONNECTION_S_MAX = 60  # for which a connection may exist, however much it sends
_KEPT_S_MAX = 30  # from then on, a connection ends with the next answer, which says so
_HEAD_BYTES_MAX = 16 << 10


class OperationsPort:
    """A bound operations port. It answers from the start, but with 503 until `serving` gives it an App."""

    def __init__(self, settings: Settings) -> None:
        """Bind the address. Raises OSError when that is not possible."""
        self._server = _Server(settings)
        host, port = self._server.server_address[0], self._server.server_address[1]
        name = str(host) if settings.ops_host in LOOPBACK_HOSTS else socket.gethostname()
        self.address = f"{name}:{port}"
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="operations", daemon=True).start()

    @contextmanager
    def serving(self, app: App) -> Generator[None]:
        """Answer for an App until the end of the block. Enter it on the event loop."""
        self._server.app, self._server.loop = app, asyncio.get_running_loop()
        try:
            yield
        finally:
            self._server.app = None

    def close(self) -> None:
        """Release the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, settings: Settings) -> None:
        self.app: App | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[socket.socket, float] = {}  # when each was accepted, oldest first; changed by several threads
        names = (urlsplit(f"//{it}").hostname for it in settings.allowed_hosts)
        self.names = {*LOOPBACK_HOSTS, settings.ops_host, socket.gethostname().casefold(), *filter(None, names)}
        self.address_family = socket.AF_INET6 if ":" in settings.ops_host else socket.AF_INET
        super().__init__((settings.ops_host, settings.ops_port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread. If there are too many, the oldest is closed."""
        while len(self._open) >= _CONNECTIONS_MAX:
            self._cut(next(iter(self._open.copy()), None))
        self._open[request] = monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that has ended."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that exist for too long. Called several times per second."""
        began_before = monotonic() - _CONNECTION_S_MAX
        for connection, began in self._open.copy().items():
            if began < began_before:
                self._cut(connection)

    def is_old(self, connection: socket.socket) -> bool:
        """Whether a connection has been kept for long enough."""
        return self._open.get(connection, 0.0) < monotonic() - _KEPT_S_MAX

    def _cut(self, connection: socket.socket | None) -> None:
        """End the reading and writing of a connection, and so its thread, which then closes it."""
        if connection is not None and self._open.pop(connection, None) is not None:
            log.debug("operations.connection_cut")
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        log.debug("operations.request_failed")  # a client that disconnected


class _Head:
    """Where the base class reads a request from: it reads lines, and these have a limit together."""

    def __init__(self, source: BufferedIOBase) -> None:
        self._source = source
        self._left = 0

    def begin(self) -> None:
        """Begin the head of a request."""
        self._left = _HEAD_BYTES_MAX

    def readline(self, size: int) -> bytes:
        """Read a line of at most `size` bytes. Raises LineTooLong, which is answered with 431."""
        line = self._source.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("head")
        return line

    def close(self) -> None:
        """Close what it reads from."""
        self._source.close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - the server that made this handler
    timeout = _SILENCE_S
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Prepare the connection."""
        super().setup()
        self._head = _Head(self.rfile)
        self.rfile = cast("Any", self._head)

    def handle_one_request(self) -> None:
        """Read and answer a request."""
        self._head.begin()
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer a request for one of the paths."""
        answers: dict[str, Callable[[App], None]] = {
            "/metrics": self._metrics,
            "/health": self._health,
            "/targets": self._targets,
        }
        if not self._is_for_us():
            message = "This port does not answer to this Host. The operator can allow it with HANDOFF_ALLOWED_HOSTS."
            self._json(421, {"error": {"code": "host_not_allowed", "message": message}})
            return
        path = urlsplit(self.path).path
        answer = answers.get(path)
        app = self.server.app
        if path == "/healthz":
            self._json(200, {"status": "alive"})
        elif answer is None:
            message = f"This port has only {', '.join((*answers, '/healthz'))}."
            self._json(404, {"error": {"code": "not_found", "message": message}})
        elif app is None:
            message = "This process is starting: it waits until the database at HANDOFF_DATABASE_URL answers."
            self._json(503, {"status": "starting", "message": message})
        else:
            answer(app)

    def _is_for_us(self) -> bool:
        """Whether the only Host is an address, or one of our names."""
        hosts = self.headers.get_all("Host", [])
        try:
            name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
        except ValueError:
            return False
        if name is None or name in self.server.names:
            return name is not None
        with suppress(ValueError):
            return bool(ip_address(name))
        return False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Log nothing: a request every few seconds is not worth a line, and the base class's lines are not JSON."""

    def _metrics(self, app: App) -> None:
        """Answer in Prometheus's text format or, if the client asks for it, in that of OpenMetrics."""
        from handoff.telemetry.otlp import registry_alone  # loaded only where somebody asks

        registry = app.signals.registry if app.signals is not None else registry_alone()
        encode, type_ = choose_encoder(self.headers.get("Accept", ""))
        self._send(200, type_, encode(registry))

    def _health(self, app: App) -> None:
        loop = self.server.loop
        if loop is not None:
            asked = asyncio.run_coroutine_threadsafe(app.health.check(), loop)
            try:
                asked.result(ANSWER_S + 0.05)
            except Exception:  # noqa: BLE001 - then the report is based on the last check
                asked.cancel()
        report = app.health.report()
        self._json(503 if report["status"] == "unhealthy" else 200, report)

    def _targets(self, app: App) -> None:
        """Answer Prometheus's HTTP discovery: all running processes that have an operations port."""
        groups = [
            {"targets": [process["operations"]], "labels": {"kind": process["kind"]}}
            for process in app.health.presence.alive
            if process["operations"] is not None
        ]
        self._json(200, groups)

    def _json(self, status: int, value: object) -> None:
        self._send(status, "application/json", to_json(value))

    def _send(self, status: int, type_: str, body: bytes) -> None:
        self.send_response_only(HTTPStatus(status))
        self.send_header("Content-Type", type_)
        self.send_header("Content-Length", str(len(body)))
        if self.server.is_old(self.connection):
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
