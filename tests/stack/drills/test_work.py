"""Drills for misbehaving agents, and for calls that are slow or fail."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from tests.stack.bundle import ROOT, Stack
from tests.stack.drills.agents import (
    again_and_again,
    mistakes,
    registers,
    registers_among_reads,
    rejects,
    seldom_ill,
    speaks,
    speaks_and_reads,
    takes_late_and_forgets,
)
from tests.stack.drills.drill import Drill, Fault
from tests.stack.drills.faults import (
    both,
    crowded_cache,
    failing,
    handed_to_and_fro,
    locked,
    no_cache_access,
    offer_left_lying,
    slow,
    stuttering,
    threshold_set,
)

RUNBOOK: Final = ROOT / "prometheus" / "runbook.md"
OPERATORS: Final = "ROW WHEN (new.owner = 'operator')"


def test_old_offers_ping_pong_and_bad_calls_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "an offer that nobody accepts for 2 hours", lambda it: offer_left_lying(it.stack, 2), ("HandoffOfferTooOld",)
            ),
            Fault(
                "sessions handed back and forth",
                lambda it: handed_to_and_fro(it.stack, it.ada, it.operator),
                ("HandoffPingPong", "HandoffLooping"),
            ),
            Fault(
                "calls with an unknown session",
                lambda it: again_and_again(lambda: lambda: mistakes(it.ada), threads=2, every_s=0.02),
                ("HandoffRefusalRatioHigh",),
            ),
        ]
    )


def test_a_threshold_changed_by_the_tool_decides_whether_an_alert_fires(drill: Drill) -> None:
    measured = dict(drill.measured)
    with offer_left_lying(drill.stack, 0.5):  # the threshold is an hour
        drill.do(
            [
                Fault(
                    "a threshold below the age of an offer",
                    lambda it: threshold_set(it.operator, "offer_age_seconds", 600),
                    ("HandoffOfferTooOld",),
                )
            ]
        )
        # If the drill has waited for the end, it came by the tool too: the offer is still there.
        assert drill.stack.sql("SELECT state FROM handoff WHERE instructions = 'by hand'") == "offered"
    drill.measured = measured  # docs/alerts.md has the alert's own fault


def test_rejected_offers_raise_an_alert(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "offers rejected",
                lambda it: again_and_again(lambda: lambda: rejects(it.ada, it.operator)),
                ("HandoffRejectRatioHigh",),
            )
        ]
    )


def test_handoffs_accepted_late_and_left_to_lapse_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "handoffs accepted late and left to lapse",
                lambda it: again_and_again(lambda: lambda: takes_late_and_forgets(it.stack, it.ada, it.operator), threads=2),
                ("HandoffLeasesLapsing", "HandoffAcceptBudgetBurn"),
            )
        ]
    )


def test_a_cache_that_refuses_or_evicts_too_early_raises_alerts(drill: Drill) -> None:
    drill.do([Fault("Redis refuses", lambda it: no_cache_access(it.stack), ("HandoffCacheErrorRatioHigh",))])
    drill.do(
        [
            Fault(
                "Redis has far too little memory",
                lambda it: both(crowded_cache(it.stack), again_and_again(speaks_and_reads(it.ada), threads=4, every_s=0.01)),
                ("HandoffCacheHitRatioLow",),
            )
        ]
    )


def test_slow_statements_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "registrations take 1.6 s",
                lambda it: both(slow(it.stack, "session", 1.6), again_and_again(registers(it.operator), threads=5)),
                ("HandoffToolSlow", "HandoffDatabaseSlowStatements", "HandoffLatencyBudgetBurn"),
            )
        ]
    )


def test_a_locked_table_pages_once(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "context_entry locked, 14 writers",
                lambda it: both(
                    locked(it.stack, "context_entry"),
                    again_and_again(speaks(it.ada), threads=14),
                    found_by_runbook(it.stack),
                ),
                ("HandoffDatabasePoolExhausted",),
            )
        ]
    )


@contextmanager
def found_by_runbook(stack: Stack) -> Generator[None]:
    """Check that the query in the runbook finds the session that holds the lock."""
    (question,) = set(re.findall(r"Blocked sessions and who blocks them: `([^`]+)`", RUNBOOK.read_text()))
    holder = stack.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'by-hand'")
    stack.eventually(lambda: holder in re.findall(r"[{,](\d+)\b", stack.sql(question)), show=lambda: stack.sql(question))
    yield


def test_a_very_slow_tool_raises_an_alert(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "registrations take 3.6 s",
                lambda it: both(slow(it.stack, "session", 3.6), again_and_again(registers(it.operator), threads=2)),
                ("HandoffToolVerySlow",),
            )
        ]
    )


def test_calls_that_pile_up_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "17 writers at once",
                lambda it: both(
                    slow(it.stack, "context_entry", 0.2), again_and_again(speaks(it.ada), threads=17, every_s=0.01)
                ),
                ("HandoffConcurrentCallsHigh",),
                muted=("HandoffConcurrentCallsHigh",),
            )
        ],
        [
            Fault(
                "14 more writers",
                lambda it: again_and_again(speaks(it.ada), threads=14, every_s=0.01),
                ("HandoffConcurrentCallsCritical",),
            )
        ],
    )


def test_failing_calls_and_then_failing_statements_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "one agent's registrations fail",
                lambda it: both(
                    failing(it.stack, "session", OPERATORS),
                    again_and_again(registers_among_reads(it.ada, it.operator, reads=5), every_s=0.05),
                ),
                ("HandoffErrorRatioHigh",),
                muted=("HandoffErrorRatioHigh",),
            ),
        ],
        [
            Fault(
                "every write fails",
                lambda it: both(
                    failing(it.stack, "context_entry"), again_and_again(speaks(it.ada), threads=4, every_s=0.05)
                ),
                ("HandoffDatabaseErrorRatioHigh",),
            )
        ],
    )


def test_a_few_failing_calls_raise_a_budget_alert(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "1 call in 25 fails",
                lambda it: both(
                    failing(it.stack, "session", OPERATORS),
                    again_and_again(registers_among_reads(it.ada, it.operator, reads=24), threads=2, every_s=0.1),
                ),
                ("HandoffAvailabilityBudgetBurn",),
            )
        ]
    )


def test_slowly_burning_budgets_raise_warnings(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "a few calls fail, a few take 0.7 s, and 1 offer in 5 is accepted late",
                lambda it: both(
                    failing(it.stack, "session", OPERATORS),
                    slow(it.stack, "handoff", 0.7),
                    # By three, so that on a slow machine, too, as many calls fail in a window as a rule asks for.
                    again_and_again(seldom_ill(it.stack, it.ada, it.operator), threads=3, every_s=0.01),
                ),
                ("HandoffAvailabilityBudgetBurnSlow", "HandoffLatencyBudgetBurnSlow", "HandoffAcceptBudgetBurnSlow"),
            ),
        ]
    )


def test_a_service_without_cpu_raises_an_alert(drill: Drill) -> None:
    drill.do([Fault("service stutters", lambda it: stuttering(it.stack, "service"), ("HandoffEventLoopLag",))])
