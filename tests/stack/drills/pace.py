"""The shipped bundle, adapted for drills: a few sizes are small enough to fill up, and a catcher is added. At the quick pace
an alert takes seconds instead of minutes, because every duration is shortened by the same formula, and lengthened again by
as much as the machine is slow. Everything is derived from the shipped files, so that nothing is written twice.
"""

import json
import re
import shutil
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Any, Final

import yaml

from tests.stack.bundle import HERE, ROOT
from tests.stack.rules import seconds

_WINDOW: Final = re.compile(r"\[(\w+)\]")
WINDOW_S_MIN: Final = 6  # samples come every second; a rate needs several of them, and some are late
LOOKBACK_S: Final = 10  # how long the last sample of a series counts; Prometheus's default is 5 minutes
QUEUE_BYTES: Final = 1_000_000  # of logs, which a heavy load fills in seconds
DISK_BYTES: Final = 64 << 20  # of the file system that the collector measures
WATCHDOG_TIMEOUT_S: Final = 8
# Several stacks on few processors make calls slow by themselves. So at the quick pace a call counts as slow from 1.5 s on
# in the windows of the latency page; the fault that raises it takes longer still.
SLOW_CALL: Final = 'gen_ai_tool_name!="get_inbox", le="0.5"'
SLOW_CALL_ON_A_BUSY_MACHINE: Final = 'gen_ai_tool_name!="get_inbox", le="1.5"'
PAGE_WINDOWS: Final = frozenset({"5m", "30m", "1h"})
CUT_OFF: Final = {"tool_very_slow_seconds": 3}  # statements time out after 5 s, so no registration reaches the shipped 10 s
TURN_S: Final = 4  # a turn at the quick pace takes 2 to 3 s; one that takes longer than this has waited for a processor
_WAITS: Final = {30: 1, 60: 2, 120: 3, inf: 5}  # shipped `for` in seconds, up to and including: the quick one
# Shipped values that take too long, or that too few calls reach, in a quick drill.
QUICK_THRESHOLDS: Final = CUT_OFF | {
    "jobs_age_seconds": 15,  # jobs run every second
    "cpu_ratio": 10,  # never: at this pace a burst of seconds would count as a quarter of an hour
    "cpu_critical_ratio": 10,
    "job_late_seconds": 5,  # the job of its drill runs every few seconds
    "disk_forecast_seconds": 60,
    "tool_very_slow_calls_min": 2,  # calls within seconds, each of which takes seconds
}


LEFT_OUT: Final = {"grafana"}  # which no alert needs


@dataclass(frozen=True)
class Pace:
    """The pace of the drills. `usual_s`: seconds of normal load before a fault, so that the windows have data. `fill_s`:
    seconds to fill a disk. `turns`: how many turns of the stack a wait lasts at most. `hung_s`: the timeout of a test.
    `until_over`: whether to wait until alerts have resolved, which takes up to 6 hours at the shipped pace.
    """

    quick: bool
    usual_s: float
    fill_s: float
    turns: int
    hung_s: float
    until_over: bool


PACES: Final = {
    "quick": Pace(quick=True, usual_s=0, fill_s=23, turns=45, hung_s=3_600, until_over=True),
    "shipped": Pace(quick=False, usual_s=360, fill_s=3_300, turns=150, hung_s=6 * 3_600, until_over=False),
}


def slowness(turn_s: float, slow: int) -> int:
    """How many times longer durations have to be on a machine on which a turn takes this long, while they are `slow` times
    as long: a turn contains two scrapes.
    """
    return max(1, ceil((turn_s - 2 * (slow - 1)) / TURN_S))


def _shorter(window: str, slow: int) -> str:
    """A shortened window; a longer one stays longer: 5m becomes 6s, 1h 13s, 3d 46s."""
    return f"[{slow * max(WINDOW_S_MIN, round(WINDOW_S_MIN * (seconds(window) / 300) ** 0.3))}s]"


def _set(rules: dict[str, Any], thresholds: dict[str, int]) -> None:
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        if rule.get("record") == "handoff:threshold" and rule["labels"]["of"] in thresholds:
            rule["expr"] = f"vector({thresholds[rule['labels']['of']]})"


