"""Of what our processes push, rules and panels use only what processes say that are alive.

Prometheus keeps the last value of a process that died for 5 minutes. A gauge that is added up or compared without regard
to that is wrong after every crash.
"""

import re
from collections.abc import Iterator
from typing import Final

import pytest

from grafana.source.promql import series
from handoff.telemetry import metrics
from handoff.telemetry.instruments import Gauge
from tests.stack.panels import dashboards, questions
from tests.stack.rules import rules

PUSHED: Final = {series(it) for it in metrics.INSTRUMENTS if isinstance(it, Gauge)} | {"process_memory_usage_bytes"}
OF_THE_LEADER: Final = {series(it) for it in metrics.LEADERS}
# Where the last value of a dead process is what is wanted.
REASONS: Final = {
    "handoff_build_info": "that a process is or was there is the question",
    "handoff_job_last_success_timestamp_seconds": "a job's last success counts, whichever process it was",
}
AGGREGATION: Final = re.compile(r"\b(?:sum|min|max|avg|count|group|topk|quantile)\s*(?:by\s*\(([^)]*)\)\s*)?$")
JOINED: Final = re.compile(r"\band on_instance handoff:(process|leader):live\b")


def counts_the_dead(expression: str) -> set[str]:
    """The pushed gauges in an expression from which dead processes are not left out while it still tells processes apart."""
    text = re.sub(r'"[^"]*"', lambda found: "_" * len(found[0]), expression)
    text = re.sub(r"\bon \(service_instance_id\)", "on_instance", text)
    return {
        found[0]
        for found in re.finditer(r"[a-z_:][\w:]*", text)
        if found[0] in PUSHED and not _is_joined(text, found.start(), leader=found[0] in OF_THE_LEADER)
    }


def _is_joined(text: str, at: int, *, leader: bool) -> bool:
    for begin, end in _around(text, at):
        operand = _operand(text[begin:end], at - begin)
        if (join := JOINED.search(operand)) and (join[1] == "leader" or not leader):
            return True
        aggregation = AGGREGATION.search(text[: max(0, begin - 1)])
        if begin and aggregation and "service_instance_id" not in (aggregation[1] or ""):
            return False
    return False


def _around(text: str, at: int) -> Iterator[tuple[int, int]]:
    """What is inside of each pair of parentheses around a place, from the innermost to the whole."""
    while True:
        depth, begin = 0, at
        while begin and depth >= 0:
            begin -= 1
            depth += {")": 1, "(": -1}.get(text[begin], 0)
        if depth >= 0:
            yield 0, len(text)
            return
        depth, end = 0, at
        while depth >= 0:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        yield begin + 1, end - 1
        at = begin


def _operand(text: str, at: int) -> str:
    """The operand of `or` that contains a place, without what is inside of other parentheses."""
    depth, flat = 0, ""
    for char in text:
        depth -= char == ")"
        flat += " " if depth else char
        depth += char == "("
    begin = max([0, *(it.end() for it in re.finditer(r"\bor\b", flat) if it.end() <= at)])
    return re.split(r"\bor\b", flat[begin:])[0]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of a rule or a panel, with where it is."""
    for rule in rules():
        yield str(rule.get("alert", rule.get("record"))), str(rule["expr"])
    for page in dashboards().values():
        for it in questions(page):
            if it.source == "prometheus" and "expr" in it.target:
                yield str(it), it.target["expr"]


def test_rules_and_panels_leave_out_dead_processes_or_say_why_not() -> None:
    found = {where: counted for where, it in expressions() if (counted := counts_the_dead(it) - REASONS.keys())}
    assert found == {}
    assert REASONS.keys() <= set().union(*(counts_the_dead(it) for _, it in expressions())), "a reason that is not needed"


@pytest.mark.parametrize(
    ("expression", "counted"),
    [
        ("sum(handoff_calls_active)", {"handoff_calls_active"}),
        ("sum(handoff_calls_active and on (service_instance_id) handoff:process:live)", set()),
        ("sum(handoff_calls_active) and on (service_instance_id) handoff:process:live", {"handoff_calls_active"}),
        (
            "max by (service_instance_id) (handoff_calls_active) > 3 and on (service_instance_id) handoff:process:live",
            set(),
        ),
        (
            'max(avg_over_time(handoff_calls_active{a=") or ("}[1m]) and on (service_instance_id) handoff:process:live)',
            set(),
        ),
        (
            "sum(handoff_calls_waiting or (handoff_calls_active and on (service_instance_id) handoff:process:live))",
            {"handoff_calls_waiting"},
        ),
        (
            "sum(handoff_calls_waiting or handoff_calls_active and on (service_instance_id) handoff:process:live)",
            {"handoff_calls_waiting"},
        ),
        ("max(handoff_sessions and on (service_instance_id) handoff:process:live)", {"handoff_sessions"}),
        ("max(handoff_sessions and on (service_instance_id) handoff:leader:live)", set()),
        ("handoff_calls_active", {"handoff_calls_active"}),
        ("sum(rate(handoff_transitions_total[5m]))", set()),
    ],
)
def test_what_counts_the_dead_is_told_from_what_does_not(expression: str, counted: set[str]) -> None:
    assert counts_the_dead(expression) == counted
