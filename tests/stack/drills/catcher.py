"""Whom Alertmanager and the worker tell in the tests, as people would be told: keeps what comes, and shows a certificate.

Runs in a container by itself, with nothing but Python. `GET /` is all that came; `PUT /refuse` and `DELETE /refuse` make it
refuse and take again; `PUT /certificate` with a key and a certificate in PEM is what port 8443 shows from then on.
"""

import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from time import time
from typing import Any

CERTIFICATE = Path("/tmp/certificate.pem")  # noqa: S108 - of its own container
caught: list[dict[str, Any]] = []
refuses: set[str] = set()


class Catch(BaseHTTPRequestHandler):
    """POST is what is told."""

    def do_POST(self) -> None:
        said = self._body()
        if refuses:
            self._answer(403)  # of which Alertmanager tries no second time
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
        """It has nothing to say."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Show(BaseRequestHandler):
    """Shows the certificate, and that is all."""

    def handle(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        with context.wrap_socket(self.request, server_side=True) as shown:
            shown.recv(1)


class Shows(ThreadingTCPServer):
    """Nobody waits for whom looks at it."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who looks goes away at once, and before there is a certificate there is nothing to show."""


if __name__ == "__main__":
    Thread(target=Shows(("", 8443), Show).serve_forever, daemon=True).start()
    ThreadingHTTPServer(("", 8080), Catch).serve_forever()
