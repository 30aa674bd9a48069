"""What processes that are gone said last counts no more: after a restart and after a crash, each sum is what is there."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from tests.stack.bundle import Stack
from tests.stack.drills.drill import Drill, Fault
from tests.stack.drills.faults import both, killed, stopped
from tests.stack.panels import dashboards, filled, questions
from tests.test_live_processes import PUSHED

PROCESSES: Final = ("service", "worker")
POOL_SIZE: Final = 8
LOOKBACK: Final = "5m"  # Prometheus's default, for which the last value of a process that died is there
# Each sum of the pages over what processes push, and the statement that counts what is there.
THERE: Final = {
    "Handoffs and sessions / Sessions / A": "SELECT count(*) FROM session",
    "Handoffs and sessions / Open handoffs / A":
        "SELECT count(*) FROM handoff WHERE state IN ('offered', 'accepted', 'blocked')",
    "Handoffs and sessions / Open offers / A": "SELECT count(*) FROM handoff WHERE state = 'offered'",
    "Database and cache / Pool connections / A":
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'handoff' AND application_name = 'handoff'",
    "Database and cache / Pool connections / B": f"SELECT {POOL_SIZE * len(PROCESSES)}",
    "Analytics / Open incidents / A": "SELECT count(*) FROM incident WHERE closed_at IS NULL AND severity = 'critical'",
    "Analytics / Open incidents / B": "SELECT count(*) FROM incident WHERE closed_at IS NULL AND severity = 'warning'",
    "Lifecycle / Sessions by status / A": "SELECT count(*) FROM session",
    "Lifecycle / In quarantine / A": "SELECT count(*) FROM quarantine",
    "Telemetry pipeline / Leaders / A": "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'handoff-jobs'",
}  # fmt: skip
# Sums of what lasts for moments only, so that no statement could count the same.
FOR_A_MOMENT: Final = re.compile(
    r"/ (Pool waits( and timeouts)?|Appends waiting|Calls in progress( and waiting)?|Records waiting) /"
)
# Bytes, which the leader measures once an hour: a sum over tables, of the largest value of any process.
ONCE_AN_HOUR: Final = re.compile(r"^Lifecycle / (Storage|Forecast) /")
RULES: Final = {"count(handoff:process:live)": len(PROCESSES), "count(handoff:leader:live)": 1}


def sums() -> dict[str, str]:
    """The sums on the pages over what processes push, with all instances and types selected."""
    asked = [it for page in dashboards().values() for it in questions(page) if "sum" in it.target.get("expr", "")]
    found = {str(it): it.target["expr"] for it in asked if re.findall(r"[a-z_]+", it.target["expr"])}
    gauges = {name: expr for name, expr in found.items() if PUSHED & {*re.findall(r"[a-z_]+", expr)}}
    return {name: filled(expr, {"instance": [".*"], "type": [".*"]}) for name, expr in gauges.items()}


def total(stack: Stack, expression: str) -> float:
    """All values of a query together, as they are shown at the pace that ships."""
    found = stack.get("PROMETHEUS_PORT", "/api/v1/query", query=expression, lookback_delta=LOOKBACK)["data"]["result"]
    return sum(float(it["value"][1]) for it in found)


@contextmanager
def just_killed(stack: Stack, service: str) -> Generator[None]:
    """A process was killed, and has just ceased to count; what it said last is still there."""
    was = len(stack.promql("handoff:process:live"))
    with killed(stack, service):
        stack.eventually(lambda: len(stack.promql("handoff:process:live")) < was)
        yield


@contextmanager
def another_service(stack: Stack) -> Generator[None]:
    """A second process of the service, whose health Prometheus knows."""
    scale = ("--profile", "scale")
    stack.compose(*scale, "up", "--detach", "--no-deps", "service-2")
    try:
        of_services = 'handoff_health_status{component="database", service_name="handoff"}'
        stack.eventually(lambda: len(stack.promql(f"{of_services} and on (service_instance_id) handoff:process:live")) == 2)
        yield
    finally:
        stack.compose(*scale, "rm", "--stop", "--force", "service-2")


def test_postgres_stopped_just_after_a_process_was_killed_pages_once(drill: Drill) -> None:
    with another_service(drill.stack):
        drill.do(
            [
                Fault(
                    "Postgres stopped, just after a process of the service was killed",
                    lambda it: both(just_killed(it.stack, "service-2"), stopped(it.stack, "postgres")),
                    ("HandoffDatabaseDown",),
                    late=("HandoffDatabaseDown",),
                )
            ]
        )


def test_every_sum_on_the_pages_is_compared_or_lasts_for_moments_only() -> None:
    others = {name for name in sums() if not FOR_A_MOMENT.search(name) and not ONCE_AN_HOUR.search(name)}
    assert others == THERE.keys()


def test_after_processes_have_ended_each_sum_is_what_is_there(drill: Drill) -> None:
    drill.rest()
    stack = drill.stack
    for _ in range(5):
        drill.ada.offer("operator")
    known = sums()

    def compared() -> dict[str, tuple[float, float, float]]:
        """What was there before, what is shown, and what is there now."""
        before = {name: float(stack.sql(count)) for name, count in THERE.items()}
        shown = {name: total(stack, known[name]) for name in THERE}
        return {name: (before[name], shown[name], float(stack.sql(count))) for name, count in THERE.items()}

    def too_little() -> set[str]:
        return {name for name, it in compared().items() if it[1] < 0.6 * min(it[0], it[2]) - 1}

    def too_much() -> list[str]:
        found = [f"{name}: {it}" for name, it in compared().items() if it[1] > 1.4 * max(it[0], it[2]) + 1]
        return found + [f"{rule}: {it}" for rule, most in RULES.items() if (it := total(stack, rule)) > most]

    def alive() -> set[str]:
        return {it["metric"]["service_instance_id"] for it in stack.promql("handoff:process:live")}

    drill.wait(lambda: not too_little() and not too_much(), show=compared)
    for signal in ("SIGTERM", "SIGKILL"):
        was = alive()
        if signal == "SIGKILL":
            stack.compose("kill", f"--signal={signal}", *PROCESSES)
        stack.compose("stop", *PROCESSES)
        stack.compose("start", *PROCESSES)
        drill.wait(lambda was=was: len(alive()) == len(PROCESSES) and not alive() & was, show=alive)
        drill.wait(lambda: total(stack, "count(handoff:leader:live)") == 1 and not too_little(), show=compared)
        turns = stack.turns()
        wrong: list[str] = []
        drill.wait(lambda wrong=wrong, turns=turns: wrong.extend(too_much()) or turns.look() >= 2)
        assert wrong == [], signal
        left = total(stack, f'count(handoff_build_info{{service_instance_id=~"{"|".join(was)}"}})')
        assert left == (0 if signal == "SIGTERM" else len(was)), "only what is killed leaves its last values behind"
    drill.rest()
    drill.forget_pages()
