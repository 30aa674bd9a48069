"""What happens in a scene, from the first entry to the closing of the session. Each plot is a generator of steps."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from handoff.model import HELD_STATES, RequestType
from handoff.simulation import text
from handoff.simulation.agents import Person
from handoff.simulation.steps import Answer, Part, Play, Refused, Scene

LEASES_S: Final = (3_600, 7_200, 14_400)
SHORT_LEASE_S: Final = 5  # the shortest there is
LOOKS_MAX: Final = 40  # at something that the clock is to bring about
LOOK_S: Final = 2.0
LAPSES_MAX: Final = 8
SLOW_S: Final = (180.0, 480.0)
VOLLEY: Final = 24  # handoffs of one session, back and forth
LARGEST_BYTES: Final = 1_000_000
LARGEST_TIMES: Final = 4
LEFT_AFTER: Final = timedelta(minutes=45)  # longer than any scene rests
LEFT_AT_ONCE: Final = 5
# With which somebody who clears up may be refused, because another did so first.
CLEARED: Final = (
    "",
    "session_not_found",
    "session_closed",
    "handoff_not_found",
    "wrong_state",
    "stale_token",
    "open_handoffs",
)

Plot = Callable[[Scene, RequestType], Play]


class Overtaken(Refused):
    """The clock, or somebody else, did something else than the play expects."""


# Parts of plots.


def _begin(scene: Scene, writes: int = 0) -> Part:
    """The sender opens the session and works in it."""
    sender, chance = scene.sender, scene.chance
    arguments: dict[str, Any] = {"metadata": {"demo": "work", "task": scene.topic.title}}
    if chance.random() < 0.3:
        arguments["retention_policy"] = "short"
    answer = yield scene.step(sender, "register_session", **arguments)
    scene.key, scene.owner = answer["session_key"], sender
    return (yield from _write(scene, sender, writes or sender.habits.diligence, asks=chance.random() < 0.5))


def _write(scene: Scene, person: Person, writes: int, *, asks: bool = False) -> Part:
    """A person looks around, and appends entries, in several calls."""
    chance, topic, answer = scene.chance, scene.topic, Answer()
    for _ in range(writes):
        if chance.random() < person.habits.curious:
            yield from _look(scene, person)
        entries = [
            text.entry(chance, topic, person.habits.content_bytes) for _ in range(chance.choices((1, 2, 4), (6, 3, 1))[0])
        ]
        answer = yield scene.step(person, "update_context", session_key=scene.key, entries=entries)
    if asks:
        answer = yield scene.step(person, "update_context", session_key=scene.key, entries=[text.question(chance, topic)])
        scene.question = answer["last_sequence"]
    return answer


def _look(scene: Scene, person: Person) -> Part:
    """A person reads or searches."""
    key, chance = scene.key, scene.chance
    match chance.randrange(7):
        case 0:
            step = scene.step(person, "search_context", query=text.query(chance, scene.topic), session_key=key)
        case 1:
            step = scene.step(person, "search_context", query=text.query(chance, scene.topic))
        case 2:
            step = scene.step(person, "get_context", session_key=key, token_budget=chance.choice((500, 1_500, 4_000)))
        case 3:
            step = scene.step(person, "get_context", session_key=key, view="entries", limit=chance.choice((5, 20)))
        case 4:
            step = scene.step(person, f"handoff://summary/{key}")
        case 5:
            step = scene.step(person, f"handoff://context/{key}")
        case _:
            step = scene.step(person, f"handoff://sessions/{key}/lifecycle")
    return (yield step)


def _offer(scene: Scene, kind: RequestType, deadline_minutes: int | None = None) -> Part:
    """The sender offers the session, to the receiver by name or to whoever has one of the receiver's capabilities."""
    sender, chance = scene.sender, scene.chance
    if scene.capability:
        arguments: dict[str, Any] = {"target_capability": scene.capability}
    else:
        arguments = {"target_agent": scene.receiver.name}
    if deadline_minutes is None and not scene.hasty and chance.random() < sender.habits.reminding:
        deadline_minutes = chance.choice((60, 240, 1_440))
    if deadline_minutes is not None:
        arguments["deadline_minutes"] = deadline_minutes
    answer = yield scene.step(
        sender,
        "request_handoff",
        session_key=scene.key,
        request_type=kind,
        instructions=text.instructions(chance, scene.topic),
        priority=chance.choices((2, 5, 8), (1, 4, 1))[0],
        **arguments,
    )
    scene.handoff_id, scene.token, scene.state = answer["handoff_id"], 0, answer["state"]
    return answer


