"""Wakes waiting calls and notifies subscribers when a handoff changes, by LISTEN and NOTIFY, without polling.

A change made by any process notifies the topics `agent:NAME`, `capability:NAME` and `handoff:ID` at commit
(store/handoffs.py).
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
from handoff.store import agents, configuration
from handoff.store.connect import Pool, connect_alone, connection
from handoff.tasks import end_tasks

log = structlog.get_logger(__name__)

CHANNEL = "handoff"
_RECONNECT_S, _RECONNECT_S_MAX = 0.1, 5.0
_KEEPALIVE_S = 10.0  # how often the LISTEN connection is asked whether it still works
# How long Postgres keeps a session that it hears nothing from. Otherwise it would keep notifications for a lost one forever.
_SILENCE_S_MAX = 30.0


class Wakeups:
    """The LISTEN connection of a process, its waiting calls and its subscribers.

    It reconnects by itself, and then wakes every waiting call, because notifications sent in the meantime are lost.
    """

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._waiters = 0
        self._listeners: dict[object, Callable[[ServerEvent], None]] = {}
        self._subscribed: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._publishing: set[asyncio.Task[None]] = set()
        self._listening = False
        self.closing = False  # once True, calls no longer wait
        self.on_release: list[Callable[[], None]] = []
        self.on_configuration: list[Callable[[], None]] = []  # called when the configuration has changed, or may have

    def start(self) -> None:
        """Start listening."""
        self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Release all waiting calls and stop listening."""
        self.release()
        await end_tasks([*self._publishing, *([self._task] if self._task else [])])

    def release(self) -> None:
        """Release all waiting calls and end all subscriptions. From now on no call waits."""
        self.closing = True
        for action in self.on_release:
            action()
        self._wake_all()

    @asynccontextmanager
    async def waiting(self, topics: Iterable[str]) -> AsyncGenerator[asyncio.Event]:
        """Yield an event that is set when one of the topics is notified.

        Enter this block before reading the database, so that no change is missed between reading and waiting. Raises
        Unavailable if `waiters_max` calls are waiting already.
        """
        if self._waiters >= self._settings.waiters_max:
            raise Unavailable(
                "overloaded",
                "Too many calls are already waiting on this service.",
                "Call again now with wait_seconds=0, or call again in a few seconds.",
            )
        event = asyncio.Event()
        if self.closing:
            event.set()
        self._waiters += 1
        wanted = set(topics)
        for topic in wanted:
            self._waiting[topic].add(event)
        try:
            yield event
        finally:
            self._waiters -= 1
            for topic in wanted:
                self._waiting[topic].discard(event)
                if not self._waiting[topic]:
                    del self._waiting[topic]

    # publish and subscribe implement the SDK's SubscriptionBus.

    async def publish(self, event: ServerEvent) -> None:
        """Deliver an event to all subscribers of this process."""
        for listener in list(self._listeners.values()):
            listener(event)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register a subscriber of this process; return a function that ends the subscription."""
        token = object()
        self._listeners[token] = listener
        return lambda: (self._listeners.pop(token, None), None)[1]

    @contextmanager
    def subscribed(self, uris: Iterable[str]) -> Generator[None]:
        """Count the subscribed URIs while the block runs, so that they can be notified after the connection was lost."""
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
            except Exception as error:  # noqa: BLE001 - after any error it must reconnect: until then nothing wakes a waiting call
                if self._listening:
                    self._listening, pause_s = False, _RECONNECT_S
                log.warning("wakeups.lost", error=type(error).__name__, retry_s=round(pause_s, 2))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _RECONNECT_S_MAX)

    async def _listen_once(self) -> None:
        silence_ms_max = f"{_SILENCE_S_MAX * 1_000:.0f}"
        conn = await connect_alone(self._settings, application_name="handoff-wakeups", idle_session_timeout=silence_ms_max)
        lost = asyncio.Event()
        conn.add_termination_listener(lambda _: lost.set())
        try:
            await conn.add_listener(CHANNEL, self._notified)
            await conn.add_listener(configuration.CHANNEL, self._configured)
            self._listening = True
            self._configured()
            await self._notify_all()
            while not lost.is_set():
                try:
                    async with asyncio.timeout(_KEEPALIVE_S):
                        await lost.wait()
                except TimeoutError:
                    await conn.execute("SELECT 1")
            raise ConnectionResetError("the LISTEN connection was closed")
        finally:
            conn.terminate()

    def _notified(self, _conn: Any, _pid: int, _channel: str, payload: object) -> None:
        for topic in str(payload).split("\n"):
            for event in self._waiting.get(topic, ()):
                event.set()
            if self._listeners:
                self._publish_topic(topic)

    def _configured(self, *_: object) -> None:
        for act in self.on_configuration:
            act()
        self._publish_uri("handoff://config")

    def _publish_topic(self, topic: str) -> None:
        kind, _, name = topic.partition(":")
        if kind == "capability":
            task = asyncio.create_task(self._publish_capability(name))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)
        else:
            self._publish_uri(f"handoff://agents/{name}/inbox" if kind == "agent" else f"handoff://handoffs/{name}")

    async def _publish_capability(self, capability: str) -> None:
        with suppress(Unavailable):
            async with connection(self._pool) as conn:
                names = await agents.with_capability(conn, capability)
            for name in names:
                self._publish_uri(f"handoff://agents/{name}/inbox")

    def _publish_uri(self, uri: str) -> None:
        for listener in list(self._listeners.values()):
            listener(ResourceUpdated(uri=uri))

    async def _notify_all(self) -> None:
        """Wake every waiting call and notify every subscription: changes while the connection was lost are unknown."""
        self._wake_all()
        for uri in list(self._subscribed):
            self._publish_uri(uri)
            await asyncio.sleep(0)  # there may be many, and other tasks must run in between

    def _wake_all(self) -> None:
        for events in list(self._waiting.values()):
            for event in events:
                event.set()
