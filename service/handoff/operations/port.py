"""The operations port: metrics, health and discovery, for Prometheus and operators.

It has a thread of its own, so it answers while the event loop is busy. It asks for no token, so bind it to an address that
only Prometheus and operators can reach.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from handoff.context import App
from handoff.encoding import to_json
from handoff.operations.health import ANSWER_S
from handoff.settings import LOOPBACK_HOSTS, Settings

log = structlog.get_logger(__name__)

_REQUEST_TIMEOUT_S = 5


class OperationsPort:
    """A bound operations port. It answers with 503 until `serving` gives it an App."""

    def __init__(self, settings: Settings) -> None:
        """Bind the address. Raises OSError when that is not possible."""
        self._server = _Server(settings)
        host, port = self._server.server_address[0], self._server.server_address[1]
        name = str(host) if settings.ops_host in LOOPBACK_HOSTS else socket.gethostname()
        self.address = f"{name}:{port}"

    @contextmanager
    def serving(self, app: App) -> Generator[None]:
        """Answer until the end of the block. Enter it on the event loop."""
        self._server.app, self._server.loop = app, asyncio.get_running_loop()
        thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="operations", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.app = None
            threading.Thread(target=self._server.shutdown, daemon=True).start()

    def close(self) -> None:
        """Release the port."""
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, settings: Settings) -> None:
        self.app: App | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.address_family = socket.AF_INET6 if ":" in settings.ops_host else socket.AF_INET
        super().__init__((settings.ops_host, settings.ops_port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        log.debug("operations.request_failed")  # a client that disconnected


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - the server that made this handler
    timeout = _REQUEST_TIMEOUT_S
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request for one of the paths."""
        answers: dict[str, Callable[[App], None]] = {
            "/metrics": self._metrics,
            "/health": self._health,
            "/healthz": lambda _: self._json(200, {"status": "alive"}),
            "/targets": self._targets,
        }
        path = urlsplit(self.path).path
        answer = answers.get(path)
        app = self.server.app
        if answer is None:
            self._json(404, {"error": {"code": "not_found", "message": f"This port has only {', '.join(answers)}."}})
        elif app is None:
            self._json(503, {"status": "starting"})
        else:
            answer(app)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Log nothing: a request every few seconds is not worth a line, and the base class's lines are not JSON."""

    def _metrics(self, app: App) -> None:
        if app.signals is None:
            message = "There are no metrics, because telemetry is off. HANDOFF_TELEMETRY=true turns it on."
            self._json(404, {"error": {"code": "telemetry_off", "message": message}})
            return
        self._send(200, CONTENT_TYPE_LATEST, app.signals.exposition())

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
        self.end_headers()
        self.wfile.write(body)
