"""Handoffs: offer, find, take, keep, settle."""

import asyncio
from typing import Annotated, Any, Literal

from asyncpg import Record
from pydantic import AfterValidator, Field

from handoff.context import Call
from handoff.encoding import from_cursor
from handoff.errors import Conflict, Forbidden, Invalid, handoff_not_found, session_closed, session_not_found
from handoff.model import AGENT_CHARS_MAX, HELD_STATES, NAME_PATTERN, OPEN_STATUSES, HandoffAction, RequestType
from handoff.store import agents, handoffs, idempotency, sessions
from handoff.store.append import not_a_writer
from handoff.store.connect import Connection, connection, transact
from handoff.tools.contract import (
    AgentArg,
    Arguments,
    BudgetArg,
    HandoffIdArg,
    IdempotencyKeyArg,
    LeaseArg,
    SessionKeyArg,
    TargetArg,
    TextArg,
    TokenArg,
    Tool,
    acting_agent,
    no_nul,
    properties,
)
from handoff.views import INBOX_START, brief_of, handoff_view, inbox_page

HANDOFF_RESULT = properties("handoff_id", handoff_id="integer", state="string")
ACCEPTED_RESULT = properties("handoff", handoff="object", brief="object")
INBOX_PAGE = 10
OPERATOR = "operator"  # who acts by an admin tool, where no token says it
Capability = Annotated[str, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]


class RequestHandoff(Arguments):
    """Offer a session to target_agent, or to whoever has target_capability. full_handoff moves ownership too;
    collaboration lets both write.
    """

    agent: AgentArg = None
    session_key: SessionKeyArg
    target_agent: TargetArg = None
    target_capability: TargetArg = None
    request_type: RequestType = "context_transfer"
    instructions: Annotated[str, Field(min_length=1, max_length=20_000), AfterValidator(no_nul)]
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    deadline_minutes: Annotated[int, Field(ge=1, le=525_600)] | None = None
    idempotency_key: IdempotencyKeyArg = None


class AcceptHandoff(Arguments):
    """Take an offer: a lease with a token, and the session's brief."""

    agent: AgentArg = None
    handoff_id: HandoffIdArg
    lease_seconds: LeaseArg = None
    token_budget: BudgetArg = 1_500
    idempotency_key: IdempotencyKeyArg = None


class RenewHandoff(Arguments):
    """Extend your lease; resumes a blocked handoff."""

    agent: AgentArg = None
    handoff_id: HandoffIdArg
    token: TokenArg
    lease_seconds: LeaseArg = None
    idempotency_key: IdempotencyKeyArg = None


class ResolveHandoff(Arguments):
    """Holder, with token: complete (note: outcome) or block (note: why). Receiver: reject. Sender: cancel."""

    agent: AgentArg = None
    handoff_id: HandoffIdArg
    action: Literal["complete", "block", "reject", "cancel"]
    token: TokenArg | None = None
    note: TextArg | None = None
    idempotency_key: IdempotencyKeyArg = None


class GetInbox(Arguments):
    """Handoffs offered to you or held by you. capabilities declares what you can take; wait_seconds waits for one."""

    agent: AgentArg = None
    capabilities: Annotated[list[Capability], Field(max_length=32)] | None = None
    wait_seconds: Annotated[int, Field(ge=0, le=30)] = 0
    cursor: Annotated[str, Field(max_length=200)] | None = None


class LapseHandoff(Arguments):
    """End a lease now: the handoff is on offer again."""

    handoff_id: HandoffIdArg
    idempotency_key: IdempotencyKeyArg = None


async def request_handoff(call: Call, args: RequestHandoff) -> dict[str, Any]:
    agent = acting_agent(call.caller, args.agent)
    if (args.target_agent is None) == (args.target_capability is None):
        raise Invalid(
            "invalid_arguments",
            "A handoff goes either to target_agent or to target_capability.",
            "Pass exactly one of the two.",
        )
    if args.target_agent == agent:
        raise Invalid("invalid_arguments", "A handoff can't go to its sender.", "Name another agent as target_agent.")

    async def work(conn: Connection) -> dict[str, Any]:
        found = await sessions.find(conn, args.session_key)
        if found is None:
            raise session_not_found(args.session_key)
        session = await sessions.lock(conn, found["id"])
        if agent not in session["writers"]:
            raise not_a_writer(agent, args.session_key)
        if args.request_type == "full_handoff" and agent != session["owner"]:
            raise Forbidden(
                "not_owner",
                f"Session {args.session_key!r} belongs to {session['owner']!r}; only its owner can give it away.",
                "Offer a context_transfer or a collaboration instead.",
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
            ),
        )
        return handoff_view(row)

    return await idempotency.once(call.app.pool, "request_handoff", agent, args, work)


