"""The service as a process, started as its operator starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

HANDOFF = Path(sys.executable).parent / "handoff"
# How long a test waits for what must happen. Tests decide by what happened, so this is only where a test that would wait
# forever fails instead, with a sentence; no busy machine may come near it.
PATIENCE_S = 120


@dataclass(slots=True)
class Service:
    """A running service."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        """The MCP address."""
        return f"http://127.0.0.1:{self.port}/mcp"

    def status(self, path: str) -> int:
        """Return the HTTP status of a GET request, or 0 if the service does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:  # it is the response too, and Python 3.14 warns of one that nobody closed
                return error.code
        except OSError:
            return 0

    def kill(self) -> None:
        """Kill it with SIGKILL, as in a power cut."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE_S)


@contextmanager
def passable_folder() -> Generator[Path]:
    """A temporary folder that other users can pass through: as root, Postgres runs as another user."""
    with TemporaryDirectory(prefix="handoff-tests-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@contextmanager
def over_stdio(database_url: str, **settings: object) -> Generator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """A server over stdio, its standard input and its standard output."""
    with subprocess.Popen(
        [HANDOFF, "serve", "--stdio"],
        env=environment(database_url=database_url, **settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server, server.stdin, server.stdout
        finally:
            server.kill()


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**settings: object) -> dict[str, str]:
    """Return the environment with only these HANDOFF_* variables (`database_url=…` becomes HANDOFF_DATABASE_URL)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HANDOFF_")}
    return clean | {f"HANDOFF_{name.upper()}": str(value) for name, value in settings.items()}


@contextmanager
def serving(
    *arguments: str, port: int | None = None, wait: bool = True, under: tuple[str, ...] = (), **settings: object
) -> Generator[Service]:
    """Run `handoff serve` until the end of the block, then stop it with SIGTERM, as its operator would."""
    service = start(*arguments, port=port, under=under, **settings)
    try:
        if wait:
            wait_until_ready(service)
        yield service
    finally:
        stop(service)


def start(*arguments: str, port: int | None = None, under: tuple[str, ...] = (), **settings: object) -> Service:
    """Start `handoff serve` without waiting until it is ready. `under` is a command that runs it."""
    number = port or free_port()
    process = subprocess.Popen(
        [*under, HANDOFF, "serve", "--port", str(number), *arguments],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Service(process, number)


def wait_until_ready(service: Service) -> None:
    """Wait until /readyz says so. Fails at once, with what it printed, when the service ends instead."""
    give_up = time.monotonic() + PATIENCE_S
    while service.status("/readyz") != 200:
        assert service.process.poll() is None, f"the service ended: {service.process.communicate()[0]}"
        assert time.monotonic() < give_up, f"the service is not ready after {PATIENCE_S} s: {_killed(service)}"
        time.sleep(0.05)


def stop(service: Service) -> str:
    """Stop it by SIGTERM; what it printed. Fails if it does not stop."""
    if service.process.poll() is None:
        service.process.terminate()
    try:
        printed = service.process.communicate(timeout=PATIENCE_S)[0]
    except subprocess.TimeoutExpired:
        service.process.kill()
        raise
    return printed


def _killed(service: Service) -> str:
    service.process.kill()
    return service.process.communicate()[0]
