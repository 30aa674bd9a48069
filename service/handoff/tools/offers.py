"""Offering a handoff, and finding the handoffs that are open for an agent."""

import asyncio
import hashlib
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from handoff.context import Call
from handoff.encoding import from_cursor
from handoff.errors import Forbidden, Invalid, session_closed, session_not_found
from handoff.model import AGENT_CHARS_MAX, INSTRUCTIONS_CHARS_MAX, NAME_PATTERN, OPEN_STATUSES, RequestType
from handoff.store import agents, entries, handoffs, idempotency, sessions
from handoff.store.append import not_a_writer
from handoff.store.connect import Connection, connection, transact
from handoff.tools.amend import amend
from handoff.tools.contract import (
    HANDOFF_RESULT,
    AgentArg,
    Arguments,
    HandoffIdArg,
    IdempotencyKeyArg,
    SessionKeyArg,
    TargetArg,
    Tool,
    acting_agent,
    no_nul,
    properties,
)
from handoff.views import INBOX_START, handoff_view, inbox_page, preview_of

INBOX_PAGE = 10
Capability = Annotated[str, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]


class RequestHandoff(Arguments):
    """Offer a session to target_agent or any agent with target_capability.

    The receiver writes while it holds the handoff (context_transfer), also after completing it (collaboration), or owns the
    session once it accepts (full_handoff). priority: 9 is most urgent. Not accepted within deadline_minutes, the offer
    expires. handoff_id: replaces the instructions of your offer or, once accepted, adds a note for its holder.
    """

    agent: AgentArg = None
    session_key: SessionKeyArg
    target_agent: TargetArg = None
    target_capability: TargetArg = None
    request_type: RequestType = "context_transfer"
    instructions: Annotated[str, Field(min_length=1, max_length=INSTRUCTIONS_CHARS_MAX), AfterValidator(no_nul)]
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    deadline_minutes: Annotated[int, Field(ge=1, le=525_600)] | None = None
    handoff_id: HandoffIdArg | None = None
    idempotency_key: IdempotencyKeyArg = None


class GetInbox(Arguments):
    """List handoffs offered to or held by you.

    capabilities replaces those you declared; wait_seconds waits for one.
    """

    agent: AgentArg = None
    capabilities: Annotated[list[Capability], Field(max_length=32)] | None = None
    wait_seconds: Annotated[int, Field(ge=0, le=30)] = 0
    cursor: Annotated[str, Field(max_length=200)] | None = None


async def request_handoff(call: Call, args: RequestHandoff) -> dict[str, Any]:
    """Offer a session, or amend an offer; return the handoff, and what its receiver's brief holds.

    Raises Invalid unless there is exactly one target, other than the sender; NotFound, Forbidden or Conflict when the sender
    may not hand over this session, or the session is closed.
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
        if found is None:
            raise session_not_found(args.session_key)
        if agent not in found["writers"]:
            raise not_a_writer(agent, args.session_key)
        # Entries never change, so most of the digest is made before the lock, which would delay appends.
        digest, hashed = hashlib.sha256(), found["last_sequence"]
        await entries.add_hashes(conn, digest, found["id"], after=0, up_to=hashed)
        session = await sessions.lock(conn, found["id"])
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
        row = await handoffs.offer(
            conn,
            handoffs.Offer(
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
            ),
        )
        warning = await _warning(conn, agent, args)
        return handoff_view(row, agent) | ({"warning": warning} if warning else {})

    offered = await idempotency.once(call.app.pool, "request_handoff", agent, args, work)
    return offered | {"brief": await preview_of(call.app, args.session_key, agent)}


async def _warning(conn: Connection, agent: str, args: RequestHandoff) -> str | None:
    """Return what the sender should know if nobody here can accept the offer so far."""
    withdraw = "If the name is wrong, withdraw the offer with resolve_handoff action=cancel and offer it again."
    if args.target_agent is None:
        capability = args.target_capability or ""
        if any(name != agent for name in await agents.with_capability(conn, capability)):
            return None
        return f"No other agent has declared the capability {capability!r} so far. {withdraw}"
    if await agents.has_been_seen(conn, args.target_agent):
        return None
    by_folded = {name.casefold(): name for name in await agents.known_to(conn, agent)}
    near = [by_folded[folded] for folded in get_close_matches(args.target_agent.casefold(), by_folded)]
    similar = f" You share a session with {' and '.join(map(repr, near))}." if near else ""
    return f"No agent named {args.target_agent!r} has been seen here so far.{similar} {withdraw}"


async def get_inbox(call: Call, args: GetInbox) -> dict[str, Any]:
    """Declare capabilities, if any are given, and return a page of the agent's inbox.

    With `wait_seconds`, an empty page is returned only when that time is over, or when the service stops. Raises Forbidden
    when a token without the scope `write` declares capabilities, and Invalid when the cursor is not one of this list.
    """
    agent = acting_agent(call.caller, args.agent)
    after = tuple(from_cursor(args.cursor, range(10), int)) if args.cursor is not None else INBOX_START
    if args.capabilities is not None:
        if "write" not in call.caller.scopes:
            raise Forbidden(
                "scope_missing",
                "Declaring capabilities needs the scope write, which this token lacks.",
                "Repeat the call without capabilities.",
            )
        wanted = sorted(set(args.capabilities))

        async def declare(conn: Connection) -> None:
            await agents.declare(conn, agent, wanted)

        await transact(call.app.pool, declare)
    else:
        async with connection(call.app.pool) as conn:
            await agents.appear(conn, agent)
    loop = asyncio.get_running_loop()
    give_up = loop.time() + args.wait_seconds
    bells = [f"agent:{agent}"]
    if args.wait_seconds:
        async with connection(call.app.pool) as conn:
            bells += [f"capability:{name}" for name in await agents.capabilities(conn, agent)]
        async with call.app.wakeups.waiting(bells) as rung:
            while True:
                rung.clear()  # before reading: a change during the read rings again
                page = await inbox_page(call.app, agent, after, INBOX_PAGE)
                left_s = give_up - loop.time()
                if page["handoffs"] or left_s <= 0 or call.app.wakeups.closing:
                    return page
                try:
                    async with asyncio.timeout(left_s):
                        await rung.wait()
                except TimeoutError:
                    return page
    return await inbox_page(call.app, agent, after, INBOX_PAGE)


REQUEST_HANDOFF = Tool("request_handoff", RequestHandoff, request_handoff, HANDOFF_RESULT, "write", changes_handoff=True)
GET_INBOX = Tool(
    "get_inbox",
    GetInbox,
    get_inbox,
    properties("handoffs", handoffs="array", next_cursor="string"),
    "read",
    idempotent=True,
    waits=True,
)
