"""Holding a handoff by a lease, and settling it."""

from typing import Any, Literal

import structlog
from asyncpg import Record

from handoff.brief import TOKENS_DEFAULT
from handoff.context import Call
from handoff.errors import Conflict, Forbidden, Invalid, Unavailable, handoff_not_found
from handoff.model import HELD_STATES, HandoffAction
from handoff.store import audit, briefs, handoffs, idempotency
from handoff.store.connect import Connection, connection
from handoff.tools.contract import (
    HANDOFF_RESULT,
    AgentArg,
    Arguments,
    BudgetArg,
    HandoffIdArg,
    IdempotencyKeyArg,
    LeaseArg,
    TextArg,
    TokenArg,
    Tool,
    acting_agent,
    result_with,
)
from handoff.views import brief_of, changed_view, handoff_view

log = structlog.get_logger(__name__)

ACCEPTED_RESULT = result_with("handoff", "object")
OPERATOR = "operator"  # the agent that an admin tool acts as where the caller has no token


class AcceptHandoff(Arguments):
    """Accept an offer; returns a lease token and the brief."""

    agent: AgentArg = None
    handoff_id: HandoffIdArg
    lease_seconds: LeaseArg = None
    token_budget: BudgetArg = TOKENS_DEFAULT
    idempotency_key: IdempotencyKeyArg = None


class RenewHandoff(Arguments):
    """Extend your lease, or resume a blocked handoff."""

    agent: AgentArg = None
    handoff_id: HandoffIdArg
    token: TokenArg
    lease_seconds: LeaseArg = None
    idempotency_key: IdempotencyKeyArg = None


class ResolveHandoff(Arguments):
    """End or block a handoff.

    Holder (with token): complete, block. Target agent: reject. Sender: cancel. note: outcome or reason.
    """

    agent: AgentArg = None
    handoff_id: HandoffIdArg
    action: Literal["complete", "block", "reject", "cancel"]
    token: TokenArg | None = None
    note: TextArg | None = None
    idempotency_key: IdempotencyKeyArg = None


class LapseHandoff(Arguments):
    """End a handoff's lease now, so that it is on offer again."""

    handoff_id: HandoffIdArg
    idempotency_key: IdempotencyKeyArg = None


async def accept_handoff(call: Call, args: AcceptHandoff) -> dict[str, Any]:
    """Give the agent the lease; return the handoff, and the session's brief within `token_budget`.

    Raises NotFound when the agent may not see the handoff, Forbidden when it is offered to others, and Conflict when it is
    not on offer.
    """
    agent = acting_agent(call.caller, args.agent)
    lease_s = args.lease_seconds or call.app.settings.lease_s_default
    is_repeated = True

    async def work(conn: Connection) -> dict[str, Any]:
        nonlocal is_repeated
        is_repeated = False
        found = await _found(conn, args.handoff_id, agent)
        row = await handoffs.settle(conn, found, call.app.settings.lapses_max)
        if row["state"] == "offered" and not found["is_addressed"]:
            raise _not_addressed(row, agent)
        return handoff_view(await handoffs.transition(conn, row, "accept", agent=agent, lease_s=lease_s), agent)

    taken = await idempotency.once(call.app.pool, "accept_handoff", agent, args, work)
    # The handoff is accepted by now, so its brief can't be refused for want of a turn.
    _, brief = await brief_of(
        call.app, taken["session_key"], agent, args.token_budget, reader=None, just_changed=not is_repeated
    )
    await _keep(call, taken, agent, brief)
    whole = {part.get("handoff_id") for part in brief["parts"] if "cut" not in part}
    if taken["handoff_id"] in whole:  # the brief has the instructions, so they need not be sent twice
        del taken["instructions"]
    return {"handoff": taken, "brief": brief}


async def _keep(call: Call, taken: dict[str, Any], agent: str, brief: dict[str, Any]) -> None:
    """Keep the brief for those who want to see later what was received. The handoff is accepted, so this fails nothing."""
    try:
        async with connection(call.app.pool) as conn:
            await briefs.keep(conn, taken["handoff_id"], taken["token"], agent, brief)
    except Unavailable as error:
        log.warning("brief.not_kept", handoff=taken["handoff_id"], code=error.code)


