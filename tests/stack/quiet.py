"""An hour of normal operation, recorded from the running bundle with agents at work, and replayed through the rules.

`python -m tests.stack.quiet ADDRESS` records the last hour of the Prometheus at that address. The bundle must have run with
the profile `demo` for that hour. A test fails when rules use series that the recording does not have: then record again.
"""

import json
import lzma
import sys
from pathlib import Path
from time import time
from typing import Any, Final

import httpx2

from tests.stack.rules import named, rules

RECORDED: Final = Path(__file__).parent / "quiet-hour.json.xz"
HOUR_S: Final = 3600
STEP_S: Final = 30


def looked_at() -> set[str]:
    """The series that rules use and that no rule records."""
    made = {it["record"] for it in rules() if "record" in it} | {"ALERTS"}
    return set().union(*(named(str(it["expr"])) for it in rules())) - made


def record(address: str) -> dict[str, str]:
    """The series of the last hour, in promtool's notation. Timestamps count from the start; Grafana's are left out."""
    until = int(time())
    since = until - HOUR_S
    found: dict[str, str] = {}
    for name in sorted(looked_at()):
        ask = {"query": f'{name}{{job!="grafana"}}', "start": str(since), "end": str(until), "step": str(STEP_S)}
        answer = httpx2.get(f"{address}/api/v1/query_range", params=ask, timeout=60)
        for it in answer.raise_for_status().json()["data"]["result"]:
            values = {int(at): float(value) for at, value in it["values"]}
            begin = since if name.endswith("timestamp_seconds") else 0
            labels = {key: value for key, value in it["metric"].items() if key != "__name__"}
            series = name + "{" + ", ".join(f"{key}={json.dumps(value)}" for key, value in sorted(labels.items())) + "}"
            moments = range(since, until + 1, STEP_S)
            found[series] = " ".join(f"{values[at] - begin:.10g}" if at in values else "_" for at in moments)
    return found


def recorded() -> dict[str, str]:
    """The recorded hour, as returned by `record`."""
    return json.loads(lzma.decompress(RECORDED.read_bytes()))


def replay() -> dict[str, Any]:
    """A promtool test of the recorded hour, in which the worker led all the time: only the Watchdog fires."""
    series = recorded()
    leads = {
        name.replace("handoff_build_info", "handoff_worker_leader"): values
        for name, values in series.items()
        if name.startswith("handoff_build_info{") and 'service_name="handoff-worker"' in name
    }
    fired = 'max_over_time(ALERTS{alertstate="firing", alertname%s"Watchdog"}[1h])'
    heartbeat = {"labels": '{alertname="Watchdog", alertstate="firing", component="pipeline", severity="none"}', "value": 1}
    return {
        "rule_files": ["/etc/prometheus/rules/*.yml"],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [
            {
                "interval": f"{STEP_S}s",
                "input_series": [{"series": name, "values": values} for name, values in (series | leads).items()],
                "promql_expr_test": [
                    {"expr": fired % "!=", "eval_time": "1h", "exp_samples": []},
                    {"expr": fired % "=", "eval_time": "1h", "exp_samples": [heartbeat]},
                ],
            }
        ],
    }


if __name__ == "__main__":
    found = record(sys.argv[1])
    RECORDED.write_bytes(lzma.compress(json.dumps(found, indent=0).encode(), preset=9))
    print(f"{len(found)} series in {RECORDED.stat().st_size} bytes")
