"""Measures what a brief holds of sessions whose truth is known: `python -m tests.bench.brief [FOLDER] [--write]`.

FOLDER holds a recorded session (session.jsonl and offer.json). The sessions are written and read through the tools, with a
Postgres of their own. --write replaces the table in docs/brief.md.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp import Client
from pydantic import SecretStr

from handoff.app import open_app
from handoff.brief import TOKENS_DEFAULT
from handoff.cli.embedded import ensure_database, postgres
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.migrate import migrate
from handoff.telemetry.logs import configure_logs
from tests.agents import Agent
from tests.bench.sessions import (
    FIRST_SEQUENCE,
    OPEN,
    RECEIVER,
    Scripted,
    Truth,
    generated,
    play,
    recorded,
    truth_of,
    write,
)
from tests.processes import passable_folder

BUDGETS: Final = (500, 1_500, 3_000, TOKENS_DEFAULT, 5_000)
HELD_CHARS: Final = 200  # a text that is cut counts as held if this much of it is shown
PAGE: Final = Path(__file__).parents[2] / "docs" / "brief.md"
_TABLE: Final = re.compile(r"(?<=^<!-- measured -->\n).*?(?=^<!-- measured end -->$)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Reach:
    """What a brief holds, each as (held, of). `replaced` counts replaced entries that are shown or listed."""

    tokens: int
    decisions: tuple[int, int]
    questions: tuple[int, int]
    work_items: tuple[int, int]
    pinned: tuple[int, int]
    files: tuple[int, int]
    task: tuple[int, int]
    instructions: tuple[int, int]  # characters
    replaced: int
    listed: int


def reach(brief: dict[str, Any], truth: Truth, instructions: str) -> Reach:
    """Compare a brief with the truth."""
    parts = [part for part in brief["parts"] if part["kind"] != "handoff"]
    shown = {number for part in parts for number in part["sequences"]}
    held = {part["sequences"][-1] for part in parts if "cut" not in part or len(part["text"]) > HELD_CHARS}
    listed = [int(line.split(" ", 1)[0]) for line in brief["omitted"].get("listed", ())]
    (offer,) = [part for part in brief["parts"] if part["kind"] == "handoff"]

    def of(wanted: Collection[int]) -> tuple[int, int]:
        return len(held & set(wanted)), len(wanted)

    return Reach(
        tokens=brief["tokens"],
        decisions=of(truth.decisions),
        questions=of(truth.questions),
        work_items=of(truth.work_items),
        pinned=of(truth.pinned),
        files=of(truth.files),
        task=of([truth.task]),
        instructions=(len(offer["text"]) - ("cut" in offer), len(instructions)),
        replaced=len((shown | set(listed)) & truth.replaced),
        listed=len(listed),
    )


async def measure(
    agent: Agent, script: Scripted, budgets: Iterable[int] = BUDGETS
) -> AsyncGenerator[tuple[str, int, Reach]]:
    """Write a session and offer it; yield its name, each budget, and what the receiver's brief holds.

    If the session goes on after the offer, the receiver accepts, writes the rest, and the briefs are measured again.
    """
    key, handoff_id = await play(agent, script)
    written = script.entries[: script.offered_after]
    for stage in ("at the offer", "at the end"):
        truth = truth_of([entry for _, entry in written])
        for budget in budgets:
            answer = await agent.ok("get_context", agent=RECEIVER, session_key=key, token_budget=budget)
            yield f"{script.name}, {stage}", budget, reach(answer["brief"], truth, script.instructions)
        if len(written) == len(script.entries):
            return
        await agent.ok("accept_handoff", agent=RECEIVER, handoff_id=handoff_id)
        rest = script.entries[script.offered_after :]
        await write(agent, key, rest, FIRST_SEQUENCE + script.offered_after)
        written = script.entries


def table(measured: Iterable[tuple[str, int, Reach]]) -> str:
    """Return the measurements as a table in Markdown."""
    columns = (
        "Session",
        "Budget",
        "Tokens",
        "Decisions",
        "Questions",
        "Open work",
        "Pinned",
        "Files",
        "Task",
        "Instructions",
    )
    rows = [(*columns, "Replaced", "Listed"), ("---",) * (len(columns) + 2)]
    for name, budget, it in measured:
        shares = (it.decisions, it.questions, it.work_items, it.pinned, it.files, it.task)
        cells = [f"{held} of {of}" if of else "" for held, of in shares]
        percent = f"{100 * it.instructions[0] / it.instructions[1]:.0f} %"
        rows.append((name, f"{budget:,}", f"{it.tokens:,}", *cells, percent, str(it.replaced), str(it.listed)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


async def _measure_all(database_url: str, scripts: Iterable[Scripted]) -> str:
    settings = Settings(database_url=SecretStr(database_url))
    configure_logs("error")
    await migrate(settings)
    async with open_app(settings) as app, Client(build_server(app)) as client:
        return table([row for script in scripts async for row in measure(Agent(client), script)])


def main() -> int:
    """Measure, print the table, and write it into the page if asked to."""
    parser = argparse.ArgumentParser(prog="make bench-brief", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="a recorded session: session.jsonl and offer.json")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {PAGE.name}")
    options = parser.parse_args()
    scripts = [generated(size) for size in OPEN]
    if options.folder is None:
        print(
            "No recorded session was given, so only generated ones are measured: make bench-brief FOLDER=...",
            file=sys.stderr,
        )
    else:
        try:
            scripts.append(recorded(options.folder))
        except FileNotFoundError as missing:
            print(f"There is no {missing.filename}. A recorded session is a folder with session.jsonl and offer.json.")
            return 2
    with passable_folder() as folder, postgres(folder) as url:
        made = asyncio.run(_measure_all(asyncio.run(ensure_database(url)), scripts))
    print(made, end="")
    if options.write:
        PAGE.write_text(_TABLE.sub(lambda _: f"\n{made}\n", PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