def _shorten(rules: dict[str, Any], slow: int) -> None:
    for group in rules["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            expr = str(rule["expr"])
            if "record" in rule and set(_WINDOW.findall(expr)) <= PAGE_WINDOWS:
                expr = expr.replace(SLOW_CALL, SLOW_CALL_ON_A_BUSY_MACHINE)
            rule["expr"] = _WINDOW.sub(lambda found: _shorter(found[1], slow), expr)
            if "for" in rule:  # keeps their order
                rule["for"] = next(f"{slow * quick}s" for most_s, quick in _WAITS.items() if seconds(rule["for"]) <= most_s)
            if "keep_firing_for" in rule:  # still outlasts the same alerts
                rule["keep_firing_for"] = f"{slow * (seconds(rule['keep_firing_for']) // 30 + 2)}s"


def write_prometheus(folder: Path, left_out: set[str], pace: Pace, slow: int = 1) -> None:
    """Write Prometheus's configuration and rules, with durations for a machine that is `slow` times slower than usual."""
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    config["scrape_configs"] = [it for it in config["scrape_configs"] if it["job_name"] not in left_out]
    if pace.quick:
        config["global"] |= {"scrape_interval": f"{slow}s", "evaluation_interval": "1s", "scrape_timeout": f"{slow}s"}
        for it in config["scrape_configs"]:
            for found in (*it.get("http_sd_configs", ()), *it.get("dns_sd_configs", ())):
                found["refresh_interval"] = "1s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for file in (ROOT / "prometheus" / "rules").glob("*.yml"):
        rules = yaml.safe_load(file.read_text())
        _set(rules, QUICK_THRESHOLDS if pace.quick else CUT_OFF)
        if pace.quick:
            _shorten(rules, slow)
        (folder / "rules" / file.name).write_text(yaml.safe_dump(rules))


def _alertmanager(folder: Path, pace: Pace) -> None:
    """Edits the text, because comments in the shipped file matter. The catcher gets every page that people would get."""
    file = folder / "alertmanager.yml"
    text, soon = file.read_text(), "group_wait: 10s, group_interval: 1m"
    if pace.quick:
        text = re.sub(r"\bgroup_wait: (?!0s)\w+", "group_wait: 1s", text)
        text = re.sub(r"\bgroup_interval: \w+", "group_interval: 1s", text)
        text = re.sub(r"\brepeat_interval: \d+s\b", "repeat_interval: 500ms", text)  # that of the heartbeat
        soon = "group_wait: 1s, group_interval: 1s"
    paged = f"{{matchers: [severity = critical], receiver: catcher, {soon}, repeat_interval: 4h, continue: true}}"
    text = text.replace("\n  routes:\n", f"\n  routes:\n    - {paged}\n")
    receiver = "{name: catcher, webhook_configs: [{url: http://catcher:8080/page}]}"
    file.write_text(text.replace("\nreceivers:\n", f"\nreceivers:\n  - {receiver}\n"))


def _collector(folder: Path, pace: Pace) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for it in config["exporters"].values():
        if "loki" in it["endpoint"]:
            it["sending_queue"] = it["sending_queue"] | {
                "queue_size": QUEUE_BYTES
            }  # copied, because the queues share one object
    if pace.quick:
        for it in config["receivers"].values():
            it.update(dict.fromkeys({"collection_interval", "initial_delay"} & it.keys(), "1s"))
        for it in config["connectors"].values():
            it["metrics_flush_interval"] = "1s"
        for it in config["exporters"].values():
            it["retry_on_failure"]["max_interval"] = "1s"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _as_written(service: str) -> dict[str, Any]:
    """A service in compose.yaml, with its variables not filled in."""
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service]


def overlay(folder: Path, left_out: set[str], pace: Pace) -> str:
    """Write the changed files below `folder`. Returns the Compose file that mounts them and adds the catcher."""
    for name in ("prometheus", "alertmanager", "otel-collector"):
        shutil.copytree(ROOT / name, folder / name)
    write_prometheus(folder / "prometheus", left_out, pace)
    _alertmanager(folder / "alertmanager", pace)
    _collector(folder / "otel-collector", pace)
    settings = {"HANDOFF_CERTIFICATES": "catcher:8443", "HANDOFF_CERTIFICATES_INTERVAL_S": "1", "HANDOFF_ADMIN": "true"}
    quick = {
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "HANDOFF_HEALTH_INTERVAL_S": "1",
        "HANDOFF_MEASURE_INTERVAL_S": "1",
        "HANDOFF_SETTLE_INTERVAL_S": "1",
        "HANDOFF_HEARTBEAT_INTERVAL_S": "1",
        "HANDOFF_WATCHDOG_TIMEOUT_S": str(WATCHDOG_TIMEOUT_S),
    }
    often = [f"--query.lookback-delta={LOOKBACK_S}s", "--rules.alert.resend-delay=2s"] if pace.quick else []
    settings |= quick if pace.quick else {}
    overlay = {
        "services": {
            "service": {"environment": settings},
            "service-2": {"environment": settings},
            "worker": {"environment": settings},
            "prometheus": {
                "volumes": [f"{folder}/prometheus:/etc/prometheus:ro"],
                "command": [*_as_written("prometheus")["command"], *often],
                "networks": ["sight"],
            },
            "secrets": {"volumes": [f"{folder}/alertmanager:/alertmanager:ro"]},
            "otel-collector": {"volumes": [f"{folder}/otel-collector:/etc/otelcol-contrib:ro"]},
            "loki": {"networks": ["internal", "sight"]},
            "catcher": {
                "image": "${HANDOFF_IMAGE}",
                "user": "10001:10001",
                "init": True,
                "command": ["python", "/catcher.py"],
                "healthcheck": {"disable": True},
                "networks": ["internal", "edge"],
                "ports": ["127.0.0.1:${CATCHER_PORT}:8080"],
                "volumes": [f"{ROOT / HERE}/drills/catcher.py:/catcher.py:ro"],
            },
        },
        # So that Prometheus still reaches a Loki that is cut off from the collector.
        "networks": {"sight": {"internal": True}},
        # A separate file system that can be filled.
        "volumes": {"otel-collector": {"driver_opts": {
            "type": "tmpfs", "device": "tmpfs", "o": f"size={DISK_BYTES},uid=10001,gid=10001,mode=0700",
        }}},
    }  # fmt: skip
    file = folder / "overlay.json"
    file.write_text(json.dumps(overlay, indent=1))
    return str(file)
