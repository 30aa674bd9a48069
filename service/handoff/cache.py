"""The cache, with all its keys and TTLs.

It holds only what can be computed again from Postgres. A key contains what its value was computed from: the version of the
session or, for a list, which transactions last wrote its rows. So a stale entry is never read, whoever wrote, in whichever
process. Figures say when they were computed. Without Redis, answers are slower but the same.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from time import monotonic, perf_counter, time_ns
from typing import Any, Protocol

import orjson
import structlog

from handoff.encoding import to_json
from handoff.settings import Misconfigured, Settings
from handoff.telemetry import calls, metrics

log = structlog.get_logger(__name__)

BRIEF_TTL_S = 3_600
SUMMARY_TTL_S = 3_600
FIGURES_TTL_S = 3_600
PAGE_TTL_S = 300  # a page is read again soon or never
PAGE_BYTES_MAX = 32 << 10  # a larger one is read from Postgres each time, so that pages take 16 MiB at most in a process


def brief_key(session: Mapping[str, Any], token_budget: int) -> str:
    """Return the key of a session's brief for a budget in tokens."""
    return f"handoff:brief:v3:{_state(session)}:{token_budget}"


def summary_key(session: Mapping[str, Any]) -> str:
    """Return the key of a session's summary."""
    return f"handoff:summary:{_state(session)}"


def figures_key(database: str, name: str, viewer: str | None, question: Mapping[str, str]) -> str:
    """Return the key of figures that answer a question to a viewer. `database` tells apart those that share a Redis."""
    return f"handoff:figures:v1:{sha256(to_json([database, name, viewer, dict(question)])).hexdigest()}"


def page_key(session: Mapping[str, Any], resource: str, query: str) -> str:
    """Return the key of a page of a list that belongs to a session; `query` is everything that the page depends on."""
    return f"handoff:page:{resource}:{_state(session)}:{sha256(query.encode()).hexdigest()}"


def list_key(resource: str, asked: Sequence[Any], outline: Sequence[str]) -> str:
    """Return the key of a page of a list over many sessions, whoever reads it.

    `asked` is everything else that the page depends on, beside the rows that the outline stands for.
    """
    return f"handoff:list:v1:{resource}:{sha256(to_json([asked, outline])).hexdigest()}"


def _state(session: Mapping[str, Any]) -> str:
    """Return a key part that is unique to one state of one session.

    Id and version alone could repeat, in another database that uses the same Redis or after a restore from a backup. Every
    change updates last_activity_at.
    """
    times_us = (round(session[name].timestamp() * 1_000_000) for name in ("created_at", "last_activity_at"))
    return ":".join(map(str, (session["id"], session["version"], *times_us)))


