"""Findings of one fault become one cluster, whose likeliest cause is where the fault is."""

from dataclasses import replace
from itertools import count
from typing import Final

import pytest

from handoff.analytics.grouping import Cluster, Place, Sign, dependencies, gather, place_of, suspects

_ids: Final = count(1)
SERVICE, DATABASE = Place("service"), Place("database")


def sign(
    name: str,
    value: float = 10,
    expected: float = 0,
    *,
    at: int = 0,
    strength: float = 2,
    of: float | None = None,
    **labels: str,
) -> Sign:
    """A finding about a series, a minute after `at` minutes."""
    named = {label.rstrip("_"): text for label, text in labels.items()}
    kinds = {"calls.failed_ratio": "ratio", "calls.latency": "duration", "calls.request_bytes": "duration"}
    kind = kinds.get(name, "duration" if "latency" in name else "count")
    place = place_of(name, named)
    return Sign(next(_ids), name, kind, place, 60 * at, strength, value, expected, f"{name} of {place} is unusual.", of)


def route(name: str, sender: str, target: str, value: float = 10, expected: float = 0, *, at: int = 0) -> Sign:
    return sign(name, value, expected, at=at, from_=sender, to=target)


def causes(*signs: Sign) -> list[Place]:
    return [it.place for it in suspects(signs)]


def test_a_series_is_about_the_place_that_its_labels_or_its_name_say() -> None:
    assert place_of("handoffs.offered", {"from": "ada", "to": "bob"}) == Place("route", ("ada", "bob"))
    assert place_of("calls.latency", {"tool": "get_inbox"}) == Place("tool", ("get_inbox",))
    assert place_of("handoffs.offered", {"agent": "ada"}) == Place("agent", ("ada",))
    assert [place_of(it, {}).part for it in ("pool.wait", "cpu.seconds", "handoffs.offered")] == ["pool", "host", "service"]
    assert Place("agent", ("bob",)) in dependencies(Place("route", ("ada", "bob")))
    assert str(Place("route", ("ada", "bob"))) == "route ada -> bob"
    assert str(SERVICE) == "the service"


