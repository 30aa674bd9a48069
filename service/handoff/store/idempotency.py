"""Idempotency keys: the first result of a write is stored under (agent, key) and returned to every repeat of the call.

Appends store their keys in the append statement itself (append.py).
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
    """The arguments of a write: a pydantic model with an optional idempotency key."""

    @property
    def idempotency_key(self) -> str | None:
        """The caller's key, if it gave one."""
        ...

    def model_dump(self) -> dict[str, Any]:
        """Return all arguments as JSON values."""
        ...


def fingerprint(tool: str, args: Keyed) -> bytes:
    """Return the SHA-256 of the tool's name and its arguments in canonical form.

    The idempotency key and the agent are left out: together they are the key under which the result is stored.
    """
    rest = {name: value for name, value in args.model_dump().items() if name not in ("idempotency_key", "agent")}
    return hashlib.sha256(tool.encode() + b"\0" + orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).digest()


async def once(
    pool: Pool, tool: str, agent: str, args: Keyed, work: Callable[[Connection], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Run `work` in a transaction. With an idempotency key, run it only once and return its first result to every repeat.

    Raises Conflict if the key was used before with different arguments.
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
    """Return the error for a key that was used before with a different call."""
    return Conflict(
        "idempotency_conflict",
        f"The idempotency_key {key!r} was already used with a different tool or different arguments.",
        "For a new call, use a new key. To repeat a call, send exactly the same arguments as the first time.",
    )


async def _claim(conn: Connection, agent: str, key: str, tool: str, digest: bytes) -> dict[str, Any] | None:
    """Claim the key for this transaction and return None, or return the first result if the key was used before.

    Waits for any other transaction that is using the key. Raises Conflict if `tool` or `digest` differs from the first use.
    """
    if await conn.fetchval(CLAIM, agent, key, tool, digest) is not None:
        return None
    prior: Record | None = await conn.fetchrow(FIND, agent, key)
    if prior is None or prior["tool"] != tool or prior["fingerprint"] != digest:
        raise reused(key)
    return prior["result"]
