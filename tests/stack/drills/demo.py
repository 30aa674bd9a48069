"""The demo's agents at work on a running stack at their usual pace, and what goes wrong meanwhile."""

import hashlib
import subprocess
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.cast import CAST
from tests.processes import HANDOFF, PATIENCE_S, environment
from tests.stack.bundle import Stack
from tests.stack.drills.faults import both, failing, slow, stopped

PACE: Final = 1  # call per second, as in the recording of the quiet past
TOKENS: Final = {name: f"the demo's token of {name}" for name in CAST.names}

Place = tuple[str, ...]


def tokens_file() -> str:
    """The lines that an operator writes for the service, so that the demo's agents may call it."""
    digests = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in TOKENS.items()}
    return "".join(f"{digest} {name} read,write capabilities=*\n" for name, digest in digests.items())


class Demo:
    """The demo on a stack, one process at a time."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self._tokens = folder / "tokens-of-agents"
        self._tokens.write_text("".join(f"{name}={token}\n" for name, token in TOKENS.items()))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *faults: str, pace: float = PACE) -> None:
        """Let the agents work, with these faults of the demo's."""
        asked = [word for fault in faults for word in ("--fault", fault)]
        where = ["--url", self.stack.url("HANDOFF_PORT", "/mcp"), "--tokens-file", str(self._tokens)]
        command = [HANDOFF, "demo", "--work", "--pace", str(pace), *where, *asked]
        self._process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        """Let them close what is open, and go."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(PATIENCE_S)

    @contextmanager
    def going_wrong(self, *faults: str, pace: float = PACE) -> Generator[None]:
        """The agents have these faults, or work at another pace."""
        self.stop()
        self.start(*faults, pace=pace)
        try:
            yield
        finally:
            self.stop()
            self.start()


@dataclass(frozen=True)
class Wrong:
    """What goes wrong, and the places that are its right cause, as in tests/bench/recording.py.

    `of_machine`: it shows in durations or sizes only, whose past this machine has to give.
    """

    name: str
    done: Callable[[Demo], AbstractContextManager[Any]]
    at: frozenset[Place]
    of_machine: bool = False


# At the quick pace only the first.
WRONG: Final = (
    Wrong(
        "ping-pong (--fault ping-pong)",
        lambda demo: demo.going_wrong("ping-pong"),
        frozenset({("route", "ada", "grace"), ("route", "grace", "ada")}),
    ),
    Wrong("Redis is away", lambda demo: stopped(demo.stack, "redis"), frozenset({("cache",)})),
    Wrong(
        "agents that make mistakes (--fault failing)", lambda demo: demo.going_wrong("failing"), frozenset({("service",)})
    ),
    Wrong("a drop in traffic", lambda demo: demo.going_wrong(pace=PACE / 10), frozenset({("service",)})),
    Wrong("agents that vanish (--fault silent)", lambda demo: demo.going_wrong("silent"), frozenset({("service",)})),
    Wrong(
        "entries that grow (--fault growing)",
        lambda demo: demo.going_wrong("growing"),
        frozenset({("agent", "grace")}),
        of_machine=True,
    ),
    Wrong("offers fail", lambda demo: failing(demo.stack, "handoff"), frozenset({("tool", "request_handoff")})),
    Wrong(
        "Postgres is slow",
        lambda demo: both(*(slow(demo.stack, table, 0.5) for table in ("event", "context_entry", "session"))),
        frozenset({("database",)}),
        of_machine=True,
    ),
)
