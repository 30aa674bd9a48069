"""What agents leave or do over and over, and how their calls fare: alerts by their faults."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from tests.stack.bundle import ROOT, Stack, eventually
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
)

RUNBOOK: Final = ROOT / "prometheus" / "runbook.md"
OPERATORS: Final = "ROW WHEN (new.owner = 'operator')"


def test_what_agents_leave_or_do_over_and_over_is_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "an offer that nobody accepts for 2 hours", lambda it: offer_left_lying(it.stack, 2), ("HandoffOfferTooOld",)
            ),
            Fault(
                "sessions handed back and forth",
                lambda it: handed_to_and_fro(it.stack, it.ada, it.operator),
                ("HandoffPingPong",),
            ),
            Fault(
                "calls with an unknown session",
                lambda it: again_and_again(lambda: lambda: mistakes(it.ada), threads=2, every_s=0.02),
                ("HandoffRefusalRatioHigh",),
            ),
        ]
    )


def test_offers_that_are_turned_down_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "offers rejected",
                lambda it: again_and_again(lambda: lambda: rejects(it.ada, it.operator)),
                ("HandoffRejectRatioHigh",),
            )
        ]
    )


def test_handoffs_that_are_taken_late_and_forgotten_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "handoffs accepted late and left to lapse",
                lambda it: again_and_again(lambda: lambda: takes_late_and_forgets(it.stack, it.ada, it.operator), threads=2),
                ("HandoffLeasesLapsing", "HandoffAcceptBudgetBurn"),
            )
        ]
    )


def test_a_cache_that_refuses_or_forgets_is_told_of(drill: Drill) -> None:
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


def test_slow_statements_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "registrations take 1.6 s",
                lambda it: both(slow(it.stack, "session", 1.6), again_and_again(registers(it.operator), threads=5)),
                ("HandoffToolSlow", "HandoffDatabaseSlowStatements", "HandoffLatencyBudgetBurn"),
            )
        ]
    )


def test_a_table_that_somebody_locked_pages_once(drill: Drill) -> None:
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
    """Who keeps a table to himself is named by the question that the runbook asks."""
    (question,) = set(re.findall(r"Blocked sessions and who blocks them: `([^`]+)`", RUNBOOK.read_text()))
    holder = stack.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'by-hand'")
    eventually(lambda: holder in re.findall(r"[{,](\d+)\b", stack.sql(question)), show=lambda: stack.sql(question))
    yield


def test_a_tool_that_is_very_slow_is_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "registrations take 3.6 s",
                lambda it: both(slow(it.stack, "session", 3.6), again_and_again(registers(it.operator), threads=2)),
                ("HandoffToolVerySlow",),
            )
        ]
    )


def test_calls_that_pile_up_are_told_of(drill: Drill) -> None:
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


def test_calls_that_fail_are_told_of_and_then_the_statements_that_fail(drill: Drill) -> None:
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


def test_a_few_calls_that_fail_are_told_of_by_the_budget_that_they_burn(drill: Drill) -> None:
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


def test_budgets_that_are_spent_slowly_are_told_of_as_what_can_wait(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "a few calls fail, a few take 0.7 s, and 1 offer in 5 is accepted late",
                lambda it: both(
                    failing(it.stack, "session", OPERATORS),
                    slow(it.stack, "handoff", 0.7),
                    again_and_again(seldom_ill(it.stack, it.ada, it.operator), every_s=0.01),
                ),
                ("HandoffAvailabilityBudgetBurnSlow", "HandoffLatencyBudgetBurnSlow", "HandoffAcceptBudgetBurnSlow"),
            ),
        ]
    )


def test_a_service_that_gets_no_processor_is_told_of(drill: Drill) -> None:
    drill.do([Fault("service stutters", lambda it: stuttering(it.stack, "service"), ("HandoffEventLoopLag",))])
