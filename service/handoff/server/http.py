"""Serves the HTTP edge with uvicorn, and stops it on a signal."""

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, cast

import structlog
import uvicorn
from starlette.types import Scope, Send

from handoff.context import App
from handoff.operations.readiness import Readiness
from handoff.server.calls import call_tool
from handoff.server.connections import SPARE_CONNECTIONS, Connections
from handoff.server.edge import Edge, Pages
from handoff.server.protocol import build_server
from handoff.settings import Settings

log = structlog.get_logger(__name__)

# A stop takes at most STOP_S_MAX, of which three are for what takes no time unless the machine is busy. Until _CALLS_S,
# calls in progress go on. Then their connections to the database are cut, which ends most of them with `unavailable`, and
# the others get that at _GRACE_S. The last writes have a second after that, and telemetry has two.
STOP_S_MAX: Final = 10
_CALLS_S: Final = 3
_GRACE_S: Final = 4
_LAST_ANSWERS_S: Final = 1
_TICKS_PER_S: Final = 10  # uvicorn's
_BACKLOG: Final = 1_024  # connections that wait to be accepted
_OTHER_DESCRIPTORS: Final = 64  # files, Redis, telemetry, the operations port and dedicated connections to Postgres


async def serve_http(app: App, listener: socket.socket, ready: Callable[[], None] | None = None) -> None:
    """Serve on a bound socket until SIGINT, SIGTERM or SIGHUP. Calls `ready` once requests are answered."""
    edge = Edge(
        build_server(app),
        app.settings,
        readiness=Readiness(app.health.probe).problem,
        tokens=app.tokens,
        call_tool=partial(call_tool, app),
        alerts=app.alerts,
        pages=pages_of(app),
        is_ending=lambda: app.wakeups.closing,
    )
    connections_max, backlog = share_of_descriptors(app.settings)
    connections = Connections(app.settings, connections_max, edge, edge.refusals, edge.readable)
    config = uvicorn.Config(
        edge,
        http=cast("Any", connections.open),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the client's address is not used
        backlog=backlog,
        timeout_graceful_shutdown=_GRACE_S,
    )
    await _Server(config, connections, ready, app.wakeups.release, app.pool.terminate).serve(sockets=[listener])


def pages_of(app: App) -> Pages:
    """The pages at /ui. What makes them is loaded, beside the event loop, when somebody asks for the first one."""
    loading: asyncio.Task[Pages] | None = None

    def load() -> Pages:
        from handoff.web.site import Site

        return Site(app).answer

    async def answer(scope: Scope, send: Send, headers: dict[str, str], body: bytes) -> int:
        nonlocal loading
        if loading is None:
            loading = asyncio.create_task(asyncio.to_thread(load))
        return await (await asyncio.shield(loading))(scope, send, headers, body)

    return answer


class _Server(uvicorn.Server):
    """uvicorn, but it ends waiting calls before it waits for open ones, and handles signals on the event loop."""

    def __init__(
        self,
        config: uvicorn.Config,
        connections: Connections,
        ready: Callable[[], None] | None,
        release: Callable[[], None],
        cut_off: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._ready = ready
        self._release = release
        self._cut_off = cut_off

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _settle_memory()
        if self._ready is not None:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_S == 0:
            self._connections.check()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._release()
        # Also after this method has returned: what is closed then may wait for the database too.
        asyncio.get_running_loop().call_later(_CALLS_S, self._cut_off)
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_ANSWERS_S)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(name) != signal.SIG_IGN:  # SIGHUP is ignored under nohup
                loop.add_signal_handler(name, self.handle_exit, name, None)
        yield


def share_of_descriptors(settings: Settings) -> tuple[int, int]:
    """How many connections the limit on open files allows, and how many may wait to be accepted.

    Raises the limit as far as the process may. The event loop accepts all that wait before it can refuse any, so they need
    descriptors too.
    """
    others = _OTHER_DESCRIPTORS + settings.pool_size + SPARE_CONNECTIONS
    wanted = settings.connections_max + _BACKLOG + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings.connections_max, _BACKLOG
    backlog = max(1, min(_BACKLOG, soft // 8))
    allowed = max(1, min(settings.connections_max, soft - backlog - others))
    if allowed < settings.connections_max:
        log.warning(
            "http.connections_limited", connections_max=allowed, wanted=settings.connections_max, open_files_max=soft
        )
    return allowed, backlog


def _settle_memory() -> None:
    """Exempt the objects made so far from garbage collection, because they live until the end. Saves a tenth of a call."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
