"""What becomes of sessions' data, as administrators decide: legal holds, and deletion on request."""

from functools import partial
from typing import Annotated, Any, Final, Literal

import structlog
from pydantic import AfterValidator, Field

from handoff.context import Call
from handoff.errors import Conflict, Invalid, NotFound, session_not_found
from handoff.model import NAME_PATTERN, SESSION_KEY_CHARS_MAX
from handoff.store import audit, erasure, holds, integrity, sessions
from handoff.store.connect import Connection, connection, transact
from handoff.tools.contract import AgentArg, Arguments, Tool, acting_agent, no_nul, result_with

log = structlog.get_logger(__name__)

ERASED_MAX: Final = 100  # sessions per call
REASON_CHARS_MAX: Final = 2_000


class SessionData(Arguments):
    """Hold data, so that nothing deletes it; release it; delete it for good; or readmit a session from quarantine.

    of: session (by key), agent (hold: all sessions it takes part in; delete: all it owns or created), policy (hold only).
    """

    agent: AgentArg = None
    action: Literal["hold", "release", "delete", "readmit"]
    of: Literal["session", "agent", "policy"]
    name: Annotated[str, Field(max_length=SESSION_KEY_CHARS_MAX, pattern=NAME_PATTERN)]
    reason: Annotated[str, Field(min_length=1, max_length=REASON_CHARS_MAX), AfterValidator(no_nul)]


async def session_data(call: Call, args: SessionData) -> dict[str, Any]:
    """Hold, release, delete or readmit, and record it in the audit; return what was done.

    Raises NotFound when there is nothing of that name, Invalid when a policy is to be deleted, and Conflict when everything
    that is to be deleted is held, which the audit records as well.
    """
    by = acting_agent(call.caller, args.agent)
    match args.action:
        case "hold":
            return await transact(call.app.pool, partial(_hold, by=by, args=args))
        case "release":
            return await transact(call.app.pool, partial(_release, by=by, args=args))
        case "readmit":
            return await transact(call.app.pool, partial(_readmit, by=by, args=args))
        case "delete":
            return await _delete(call, by, args)


async def _hold(conn: Connection, *, by: str, args: SessionData) -> dict[str, Any]:
    if args.of == "session" and await sessions.find(conn, args.name) is None:
        raise session_not_found(args.name)
    if args.of == "policy" and not await holds.policy_exists(conn, args.name):
        raise _nothing(args, "Check the name; a session's retention_policy has it.")
    held = await holds.hold(conn, args.of, args.name, args.reason, by)
    if held is None:
        raise Conflict(
            "limit_reached",
            f"There are {holds.HOLDS_MAX} holds already, the maximum.",
            "Release holds that are no longer needed; handoff://lifecycle lists them. Or hold a policy or an agent.",
        )
    await audit.append(conn, actor=by, action="data.held", target=_target(args), details={"reason": args.reason})
    return {"action": args.action, "hold": dict(held)}


async def _release(conn: Connection, *, by: str, args: SessionData) -> dict[str, Any]:
    ended = await holds.release(conn, args.of, args.name)
    if ended is None:
        raise _nothing(args, "handoff://lifecycle lists the holds.", "no hold on")
    await audit.append(conn, actor=by, action="data.released", target=_target(args), details={"reason": args.reason})
    return {"action": args.action, "hold": dict(ended)}


async def _readmit(conn: Connection, *, by: str, args: SessionData) -> dict[str, Any]:
    if args.of != "session":
        raise Invalid(
            "invalid_arguments",
            "Only a session can be in quarantine.",
            "Repeat the call with of=session and the session's key as name.",
        )
    found = await integrity.readmit(conn, args.name, by)
    if found is None:
        raise _nothing(args, "handoff://lifecycle lists the sessions in quarantine.", "no quarantine of")
    details = {"reason": args.reason, "found": found["reason"], "sequence": found["sequence"]}
    await audit.append(conn, actor=by, action="data.readmitted", target=_target(args), details=details)
    return {"action": args.action, "quarantine": dict(found)}


async def _delete(call: Call, by: str, args: SessionData) -> dict[str, Any]:
    if args.of == "policy":
        raise Invalid(
            "invalid_arguments",
            "The sessions of a policy can't be deleted by one call.",
            "Delete them by session or by agent, or shorten the policy's archive period.",
        )
    async with connection(call.app.pool) as conn:
        if args.of == "session":
            found = await sessions.find(conn, args.name)
            ids, count = ([found["id"]], 1) if found is not None else ([], 0)
        else:
            ids, count = await erasure.of_agent(conn, args.name, ERASED_MAX)
    if not ids:
        raise _nothing(args, "Check the name: nothing was deleted.")
    totals = dict.fromkeys(("sessions", "entries", "content_bytes", "handoffs", "events"), 0)
    held = 0
    for session_id in ids:
        done = await transact(call.app.pool, partial(erasure.erase, session_id=session_id, actor=by, reason=args.reason))
        held += done.outcome == "held"
        if done.outcome == "deleted":
            for name in totals:
                totals[name] += 1 if name == "sessions" else done.tombstone[name]
    if held:
        details = {"reason": args.reason, "sessions_held": held}
        await transact(call.app.pool, partial(_refuse, by=by, args=args, details=details))
    if held == len(ids):
        raise Conflict(
            "held",
            "Nothing was deleted: "
            f"{'the session is' if held == 1 else f'all {held} sessions are'} under a legal hold or in "
            "quarantine.",
            "handoff://lifecycle lists the holds and the sessions in quarantine. Delete only after whoever made the hold "
            "has released it, or after action=readmit for a session in quarantine.",
            sessions_held=held,
        )
    log.info("data.deleted", of=args.of, sessions=totals["sessions"], sessions_held=held, by=by)
    return {"action": args.action, "deleted": totals, "sessions_held": held, "sessions_left": count - totals["sessions"]}


async def _refuse(conn: Connection, *, by: str, args: SessionData, details: dict[str, Any]) -> None:
    await audit.append(conn, actor=by, action="data.deletion_refused", target=_target(args), details=details)


def _target(args: SessionData) -> str:
    return erasure.target_of(args.name) if args.of == "session" else f"{args.of}:{args.name}"


def _nothing(args: SessionData, hint: str, what: str = "nothing of") -> NotFound:
    return NotFound("nothing_found", f"There is {what} the {args.of} {args.name!r}.", hint)


SESSION_DATA = Tool(
    "session_data", SessionData, session_data, result_with("action", "string"), "admin", destructive=True, idempotent=True
)