async def renew_handoff(call: Call, args: RenewHandoff) -> dict[str, Any]:
    """Extend the lease from now on; return the handoff. Raises Conflict when `token` does not hold it."""
    agent = acting_agent(call.caller, args.agent)
    lease_s = args.lease_seconds or call.app.settings.lease_s_default

    async def work(conn: Connection) -> dict[str, Any]:
        row = await _held(call, conn, args.handoff_id, agent, args.token, "renew")
        return handoff_view(await handoffs.transition(conn, row, "renew", agent=agent, lease_s=lease_s), agent)

    return await idempotency.once(call.app.pool, "renew_handoff", agent, args, work)


async def resolve_handoff(call: Call, args: ResolveHandoff) -> dict[str, Any]:
    """Complete, block, reject or cancel a handoff; return it.

    Raises Invalid when the action lacks its token or note, NotFound when the agent may not see the handoff, Forbidden when
    the action is not the agent's to take, and Conflict when the state or the token does not allow it.
    """
    agent = acting_agent(call.caller, args.agent)
    action = args.action
    if action in ("complete", "block") and args.token is None:
        raise Invalid(
            "invalid_arguments",
            f"action={action} needs the token of your lease.",
            "Repeat the call with the token that accept_handoff returned; get_inbox shows it too.",
        )
    if action in ("block", "reject") and not args.note:
        raise Invalid(
            "invalid_arguments",
            f"action={action} needs a note that gives the reason.",
            "Repeat the call with the reason as note.",
        )

    async def work(conn: Connection) -> dict[str, Any]:
        if action in ("complete", "block"):
            row = await _held(call, conn, args.handoff_id, agent, args.token or 0, action)
        else:
            row = await _current(call, conn, args.handoff_id, agent)
            _check_may_end_offer(row, agent, action)
        changed = await handoffs.transition(
            conn,
            row,
            action,
            agent=agent,
            lease_s=call.app.settings.blocked_lease_s,
            outcome=args.note if action == "complete" else None,
            reason=args.note if action != "complete" else None,
        )
        return changed_view(changed, agent)

    return await idempotency.once(call.app.pool, "resolve_handoff", agent, args, work)


async def lapse_handoff(call: Call, args: LapseHandoff) -> dict[str, Any]:
    """End the lease; return the handoff. Raises NotFound, and Conflict when nobody holds it."""

    async def work(conn: Connection) -> dict[str, Any]:
        row = await _current(call, conn, args.handoff_id, None)
        if row["state"] == "blocked":
            row = await handoffs.transition(conn, row, "renew", agent=None, lease_s=0)
        lapsed = await handoffs.transition(conn, row, "lapse", agent=call.caller.agent)
        target = f"handoff {args.handoff_id}"
        await audit.append(conn, actor=call.caller.agent or OPERATOR, action="handoff.lapse", target=target)
        return changed_view(lapsed, call.caller.agent)

    return await idempotency.once(call.app.pool, "lapse_handoff", call.caller.agent or OPERATOR, args, work)


async def _current(call: Call, conn: Connection, handoff_id: int, viewer: str | None) -> Record:
    """The handoff, locked, after any lapse or expiry that is due. Raises NotFound unless `viewer` may see it."""
    return await handoffs.settle(conn, await _found(conn, handoff_id, viewer), call.app.settings.lapses_max)


async def _found(conn: Connection, handoff_id: int, viewer: str | None) -> Record:
    """The handoff, locked. Raises NotFound unless `viewer` may see it."""
    row = await handoffs.lock(conn, handoff_id, viewer)
    if row is None or not handoffs.may_act(row, viewer):
        raise handoff_not_found(handoff_id)
    return row