class Cache(Protocol):
    """A store of JSON values by key. Failures are not raised: a failed `get` is a miss, a failed `put` stores nothing."""

    name: str

    async def get(self, key: str) -> Any | None:
        """Return the value, or None if it is missing, expired or cannot be read."""
        ...

    async def put(self, key: str, value: Any, ttl_s: int) -> None:
        """Store a value for `ttl_s` seconds."""
        ...

    def drop_expired(self) -> int:
        """Drop values whose time is over, where that does not happen by itself; return how many."""
        ...

    async def ping(self) -> str | None:
        """Return None if the cache answers, otherwise what is wrong."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class LocalCache:
    """The cache of one process, for a service without Redis: bounded, with the least recently used entry evicted first."""

    name = "in-process"

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    async def get(self, key: str) -> Any | None:
        """Return a copy of the value, or None if it is missing or expired."""
        began = _begin()
        found = self._entries.get(key)
        if found is None or found[0] < monotonic():
            _done(self.name, "get", began, "miss")
            return None
        self._entries.move_to_end(key)
        _done(self.name, "get", began, "hit")
        return orjson.loads(found[1])

    async def put(self, key: str, value: Any, ttl_s: int) -> None:
        """Store a copy of the value for `ttl_s` seconds; if the cache is full, evict the least recently used entry."""
        began = _begin()
        self._entries[key] = (monotonic() + ttl_s, body := to_json(value))
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
        _done(self.name, "put", began, "stored")
        metrics.value_cached(self.name, len(body))

    def drop_expired(self) -> int:
        """Drop values whose time is over: nobody reads them again, and until the cache is full they would stay."""
        now = monotonic()
        over = [key for key, (until, _) in self._entries.items() if until < now]
        for key in over:
            del self._entries[key]
        return len(over)

    async def ping(self) -> str | None:
        """Return None: memory is always available."""
        return None

    async def close(self) -> None:
        """Remove all entries."""
        self._entries.clear()


class RedisCache:
    """A cache that processes share. After a failure it is skipped for `cache_retry_s`, so that calls do not wait for it."""

    name = "redis"

    def __init__(self, url: str, settings: Settings) -> None:
        # Only here, for a service without Redis starts with a fifth less work when it need not load the client.
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self._failures = (RedisError, OSError, TimeoutError)
        try:
            self._redis: Redis = Redis.from_url(
                url,
                password=settings.redis_password(),
                socket_timeout=settings.cache_timeout_s,
                socket_connect_timeout=settings.cache_timeout_s,
                retry=Retry(NoBackoff(), 0),
                max_connections=64,
            )
        except (ValueError, TypeError) as error:  # which could show the password
            raise Misconfigured("HANDOFF_REDIS_URL: the client can't use this address; check its options.") from error
        self._retry_s = settings.cache_retry_s
        self._away_until = 0.0

    async def get(self, key: str) -> Any | None:
        """Return the value, or None if it is missing, is not JSON, or Redis does not answer."""
        began = _begin()
        if monotonic() < self._away_until:
            _done(self.name, "get", began, "skipped")
            return None
        try:
            found = await self._redis.get(key)
            value = None if found is None else orjson.loads(found)
        except orjson.JSONDecodeError:
            value = None
        except self._failures as error:
            _done(self.name, "get", began, "error")
            self._lost(error)
            return None
        _done(self.name, "get", began, "miss" if value is None else "hit")
        return value

    async def put(self, key: str, value: Any, ttl_s: int) -> None:
        """Store the value for `ttl_s` seconds; without Redis, do nothing."""
        began = _begin()
        if monotonic() < self._away_until:
            _done(self.name, "put", began, "skipped")
            return
        try:
            body = to_json(value)
            await self._redis.set(key, body, ex=ttl_s)
        except self._failures as error:
            _done(self.name, "put", began, "error")
            self._lost(error)
        else:
            _done(self.name, "put", began, "stored")
            metrics.value_cached(self.name, len(body))

    def drop_expired(self) -> int:
        """Return 0: Redis does so by itself."""
        return 0

    async def ping(self) -> str | None:
        """Return None if Redis answers, otherwise the error."""
        try:
            await self._redis.ping()
        except self._failures as error:
            return f"{type(error).__name__}: {error}"
        return None

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._redis.aclose()

    def _lost(self, error: Exception) -> None:
        self._away_until = monotonic() + self._retry_s
        log.warning("cache.away", error=type(error).__name__, retry_s=self._retry_s)


def _begin() -> tuple[float, int]:
    return perf_counter(), time_ns()


def _done(cache: str, operation: str, began: tuple[float, int], result: str) -> None:
    """Record the metrics of a cache operation, and add it to the current call's record if it went to Redis."""
    metrics.CACHE_DURATION.record(perf_counter() - began[0], cache, operation, result)
    record = calls.current()
    if record is not None and cache == RedisCache.name and result != "skipped":
        error = "cache_error" if result == "error" else ""
        attributes: dict[str, calls.AttributeValue] = {"db.system.name": "redis", "handoff.cache.result": result}
        record.add(calls.finished(f"cache {operation}", began[1], error, **attributes))


def open_cache(settings: Settings) -> Cache:
    """Return the configured cache: Redis if HANDOFF_REDIS_URL is set, otherwise one in this process's memory."""
    if settings.redis_url is None:
        log.info("cache.in_process", why="HANDOFF_REDIS_URL is not set", entries_max=settings.cache_local_entries_max)
        return LocalCache(settings.cache_local_entries_max)
    return RedisCache(settings.redis_url.get_secret_value(), settings)
