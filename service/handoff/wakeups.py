"""Doorbells: who waits for a handoff is woken by NOTIFY, whichever process made the change. No polling.

A doorbell is `agent:NAME`, `capability:NAME` or `handoff:ID` (`store/handoffs.py` rings them, at commit).
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import structlog
from mcp.server.subscriptions import ResourceUpdated, ServerEvent

from handoff.errors import Unavailable
from handoff.settings import Settings
from handoff.store import agents
from handoff.store.connect import Pool, connect_alone, connection

log = structlog.get_logger(__name__)

CHANNEL = "handoff"
_RECONNECT_S, _RECONNECT_S_MAX = 0.1, 5.0
_KEEPALIVE_S = 10.0


class Wakeups:
    """One LISTEN connection a process, and those who wait on it. It reconnects by itself, and then wakes everybody."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._waiters = 0
        self._listeners: dict[object, Callable[[ServerEvent], None]] = {}
        self._subscribed: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._spreading: set[asyncio.Task[None]] = set()
        self._listening = False
        self.closing = False  # nobody is to wait any more
        self.on_release: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Let everybody who waits go, and stop listening."""
        self.release()
        tasks = [*self._spreading, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def release(self) -> None:
        """Let everybody who waits or is subscribed go; nobody waits from now on."""
        self.closing = True
        for action in self.on_release:
            action()
        self._wake_all()

    @asynccontextmanager
    async def waiting(self, bells: Iterable[str]) -> AsyncGenerator[asyncio.Event]:
        """An event that is set when one of the doorbells rings. Enter before looking, so that nothing is missed.

        Raises Unavailable when `waiters_max` wait already.
        """
        if self._waiters >= self._settings.waiters_max:
            raise Unavailable(
                "overloaded",
                "Too many calls are waiting on this service already.",
                "Call again with wait_seconds=0, or in a few seconds.",
            )
        event = asyncio.Event()
        if self.closing:
            event.set()
        self._waiters += 1
        names = set(bells)
        for name in names:
            self._waiting[name].add(event)
        try:
            yield event
        finally:
            self._waiters -= 1
            for name in names:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]

    # The SDK's SubscriptionBus: what was rung, as resources that changed.

    async def publish(self, event: ServerEvent) -> None:
        """Deliver an event to the subscribers of this process."""
        for listener in list(self._listeners.values()):
            listener(event)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register a subscriber of this process; returns what ends it."""
        token = object()
        self._listeners[token] = listener
        return lambda: (self._listeners.pop(token, None), None)[1]

    @contextmanager
    def subscribed(self, uris: Iterable[str]) -> Generator[None]:
        """Remember what is subscribed to, for the time after a lost connection: what rang then is not known."""
        counted = Counter(uris)
        self._subscribed += counted
        try:
            yield
        finally:
            self._subscribed -= counted

    async def _listen(self) -> None:
        pause_s = _RECONNECT_S
        while True:
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 - whatever ends it, a process that does not listen wakes nobody
                if self._listening:
                    self._listening, pause_s = False, _RECONNECT_S
                log.warning("wakeups.lost", error=type(error).__name__, retry_s=round(pause_s, 2))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _RECONNECT_S_MAX)

    async def _listen_once(self) -> None:
        conn = await connect_alone(self._settings, application_name="handoff-wakeups")
        lost = asyncio.Event()
        conn.add_termination_listener(lambda _: lost.set())
        try:
            await conn.add_listener(CHANNEL, self._rung)
            self._listening = True
            await self._catch_up()
            while not lost.is_set():
                try:
                    async with asyncio.timeout(_KEEPALIVE_S):
                        await lost.wait()
                except TimeoutError:
                    await conn.execute("SELECT 1", timeout=self._settings.statement_timeout_s)
            raise ConnectionResetError("the connection that listens was closed")
        finally:
            with suppress(Exception):
                await conn.close(timeout=1)

    def _rung(self, _conn: Any, _pid: int, _channel: str, payload: object) -> None:
        for bell in str(payload).split("\n"):
            for event in self._waiting.get(bell, ()):
                event.set()
            if self._listeners:
                self._spread(bell)

    def _spread(self, bell: str) -> None:
        kind, _, name = bell.partition(":")
        if kind == "capability":
            task = asyncio.create_task(self._spread_capability(name))
            self._spreading.add(task)
            task.add_done_callback(self._spreading.discard)
        else:
            self._tell(f"handoff://agents/{name}/inbox" if kind == "agent" else f"handoff://handoffs/{name}")

    async def _spread_capability(self, capability: str) -> None:
        with suppress(Unavailable):
            async with connection(self._pool) as conn:
                names = await agents.with_capability(conn, capability)
            for name in names:
                self._tell(f"handoff://agents/{name}/inbox")

    def _tell(self, uri: str) -> None:
        for listener in list(self._listeners.values()):
            listener(ResourceUpdated(uri=uri))

    async def _catch_up(self) -> None:
        """What rang while nobody listened is not known, so everybody looks again."""
        self._wake_all()
        for uri in list(self._subscribed):
            self._tell(uri)
            await asyncio.sleep(0)  # there may be many

    def _wake_all(self) -> None:
        for events in list(self._waiting.values()):
            for event in events:
                event.set()
