"""The agents' mistakes: calls that the session's current state must refuse, each with a known error code."""

from dataclasses import replace
from typing import Final

from handoff.simulation import text
from handoff.simulation.agents import SimulatedAgent
from handoff.simulation.steps import (
    IDEMPOTENT_TOOLS,
    UNKNOWN_CALLER_REQUEST,
    ScenarioFailed,
    SimulatedSession,
    Step,
    Steps,
)

UNKNOWN_SESSION: Final = "s-0000000000000000"
UNKNOWN_HANDOFF: Final = 9_000_000_000_000_000
UNREACHED_SEQUENCE: Final = 9_000_000_000_000


def _general_mistakes(session: SimulatedSession, agent: SimulatedAgent) -> list[Step]:
    """Return mistakes that depend on no session."""
    mistakes = [
        session.mistake(agent, "get_context", "session_not_found", session_key=UNKNOWN_SESSION),
        session.mistake(agent, "close_session", "session_not_found", session_key=UNKNOWN_SESSION),
        session.mistake(agent, "handoff://summary/" + UNKNOWN_SESSION, "session_not_found"),
        session.mistake(agent, "accept_handoff", "handoff_not_found", handoff_id=UNKNOWN_HANDOFF),
        session.mistake(agent, "update_context", "invalid_arguments", session_key=UNKNOWN_SESSION, entries="all is done"),
        session.mistake(agent, "resolve_handoff", "invalid_arguments", handoff_id=1, action="complete", token="1"),  # noqa: S106 - a number as text
        session.mistake(agent, "search_context", "invalid_arguments", query="", limit=10),
        session.mistake(agent, "get_inbox", "invalid_arguments", wait="long"),
    ]
    if session.with_tokens:
        mistakes.append(session.mistake(agent, UNKNOWN_CALLER_REQUEST, "unauthorized"))
        other = session.receiver if agent is session.sender else session.sender
        if other is not agent:
            mistakes.append(session.mistake(agent, "get_inbox", "agent_mismatch", agent=other.name))
    if agent.name in session.used_keys:
        key = session.used_keys[agent.name]
        mistakes.append(
            session.mistake(agent, "register_session", "idempotency_conflict", metadata={"n": 0}, idempotency_key=key)
        )
    return mistakes


def _session_mistakes(session: SimulatedSession, agent: SimulatedAgent) -> list[Step]:
    """Return mistakes about an open session."""
    entries = [{"type": "message", "content": text.sentence(session.rng, session.topic, ("And {thing}?",))}]
    mistakes = [session.mistake(agent, "register_session", "session_exists", session_key=session.key)]
    if session.outsider is not None:
        outsider = session.outsider
        mistakes += [
            session.mistake(outsider, "get_context", "session_not_found", session_key=session.key),
            session.mistake(outsider, "update_context", "session_not_found", session_key=session.key, entries=entries),
            session.mistake(outsider, "close_session", "session_not_found", session_key=session.key),
        ]
    if session.owner is agent and not session.state_uncertain:
        mistakes += [
            session.mistake(
                agent,
                "update_context",
                "sequence_mismatch",
                session_key=session.key,
                entries=entries,
                expected_sequence=UNREACHED_SEQUENCE,
            ),
            session.mistake(
                agent,
                "update_context",
                "invalid_arguments",
                session_key=session.key,
                entries=[{**entries[0], "supersedes": [UNREACHED_SEQUENCE]}],
            ),
            session.mistake(
                agent,
                "request_handoff",
                "invalid_arguments",
                session_key=session.key,
                target_agent=agent.name,
                instructions="Go on.",
            ),
            session.mistake(
                agent, "request_handoff", "invalid_arguments", session_key=session.key, instructions="Go on, somebody."
            ),
        ]
        if session.handoff_state in ("offered", "accepted", "blocked"):
            mistakes.append(session.mistake(agent, "close_session", "open_handoffs", session_key=session.key))
    return mistakes


def _handoff_mistakes(session: SimulatedSession, agent: SimulatedAgent) -> list[Step]:
    """Return mistakes about a handoff whose state is certain: all of the agent's own, and some of the others'."""
    handoff_id, token, mistakes = session.handoff_id, session.handoff_token, list[Step]()
    sender, receiver, outsider = session.sender, session.receiver, session.outsider
    target = {"handoff_id": handoff_id}
    if session.handoff_state == "offered":
        mistakes += [
            session.mistake(sender, "accept_handoff", "not_addressed", **target),
            session.mistake(sender, "resolve_handoff", "not_addressed", **target, action="reject", note="mine"),
        ]
        if not session.capability:
            mistakes.append(session.mistake(receiver, "resolve_handoff", "not_sender", **target, action="cancel"))
        if outsider is not None:
            mistakes.append(session.mistake(outsider, "accept_handoff", "handoff_not_found", **target))
    if session.handoff_state in ("accepted", "blocked"):
        mistakes += [
            session.mistake(receiver, "renew_handoff", "stale_token", **target, token=token + 7),
            session.mistake(receiver, "resolve_handoff", "stale_token", **target, action="complete", token=token + 7),
            session.mistake(receiver, "resolve_handoff", "invalid_arguments", **target, action="complete", note="no token"),
            session.mistake(receiver, "resolve_handoff", "invalid_arguments", **target, action="block", token=token),
            session.mistake(receiver, "accept_handoff", "wrong_state", **target),
        ]
    if session.handoff_state in ("completed", "rejected", "cancelled"):
        mistakes.append(session.mistake(sender, "resolve_handoff", "wrong_state", **target, action="cancel"))
    return [mistake for mistake in mistakes if mistake.task.agent == agent.name or session.rng.random() < 0.3]


def choose_mistake(session: SimulatedSession, agent: SimulatedAgent) -> Step:
    """Choose one of the mistakes that are possible now, most likely one that `agent` makes."""
    mistakes = _general_mistakes(session, agent)
    if session.key and not session.closed:
        mistakes += _session_mistakes(session, agent) * 2
        if session.handoff_id and not session.state_uncertain:
            mistakes += _handoff_mistakes(session, agent) * 2
    return session.rng.choice(mistakes)


def with_mistakes(session: SimulatedSession, steps: Steps) -> Steps:
    """Add the agents' mistakes to a scenario's steps, and repeat some calls with the same key, which changes nothing."""
    agents = {agent.name: agent for agent in session.agents}
    try:
        step = next(steps)
        while True:
            habits = agents[step.task.agent].habits
            if session.rng.random() < habits.mistake_probability:
                yield choose_mistake(session, agents[step.task.agent])
            try:
                answer = yield step
                if step.operation in IDEMPOTENT_TOOLS and not step.expected_errors:
                    session.used_keys[step.task.agent] = step.arguments["idempotency_key"]
                    if session.rng.random() < habits.repeat_probability:
                        answer = yield replace(step, wait_s=0.0)
            except ScenarioFailed as failure:
                step = steps.throw(failure)
            else:
                step = steps.send(answer)
    except StopIteration:
        return
