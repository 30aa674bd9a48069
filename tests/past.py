"""A past of sessions, entries and handoffs, made at random, for whatever counts them."""

import random
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

AGENTS: Final = ("ada", "bob", "eve")
NOW: Final = datetime.now(UTC)
_SESSION: Final = """
    INSERT INTO session (key, created_by, owner, writers, status, retention_policy, metadata, created_at, expires_at,
                         last_activity_at, last_sequence, content_bytes, version, status_since)
    VALUES ($1, $2, $2, ARRAY[$2], $3, $4, '{}', $5, $6, $7, $8, $9, 1, $7) RETURNING id
"""
_ENTRY: Final = """
    INSERT INTO context_entry (session_id, sequence, type, content, size_bytes, content_hash, author, created_at,
                               superseded_by)
    VALUES ($1, $2, $3, repeat('x', $4), $4, sha256(repeat('x', $4)::bytea), $5, $6, $7)
"""
_HANDOFF: Final = """
    INSERT INTO handoff (session_id, request_type, sender, target_agent, target_capability, instructions, priority, deadline,
                         state, holder, token, lease_expires_at, lapses, as_of_sequence, context_digest, created_at,
                         accepted_at, updated_at)
    VALUES ($1, 'full_handoff', $2, $3, $4, 'x', 5, $5, $6, $7, $8, $9, $10, 1, ''::bytea, $11, $12, $13) RETURNING id
"""


async def filled(db: asyncpg.Connection) -> None:
    """A past of two months, by chance: sessions of all statuses and policies, entries of all sizes, handoffs of all ends."""
    chance = random.Random(7)  # noqa: S311 - repeats the same past
    for number in range(120):
        created = NOW - timedelta(days=chance.uniform(0, 60))
        status = chance.choice(["active", "dormant", "completed", "cancelled", "expired"])
        if chance.random() < 0.2:
            status = "active"
        owner, count = chance.choice(AGENTS), chance.randint(0, 12)
        times = sorted(min(NOW, created + timedelta(hours=chance.expovariate(1 / 20))) for _ in range(count))
        sizes = [chance.choice([10, 500, 20_000, 100_000, 100_001]) for _ in range(count)]
        last = times[-1] if times else created
        expires = NOW + timedelta(hours=chance.choice([-1, 5]))
        session = await db.fetchval(
            _SESSION,
            f"s{number}",
            owner,
            status,
            chance.choice(["standard", "short"]),
            created,
            expires,
            last,
            count,
            sum(sizes),
        )
        joined = {owner, *chance.sample(AGENTS, chance.randint(0, 2))}
        for agent in joined:
            await db.execute("INSERT INTO participant VALUES ($1, $2, $3)", agent, session, created)
        for sequence, (at, size) in enumerate(zip(times, sizes, strict=True), 1):
            type_ = chance.choice(["message", "file", "decision", "summary"])
            superseded_by = count if sequence < count and chance.random() < 0.2 else None
            await db.execute(_ENTRY, session, sequence, type_, size, chance.choice(sorted(joined)), at, superseded_by)
        for _ in range(chance.randint(0, 3)):
            await _handoff(db, chance, session, owner, created)


async def _handoff(db: asyncpg.Connection, chance: random.Random, session: int, sender: str, created: datetime) -> None:
    state = chance.choice(["offered", "accepted", "blocked", "completed", "completed", "rejected", "cancelled", "expired"])
    offered = min(NOW, created + timedelta(hours=chance.uniform(0, 48)))
    taker = chance.choice([agent for agent in AGENTS if agent != sender])
    target, capability = (taker, None) if chance.random() < 0.7 else (None, chance.choice(["ada", "review"]))
    token = chance.choice([1, 1, 3]) if state in ("accepted", "blocked", "completed") else chance.choice([0, 0, 1])
    acceptances = [offered + timedelta(minutes=chance.uniform(1, 300) + 400 * turn) for turn in range(token)]
    last = (acceptances[-1] if acceptances else offered) + timedelta(minutes=chance.uniform(1, 900))
    held = state in ("accepted", "blocked")
    handoff = await db.fetchval(
        _HANDOFF, session, sender, target, capability, chance.choice([None, last, last + timedelta(days=1)]), state,
        taker if held or state == "completed" else None, token, NOW if held else None, max(0, token - 1), offered,
        acceptances[-1] if acceptances else None, last,
    )  # fmt: skip
    for at in acceptances:
        await db.execute(
            "INSERT INTO event (session_id, handoff_id, kind, agent, at) VALUES ($1, $2, 'handoff.accepted', $3, $4)",
            session, handoff, taker, at,
        )  # fmt: skip