def _notice(scene: Scene, late: float = 1.0) -> Part:
    """The receiver finds the offer, after its usual time or several times that."""
    receiver, chance = scene.receiver, scene.chance
    arguments: dict[str, Any] = {"capabilities": list(receiver.capabilities)} if scene.capability else {}
    pauses = late * chance.uniform(0.3, 1.7) * receiver.habits.late_s / receiver.habits.pause_s
    wait_s = chance.uniform(*SLOW_S) if "slow" in scene.faults and not scene.hasty else 0.0
    answer = yield scene.step(receiver, "get_inbox", pauses, wait_s, **arguments)
    if chance.random() < receiver.habits.curious:
        answer = yield scene.step(receiver, f"handoff://handoffs/{scene.handoff_id}")
    return answer


def _accept(scene: Scene, lease_s: int | None = None) -> Part:
    """The receiver takes the offer."""
    answer = yield scene.step(
        scene.receiver,
        "accept_handoff",
        handoff_id=scene.handoff_id,
        lease_seconds=lease_s or scene.chance.choice(LEASES_S),
        token_budget=scene.chance.choice((800, 1_500, 3_000)),
    )
    scene.token, scene.state = answer["handoff"]["token"], answer["handoff"]["state"]
    if answer["handoff"]["request_type"] == "full_handoff":
        scene.owner = scene.receiver
    return answer


def _go_on(scene: Scene) -> Part:
    """The receiver works in the session that it holds, and answers what was asked."""
    receiver, chance = scene.receiver, scene.chance
    yield from _write(scene, receiver, receiver.habits.diligence)
    if chance.random() < receiver.habits.renewing:
        yield from _renew(scene)
    entries = [text.summary(chance, scene.topic)]
    if scene.question:
        entries.insert(0, text.answer(chance, scene.topic, scene.question))
        scene.question = 0
    return (yield scene.step(receiver, "update_context", session_key=scene.key, entries=entries))


def _renew(scene: Scene, pauses: float = 1.0) -> Part:
    answer = yield scene.step(
        scene.receiver,
        "renew_handoff",
        pauses,
        handoff_id=scene.handoff_id,
        token=scene.token,
        lease_seconds=scene.chance.choice(LEASES_S),
    )
    scene.state = answer["state"]
    return answer


def _settle(scene: Scene, person: Person, action: str, note: str | None = None, pauses: float = 1.0) -> Part:
    """A person completes, blocks, rejects or cancels the handoff."""
    arguments: dict[str, Any] = {"handoff_id": scene.handoff_id, "action": action}
    if action in ("complete", "block"):
        arguments["token"] = scene.token
    if note is not None:
        arguments["note"] = note
    answer = yield scene.step(person, "resolve_handoff", pauses, **arguments)
    scene.state = answer["state"]
    return answer


def _complete(scene: Scene) -> Part:
    return (yield from _settle(scene, scene.receiver, "complete", text.outcome(scene.chance, scene.topic)))


def _close(scene: Scene, outcome: str = "completed") -> Play:
    """The owner closes the session."""
    owner = scene.owner or scene.sender
    yield scene.step(owner, "close_session", session_key=scene.key, outcome=outcome)
    scene.closed = True
    if scene.chance.random() < owner.habits.clumsy:
        entries = [text.summary(scene.chance, scene.topic)]
        yield scene.slip(owner, "update_context", "session_closed", session_key=scene.key, entries=entries)


def _until_lapsed(scene: Scene, person: Person, wait_s: float) -> Part:
    """A person looks at the handoff until the clock has taken it from its holder, or has let it expire; as it is then."""
    for _ in range(LOOKS_MAX):
        answer = yield scene.step(person, f"handoff://handoffs/{scene.handoff_id}", 0.0, wait_s)
        if answer["state"] != scene.state:
            scene.state = answer["state"]
            scene.owner = scene.sender
            return answer
        wait_s = LOOK_S
    raise Overtaken("still_" + scene.state)


