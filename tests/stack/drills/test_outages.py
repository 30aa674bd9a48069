"""Drills for programs that stop, hang or can't be reached, and for resources that run out."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from grafana.source.runbook import link_to_entry
from tests.stack.drills.agents import again_and_again, speaks
from tests.stack.drills.drill import Drill, Fault
from tests.stack.drills.faults import (
    audit_changed,
    both,
    certificate_of,
    connections_taken,
    cut_off,
    disk_filling,
    entry_changed,
    failing_heartbeat,
    file_added,
    hanging_proxy,
    job_paused,
    memory_short,
    not_measured,
    pager_refuses,
    stopped,
    tokens_malformed,
)
from tests.stack.drills.pace import DISK_BYTES

BAD_RULE = """groups:
  - name: by-hand
    rules: [{record: "by:hand", expr: "up * on () up"}]
"""


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


def test_the_collector_stopped_pages_once_with_links_to_this_stack(drill: Drill) -> None:
    drill.do([Fault("collector stopped", lambda it: stopped(it.stack, "otel-collector"), ("HandoffCollectorDown",))])
    (page,) = drill.paged
    assert page.alerts == ("HandoffCollectorDown",)
    (query,) = (it for it in page.links if it.startswith(drill.stack.url("PROMETHEUS_PORT")))
    assert parse_qs(urlsplit(query).query)["g0.expr"] == ['max(up{job="otel-collector"}) == 0']
    assert page.links - {query} == {
        drill.stack.url("ALERTMANAGER_PORT"),
        drill.stack.url("GRAFANA_PORT", "/d/handoff-pipeline"),
        drill.stack.url("GRAFANA_PORT", f"/d/handoff-runbook{link_to_entry('HandoffCollectorDown')}"),
    }


def test_programs_that_stop_or_hang_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault("worker stopped", lambda it: stopped(it.stack, "worker"), ("HandoffWorkerAbsent",)),
            Fault("Redis stopped", lambda it: stopped(it.stack, "redis"), ("HandoffCacheDown",)),
            Fault("Loki stopped", lambda it: stopped(it.stack, "loki"), ("HandoffBackendDown",)),
            Fault("proxy hangs", lambda it: hanging_proxy(it.stack), ("HandoffTargetDown",)),
        ]
    )


def test_a_pager_that_refuses_raises_an_alert(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "pager answers 403",
                lambda it: both(pager_refuses(it.stack), stopped(it.stack, "worker")),
                ("HandoffNotificationsFailing",),
                shared=("HandoffWorkerAbsent",),
            ),
        ]
    )


def test_broken_configuration_raises_alerts(drill: Drill, folder: Path) -> None:
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


def test_resources_that_run_out_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "disk fills",
                lambda it: disk_filling(it.stack, "otel-collector", DISK_BYTES, it.pace.fill_s * it.slow),
                ("HandoffDiskFilling", "HandoffDiskHigh", "HandoffDiskCritical"),
                muted=("HandoffDiskFilling", "HandoffDiskHigh"),
            ),
            Fault(
                "certificate with 10 days left",
                lambda it: certificate_of(it.stack, 10),
                ("HandoffCertificateExpiring",),
                muted=("HandoffCertificateExpiring",),
            ),
            Fault("a job paused and forgotten", lambda it: job_paused(it.stack, "stale_alerts"), ("HandoffJobLate",)),
            Fault("a row of the audit changed by hand", lambda it: audit_changed(it.stack), ("HandoffAuditChainBroken",)),
            Fault("an entry changed by hand", lambda it: entry_changed(it.stack), ("HandoffQuarantineNotEmpty",)),
            Fault(
                "88 of 100 connections taken",
                lambda it: connections_taken(it.stack, 88),
                ("HandoffDatabaseConnectionsHigh",),
            ),
            Fault(
                "worker's memory at 85%",
                lambda it: memory_short(it.stack, "worker", 0.85),
                ("HandoffMemoryHigh",),
                muted=("HandoffMemoryHigh",),
            ),
            Fault(
                "malformed line in the tokens file", lambda it: tokens_malformed(it.stack), ("HandoffTokensFileUnusable",)
            ),
        ],
        [
            Fault(
                "certificate with 2 days left", lambda it: certificate_of(it.stack, 2), ("HandoffCertificateExpiresSoon",)
            ),
            Fault("worker's memory at 97%", lambda it: memory_short(it.stack, "worker", 0.97), ("HandoffMemoryCritical",)),
        ],
    )


def test_a_stuck_worker_raises_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "worker's heartbeat can't be written",
                lambda it: failing_heartbeat(it.stack),
                ("HandoffWorkerJobFailing", "HandoffWorkerStalled"),
                muted=("HandoffWorkerJobFailing",),
            )
        ]
    )


def test_a_collector_that_may_not_measure_postgres_raises_an_alert(drill: Drill) -> None:
    drill.do(
        [Fault("collector's role may not log in to Postgres", lambda it: not_measured(it.stack), ("HandoffScraperFailing",))]
    )


def test_logs_that_cannot_be_sent_raise_alerts(drill: Drill) -> None:
    drill.do(
        [
            Fault(
                "Loki unreachable, its queue full",
                lambda it: both(cut_off(it.stack, "loki"), again_and_again(speaks(it.ada), threads=4, every_s=0.01)),
                ("HandoffCollectorQueueFilling", "HandoffTelemetryDropped", "HandoffTelemetryRefused"),
            )
        ]
    )
