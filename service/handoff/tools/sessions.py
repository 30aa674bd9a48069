"""Registering and closing sessions."""

import hashlib
import secrets
from functools import partial
from typing import Annotated, Any, Final, Literal

import structlog
from pydantic import AfterValidator, Field

from handoff.configuration import DEFAULT_POLICY, POLICY_CHARS_MAX
from handoff.context import Call
from handoff.errors import Conflict, Forbidden, NotFound, session_closed
from handoff.model import OPEN_STATUSES, SESSION_KEY_CHARS_MAX, SessionAction
from handoff.store import handoffs, idempotency, lifecycle, sessions
from handoff.store.append import Append, NewEntry, append_within
from handoff.store.connect import Connection, after_commit
from handoff.tools.contract import (
    AgentArg,
    Arguments,
    IdempotencyKeyArg,
    MetadataArg,
    SessionKeyArg,
    Tool,
    acting_agent,
    no_nul,
    result_with,
)

log = structlog.get_logger(__name__)

_ACTION: Final[dict[str, SessionAction]] = {"completed": "complete", "cancelled": "cancel"}
SESSION_RESULT = result_with("session_key", "string")


def continues_a_session(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata, if `continues` is the key of a session or absent. Raises ValueError."""
    key = metadata.get("continues")
    if key is not None and not (isinstance(key, str) and len(key) <= SESSION_KEY_CHARS_MAX):
        raise ValueError("'continues' must be text: the key of the session that this one continues")
    return metadata


class RegisterSession(Arguments):
    """Open a session you own. Omit session_key to generate one. Unused, it expires.

    metadata: continues: an earlier session's key.
    """

    agent: AgentArg = None
    session_key: SessionKeyArg | None = None
    retention_policy: Annotated[str, Field(max_length=POLICY_CHARS_MAX), AfterValidator(no_nul)] = DEFAULT_POLICY
    metadata: (
        Annotated[
            MetadataArg,
            AfterValidator(continues_a_session),
            Field(json_schema_extra={"properties": {"continues": {"type": "string", "maxLength": SESSION_KEY_CHARS_MAX}}}),
        ]
        | None
    ) = None
    idempotency_key: IdempotencyKeyArg = None


class CloseSession(Arguments):
    """Close your session, permanently."""

    agent: AgentArg = None
    session_key: SessionKeyArg
    outcome: Literal["completed", "cancelled"] = "completed"
    idempotency_key: IdempotencyKeyArg = None


async def register_session(call: Call, args: RegisterSession) -> dict[str, Any]:
    """Create the session and its first entry; return the session. Raises Conflict when its key is taken."""
    agent = acting_agent(call.caller, args.agent)
    key = args.session_key or f"s-{secrets.token_hex(8)}"

    async def work(conn: Connection) -> dict[str, Any]:
        row = await sessions.create(conn, key, agent, args.retention_policy, args.metadata or {})
        if row is None:
            raise await _key_taken(conn, key, agent, call.caller.viewer(agent))
        entry = _system_entry(f"Session {key} registered by {agent}.")
        first = Append(key, agent, [entry], call.received, size_bytes=entry.size_bytes)
        await append_within(conn, first, call.app.settings)
        after_commit(
            partial(log.info, "session.registered", session=key, agent=agent, retention_policy=args.retention_policy)
        )
        return sessions.view(await sessions.lock(conn, row["id"]))

    return await idempotency.once(call.app.pool, "register_session", agent, args, work)


async def close_session(call: Call, args: CloseSession) -> dict[str, Any]:
    """Close the session; return it.

    Raises NotFound when there is none, Forbidden when another agent owns it, and Conflict when it is closed already or has
    open handoffs.
    """
    agent = acting_agent(call.caller, args.agent)

    async def work(conn: Connection) -> dict[str, Any]:
        found = await sessions.see(conn, args.session_key, call.caller.viewer(agent))
        row = await sessions.lock(conn, found["id"])
        if row["owner"] != agent:
            raise Forbidden(
                "not_owner",
                f"Session {args.session_key!r} belongs to {row['owner']!r}; only its owner can close it.",
                f"Leave it open; {row['owner']!r} can close it.",
                owner=row["owner"],
            )
        if row["status"] not in OPEN_STATUSES:
            raise session_closed(args.session_key, row["status"])
        if still_open := await handoffs.open_of_session(conn, row["id"]):
            raise Conflict(
                "open_handoffs",
                f"Session {args.session_key!r} can't be closed while handoffs of it are open: "
                f"{', '.join(map(str, still_open))}.",
                "Cancel those still on offer with resolve_handoff action=cancel, wait until the others are completed, and "
                "repeat the call.",
                handoff_ids=still_open,
            )
        return sessions.view(await lifecycle.change(conn, row, _ACTION[args.outcome], agent))

    return await idempotency.once(call.app.pool, "close_session", agent, args, work)


async def _key_taken(conn: Connection, key: str, agent: str, viewer: str | None) -> Conflict:
    """Another session has this key. Only who may read that session learns more of it; the hint depends on who may write."""
    try:
        row = await sessions.see(conn, key, viewer)
    except NotFound:
        return Conflict(
            "session_exists",
            f"The session key {key!r} is taken.",
            "Repeat the call with another session_key, or without one to get a generated key.",
        )
    is_usable = row["status"] in OPEN_STATUSES and agent in row["writers"]
    return Conflict(
        "session_exists",
        f"Session {key!r} already exists: it is {row['status']}, owned by {row['owner']!r}, at sequence "
        f"{row['last_sequence']}.",
        "To continue this session, call update_context. To open another one, repeat the call with another session_key."
        if is_usable
        else "Repeat the call with another session_key, or without one to get a generated key.",
        status=row["status"],
        owner=row["owner"],
        last_sequence=row["last_sequence"],
    )


def _system_entry(text: str) -> NewEntry:
    content = text.encode()
    return NewEntry("system", text, None, None, len(content), hashlib.sha256(content).digest())


REGISTER_SESSION = Tool("register_session", RegisterSession, register_session, SESSION_RESULT, "write")
CLOSE_SESSION = Tool("close_session", CloseSession, close_session, SESSION_RESULT, "write", destructive=True)