# Plots.


def finished(scene: Scene, kind: RequestType) -> Play:
    """One begins, another finishes."""
    yield from _begin(scene)
    yield from _offer(scene, kind)
    yield from _notice(scene)
    yield from _accept(scene)
    yield from _go_on(scene)
    yield from _complete(scene)
    if kind == "collaboration":  # from now on both write
        for person in (scene.sender, scene.receiver):
            yield from _write(scene, person, 1)
    yield from _close(scene)


def taken_late(scene: Scene, kind: RequestType) -> Play:
    """The receiver takes its time."""
    yield from _begin(scene)
    yield from _offer(scene, kind)
    yield from _notice(scene, late=6)
    yield from _accept(scene)
    yield from _go_on(scene)
    yield from _complete(scene)
    yield from _close(scene)


def rejected(scene: Scene, kind: RequestType) -> Play:
    """The receiver declines; the sender finishes alone."""
    scene.capability = ""  # only who is named can decline
    yield from _begin(scene)
    yield from _offer(scene, kind)
    yield from _notice(scene)
    yield from _settle(scene, scene.receiver, "reject", text.rejection(scene.chance, scene.topic))
    yield from _write(scene, scene.sender, 1)
    yield from _close(scene)


def withdrawn(scene: Scene, kind: RequestType) -> Play:
    """The sender thinks better of it."""
    yield from _begin(scene)
    yield from _offer(scene, kind)
    yield from _settle(scene, scene.sender, "cancel", pauses=2)
    yield from _close(scene, "cancelled")


def blocked(scene: Scene, kind: RequestType) -> Play:
    """The receiver can't go on, and later can."""
    yield from _begin(scene)
    yield from _offer(scene, kind)
    yield from _notice(scene)
    yield from _accept(scene)
    yield from _write(scene, scene.receiver, 1)
    yield from _settle(scene, scene.receiver, "block", text.obstacle(scene.chance, scene.topic))
    yield from _renew(scene, pauses=4)
    yield from _go_on(scene)
    yield from _complete(scene)
    yield from _close(scene)


def lapsed(scene: Scene, kind: RequestType) -> Play:
    """The receiver forgets its lease, is told so, and takes the offer again."""
    scene.timed = True
    yield from _begin(scene)
    yield from _offer(scene, kind)
    yield from _notice(scene)
    yield from _accept(scene, SHORT_LEASE_S)
    yield from _until_lapsed(scene, scene.receiver, SHORT_LEASE_S + 0.5)
    stale = {"handoff_id": scene.handoff_id, "action": "complete", "token": scene.token}
    yield scene.slip(scene.receiver, "resolve_handoff", "stale_token", "wrong_state", **stale)
    if scene.state == "offered":  # the service may be one that lets no lease lapse twice
        yield from _accept(scene)
        yield from _go_on(scene)
        yield from _complete(scene)
    yield from _close(scene)


def forgotten(scene: Scene, kind: RequestType) -> Play:
    """The receiver takes the offer again and again, and each time vanishes, until the offer expires."""
    scene.timed = True
    yield from _begin(scene, writes=1)
    yield from _offer(scene, kind)
    for _ in range(LAPSES_MAX):
        yield from _notice(scene)
        yield from _accept(scene, SHORT_LEASE_S)
        yield from _until_lapsed(scene, scene.sender, SHORT_LEASE_S + 0.5)
        if scene.state != "offered":
            break
    else:
        yield from _settle(scene, scene.sender, "cancel")
    yield from _close(scene)


def overdue(scene: Scene, kind: RequestType) -> Play:
    """Nobody takes the offer before its deadline."""
    scene.timed = True
    yield from _begin(scene, writes=1)
    yield from _offer(scene, kind, deadline_minutes=1)
    yield from _until_lapsed(scene, scene.sender, 61)
    yield from _write(scene, scene.sender, 1)
    yield from _close(scene)


def relayed(scene: Scene, _kind: RequestType) -> Play:
    """The session goes on to another and comes back."""
    yield from _begin(scene)
    for _ in range(2):
        yield from _offer(scene, "full_handoff")
        yield from _notice(scene)
        yield from _accept(scene)
        yield from _go_on(scene)
        yield from _complete(scene)
        _turn(scene)
    yield from _close(scene)


