"""The prompts of a handoff: to hand over, to take over, and to catch up."""

from datetime import timedelta
from typing import Annotated, Final

from pydantic import Field

from handoff.brief import TOKENS_DEFAULT
from handoff.context import Call
from handoff.encoding import to_json
from handoff.errors import handoff_not_found
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SEQUENCE_MAX, SESSION_KEY_CHARS_MAX
from handoff.prompts.contract import Prompt, PromptArguments
from handoff.store import agents, handoffs, inbox, lists
from handoff.store.connect import connection
from handoff.views import INBOX_START, brief_of, handoff_view

COMPLETIONS_MAX: Final = 100  # as the protocol allows

SessionKey = Annotated[str, Field(max_length=SESSION_KEY_CHARS_MAX, pattern=NAME_PATTERN, description="The session's key.")]


class HandOver(PromptArguments):
    """Hand a session over to another agent."""

    session_key: SessionKey
    target_agent: Annotated[
        str | None, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN, description="The agent that goes on.")
    ] = None


class TakeOver(PromptArguments):
    """Take a handoff over that is on offer."""

    handoff_id: Annotated[int, Field(ge=1, le=SEQUENCE_MAX, description="The handoff's number.")]


class CatchUp(PromptArguments):
    """Read where a session stands."""

    session_key: SessionKey


async def hand_over(call: Call, args: HandOver) -> str:
    """What to record before the offer, beside what is recorded. Raises NotFound if the caller may not read the session."""
    brief = await _brief(call, args.session_key)
    target = f"target_agent={args.target_agent}" if args.target_agent else "target_agent or target_capability"
    return (
        f"Hand session {args.session_key} over. Whoever receives it knows nothing but what is recorded there.\n"
        "1. Compare what you know with the brief below. Record what is missing with update_context: decisions with their "
        "reasons, open questions (metadata question), open work (metadata todo), the state of each file (type file, with "
        "its path), and a summary of where the work stands. Supersede what is no longer true.\n"
        f"2. Call request_handoff with session_key={args.session_key}, {target}, a new idempotency_key, and instructions "
        "that say what to do next, how to tell that it is done, and what not to touch.\n"
        "3. Report the handoff's id, and what the brief leaves out.\n\n"
        f"The receiver's brief as it is now:\n{brief}"
    )


async def take_over(call: Call, args: TakeOver) -> str:
    """The offer, and the steps from accepting to completing it. Raises NotFound if the caller may not see the handoff."""
    viewer = call.caller.viewer(None)
    async with connection(call.app.pool) as conn:
        row = await handoffs.find(conn, args.handoff_id, viewer)
    if row is None or not handoffs.may_see(row, viewer):
        raise handoff_not_found(args.handoff_id)
    return (
        f"Take handoff {args.handoff_id} over.\n"
        f"1. Call accept_handoff with handoff_id={args.handoff_id} and a new idempotency_key. It returns the brief, a lease "
        "and its token.\n"
        "2. Read the brief before you act. Its decisions hold: do not decide them anew. Look up what is unclear with "
        "search_context.\n"
        "3. Work. Record what you do with update_context, with the token, and call renew_handoff before the lease expires.\n"
        "4. When it is done, call resolve_handoff with action=complete, the token, and the outcome as note. If you can't go "
        "on, use action=block and say why.\n\n"
        f"The handoff:\n{to_json(handoff_view(row, call.caller.agent)).decode()}"
    )


async def catch_up(call: Call, args: CatchUp) -> str:
    """The session's brief. Raises NotFound if the caller may not read the session."""
    return (
        f"Catch up on session {args.session_key}: say where the work stands, what is decided and what is open, and who acts "
        "next. Change nothing. Look up what you need beyond this brief with search_context.\n\n"
        f"{await _brief(call, args.session_key)}"
    )


async def _brief(call: Call, session_key: str) -> str:
    viewer = call.caller.viewer(None)
    _, brief = await brief_of(call.app, session_key, viewer, TOKENS_DEFAULT, reader=call.caller.agent or "")
    return to_json(brief).decode()


async def sessions_like(call: Call, typed: str) -> list[str]:
    """Keys of sessions that the caller may read and that begin so, among the newest."""
    async with connection(call.app.pool) as conn:
        rows, _ = await lists.page(
            conn,
            lists.Filters(),
            before=lists.NEWEST,
            limit=COMPLETIONS_MAX,
            viewer=call.caller.viewer(None),
            archive_after=timedelta(seconds=call.app.settings.archive_after_s),
        )
    return [row["key"] for row in rows if row["key"].startswith(typed)]


async def agents_like(call: Call, typed: str) -> list[str]:
    """Agents that share a session with the caller, where its token says who that is."""
    if call.caller.agent is None:
        return []
    async with connection(call.app.pool) as conn:
        known = await agents.known_to(conn, call.caller.agent)
    return [name for name in known if name.startswith(typed)][:COMPLETIONS_MAX]


async def offers_like(call: Call, typed: str) -> list[str]:
    """The handoffs that are offered to the caller, where its token says who that is."""
    if call.caller.agent is None:
        return []
    async with connection(call.app.pool) as conn:
        found = await inbox.read(conn, call.caller.agent, after=INBOX_START, limit=COMPLETIONS_MAX)
    return [str(row["id"]) for row in found.rows if row["state"] == "offered" and str(row["id"]).startswith(typed)]


HAND_OVER = Prompt(
    "hand_over",
    "Hand over",
    "Record what is missing, and offer a session to another agent.",
    HandOver,
    hand_over,
    {"session_key": sessions_like, "target_agent": agents_like},
)
TAKE_OVER = Prompt(
    "take_over",
    "Take over",
    "Accept a handoff, work on it, and complete it.",
    TakeOver,
    take_over,
    {"handoff_id": offers_like},
)
CATCH_UP = Prompt(
    "catch_up",
    "Catch up",
    "Say where a session stands.",
    CatchUp,
    catch_up,
    {"session_key": sessions_like},
)
