"""A stand-in for the people that Alertmanager and the worker notify: it records what it receives, and serves a certificate.

Runs in its own container and needs only Python. `GET /` returns everything received; `PUT /refuse` and `DELETE /refuse` turn
refusals on and off; `PUT /certificate`, with a key and a certificate in PEM, sets what port 8443 serves.
"""

import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from time import time
from typing import Any

CERTIFICATE = Path("/tmp/certificate.pem")  # noqa: S108 - inside its own container
caught: list[dict[str, Any]] = []
refuses: set[str] = set()


class Catch(BaseHTTPRequestHandler):
    """Records each POST."""

    def do_POST(self) -> None:
        said = self._body()
        if refuses:
            self._answer(403)  # Alertmanager does not retry after this status
            return
        caught.append({"at": time(), "path": self.path, "said": json.loads(said)})
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200, json.dumps(caught).encode())

    def do_PUT(self) -> None:
        said = self._body()
        if self.path == "/certificate":
            CERTIFICATE.write_bytes(said)
        else:
            refuses.add(self.path)
        self._answer(200)

    def do_DELETE(self) -> None:
        refuses.discard(self.path)
        self._answer(200)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Do not log requests."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Show(BaseRequestHandler):
    """Serves the certificate and nothing else."""

    def handle(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        with context.wrap_socket(self.request, server_side=True) as shown:
            shown.recv(1)


class Shows(ThreadingTCPServer):
    """A thread per connection."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: clients disconnect at once, and before the first PUT there is no certificate."""


if __name__ == "__main__":
    Thread(target=Shows(("", 8443), Show).serve_forever, daemon=True).start()
    ThreadingHTTPServer(("", 8080), Catch).serve_forever()