def rounds(scene: Scene, _kind: RequestType) -> Play:
    """An agent says what it can do, waits for work for a while, looks around, and clears up what was left lying."""
    who = scene.sender
    yield scene.step(who, "get_inbox", capabilities=list(who.capabilities), wait_seconds=scene.chance.randint(1, 5))
    yield scene.step(who, "search_context", query=text.query(scene.chance, scene.topic))
    yield scene.step(who, f"handoff://agents/{who.name}/inbox")
    mine = yield scene.step(who, f"handoff://agents/{who.name}/sessions?status=active&limit=100")
    before = datetime.fromtimestamp(mine["answered_at"], UTC) - LEFT_AFTER
    left = [
        found["session_key"]
        for found in mine["sessions"]
        if (found["metadata"] or {}).get("demo") == "work" and datetime.fromisoformat(found["last_activity_at"]) < before
    ]
    scene.stranger = None  # whoever that is may take part in what was left
    for key in left[:LEFT_AT_ONCE]:
        scene.key = key
        yield from leave(scene)


def volley(scene: Scene, _kind: RequestType) -> Play:
    """Two agents give each other the same session without rest."""
    scene.hasty, scene.capability = True, ""
    yield from _begin(scene, writes=1)
    for _ in range(VOLLEY):
        yield from _offer(scene, "full_handoff")
        yield from _accept(scene)
        yield from _complete(scene)
        _turn(scene)
    yield from _close(scene)


def swelling(scene: Scene, _kind: RequestType) -> Play:
    """An agent writes ever larger entries, up to what the service takes."""
    yield from _begin(scene, writes=1)
    size, size_max, largest = 1_000, LARGEST_BYTES, 0
    while largest < LARGEST_TIMES:
        entries = [{"type": "tool_call", "content": text.text(scene.chance, scene.topic, size)[:size_max]}]
        step = scene.step(scene.sender, "update_context", session_key=scene.key, entries=entries)
        answer = yield replace(step, refusals=("", "invalid_arguments"))
        size_max = min(size_max, answer.get("error", {}).get("bytes_max", size_max))
        largest += size >= size_max
        size = min(size_max, size * 2)
    yield from _close(scene)


def _turn(scene: Scene) -> None:
    scene.sender, scene.receiver = scene.receiver, scene.sender
    scene.capability, scene.state = "", ""


def leave(scene: Scene) -> Play:
    """End what is open about a session, whatever its state, so that nothing is left lying."""
    people = {person.name: person for person in scene.cast}
    anyone = scene.owner or scene.sender

    def look(person: Person, uri: str) -> Part:
        return (yield replace(scene.step(person, uri, 0.0), refusals=CLEARED))

    def act(person: Person, tool: str, **arguments: Any) -> Part:
        return (yield replace(scene.step(person, tool, 0.0, **arguments), refusals=CLEARED))

    summary = yield from look(anyone, f"handoff://summary/{scene.key}")
    lease_lapsed = False
    for handoff in summary.get("handoffs", ()):
        about: dict[str, Any] = {"handoff_id": handoff["handoff_id"]}
        is_offered = handoff["state"] == "offered"
        if handoff["state"] in HELD_STATES:
            holder = people.get(handoff["holder"], anyone)
            held = yield from look(holder, f"handoff://handoffs/{handoff['handoff_id']}")
            about["token"] = held.get("token", 0)
            if handoff["state"] == "blocked":  # from which only renewing leads
                yield from act(holder, "renew_handoff", **about)
            settled = yield from act(holder, "resolve_handoff", **about, action="complete")
            is_offered = lease_lapsed = "error" in settled
        if is_offered:
            yield from act(people.get(handoff["sender"], anyone), "resolve_handoff", **about, action="cancel")
    if lease_lapsed:  # and with it the session may have gone back
        summary = yield from look(anyone, f"handoff://summary/{scene.key}")
    if summary.get("status") == "active":
        yield from act(people.get(summary["owner"], anyone), "close_session", session_key=scene.key, outcome="cancelled")
