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

HANDOFF = Path(sys.executable).parent / "handoff"
_STARTED_WITHIN_S = 20
_STOPPED_WITHIN_S = 15


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
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def kill(self) -> None:
        """Kill it with SIGKILL, as in a power cut."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=_STOPPED_WITHIN_S)


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
def serving(*arguments: str, port: int | None = None, wait: bool = True, **settings: object) -> Generator[Service]:
    """Run `handoff serve` until the end of the block, then stop it with SIGTERM, as its operator would."""
    service = start(*arguments, port=port, **settings)
    try:
        if wait:
            wait_until_ready(service)
        yield service
    finally:
        stop(service)


def start(*arguments: str, port: int | None = None, **settings: object) -> Service:
    """Start `handoff serve` without waiting until it is ready."""
    number = port or free_port()
    process = subprocess.Popen(
        [HANDOFF, "serve", "--port", str(number), *arguments],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Service(process, number)


def wait_until_ready(service: Service) -> None:
    """Wait until /readyz answers 200."""
    give_up = time.monotonic() + _STARTED_WITHIN_S
    while service.status("/readyz") != 200:
        assert service.process.poll() is None, f"the service ended: {service.process.communicate()[0]}"
        assert time.monotonic() < give_up, "the service did not become ready"
        time.sleep(0.05)


def stop(service: Service) -> str:
    """Stop it with SIGTERM; return what it printed. Fails if it does not stop in time."""
    if service.process.poll() is None:
        service.process.terminate()
    try:
        printed = service.process.communicate(timeout=_STOPPED_WITHIN_S)[0]
    except subprocess.TimeoutExpired:
        service.process.kill()
        raise
    return printed