async def accept_handoff(call: Call, args: AcceptHandoff) -> dict[str, Any]:
    agent = acting_agent(call.caller, args.agent)
    lease_s = args.lease_seconds or call.app.settings.lease_s_default

    async def work(conn: Connection) -> dict[str, Any]:
        row = await _current(call, conn, args.handoff_id)
        await _must_see(conn, row, agent)
        if row["state"] == "offered" and not await handoffs.is_addressed(conn, row["id"], agent):
            to = row["target_agent"] or f"agents with {row['target_capability']}"
            raise Forbidden(
                "not_addressed",
                f"Handoff {row['id']} is offered to {to}, not to {agent!r}.",
                "Leave it to them; declare what you can take with get_inbox capabilities.",
            )
        return handoff_view(await handoffs.transition(conn, row, "accept", agent=agent, lease_s=lease_s))

    taken = await idempotency.once(call.app.pool, "accept_handoff", agent, args, work)
    _, brief = await brief_of(call.app, taken["session_key"], agent, args.token_budget)
    whole = {part.get("handoff_id") for part in brief["parts"] if "cut" not in part}
    if taken["handoff_id"] in whole:  # the brief has the instructions; nobody is to pay for them twice
        del taken["instructions"]
    return {"handoff": taken, "brief": brief}


async def renew_handoff(call: Call, args: RenewHandoff) -> dict[str, Any]:
    agent = acting_agent(call.caller, args.agent)
    lease_s = args.lease_seconds or call.app.settings.lease_s_default

    async def work(conn: Connection) -> dict[str, Any]:
        row = await _held(call, conn, args.handoff_id, agent, args.token, "renew")
        return handoff_view(await handoffs.transition(conn, row, "renew", agent=agent, lease_s=lease_s))

    return await idempotency.once(call.app.pool, "renew_handoff", agent, args, work)


async def resolve_handoff(call: Call, args: ResolveHandoff) -> dict[str, Any]:
    agent = acting_agent(call.caller, args.agent)
    action = args.action
    if action in ("complete", "block") and args.token is None:
        raise Invalid("invalid_arguments", f"{action} needs the token of your lease.", "accept_handoff gave it to you.")
    if action in ("block", "reject") and not args.note:
        raise Invalid("invalid_arguments", f"{action} needs a note that says why.", "Pass the reason as note.")

    async def work(conn: Connection) -> dict[str, Any]:
        if action in ("complete", "block"):
            row = await _held(call, conn, args.handoff_id, agent, args.token or 0, action)
        else:
            row = await _current(call, conn, args.handoff_id)
            await _must_see(conn, row, agent)
            session = await sessions.lock(conn, row["session_id"])
            _may_settle(row, agent, action, session["owner"])
        changed = await handoffs.transition(
            conn,
            row,
            action,
            agent=agent,
            lease_s=call.app.settings.blocked_lease_s,
            outcome=args.note if action == "complete" else None,
            reason=args.note if action != "complete" else None,
        )
        return handoff_view(changed)

    return await idempotency.once(call.app.pool, "resolve_handoff", agent, args, work)


async def get_inbox(call: Call, args: GetInbox) -> dict[str, Any]:
    agent = acting_agent(call.caller, args.agent)
    if args.capabilities is not None:
        if "write" not in call.caller.scopes:
            raise Forbidden("scope_missing", "Declaring capabilities needs the scope write.", "Leave capabilities out.")
        wanted = sorted(set(args.capabilities))

        async def declare(conn: Connection) -> None:
            await agents.declare(conn, agent, wanted)

        await transact(call.app.pool, declare)
    after = tuple(from_cursor(args.cursor, range(10), int)) if args.cursor is not None else INBOX_START
    loop = asyncio.get_running_loop()
    give_up = loop.time() + args.wait_seconds
    bells = [f"agent:{agent}"]
    if args.wait_seconds:
        async with connection(call.app.pool) as conn:
            bells += [f"capability:{name}" for name in await agents.capabilities(conn, agent)]
        async with call.app.wakeups.waiting(bells) as rung:
            while True:
                rung.clear()  # before looking: what rings while we look may be what we do not see yet
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


