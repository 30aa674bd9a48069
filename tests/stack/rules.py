"""The shipped rules, the Prometheus names of our instruments, and the other metrics that rules and dashboards use."""

import re
from typing import Any, Final

import yaml

from grafana.source.promql import series
from handoff.telemetry import metrics
from handoff.telemetry.instruments import Histogram
from tests.stack.bundle import ROOT

RULES: Final = ROOT / "prometheus" / "rules"
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
# The running stack must have all of these: test_rules.py checks those in rules, test_panels.py those in panels.
FOREIGN: Final = {
    # Prometheus and Alertmanager, about themselves and their targets
    "ALERTS", "target_info", "up", "alertmanager_config_last_reload_successful", "alertmanager_notifications_failed_total",
    "alertmanager_notifications_total", "prometheus_config_last_reload_successful",
    "prometheus_notifications_dropped_total", "prometheus_notifications_errors_total",
    "prometheus_rule_evaluation_failures_total", "prometheus_rule_group_last_duration_seconds",
    "prometheus_tsdb_head_samples_appended_total", "prometheus_tsdb_head_series",
    # The collector, about itself
    "otelcol_exporter_queue_capacity", "otelcol_exporter_queue_size",
    *(f"otelcol_{part}_{what}_total" for part in ("exporter_sent", "receiver_accepted", "receiver_refused")
      for what in ("spans", "metric_points", "log_records")),
    # The collector, about the host, Postgres, Redis, and traces
    "system_cpu_utilization_ratio", "system_filesystem_usage_bytes", "system_filesystem_utilization_ratio",
    "system_linux_memory_available_bytes", "system_memory_usage_bytes",
    "postgresql_backends", "postgresql_blocks_read_total", "postgresql_commits_total", "postgresql_connection_max",
    "postgresql_db_size_bytes", "postgresql_deadlocks_total", "postgresql_rollbacks_total", "postgresql_rows",
    "postgresql_table_size_bytes", "postgresql_temp_files_total",
    "redis_db_keys", "redis_keys_evicted_total", "redis_memory_peak_bytes", "redis_memory_used_bytes",
    "traces_service_graph_request_total", "traces_span_metrics_calls_total", "traces_span_metrics_duration_seconds_bucket",
    # OpenTelemetry instrumentation of our processes
    "process_cpu_time_seconds_total", "process_memory_usage_bytes",
}  # fmt: skip
ONLY_IN_THE_RUNBOOK: Final = {
    "otelcol_process_memory_rss_bytes", "process_cpu_utilization_ratio", "redis_clients_connected",
    "redis_connections_rejected_total", "system_disk_io_time_seconds_total",
}  # fmt: skip
ONCE_A_QUEUE_WAS_FULL: Final = {
    f"otelcol_exporter_enqueue_failed_{what}_total" for what in ("spans", "metric_points", "log_records")
}
# Rules have used these only since the quiet hour was recorded; quiet.replay says which processes lived and which led.
SINCE_THE_QUIET_HOUR: Final = {"handoff_job_interval_seconds", "handoff_loop_warnings_total", "handoff_quarantine",
    "handoff_detector_lag_seconds", "handoff_incidents_open", "handoff_promql_failed", "handoff_promql_empty",
    "handoff_series_refused", "handoff_audit_broken", "handoff_process_cpu_limit", "handoff_threshold",
    "handoff_worker_leader", "process_cpu_time_seconds_total", "target_info",
}  # fmt: skip
ONLY_WHERE_THERE_IS_ONE: Final = {
    "handoff_storage_full_in_seconds",
    "handoff_webhook_oldest_seconds",
    "handoff_certificate_expiry_timestamp_seconds",
    "handoff_db_slow_statements_total",
}


def seconds(duration: str) -> int:
    """The seconds in a Prometheus duration: `1h30m` is 5400, an empty string is 0."""
    return sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhd])", duration))


def rules() -> list[dict[str, Any]]:
    """The rules of all files."""
    groups = [it for file in sorted(RULES.glob("*.yml")) for it in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules, by name."""
    found = [it for it in rules() if "alert" in it]
    assert len({it["alert"] for it in found}) == len(found)
    return {it["alert"]: it for it in found}


def declared() -> set[str]:
    """The series names of our instruments in Prometheus."""
    names: set[str] = set()
    for it in metrics.INSTRUMENTS:
        names |= {series(it, part) for part in (("bucket", "count", "sum") if isinstance(it, Histogram) else ("",))}
    return names


def named_by_rules() -> set[str]:
    """The series used in expressions and annotations of rules."""
    expressions = [str(it["expr"]) for it in rules()]
    expressions += re.findall(r'query "([^"]+)"', str([it.get("annotations") for it in rules()]))
    return set().union(*map(named, expressions)) - {"time"}


def named(expression: str) -> set[str]:
    """The series in a PromQL expression: the words that are not labels, functions or keywords."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\boffset \w+", "", text)
    words = set(re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", text))
    called = set(re.findall(r"([a-zA-Z_]\w*)\s*\(", text))
    return words - called - {"and", "or", "unless", "by", "on", "bool"}
