"""What the tests of the stack rely on, without a stack: waits that end by what happened, and what a failure leaves."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.stack import evidence, turns
from tests.stack.drills.pace import TURN_S, slowness
from tests.stack.turns import Times, Turns, Vain, eventually


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once."""
    monkeypatch.setattr(turns, "POLL_S", 0)


def counted(*seen: tuple[Times, Times]) -> list[int]:
    """The number of turns after each look, when the stack shows these times. The first turn began at 0."""
    shown = iter(seen)
    stack = Turns(lambda: next(shown), _began=0)
    return [stack.look() for _ in seen]


def now(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """Let the looks happen at these times."""
    left = iter(times)
    monkeypatch.setattr(turns, "time", lambda: next(left))


def test_a_turn_is_over_when_everything_arrived_and_every_rule_was_evaluated_after_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now(monkeypatch, 10, 20, 30, 40, 50)
    assert counted(
        ({"up": 1, "pushed": 0}, {"a": 5, "b": 5}),  # one source is still missing
        ({"up": 1, "pushed": 12}, {"a": 15, "b": 19}),  # all arrived; these evaluations may not have seen it
        ({"up": 1, "pushed": 12}, {"a": 25, "b": 19}),  # one group of rules has not
        ({"up": 1, "pushed": 12}, {"a": 25, "b": 26}),
        ({"up": 1, "pushed": 12}, {"a": 45, "b": 46}),  # nothing new arrived
    ) == [0, 0, 0, 1, 1]


def test_a_stack_that_shows_nothing_does_not_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now(monkeypatch, 10, 20, 30)
    assert counted(({}, {}), ({}, {"a": 99}), ({"up": 15}, {})) == [0, 0, 0]


class Turning(Turns):
    """A stack in which each look is a turn."""

    def look(self) -> int:
        self.took_s.append(1)
        return self.count


def test_a_wait_ends_after_its_turns_and_shows_what_there_was() -> None:
    with pytest.raises(Vain, match=r"nothing after 7 turns of the stack, in \d+ s: nobody came"):
        eventually(lambda: False, turns=Turning(lambda: ({}, {})), most=7, show=lambda: "nobody came")


def test_a_wait_ends_when_nothing_turns_and_says_so() -> None:
    with pytest.raises(Vain, match=r"nothing after 0 turns of the stack, in 0 s, the last 0 s of them without a turn"):
        eventually(lambda: False, turns=Turns(lambda: ({}, {})), stalled_s=0)


def test_a_wait_outlasts_what_fails_for_a_while_and_names_the_error_if_that_goes_on() -> None:
    answers: Iterator[object] = iter([httpx2.ConnectError("not yet"), httpx2.ConnectError("not yet"), "here"])

    def ask() -> object:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    assert eventually(ask, turns=Turning(lambda: ({}, {}))) == "here"

    def refused() -> None:
        raise httpx2.ConnectError("still not")

    with pytest.raises(Vain, match="still not"):
        eventually(refused, turns=Turning(lambda: ({}, {})))


def test_what_a_wait_shows_does_not_hide_its_failure() -> None:
    def show() -> str:
        raise httpx2.ConnectError("this is down as well")

    with pytest.raises(Vain, match=r"nothing after .*: \(nothing to show: this is down as well\)"):
        eventually(lambda: False, turns=Turning(lambda: ({}, {})), show=show)


def test_rules_take_longer_on_a_machine_on_which_turns_do() -> None:
    assert [slowness(turn_s, 1) for turn_s in (2, TURN_S, TURN_S + 0.1, 3 * TURN_S)] == [1, 1, 2, 3]


def test_rules_get_quick_again_when_only_their_own_durations_make_turns_long() -> None:
    assert [slowness(2.5 + 2 * (slow - 1), slow) for slow in (1, 2, 3)] == [1, 1, 1]


def test_a_failure_leaves_every_part_that_can_be_had_and_the_first_stays(tmp_path: Path) -> None:
    def gone() -> str:
        raise httpx2.ConnectError("Prometheus is down")

    folder = evidence.leave({"logs.txt": lambda: "a line", "rules.json": gone, "alerts.json": lambda: [1]}, tmp_path / "it")
    assert {it.name: it.read_text() for it in folder.iterdir()} == {
        "logs.txt": "a line",
        "rules.json": "not to be had: Prometheus is down\n",
        "alerts.json": "[\n 1\n]",
    }
    evidence.leave({"logs.txt": lambda: "after the repair"}, folder)
    assert (folder / "logs.txt").read_text() == "a line"


def test_the_evidence_of_a_test_has_one_folder_whatever_phase_failed() -> None:
    folders = {evidence.folder_of(f"tests/stack/test_x.py::test_it[a b/c] ({phase})") for phase in ("setup", "call")}
    assert {it.name for it in folders} == {"test_x-test_it-a-b-c"}


def test_the_machine_is_described_with_its_load_and_what_runs() -> None:
    assert "load " in (said := evidence.machine())
    assert "% of all processors in use" in said
