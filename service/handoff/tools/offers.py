"""Offering a handoff, and finding the handoffs that are open for an agent."""

import asyncio
import hashlib
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from handoff import loops
from handoff.context import Call
from handoff.errors import Forbidden, Invalid, session_closed
from handoff.model import (
    AGENT_CHARS_MAX,
    CAPABILITIES_MAX,
    INSTRUCTIONS_CHARS_MAX,
    NAME_PATTERN,
    OPEN_STATUSES,
    SEQUENCE_MAX,
    RequestType,
)
from handoff.store import agents, entries, handoffs, idempotency, inbox, offers, sessions
from handoff.store.append import not_a_writer
from handoff.store.connect import Connection, connection
from handoff.tools.amend import amend
from handoff.tools.contract import (
    HANDOFF_RESULT,
    AgentArg,
    Arguments,
    IdempotencyKeyArg,
    SessionKeyArg,
    TargetArg,
    Tool,
    acting_agent,
    no_nul,
    result_with,
)
from handoff.views import INBOX_START, changed_view, inbox_position, inbox_view, preview_of

INBOX_PAGE = 30  # more than the offers that one sender may have to one target by default, so that none fills it alone
CURSOR_CHARS_MAX = 1_999  # a mark in base64, and the position of a handoff
Capability = Annotated[str, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]


class RequestHandoff(Arguments):
    """Offer a session to target_agent or any agent with target_capability.

    The receiver writes while it holds the handoff (context_transfer), also after completing (collaboration), or owns the
    session once it accepts (full_handoff). priority: 9 is most urgent, 5 the default. Not accepted within deadline_minutes,
    it expires; 0: never. handoff_id: an offer of yours, to replace its instructions or, once accepted, add a note; or 0.
    """

    agent: AgentArg = None
    session_key: SessionKeyArg
    target_agent: TargetArg = None
    target_capability: TargetArg = None
    request_type: RequestType = "context_transfer"
    instructions: Annotated[str, Field(min_length=1, max_length=INSTRUCTIONS_CHARS_MAX), AfterValidator(no_nul)]
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    deadline_minutes: Annotated[int, Field(ge=0, le=525_600)] | None = None
    handoff_id: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] | None = None
    idempotency_key: IdempotencyKeyArg = None


class GetInbox(Arguments):
    """List handoffs offered to or held by you. mark, from an earlier answer: only offers since.

    wait_seconds waits until there is one. capabilities replaces those you declared.
    """

    agent: AgentArg = None
    capabilities: Annotated[list[Capability], Field(max_length=CAPABILITIES_MAX)] | None = None
    wait_seconds: Annotated[int, Field(ge=0, le=30)] = 0
    mark: Annotated[str, Field(max_length=inbox.MARK_CHARS_MAX)] | None = None
    cursor: Annotated[str, Field(max_length=CURSOR_CHARS_MAX)] | None = None


async def request_handoff(call: Call, args: RequestHandoff) -> dict[str, Any]:
    """Offer a session, or amend an offer; return the handoff, and what its receiver's brief holds.

    Raises Invalid unless there is exactly one target, other than the sender; NotFound, Forbidden or Conflict when the sender
    may not hand over this session, the session is closed, or it goes in circles and the operator refuses that.
    """
    agent = acting_agent(call.caller, args.agent)
    if args.handoff_id is not None:
        amended = await amend(call, agent, args, args.handoff_id)
        return amended | {"brief": await preview_of(call.app, args.session_key, agent)}
    if (args.target_agent is None) == (args.target_capability is None):
        raise Invalid(
            "invalid_arguments",
            "A handoff needs exactly one target: target_agent or target_capability.",
            "Repeat the call with exactly one of the two.",
        )
    if args.target_agent == agent:
        raise Invalid(
            "invalid_arguments",
            "target_agent names the sender, and nobody can hand over to themselves.",
            "Repeat the call with the name of another agent as target_agent.",
        )

    async def work(conn: Connection) -> dict[str, Any]:
        found = await sessions.find(conn, args.session_key)
        if found is None or agent not in found["writers"]:
            await sessions.see(conn, args.session_key, call.caller.viewer(agent))
            raise not_a_writer(agent, args.session_key)
        if found["status"] not in OPEN_STATUSES:
            raise session_closed(args.session_key, found["status"])
        # Entries never change, so most of the digest is made before the lock, which would delay appends.
        digest, hashed = hashlib.sha256(), found["last_sequence"]
        await entries.add_hashes(conn, digest, found["id"], after=0, up_to=hashed)
        target = args.target_agent or f"any {args.target_capability}"
        session = await sessions.lock_for_offer(conn, found["id"], agent, target)
        await entries.add_hashes(conn, digest, found["id"], after=hashed, up_to=session["last_sequence"])
        if agent not in session["writers"]:
            raise not_a_writer(agent, args.session_key)
        if args.request_type == "full_handoff" and agent != session["owner"]:
            raise Forbidden(
                "not_owner",
                f"Session {args.session_key!r} belongs to {session['owner']!r}; only its owner can make a full_handoff.",
                "Repeat the call with request_type=context_transfer or request_type=collaboration.",
                owner=session["owner"],
            )
        if session["status"] not in OPEN_STATUSES:
            raise session_closed(args.session_key, session["status"])
        limits = call.app.policies.monitoring.loops
        trail = await handoffs.trail(conn, session["id"])
        loop = loops.find(trail, limits, agent, args.target_agent, args.target_capability)
        row = await offers.offer(
            conn,
            offers.Offer(
                session_id=session["id"],
                request_type=args.request_type,
                sender=agent,
                target_agent=args.target_agent,
                target_capability=args.target_capability,
                instructions=args.instructions,
                priority=args.priority,
                deadline_minutes=args.deadline_minutes,
                as_of_sequence=session["last_sequence"],
                context_digest=digest.digest(),
                offers_max=call.app.settings.offers_per_target_max,
                loop=loop and (loop.kind, loop.count),
            ),
        )
        said = "" if row["is_known"] else await _nobody(conn, agent, args)
        said = f"{said} {loop.warning}".lstrip() if loop else said
        return changed_view(row, agent) | ({"warning": said} if said else {})

    offered = await idempotency.once(call.app.pool, "request_handoff", agent, args, work)
    return offered | {"brief": await preview_of(call.app, args.session_key, agent)}


