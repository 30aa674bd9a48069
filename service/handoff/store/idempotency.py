"""Idempotency keys: the first result of a write is stored under (agent, key) and returned to every repeat of the call.

Appends store their keys in the append statement itself (append.py).
"""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

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

    def model_dump(self, *, exclude_unset: bool, exclude_none: bool) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        ...


# The defaults of 0.1.0, which its fingerprints contained: of each tool, and of each entry of an append. They serve retries
# over an upgrade from it, and can go, with `former_fingerprint`, in the second release after it.
_FORMER_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "register_session": {"session_key": None, "retention_policy": "standard", "metadata": None},
    "close_session": {"outcome": "completed"},
    "update_context": {"expected_sequence": None},
    "request_handoff": {
        "target_agent": None,
        "target_capability": None,
        "request_type": "context_transfer",
        "priority": 5,
        "deadline_minutes": None,
    },
    "accept_handoff": {"lease_seconds": None, "token_budget": 1_500},
    "renew_handoff": {"lease_seconds": None},
    "resolve_handoff": {"token": None, "note": None},
}
_FORMER_ENTRY_DEFAULTS: Final[dict[str, Any]] = {"metadata": None, "supersedes": None}


def fingerprint(tool: str, args: Keyed) -> bytes:
    """Return the SHA-256 of the tool's name and of the arguments that were sent, in canonical form.

    Defaults are left out, so that a new optional argument changes no fingerprint, and so are nulls, which mean the same. The
    idempotency key and the agent are left out too: together they are the key under which the result is stored.
    """
    return _digest(tool, _sent(args))


def former_fingerprint(tool: str, args: Keyed) -> bytes:
    """Return the fingerprint as version 0.1.0 stored it, with its defaults for what was not sent."""
    sent = _FORMER_DEFAULTS.get(tool, {}) | _sent(args)
    if "entries" in sent:
        sent["entries"] = [_FORMER_ENTRY_DEFAULTS | entry for entry in sent["entries"]]
    return _digest(tool, sent)


def _sent(args: Keyed) -> dict[str, Any]:
    sent = args.model_dump(exclude_unset=True, exclude_none=True)
    return {name: value for name, value in sent.items() if name not in ("idempotency_key", "agent")}


def _digest(tool: str, args: dict[str, Any]) -> bytes:
    return hashlib.sha256(tool.encode() + b"\0" + orjson.dumps(args, option=orjson.OPT_SORT_KEYS)).digest()


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
        prior = await _claim(conn, agent, key, tool, args)
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


async def _claim(conn: Connection, agent: str, key: str, tool: str, args: Keyed) -> dict[str, Any] | None:
    """Claim the key for this transaction and return None, or return the first result if the key was used before.

    Waits for any other transaction that is using the key. Raises Conflict if `tool` or `args` differ from the first use.
    """
    digest = fingerprint(tool, args)
    if await conn.fetchval(CLAIM, agent, key, tool, digest) is not None:
        return None
    prior: Record | None = await conn.fetchrow(FIND, agent, key)
    if prior is None or prior["tool"] != tool or prior["fingerprint"] not in (digest, former_fingerprint(tool, args)):
        raise reused(key)
    return prior["result"]
