"""What agents get wrong: what is possible in the scene as it stands, and is refused with a code that is known before."""

from dataclasses import replace
from typing import Final

from handoff.simulation import text
from handoff.simulation.agents import Person
from handoff.simulation.steps import KEYED, STRANGE_REQUEST, Play, Refused, Scene, Step

NO_SESSION: Final = "s-0000000000000000"
NO_HANDOFF: Final = 9_000_000_000_000_000
NO_SEQUENCE: Final = 9_000_000_000_000


def _anywhere(scene: Scene, who: Person) -> list[Step]:
    """Mistakes that need nothing."""
    steps = [
        scene.slip(who, "get_context", "session_not_found", session_key=NO_SESSION),
        scene.slip(who, "close_session", "session_not_found", session_key=NO_SESSION),
        scene.slip(who, "handoff://summary/" + NO_SESSION, "session_not_found"),
        scene.slip(who, "accept_handoff", "handoff_not_found", handoff_id=NO_HANDOFF),
        scene.slip(who, "update_context", "invalid_arguments", session_key=NO_SESSION, entries="all is done"),
        scene.slip(who, "resolve_handoff", "invalid_arguments", handoff_id=1, action="complete", token="1"),  # noqa: S106 - a number as text
        scene.slip(who, "search_context", "invalid_arguments", query="", limit=10),
        scene.slip(who, "get_inbox", "invalid_arguments", wait="long"),
    ]
    if scene.with_tokens:
        steps.append(scene.slip(who, STRANGE_REQUEST, "unauthorized"))
        other = scene.receiver if who is scene.sender else scene.sender
        if other is not who:
            steps.append(scene.slip(who, "get_inbox", "agent_mismatch", agent=other.name))
    if who.name in scene.used_keys:
        key = scene.used_keys[who.name]
        steps.append(scene.slip(who, "register_session", "idempotency_conflict", metadata={"n": 0}, idempotency_key=key))
    return steps


def _in_session(scene: Scene, who: Person) -> list[Step]:
    """Mistakes about a session that is there."""
    say = [{"type": "message", "content": text.sentence(scene.chance, scene.topic, ("And {thing}?",))}]
    steps = [scene.slip(who, "register_session", "session_exists", session_key=scene.key)]
    if scene.stranger is not None:
        stranger = scene.stranger
        steps += [
            scene.slip(stranger, "get_context", "session_not_found", session_key=scene.key),
            scene.slip(stranger, "update_context", "not_a_writer", session_key=scene.key, entries=say),
            scene.slip(stranger, "close_session", "not_owner", session_key=scene.key),
        ]
    if scene.owner is who and not scene.timed:
        steps += [
            scene.slip(
                who, "update_context", "sequence_mismatch", session_key=scene.key, entries=say, expected_sequence=NO_SEQUENCE
            ),
            scene.slip(
                who,
                "update_context",
                "invalid_arguments",
                session_key=scene.key,
                entries=[{**say[0], "supersedes": [NO_SEQUENCE]}],
            ),
            scene.slip(
                who,
                "request_handoff",
                "invalid_arguments",
                session_key=scene.key,
                target_agent=who.name,
                instructions="Go on.",
            ),
            scene.slip(who, "request_handoff", "invalid_arguments", session_key=scene.key, instructions="Go on, somebody."),
        ]
        if scene.state in ("offered", "accepted", "blocked"):
            steps.append(scene.slip(who, "close_session", "open_handoffs", session_key=scene.key))
    return steps


def _with_handoff(scene: Scene, who: Person) -> list[Step]:
    """Mistakes about a handoff, where its state is certain."""
    handoff_id, token, steps = scene.handoff_id, scene.token, list[Step]()
    about = {"handoff_id": handoff_id}
    if scene.state == "offered":
        steps += [
            scene.slip(scene.sender, "accept_handoff", "not_addressed", **about),
            scene.slip(scene.sender, "resolve_handoff", "not_addressed", **about, action="reject", note="mine"),
        ]
        if not scene.capability:
            steps.append(scene.slip(scene.receiver, "resolve_handoff", "not_sender", **about, action="cancel"))
        if scene.stranger is not None:
            steps.append(scene.slip(scene.stranger, "accept_handoff", "handoff_not_found", **about))
    if scene.state in ("accepted", "blocked"):
        holder = scene.receiver
        steps += [
            scene.slip(holder, "renew_handoff", "stale_token", **about, token=token + 7),
            scene.slip(holder, "resolve_handoff", "stale_token", **about, action="complete", token=token + 7),
            scene.slip(holder, "resolve_handoff", "invalid_arguments", **about, action="complete", note="no token"),
            scene.slip(holder, "resolve_handoff", "invalid_arguments", **about, action="block", token=token),
            scene.slip(holder, "accept_handoff", "wrong_state", **about),
        ]
    if scene.state in ("completed", "rejected", "cancelled"):
        steps.append(scene.slip(scene.sender, "resolve_handoff", "wrong_state", **about, action="cancel"))
    return [step for step in steps if step.task.agent == who.name or scene.chance.random() < 0.3]


def mistake(scene: Scene, who: Person) -> Step:
    """One of the mistakes that are possible now, most likely one of `who`."""
    steps = _anywhere(scene, who)
    if scene.key and not scene.closed:
        steps += _in_session(scene, who) * 2
        if scene.handoff_id and not scene.timed:
            steps += _with_handoff(scene, who) * 2
    return scene.chance.choice(steps)


def clumsily(scene: Scene, play: Play) -> Play:
    """The play with the mistakes of those who play it, and with calls that are made again, which changes nothing."""
    people = {person.name: person for person in scene.cast}
    try:
        step = next(play)
        while True:
            habits = people[step.task.agent].habits
            if scene.chance.random() < habits.clumsy:
                yield mistake(scene, people[step.task.agent])
            try:
                answer = yield step
                if step.call in KEYED and not step.refusals:
                    scene.used_keys[step.task.agent] = step.arguments["idempotency_key"]
                    if scene.chance.random() < habits.repeating:
                        answer = yield replace(step, wait_s=0.0)
            except Refused as refused:
                step = play.throw(refused)
            else:
                step = play.send(answer)
    except StopIteration:
        return
