"""How much each agent calls is counted for a bounded number of them."""

from collections.abc import Generator

import pytest

from handoff.telemetry import agents


@pytest.fixture(autouse=True)
def nobody() -> Generator[None]:
    """No agent has called yet."""
    before = dict(agents._counts)
    agents._counts.clear()
    yield
    agents._counts.clear()
    agents._counts.update(before)


def called(agent: str, *, is_ok: bool = True, is_refused: bool = False) -> None:
    agents.count(agent, 100, is_ok=is_ok, is_refused=is_refused)


def test_a_name_that_only_refused_calls_gave_is_not_kept() -> None:
    called("made up", is_ok=False, is_refused=True)
    called("ada")
    called("ada", is_ok=False, is_refused=True)
    called("ada", is_ok=False)
    assert agents.read() == {"ada": (3, 1, 1, 100)}


def test_no_more_agents_are_told_apart_than_there_may_be_and_a_silent_one_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agents, "AGENTS_MAX", 2)
    for name in ("ada", "grace", "linus"):
        called(name)
    assert agents.read().keys() == {"ada", "grace"}
    for _ in range(60):
        called("ada")
        agents.read()
    called("linus")
    assert agents.read().keys() == {"ada", "linus"}
