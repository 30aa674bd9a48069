"""Every alert is fired by its fault, told, and over when it is repaired. A cause is told once."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

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
)  # fmt: skip
from tests.stack.drills.drill import Drill, Fault
from tests.stack.drills.faults import (
    both,
    certificate_of,
    connections_taken,
    crowded_cache,
    cut_off,
    disk_filling,
    failing,
    failing_heartbeat,
    file_added,
    handed_to_and_fro,
    hanging_proxy,
    memory_short,
    no_cache_access,
    offer_left_lying,
    pager_refuses,
    slow,
    stopped,
    stuttering,
    trigger,
)  # fmt: skip
from tests.stack.drills.pace import DISK_BYTES
from tests.stack.rules import alerts

OPERATORS = "ROW WHEN (new.owner = 'operator')"
BAD_RULE = """groups:
  - name: by-hand
    rules: [{record: "by:hand", expr: "up * on () up"}]
"""


def test_postgres_stopped_under_load_pages_once(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "Postgres stopped",
                lambda it: stopped(it.stack, "postgres"),
                ("HandoffDatabaseDown",),
                late=("HandoffDatabaseDown",),
            )
        ]
    )
    assert drill.measured["HandoffDatabaseDown"].pages == 1
    assert [page.alerts for page in drill.paged] == [("HandoffDatabaseDown",)]


def test_the_service_stopped_under_load_pages_once(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "service stopped",
                lambda it: stopped(it.stack, "service"),
                ("HandoffServiceAbsent",),
                late=("HandoffServiceAbsent",),
            )
        ]
    )
    assert [page.alerts for page in drill.paged] == [("HandoffServiceAbsent",)]


def test_the_collector_stopped_pages_once_with_links_to_this_stack(drill: Drill) -> None:
    drill.do([Fault("collector stopped", lambda it: stopped(it.stack, "otel-collector"), ("HandoffCollectorDown",))])
    (page,) = drill.paged
    assert page.alerts == ("HandoffCollectorDown",)
    (query,) = (it for it in page.links if it.startswith(drill.stack.url("PROMETHEUS_PORT")))
    assert parse_qs(urlsplit(query).query)["g0.expr"] == ['max(up{job="otel-collector"}) == 0']
    assert page.links - {query} == {
        drill.stack.url("ALERTMANAGER_PORT"),
        drill.stack.url("GRAFANA_PORT", "/d/handoff-pipeline"),
        drill.stack.url("GRAFANA_PORT", "/d/handoff-runbook#handoffcollectordown"),
    }


def test_programs_that_stop_or_hang_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault("worker stopped", lambda it: stopped(it.stack, "worker"), ("HandoffWorkerAbsent",)),
            Fault("Redis stopped", lambda it: stopped(it.stack, "redis"), ("HandoffCacheDown",)),
            Fault("Loki stopped", lambda it: stopped(it.stack, "loki"), ("HandoffBackendDown",)),
            Fault("proxy hangs", lambda it: hanging_proxy(it.stack), ("HandoffTargetDown",)),
        ]
    )
    assert [page.alerts for page in drill.paged] == [("HandoffWorkerAbsent",)]


def test_a_pager_that_refuses_is_told_of_elsewhere(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "pager answers 403",
                lambda it: both(pager_refuses(it.stack), stopped(it.stack, "worker")),
                ("HandoffNotificationsFailing",),
            ),
        ]
    )


def test_configurations_that_are_wrong_are_told_of(drill: Drill, folder: Path) -> None:
    prometheus = folder / "prometheus"
    drill.do(
        [
            Fault(
                "rule that can't be evaluated",
                lambda it: file_added(it.stack, prometheus / "rules" / "by-hand.yml", BAD_RULE, "prometheus"),
                ("HandoffRuleFailures",),
            )
        ],
        [
            Fault(
                "configuration that can't be read",
                lambda it: file_added(it.stack, prometheus / "prometheus.yml", "by-hand: 1\n", "prometheus"),
                ("HandoffConfigReloadFailed",),
            )
        ],
    )


def test_what_agents_leave_or_do_over_and_over_is_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "an offer that nobody takes for two hours", lambda it: offer_left_lying(it.stack, 2), ("HandoffOfferTooOld",)
            ),
            Fault(
                "sessions handed to and fro",
                lambda it: handed_to_and_fro(it.stack, it.ada, it.operator),
                ("HandoffPingPong",),
            ),
            Fault(
                "calls that name no session",
                lambda it: again_and_again(lambda: lambda: mistakes(it.ada), threads=2, every_s=0.02),
                ("HandoffRefusalRatioHigh",),
            ),
        ]
    )


def test_offers_that_are_turned_down_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "offers turned down",
                lambda it: again_and_again(lambda: lambda: rejects(it.ada, it.operator)),
                ("HandoffRejectRatioHigh",),
            )
        ]
    )


def test_handoffs_that_are_taken_late_and_forgotten_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "handoffs taken late and forgotten",
                lambda it: again_and_again(lambda: lambda: takes_late_and_forgets(it.stack, it.ada, it.operator), threads=2),
                ("HandoffLeasesLapsing", "HandoffAcceptBudgetBurn"),
            )
        ]
    )


def test_what_fills_up_or_runs_out_is_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "disk fills",
                lambda it: disk_filling(it.stack, "otel-collector", DISK_BYTES, it.pace.fill_s),
                ("HandoffDiskFilling", "HandoffDiskHigh", "HandoffDiskCritical"),
                muted=("HandoffDiskFilling", "HandoffDiskHigh"),
            ),
            Fault(
                "certificate of 10 days",
                lambda it: certificate_of(it.stack, 10),
                ("HandoffCertificateExpiring",),
                muted=("HandoffCertificateExpiring",),
            ),
            Fault(
                "88 of 100 connections taken",
                lambda it: connections_taken(it.stack, 88),
                ("HandoffDatabaseConnectionsHigh",),
            ),
            Fault(
                "worker's memory at 85 %",
                lambda it: memory_short(it.stack, "worker", 0.85),
                ("HandoffMemoryHigh",),
                muted=("HandoffMemoryHigh",),
            ),
        ],
        [
            Fault("certificate of 2 days", lambda it: certificate_of(it.stack, 2), ("HandoffCertificateExpiresSoon",)),
            Fault("worker's memory at 97 %", lambda it: memory_short(it.stack, "worker", 0.97), ("HandoffMemoryCritical",)),
        ],
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


def test_slow_statements_are_told_of_and_then_the_pool_they_exhaust(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "registering takes 2.2 s",
                lambda it: both(
                    slow(it.stack, "session", 2.2),
                    again_and_again(registers(it.operator), threads=5),
                    again_and_again(speaks(it.ada), threads=2, every_s=0.15),
                ),
                ("HandoffToolSlow", "HandoffDatabaseSlowStatements", "HandoffLatencyBudgetBurn"),
                muted=("HandoffToolSlow", "HandoffDatabaseSlowStatements", "HandoffLatencyBudgetBurn"),
            ),
        ],
        [
            Fault(
                "14 more register",
                lambda it: again_and_again(registers(it.operator), threads=14),
                ("HandoffDatabasePoolExhausted",),
            )
        ],
    )


def test_a_tool_that_is_very_slow_is_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "registering takes 3.6 s",
                lambda it: both(slow(it.stack, "session", 3.6), again_and_again(registers(it.operator), threads=2)),
                ("HandoffToolVerySlow",),
            )
        ]
    )


def test_calls_that_pile_up_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "14 write at once, each for a second",
                lambda it: both(
                    slow(it.stack, "context_entry", 1), again_and_again(speaks(it.ada), threads=14, every_s=0.01)
                ),
                ("HandoffConcurrentCallsHigh",),
            )
        ],
        [
            Fault(
                "14 more write",
                lambda it: again_and_again(speaks(it.ada), threads=14, every_s=0.01),
                ("HandoffConcurrentCallsCritical",),
            )
        ],
    )


def test_calls_that_fail_are_told_of_and_then_the_statements_that_fail(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "one agent's registering fails",
                lambda it: both(
                    trigger(it.stack, "INSERT", "session", "RAISE EXCEPTION 'by hand'", OPERATORS),
                    again_and_again(registers_among_reads(it.ada, it.operator), every_s=0.05),
                ),
                ("HandoffErrorRatioHigh", "HandoffAvailabilityBudgetBurn"),
                muted=("HandoffErrorRatioHigh", "HandoffAvailabilityBudgetBurn"),
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


def test_budgets_that_are_spent_slowly_are_told_of_as_what_can_wait(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "few calls fail, few take 0.7 s, and one offer in five is taken late",
                lambda it: both(
                    trigger(it.stack, "INSERT", "session", "RAISE EXCEPTION 'by hand'", OPERATORS),
                    slow(it.stack, "handoff", 0.7),
                    again_and_again(seldom_ill(it.stack, it.ada, it.operator), every_s=0.01),
                ),
                ("HandoffAvailabilityBudgetBurnSlow", "HandoffLatencyBudgetBurnSlow", "HandoffAcceptBudgetBurnSlow"),
            ),
        ]
    )
    assert drill.paged == []


def test_a_service_that_gets_no_processor_is_told_of(drill: Drill) -> None:
    drill.do([Fault("service stutters", lambda it: stuttering(it.stack, "service"), ("HandoffEventLoopLag",))])


def test_a_worker_that_is_stuck_is_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "heartbeat can't be written",
                lambda it: failing_heartbeat(it.stack),
                ("HandoffWorkerJobFailing", "HandoffWorkerStalled"),
                muted=("HandoffWorkerJobFailing",),
            )
        ]
    )


def test_logs_that_can_not_be_sent_are_told_of(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "Loki can't be reached, its queue full",
                lambda it: both(cut_off(it.stack, "loki"), again_and_again(speaks(it.ada), threads=4, every_s=0.01)),
                ("HandoffCollectorQueueFilling", "HandoffTelemetryDropped", "HandoffTelemetryRefused"),
            )
        ]
    )


def test_every_alert_has_its_fault() -> None:
    text = Path(__file__).read_text()
    assert {name for name in alerts() if f'"{name}"' not in text} <= {"Watchdog"}  # of which it is the silence
