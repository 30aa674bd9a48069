"""Sessions whose truth is known: what is valid, open and replaced follows from the entries alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from handoff.simulation import text
from tests.agents import Agent

ENTRIES_PER_CALL: Final = 50
SENDER, RECEIVER = "ada", "grace"
INSTRUCTIONS_BYTES: Final = 2_300  # as long as those of the recorded session
FIRST_SEQUENCE: Final = 2  # the registration is entry 1

# Weights and median sizes in bytes, near those of the recorded session; tool calls are longer, as test runs are.
KINDS: Final[dict[str, tuple[int, int]]] = {
    "decision": (26, 300),
    "file": (26, 115),
    "tool_call": (18, 400),
    "message": (16, 200),
    "question": (5, 120),
    "todo": (6, 100),
    "summary": (3, 340),
}
REPLACING: Final = 0.3  # of the decisions
# Open questions, open work items, files and pinned entries that a session of so many entries ends with, at most.
OPEN: Final = {20: (2, 3, 4, 1), 100: (5, 6, 12, 2), 1_000: (8, 10, 40, 3)}


@dataclass(frozen=True)
class Scripted:
    """A session to be written: entries in order, as `update_context` takes them, with their authors, and an offer."""

    name: str
    entries: Sequence[tuple[str, dict[str, Any]]]
    instructions: str
    offered_after: int  # of the entries


@dataclass(frozen=True)
class Truth:
    """What is so after the first entries of a session, by sequence number."""

    decisions: frozenset[int]
    questions: frozenset[int]
    work_items: frozenset[int]
    pinned: frozenset[int]
    files: frozenset[int]  # the newest entry on each
    replaced: frozenset[int]
    task: int


def truth_of(entries: Sequence[dict[str, Any]]) -> Truth:
    """Work out by hand, without the service, what a receiver has to know."""
    numbered = dict(enumerate(entries, FIRST_SEQUENCE))
    replaced = frozenset(number for entry in entries for number in entry.get("supersedes", ()))
    valid = {number: entry for number, entry in numbered.items() if number not in replaced}

    def marked(mark: str) -> frozenset[int]:
        return frozenset(number for number, entry in valid.items() if entry.get("metadata", {}).get(mark) is True)

    newest = {entry["metadata"]["path"]: number for number, entry in valid.items() if entry["type"] == "file"}
    return Truth(
        decisions=frozenset(number for number, entry in valid.items() if entry["type"] == "decision"),
        questions=marked("question"),
        work_items=marked("todo"),
        pinned=marked("pinned"),
        files=frozenset(newest.values()),
        replaced=replaced,
        task=next(number for number, entry in valid.items() if entry["type"] == "message"),
    )


def generated(size: int, seed: int = 1) -> Scripted:
    """Return a session of `size` entries by one agent, the same for the same seed."""
    rng, topic = Random(f"{seed}/{size}"), text.TOPICS[0]  # noqa: S311 - must be reproducible
    questions_max, todos_max, files, pins = OPEN[size]
    paths = [f"src/part_{number}/module_{number}.py" for number in range(files)]
    entries: list[dict[str, Any]] = [{"type": "message", "content": "The task: " + text.text(rng, topic, 500)}]
    valid: list[int] = []
    questions: list[int] = []
    todos: list[int] = []
    while len(entries) < size:
        sequence = FIRST_SEQUENCE + len(entries)
        kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        content = text.text(rng, topic, int(KINDS[kind][1] * rng.lognormvariate(0, 0.4)))
        entry: dict[str, Any] = {"type": kind, "content": f"{sequence}. {content}"}
        if kind == "decision":
            if len(questions) >= questions_max:
                entry["supersedes"] = [questions.pop(0)]
            elif valid and rng.random() < REPLACING:
                entry["supersedes"] = [valid.pop(rng.randrange(len(valid)))]
            valid.append(sequence)
        elif kind == "file":
            entry["metadata"] = {"path": rng.choice(paths)}
        elif kind in ("question", "todo"):
            still_open, most = (questions, questions_max) if kind == "question" else (todos, todos_max)
            if len(still_open) >= most:
                entry |= {"type": "message", "supersedes": [still_open.pop(0)]}
            else:
                entry |= {"type": "message", "metadata": {kind: True}}
                still_open.append(sequence)
        elif kind == "message" and pins and len(entries) > size // 4:
            entry["metadata"] = {"pinned": True}
            pins -= 1
        entries.append(entry)
    instructions = text.text(rng, topic, INSTRUCTIONS_BYTES)
    return Scripted(f"{size:,} entries", [(SENDER, entry) for entry in entries], instructions, size)


def recorded(folder: Path) -> Scripted:
    """Return the session recorded in a folder: session.jsonl, and offer.json, which was made before another agent wrote."""
    lines = [json.loads(line) for line in (folder / "session.jsonl").read_text(encoding="utf-8").splitlines()]
    offer = json.loads((folder / "offer.json").read_text(encoding="utf-8"))
    fields = ("type", "content", "metadata", "supersedes")
    entries = [(line["author"], {name: line[name] for name in fields if name in line}) for line in lines]
    offered_after = next(place for place, (author, _) in enumerate(entries) if author != offer["agent"])
    return Scripted("recorded", entries, offer["instructions"], offered_after)


async def write(agent: Agent, session_key: str, entries: Sequence[tuple[str, dict[str, Any]]], first: int) -> None:
    """Append entries in as few calls as may be: of one author each, none of which supersedes an entry of its own call."""
    batch: list[dict[str, Any]] = []
    author = entries[0][0]
    for sequence, (name, entry) in enumerate(entries, first):
        starts = sequence - len(batch)
        if batch and (name != author or len(batch) == ENTRIES_PER_CALL or max(entry.get("supersedes", [0])) >= starts):
            await agent.ok("update_context", agent=author, session_key=session_key, entries=batch)
            batch = []
        author = name
        batch.append(entry)
    await agent.ok("update_context", agent=author, session_key=session_key, entries=batch)


async def play(agent: Agent, script: Scripted) -> tuple[str, int]:
    """Write a session up to its offer, and offer it; return its key and the handoff's id."""
    key = await agent.session(SENDER)
    await write(agent, key, script.entries[: script.offered_after], FIRST_SEQUENCE)
    return key, await agent.offer(
        key, to=RECEIVER, agent=SENDER, instructions=script.instructions, request_type="full_handoff"
    )
