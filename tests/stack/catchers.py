"""Stand-ins for Slack, PagerDuty, a webhook and a mail server, which record what they receive."""

import base64
import email
import email.policy
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage, Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Call:
    """A received POST."""

    headers: Message
    body: Any


@dataclass
class Caught:
    """What was received, in order, and the ports to send to."""

    http_port: int = 0
    smtp_port: int = 0
    calls: dict[str, list[Call]] = field(default_factory=dict[str, list[Call]])  # by path
    mails: list[EmailMessage] = field(default_factory=list[EmailMessage])
    logins: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"

    def summaries(self, path: str) -> list[str]:
        """The distinct summaries of all alerts that a webhook received, in order of first arrival."""
        received = (it for call in list(self.calls.get(path, [])) for it in call.body["alerts"])
        return list(dict.fromkeys(it["annotations"]["summary"] for it in received))


def _web(caught: Caught) -> type[BaseHTTPRequestHandler]:
    class Web(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            caught.calls.setdefault(self.path, []).append(Call(self.headers, body))
            self.send_response(202 if self.path == "/pagerduty" else 200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the base class names it so

    return Web


def _mail(caught: Caught) -> type[StreamRequestHandler]:
    class Mail(StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 catcher")
            while line := self.rfile.readline().decode().strip():
                match line.upper().split()[0]:
                    case "EHLO":
                        self.say("250-catcher\r\n250 AUTH PLAIN")
                    case "AUTH":
                        _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
                        caught.logins.append((user, password))
                        self.say("235 welcome")
                    case "DATA":
                        self.say("354 go on")
                        lines = iter(self.rfile.readline, b".\r\n")
                        text = b"".join(it.removeprefix(b".") for it in lines)
                        caught.mails.append(email.message_from_bytes(text, policy=email.policy.default))
                        self.say("250 kept")
                    case "QUIT":
                        self.say("221 bye")
                        return
                    case _:
                        self.say("250 ok")

        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

    return Mail


@contextmanager
def catchers() -> Generator[Caught]:
    """Listen on loopback until the block ends."""
    caught = Caught()
    web, mail = _web(caught), _mail(caught)
    with ThreadingHTTPServer(("127.0.0.1", 0), web) as http, ThreadingTCPServer(("127.0.0.1", 0), mail) as smtp:
        smtp.daemon_threads = True
        caught.http_port, caught.smtp_port = http.server_address[1], smtp.server_address[1]
        for server in (http, smtp):
            Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield caught
        finally:
            http.shutdown()
            smtp.shutdown()
