"""Idempotency keys: the first result of a write is kept under (agent, key) and given again to whoever repeats it.

Appends keep theirs inside their own statement (append.py).
"""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import orjson
from asyncpg import Record

from handoff.encoding import to_json
from handoff.errors import Conflict
from handoff.store.connect import Connection, Pool, after_commit, transact
from handoff.telemetry import metrics

CLAIM = """
    INSERT INTO idempotency (agent, key, tool, fingerprint, created_at) VALUES ($1, $2, $3, $4, now())
    ON CONFLICT DO NOTHING
    RETURNING key
"""
FIND = "SELECT tool, fingerprint, result FROM idempotency WHERE agent = $1 AND key = $2"
KEEP = "UPDATE idempotency SET result = $3 WHERE agent = $1 AND key = $2"


class Keyed(Protocol):
    """Arguments of a write: a pydantic model with an optional idempotency key."""

    @property
    def idempotency_key(self) -> str | None:
        """The caller's key."""
        ...

    def model_dump(self) -> dict[str, Any]:
        """All arguments as JSON values."""
        ...


def fingerprint(tool: str, args: Keyed) -> bytes:
    """SHA-256 of the tool and its arguments in canonical form; the key and the agent, who owns the key, do not count."""
    rest = {name: value for name, value in args.model_dump().items() if name not in ("idempotency_key", "agent")}
    return hashlib.sha256(tool.encode() + b"\0" + orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).digest()


async def once(
    pool: Pool, tool: str, agent: str, args: Keyed, work: Callable[[Connection], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Run `work` in a transaction; under an idempotency key, once, and give its first result to every repeat.

    Raises Conflict when the key was used with other arguments.
    """
    key = args.idempotency_key
    if key is None:
        return await transact(pool, work)

    async def claimed(conn: Connection) -> dict[str, Any]:
        prior = await _claim(conn, agent, key, tool, fingerprint(tool, args))
        if prior is not None:
            after_commit(partial(metrics.REPLAYS.add, 1, tool))
            return prior
        result = orjson.loads(to_json(await work(conn)))
        await conn.execute(KEEP, agent, key, result)
        return result

    return await transact(pool, claimed)


def reused(key: str) -> Conflict:
    """The key was used before, for something else."""
    return Conflict(
        "idempotency_conflict",
        f"The idempotency_key {key!r} was used before with other arguments.",
        "Use a new key for a new call; repeat a call with exactly its first arguments.",
    )


async def _claim(conn: Connection, agent: str, key: str, tool: str, print_: bytes) -> dict[str, Any] | None:
    """Take the key for this transaction and return None; or, if it was taken, return the first result.

    Waits for another transaction that is just using the key. Raises Conflict when the arguments differ.
    """
    if await conn.fetchval(CLAIM, agent, key, tool, print_) is not None:
        return None
    prior: Record | None = await conn.fetchrow(FIND, agent, key)
    if prior is None or prior["tool"] != tool or prior["fingerprint"] != print_:
        raise reused(key)
    return prior["result"]