async def lapse_handoff(call: Call, args: LapseHandoff) -> dict[str, Any]:
    async def work(conn: Connection) -> dict[str, Any]:
        row = await _current(call, conn, args.handoff_id)
        if row["state"] == "blocked":
            row = await handoffs.transition(conn, row, "renew", agent=None, lease_s=0)
        return handoff_view(await handoffs.transition(conn, row, "lapse", agent=call.caller.agent))

    return await idempotency.once(call.app.pool, "lapse_handoff", call.caller.agent or OPERATOR, args, work)


async def _current(call: Call, conn: Connection, handoff_id: int) -> Record:
    """The handoff, locked, as the clock has it now."""
    row = await handoffs.lock(conn, handoff_id)
    if row is None:
        raise handoff_not_found(handoff_id)
    return await handoffs.settle(conn, row, call.app.settings.lapses_max)


async def _must_see(conn: Connection, row: Record, agent: str) -> None:
    if not await handoffs.may_see(conn, row, agent):
        raise handoff_not_found(row["id"])


async def _held(call: Call, conn: Connection, handoff_id: int, agent: str, token: int, action: HandoffAction) -> Record:
    """The handoff, locked, if `agent` holds it by `token`. Raises Conflict that names who holds it now."""
    row = await _current(call, conn, handoff_id)
    await _must_see(conn, row, agent)
    if row["state"] in HELD_STATES and (row["token"] != token or row["holder"] != agent):
        raise Conflict(
            "stale_token",
            f"Token {token} no longer holds handoff {handoff_id}: {row['holder']!r} holds it by a newer one."
            if row["holder"] != agent
            else f"Token {token} is not the one by which {agent!r} holds handoff {handoff_id}.",
            "Stop work on it; get_inbox shows what you hold.",
            holder=row["holder"],
            state=row["state"],
        )
    if row["state"] == "offered" and row["token"] >= token:
        raise Conflict(
            "stale_token",
            f"The lease of token {token} on handoff {handoff_id} has lapsed; nobody holds it now.",
            "Accept it again to go on: accept_handoff gives a new token.",
            holder=None,
            state=row["state"],
        )
    if row["state"] not in HELD_STATES:
        raise handoffs.wrong_state(row, action)
    return row


def _may_settle(row: Record, agent: str, action: str, owner: str) -> None:
    if action == "cancel" and agent not in (row["sender"], owner):
        raise Forbidden(
            "not_sender",
            f"Handoff {row['id']} was sent by {row['sender']!r}; only its sender, or who owns the session, can cancel it.",
            "To decline it, use action=reject.",
        )
    if action == "reject" and row["target_agent"] != agent:
        raise Forbidden(
            "not_addressed",
            f"Handoff {row['id']} is not addressed to {agent!r} by name, so it isn't theirs to reject.",
            "Leave it for another agent.",
        )


REQUEST_HANDOFF = Tool("request_handoff", RequestHandoff, request_handoff, HANDOFF_RESULT, "write", changes_handoff=True)
ACCEPT_HANDOFF = Tool("accept_handoff", AcceptHandoff, accept_handoff, ACCEPTED_RESULT, "write", changes_handoff=True)
RENEW_HANDOFF = Tool(
    "renew_handoff", RenewHandoff, renew_handoff, HANDOFF_RESULT, "write", idempotent=True, changes_handoff=True
)
RESOLVE_HANDOFF = Tool(
    "resolve_handoff", ResolveHandoff, resolve_handoff, HANDOFF_RESULT, "write", destructive=True, changes_handoff=True
)
GET_INBOX = Tool(
    "get_inbox",
    GetInbox,
    get_inbox,
    properties("handoffs", handoffs="array", next_cursor="string"),
    "read",
    idempotent=True,
    waits=True,
)
LAPSE_HANDOFF = Tool(
    "lapse_handoff", LapseHandoff, lapse_handoff, HANDOFF_RESULT, "admin", destructive=True, changes_handoff=True
)
