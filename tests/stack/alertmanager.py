"""Alertmanager alone, as it ships, with the channels that an operator gave it; alerts can be sent to it."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import httpx2
import yaml

from tests.stack.bundle import ANSWER_S, ROOT, Stack, free_ports, run, shipped
from tests.stack.catchers import Caught
from tests.stack.turns import eventually

KEY: Final = "a-routing-key-of-32-characters-xx"
USER: Final = 'handoff: it\'s "me" #1 \\1 & | %s'
PASSWORD: Final = "a password with ' and = and \\ in it"
TO: Final = "Ops & co <ops@example.org>, o'hara@example.org"
DASHBOARD: Final = "http://127.0.0.1:3000/d/handoff-database"
RUNBOOK: Final = "prometheus/runbook.md#handoffstatementsfail"
ALWAYS: Final = {"times": [{"start_time": "00:00", "end_time": "24:00"}]}
WRITES_EVERY: Final = "--data.maintenance-interval=1m"
SUMMARY: Final = "Statements are failing: a < b & c"


def every(caught: Caught, mail: str = "require_tls=false") -> dict[str, str]:
    """The file of every channel, as an operator would write it."""
    lines = ["# recipients", f"to={TO}", "from=handoff@example.org", f"smarthost=127.0.0.1:{caught.smtp_port}", "",
             f"username={USER}", f"password={PASSWORD}", mail]  # fmt: skip
    return {
        "slack-url": caught.url("/slack") + "\n",
        "pagerduty-key": KEY + "\n",
        "webhook-url": caught.url("/webhook"),
        "email": "\r\n".join(lines),
    }


def made(stack: Stack, given: Mapping[str, str]) -> str:
    """The Alertmanager configuration that is generated when exactly these secrets are given."""
    for it in stack.given.iterdir():
        it.unlink()
    for name, text in given.items():
        (stack.given / name).write_bytes(text.encode())
    stack.compose("run", "--rm", "--no-deps", "-T", "secrets")
    return stack.in_volume("secrets-alertmanager", "cat", "/volume/alertmanager.yml")


class Alertmanager:
    """A running Alertmanager, to which alerts can be sent."""

    def __init__(self, url: str) -> None:
        self.url = url

    def send(
        self, severity: str, began: datetime, *, resolved: bool = False, summary: str = SUMMARY, runbook: str = RUNBOOK
    ) -> None:
        """Send an alert, as Prometheus does."""
        alert = {
            "labels": {"alertname": "HandoffStatementsFail", "severity": severity, "component": "database",
                       "db_query_summary": f'SELECT "a" + b, {summary}'},
            "annotations": {"summary": summary, "description": "7% of them failed; the threshold is <5%.",
                            "dashboard_url": DASHBOARD, "runbook_url": runbook},
            "startsAt": began.isoformat(), "endsAt": (datetime.now(UTC) + timedelta(hours=0 if resolved else 1)).isoformat(),
        }  # fmt: skip
        httpx2.post(f"{self.url}/api/v2/alerts", json=[alert], timeout=ANSWER_S).raise_for_status()

    def alerts(self, link: str) -> list[str]:
        """The summaries of the alerts that a silence created through this link would match."""
        matchers = re.findall(r'\w+="(?:[^"\\]|\\.)*"', unquote(link.partition("/#/silences/new?filter=")[2]))
        assert len(matchers) == 4, link
        found = httpx2.get(f"{self.url}/api/v2/alerts", params=[("filter", it) for it in matchers], timeout=ANSWER_S).json()
        return [it["annotations"]["summary"] for it in found]

    def silence(self) -> str:
        """Silence the alert for an hour, and return the id of the silence."""
        now = datetime.now(UTC)
        asked = {"matchers": [{"name": "alertname", "value": "HandoffStatementsFail", "isRegex": False, "isEqual": True}],
                 "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat(),
                 "createdBy": "ada", "comment": "We know."}  # fmt: skip
        return (
            httpx2.post(f"{self.url}/api/v2/silences", json=asked, timeout=ANSWER_S).raise_for_status().json()["silenceID"]
        )

    def silences(self) -> list[str]:
        """The ids of the active silences."""
        found = httpx2.get(f"{self.url}/api/v2/silences", timeout=ANSWER_S).raise_for_status().json()
        return [it["id"] for it in found if it["status"]["state"] == "active"]

    def counted(self, name: str, *labels: str) -> float:
        """One of Alertmanager's counters, summed over the series that have these labels."""
        lines = httpx2.get(f"{self.url}/metrics", timeout=ANSWER_S).text.splitlines()
        return sum(
            float(it.split()[-1])
            for it in lines
            if it.startswith((f"{name}{{", f"{name} ")) and all(label in it for label in labels)
        )


@contextmanager
def running(
    stack: Stack, caught: Caught, given: Mapping[str, str], quiet: dict[str, Any], kept: Path | None = None
) -> Generator[Alertmanager]:
    """Alertmanager with these channels, killed at the end. Only addresses, times and quiet hours differ from what ships.

    `kept` is the folder in which it keeps its data: those of a container that has ended are gone with it.
    """
    text = made(stack, given)
    config = yaml.safe_load(text)
    to = {it["name"]: it for it in config["receivers"]}
    to["history"]["webhook_configs"][0]["url"] = caught.url("/history")
    for it in to["page"].get("pagerduty_configs", []):
        it["url"] = caught.url("/pagerduty")
    for route in config["route"]["routes"]:
        route |= {"group_wait": "0s", "group_interval": "1s"}
    config["time_intervals"] = [{"name": it["name"], "time_intervals": [quiet]} for it in config["time_intervals"]]
    file = stack.given.parent / "alertmanager.yml"
    file.write_text(yaml.safe_dump(config))
    it = shipped()["services"]["alertmanager"]
    port = free_ports(1)[0]
    assert WRITES_EVERY in it["command"]
    quicker = [WRITES_EVERY.replace("1m", "1s") if word == WRITES_EVERY else word for word in it["command"]]
    command = [*quicker, f"--web.listen-address=127.0.0.1:{port}"]
    data = f"--volume={kept}:/alertmanager" if kept else "--tmpfs=/alertmanager:mode=1777"
    options = ["--network=host", f"--user={it['user']}", "--read-only", data]
    mounts = [f"{ROOT}/alertmanager:/etc/alertmanager:ro", f"{stack.project}_secrets-alertmanager:/run/secrets:ro",
              f"{file}:/run/secrets/alertmanager.yml:ro"]  # fmt: skip
    volumes = [word for mount in mounts for word in ("-v", mount)]
    name = f"{stack.project}-alertmanager"
    run("docker", "run", "--rm", "--detach", "--name", name, *options, *volumes, it["image"], *command)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(
            lambda: httpx2.get(f"{url}/-/ready", timeout=ANSWER_S).is_success, show=lambda: run("docker", "logs", name)
        )
        yield Alertmanager(url)
    finally:
        run("docker", "rm", "--force", name)
