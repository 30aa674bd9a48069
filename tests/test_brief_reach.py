"""A brief holds what docs/brief.md says it does, of sessions whose truth is known."""

import json
import sys
from pathlib import Path

import pytest

from handoff.brief import TOKENS_DEFAULT, tokens_max
from tests.agents import Agent
from tests.bench.brief import BUDGETS, PAGE, main, measure, table
from tests.bench.sessions import OPEN, generated, recorded


@pytest.mark.parametrize("size", OPEN)
async def test_the_default_budget_reaches_what_a_receiver_must_know(agent: Agent, size: int) -> None:
    measured = [row async for row in measure(agent, generated(size))]

    assert [budget for _, budget, _ in measured] == list(BUDGETS)
    for _, budget, reach in measured:
        assert reach.replaced == 0
        assert reach.tokens <= tokens_max(budget)
    (held,) = [reach for _, budget, reach in measured if budget == TOKENS_DEFAULT]
    for wanted in (held.questions, held.work_items, held.pinned, held.task, held.instructions):
        assert wanted[0] == wanted[1] > 0 or (size == min(OPEN) and wanted == (0, 0))
    decisions, valid = held.decisions
    assert decisions >= 0.95 * valid if size <= 100 else decisions >= 15
    documented = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {size:,} entries")]
    assert documented == table(measured).splitlines()[2:], "run make bench-brief WRITE=1 with the recorded session"


def test_a_recorded_session_is_read_up_to_its_offer(tmp_path: Path) -> None:
    lines = [
        {"sequence": 2, "author": "ada", "type": "message", "content": "The task."},
        {"sequence": 3, "author": "bob", "type": "decision", "content": "So.", "supersedes": [2]},
    ]
    (tmp_path / "session.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "offer.json").write_text(json.dumps({"agent": "ada", "instructions": "Go on."}))

    script = recorded(tmp_path)

    assert (script.offered_after, script.instructions) == (1, "Go on.")
    assert [author for author, _ in script.entries] == ["ada", "bob"]


def test_a_recorded_session_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench-brief", str(tmp_path)])

    assert main() == 2
    assert f"There is no {tmp_path / 'session.jsonl'}." in capsys.readouterr().out