def _not_addressed(row: Record, agent: str) -> Forbidden:
    """The handoff is offered to others. The hint depends on who asks: its sender, or anyone else."""
    capability = row["target_capability"]
    target = repr(row["target_agent"]) if capability is None else f"agents with the capability {capability!r}"
    if row["sender"] == agent:
        hint = "Wait until it is accepted. To withdraw the offer, call resolve_handoff action=cancel."
    elif capability is None:
        hint = f"Leave it to {target}; get_inbox lists the handoffs that you can accept."
    else:
        hint = (
            "If you have this capability, call get_inbox with all your capabilities, this one included, and repeat the "
            "call. If not, leave the handoff to others."
        )
    return Forbidden("not_addressed", f"Handoff {row['id']} is offered to {target}, not to {agent!r}.", hint)


async def _held(call: Call, conn: Connection, handoff_id: int, agent: str, token: int, action: HandoffAction) -> Record:
    """The handoff, locked, if `agent` holds it by `token`. Raises Conflict that names who holds it now."""
    row = await _current(call, conn, handoff_id, agent)
    if row["state"] in HELD_STATES and row["holder"] != agent:
        raise _stale_token(
            row,
            f"Handoff {handoff_id} is held by {row['holder']!r}, so token {token} of {agent!r} is not valid.",
            "Stop working on it; get_inbox lists the handoffs that you hold.",
        )
    if row["state"] in HELD_STATES and row["token"] != token:
        raise _stale_token(
            row,
            f"{agent!r} holds handoff {handoff_id}, but not by token {token}.",
            "get_inbox shows the current token. If you accepted the handoff with it, repeat the call with that token; if "
            "another process with your name did, stop working on the handoff.",
        )
    if row["state"] == "offered" and row["token"] >= token:
        raise _stale_token(
            row,
            f"The lease of token {token} on handoff {handoff_id} has lapsed, and nobody holds the handoff now.",
            "To continue, call accept_handoff again: it returns a new token.",
        )
    if row["state"] not in HELD_STATES:
        raise handoffs.wrong_state(row, action)
    return row


def _stale_token(row: Record, message: str, hint: str) -> Conflict:
    """The token does not hold the handoff, which the details describe as it is now."""
    holder = row["holder"] if row["state"] in HELD_STATES else None
    return Conflict("stale_token", message, hint, holder=holder, state=row["state"])


def _check_may_end_offer(row: Record, agent: str, action: str) -> None:
    """Raise Forbidden unless the agent may cancel the handoff, or reject it."""
    owner = row["session_owner"]
    if action == "cancel" and agent not in (row["sender"], owner):
        if row["state"] == "accepted" and row["holder"] == agent:
            hint = "You hold it: end it with action=complete, or pause it with action=block."
        elif row["state"] == "offered" and row["target_agent"] == agent:
            hint = "To decline it, repeat the call with action=reject and the reason as note."
        else:
            hint = f"Leave it; {row['sender']!r} can cancel it while it is offered."
        raise Forbidden(
            "not_sender",
            f"Handoff {row['id']} was sent by {row['sender']!r}; only the sender and the session's owner can cancel it.",
            hint,
        )
    if action == "reject" and row["target_agent"] != agent:
        hint = (
            "To withdraw the offer, repeat the call with action=cancel."
            if agent in (row["sender"], owner)
            else "Leave it as it is; get_inbox lists the handoffs that you can accept."
        )
        raise Forbidden(
            "not_addressed",
            f"Handoff {row['id']} is not addressed to {agent!r} by name, so {agent!r} can't reject it.",
            hint,
        )


ACCEPT_HANDOFF = Tool("accept_handoff", AcceptHandoff, accept_handoff, ACCEPTED_RESULT, "write", changes_handoff=True)
RENEW_HANDOFF = Tool(
    "renew_handoff", RenewHandoff, renew_handoff, HANDOFF_RESULT, "write", idempotent=True, changes_handoff=True
)
RESOLVE_HANDOFF = Tool(
    "resolve_handoff", ResolveHandoff, resolve_handoff, HANDOFF_RESULT, "write", destructive=True, changes_handoff=True
)
LAPSE_HANDOFF = Tool(
    "lapse_handoff", LapseHandoff, lapse_handoff, HANDOFF_RESULT, "admin", destructive=True, changes_handoff=True
)