async def _nobody(conn: Connection, agent: str, args: RequestHandoff) -> str:
    """Return what the sender should know about an offer that nobody here can accept so far."""
    withdraw = "If the name is wrong, withdraw the offer with resolve_handoff action=cancel and offer it again."
    if args.target_agent is None:
        return f"No other agent has declared the capability {args.target_capability!r} so far. {withdraw}"
    by_folded = {name.casefold(): name for name in await agents.known_to(conn, agent)}
    near = [by_folded[folded] for folded in get_close_matches(args.target_agent.casefold(), by_folded)]
    similar = f" You share a session with {' and '.join(map(repr, near))}." if near else ""
    return f"No agent named {args.target_agent!r} has been seen here so far.{similar} {withdraw}"


async def get_inbox(call: Call, args: GetInbox) -> dict[str, Any]:
    """Declare capabilities, if any are given, and return a page of the agent's inbox, with the mark of what it contains.

    With `wait_seconds`, an empty page is returned only when that time is over, or when the service stops. Raises Forbidden
    when a token declares capabilities that it may not, and Invalid when the cursor or the mark is not of an inbox.
    """
    agent = acting_agent(call.caller, args.agent)
    if args.cursor is not None and (args.mark is not None or args.wait_seconds):
        raise Invalid(
            "invalid_arguments",
            "cursor continues the list of an earlier answer, so it takes no mark and no wait_seconds.",
            "Repeat the call with cursor alone. To wait for what is new, pass the mark of the first page.",
        )
    after, mark = inbox_position(args.cursor)
    mark = mark or args.mark
    since = inbox.mark_from(mark) if mark is not None else None
    await _appear(call, agent, args.capabilities)
    give_up = asyncio.get_running_loop().time() + args.wait_seconds
    found = await _read(call, agent, after, since)
    while not found.rows and _seconds_until(give_up) > 0 and not call.app.wakeups.closing:
        found = await _next(call, agent, since, found.capabilities, give_up)
    page = inbox_view(found.rows, agent, INBOX_PAGE, call.app.settings.page_bytes_max, mark)
    return page if args.cursor is not None else page | {"mark": str(found.mark)}


async def _appear(call: Call, agent: str, capabilities: list[str] | None) -> None:
    """Remember that the agent has been here, and the capabilities that it declares, if it does."""
    if capabilities is None:
        async with connection(call.app.pool) as conn:
            await agents.appear(conn, agent)
        return
    if not call.caller.scopes & {"write", "admin"}:
        raise Forbidden(
            "scope_missing",
            "Declaring capabilities needs the scope write, which this token lacks.",
            "Repeat the call without capabilities.",
        )
    allowed = call.caller.capabilities
    if allowed is not None and (others := sorted(set(capabilities) - allowed)):
        raise Forbidden(
            "capability_not_allowed",
            f"This token may not declare {' and '.join(map(repr, others))}. Nothing was declared.",
            f"Repeat the call with {_only(allowed)}. The operator can allow others on the token's line in the tokens file.",
        )
    async with connection(call.app.pool) as conn:
        await agents.declare(conn, agent, sorted(set(capabilities)))


def _only(allowed: frozenset[str]) -> str:
    return f"no other capabilities than {', '.join(map(repr, sorted(allowed)))}" if allowed else "no capabilities"


async def _next(call: Call, agent: str, since: inbox.Mark | None, capabilities: list[str], give_up: float) -> inbox.Inbox:
    """Return the inbox as soon as there is something in it, the agent declares other capabilities, or the time is over."""
    topics = [f"agent:{agent}", *(f"capability:{name}" for name in capabilities)]
    with call.app.admission.waits.held(agent):
        async with call.app.wakeups.waiting(topics) as rung:
            while True:
                rung.clear()  # before reading: a change during the read rings again
                found = await _read(call, agent, INBOX_START, since)
                is_over = call.app.wakeups.closing or _seconds_until(give_up) <= 0
                if found.rows or found.capabilities != capabilities or is_over:
                    return found
                try:
                    async with asyncio.timeout(_seconds_until(give_up)):
                        await rung.wait()
                except TimeoutError:
                    return found


async def _read(call: Call, agent: str, after: tuple[int, int], since: inbox.Mark | None) -> inbox.Inbox:
    async with connection(call.app.pool) as conn:
        return await inbox.read(conn, agent, after=after, limit=INBOX_PAGE + 1, since=since)


def _seconds_until(time: float) -> float:
    return time - asyncio.get_running_loop().time()


REQUEST_HANDOFF = Tool("request_handoff", RequestHandoff, request_handoff, HANDOFF_RESULT, "write", changes_handoff=True)
GET_INBOX = Tool(
    "get_inbox",
    GetInbox,
    get_inbox,
    result_with("handoffs", "array"),
    "read",
    idempotent=True,
    waits=True,
)
