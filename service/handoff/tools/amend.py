"""Amending a handoff: its sender replaces the instructions of an offer, or adds a note for the agent that holds it."""

import hashlib
from typing import Any, Final, Protocol

from asyncpg import Record

from handoff.context import Call
from handoff.encoding import counted
from handoff.errors import Conflict, Forbidden, Invalid, handoff_not_found
from handoff.model import HELD_STATES, INSTRUCTIONS_CHARS_MAX
from handoff.store import entries, handoffs, idempotency, sessions
from handoff.store.connect import Connection
from handoff.store.idempotency import Keyed
from handoff.views import changed_view

_TAKEN: Final = frozenset({"agent", "session_key", "handoff_id", "instructions", "idempotency_key"})


class Amended(Keyed, Protocol):
    """The arguments of `request_handoff` that an amendment reads."""

    @property
    def session_key(self) -> str:
        """The session of the handoff."""
        ...

    @property
    def instructions(self) -> str:
        """The new instructions, or the note."""
        ...

    def asked(self) -> dict[str, Any]:
        """The arguments that differ from their default."""
        ...


async def amend(call: Call, agent: str, args: Amended, handoff_id: int) -> dict[str, Any]:
    """Replace the instructions of an offer, or put a note for the holder before them; return the handoff.

    Arguments with their default, or as the handoff has them, change nothing: some clients fill in every one. Raises Invalid
    when another would change more, or the session is another; NotFound when the agent may not see the
    handoff; Forbidden unless it is the sender; Conflict when the handoff is settled, or the note does not fit.
    """

    async def work(conn: Connection) -> dict[str, Any]:
        found = await handoffs.find(conn, handoff_id, agent)
        if found is None or not handoffs.may_act(found, agent):
            raise handoff_not_found(handoff_id)
        if found["session_key"] != args.session_key:
            raise Invalid(
                "invalid_arguments",
                f"Handoff {handoff_id} belongs to session {found['session_key']!r}, not to {args.session_key!r}.",
                "Repeat the call with the session_key and the handoff_id of the same offer.",
            )
        if found["sender"] != agent:
            raise Forbidden(
                "not_sender",
                f"Handoff {handoff_id} was sent by {found['sender']!r}; only the sender can change its instructions.",
                "Leave them. If you may write to the session, append what others should know with update_context.",
            )
        if others := _changes(args, found):
            raise Invalid(
                "invalid_arguments",
                f"With handoff_id, only the instructions of a handoff can be changed, not {' and '.join(others)}.",
                "Repeat the call without them. To change more, withdraw the offer with resolve_handoff action=cancel and "
                "make a new one.",
            )
        # Entries never change, so most of the digest is made before the lock, which would delay appends.
        before = await sessions.find(conn, args.session_key)
        digest, hashed = hashlib.sha256(), before["last_sequence"] if before and found["state"] == "offered" else 0
        await entries.add_hashes(conn, digest, found["session_id"], after=0, up_to=hashed)
        row = await handoffs.lock(conn, handoff_id, agent) or found
        row = await handoffs.settle(conn, row, call.app.settings.lapses_max)
        session = await sessions.lock(conn, row["session_id"])
        if row["state"] in HELD_STATES:
            amendment = _with_note(row, args.instructions, session["last_sequence"])
        else:
            await entries.add_hashes(conn, digest, session["id"], after=hashed, up_to=session["last_sequence"])
            amendment = handoffs.Amendment(args.instructions, session["last_sequence"], digest.digest())
        changed = await handoffs.transition(conn, row, "amend", agent=agent, amendment=amendment)
        return changed_view(changed, agent)

    return await idempotency.once(call.app.pool, "request_handoff", agent, args, work)


def _changes(args: Amended, handoff: Record) -> list[str]:
    """The arguments that ask for another change than that of the instructions."""
    asked = args.asked().items()
    return sorted(it for it, value in asked if it not in _TAKEN and (it not in handoff or value != handoff[it]))


def _with_note(row: Record, note: str, last_sequence: int) -> handoffs.Amendment:
    """Return the handoff with a note for its holder before its instructions. It says after which entry it was written."""
    noted = f"Note from {row['sender']}, after entry {last_sequence}: {note}\n\n{row['instructions']}"
    if len(noted) > INSTRUCTIONS_CHARS_MAX:
        raise Conflict(
            "limit_reached",
            f"With this note, the instructions of handoff {row['id']} would have {len(noted)} characters; the limit is "
            f"{INSTRUCTIONS_CHARS_MAX}.",
            f"Shorten the note by {counted(len(noted) - INSTRUCTIONS_CHARS_MAX, 'character')} and repeat the call.",
        )
    return handoffs.Amendment(noted, row["as_of_sequence"], row["context_digest"])