# What the faults of the demo look like, and where each of them is.
FAULTS: Final[dict[str, tuple[list[Sign], Place]]] = {
    "a slow database makes every tool slow, and waits for the pool long": (
        [
            sign("calls.latency", tool="update_context", strength=4),
            sign("calls.latency", tool="get_inbox", strength=3),
            sign("pool.wait", strength=5),
            sign("database.latency", at=1),
        ],
        DATABASE,
    ),
    "a pool that is too small": (
        [sign("pool.wait"), sign("calls.latency", tool="get_inbox"), sign("calls.latency", tool="get_context")],
        Place("pool"),
    ),
    "one tool that fails": (
        [sign("calls.failed", 30, 0, tool="get_inbox"), sign("calls.failed", 31, 1)],
        Place("tool", ("get_inbox",)),
    ),
    "two agents that hand a session back and forth": (
        [
            sign("handoffs.offered", 60, 10),
            route("handoffs.offered", "ada", "bob", 50, 2),
            sign("handoffs.offered", 52, 3, agent="ada"),
        ],
        Place("route", ("ada", "bob")),
    ),
    "an agent that offers to everybody": (
        [
            sign("handoffs.offered", 100, 10),
            sign("handoffs.offered", 95, 5, agent="ada"),
            *(route("handoffs.offered", "ada", to, 30, 1) for to in ("bob", "cyd", "dan")),
        ],
        Place("agent", ("ada",)),
    ),
    "an agent that rejects what anybody offers": (
        [route("handoffs.rejected", sender, "bob", 9, 0) for sender in ("ada", "cyd", "dan")],
        Place("agent", ("bob",)),
    ),
    "a drop in all traffic": (
        [
            sign("handoffs.offered", 0, 90),
            *(sign("handoffs.offered", 0, 30, agent=name) for name in ("ada", "bob", "cyd")),
        ],
        SERVICE,
    ),
    "all tools slow, and nothing found below them": (
        [sign("calls.latency", tool=name) for name in ("get_inbox", "get_context", "update_context")],
        SERVICE,
    ),
    "a tool that fails, so that what comes of it is missing everywhere": (
        [
            sign("calls.failed_ratio", 1, 0, of=5, operation="request_handoff", strength=1.2),
            sign("calls.failed_ratio", 0.1, 0, of=60, strength=1.5),
            sign("handoffs.offered", 0, 4, at=8),
            sign("handoffs.completed", 0, 3, at=9),
            sign("calls", 0, 3, operation="resolve_handoff", at=9),
            *(sign("handoffs.offered", 0, 2, agent=name, at=12) for name in ("ada", "bob")),
        ],
        Place("tool", ("request_handoff",)),
    ),
    "an agent that sends so much that the tool takes long": (
        [
            sign("calls.latency", 0.04, 0.004, operation="update_context"),
            sign("calls.request_bytes", 370_000, 700, agent="ada", at=11),
        ],
        Place("agent", ("ada",)),
    ),
    "memory that leaks": ([sign("memory.bytes"), sign("calls.latency", tool="get_inbox", at=3)], Place("host")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_becomes_one_incident_whose_first_cause_is_where_it_is(fault: str) -> None:
    signs, place = FAULTS[fault]
    (cluster,) = gather([], sorted(signs, key=lambda it: it.at))
    assert causes(*cluster.signs)[0] == place
    assert causes(*reversed(cluster.signs)) == causes(*cluster.signs)  # their order decides nothing
    scores = [it.score for it in suspects(cluster.signs)]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] <= scores[0] <= 1


def test_what_is_hardly_slower_explains_little_however_sure_it_is() -> None:
    tool = sign("calls.latency", 1.45, 0.006, strength=1.3, tool="search_context")
    database = sign("database.latency", 0.00198, 0.0018, strength=1.5)
    assert causes(tool, database)[0] == tool.place
    assert causes(tool, replace(database, value=0.02))[0] == DATABASE


def test_what_has_nothing_to_do_with_each_other_stays_apart() -> None:
    one, other = route("handoffs.rejected", "ada", "bob"), route("handoffs.rejected", "cyd", "dan", at=1)
    late = route("handoffs.rejected", "ada", "bob", at=60)
    assert [it.signs for it in gather([], [one, other, late])] == [[one], [other], [late]]


def test_a_tool_that_fails_now_and_then_does_not_explain_that_hardly_anything_is_offered_any_more() -> None:
    fails = sign("calls.failed_ratio", 0.1, 0, of=5, operation="request_handoff", strength=1.2)
    fewer = sign("handoffs.offered", 0, 40)
    assert causes(fails, fewer)[0] == SERVICE
    assert causes(replace(fails, value=1, of=35), fewer)[0] == fails.place


def test_a_third_place_at_the_same_time_is_no_coincidence() -> None:
    signs = [sign("calls.failed", tool=name, at=minute) for minute, name in enumerate(("get_inbox", "get_context", "job"))]
    assert [it.signs for it in gather([], signs[:2])] == [[signs[0]], [signs[1]]]
    (cluster,) = gather([], signs)
    assert sorted(cluster.signs, key=lambda it: it.at) == signs


def test_what_was_told_goes_on_and_is_not_told_again() -> None:
    first, second = route("handoffs.rejected", "ada", "bob"), route("handoffs.rejected", "cyd", "dan")
    known = [Cluster([first], 7), Cluster([second], 8)]
    both = sign("handoffs.rejected", at=5)  # of all routes
    again = replace(second, at=9_000, strength=2, value=1, expected=0, sentence="again")
    changed = gather(known, [both, again])
    assert [(it.incident, it.signs[1:]) for it in changed] == [(7, [both]), (8, [again])]
