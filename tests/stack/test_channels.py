"""Notifications to people. Alertmanager runs as it ships, and catchers stand in for each kind of channel."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, Final
from urllib.parse import unquote

import httpx2
import pytest
import yaml

from tests.stack.bundle import ANSWER_S, ROOT, Failed, Stack, free_ports, run, shipped
from tests.stack.catchers import Caught, catchers
from tests.stack.test_secrets import READERS
from tests.stack.turns import STALLED_S, eventually

KEY: Final = "a-routing-key-of-32-characters-xx"
USER: Final = 'handoff: it\'s "me" #1 \\1 & | %s'
PASSWORD: Final = "a password with ' and = and \\ in it"
KEYS: Final = "to=, from=, smarthost=, username=, password=, require_tls="
TO: Final = "Ops & co <ops@example.org>, o'hara@example.org"
CHANNELS: Final = {  # file: the channels that it enables for critical alerts, and for warnings
    "slack-url": ({"slack_configs"}, {"slack_configs"}),
    "pagerduty-key": ({"pagerduty_configs"}, set[str]()),
    "email": ({"email_configs"}, {"email_configs"}),
    "webhook-url": ({"webhook_configs"}, {"webhook_configs"}),
}
DASHBOARD: Final = "http://127.0.0.1:3000/d/handoff-database"
RUNBOOK: Final = "prometheus/runbook.md#handoffstatementsfail"
RUNBOOK_OUTSIDE: Final = "https://wiki.example/runbook#handoffstatementsfail"
NEVER: Final = {"years": ["1999"]}
ALWAYS: Final = {"times": [{"start_time": "00:00", "end_time": "24:00"}]}
WRITES_EVERY: Final = "--data.maintenance-interval=1m"
SUMMARY: Final = "Statements are failing: a < b & c"


@pytest.fixture(scope="module")
def alone(docker: None, pytestconfig: pytest.Config) -> Generator[Stack]:
    """A project in which only the one-shot `secrets` runs."""
    with TemporaryDirectory(prefix="handoff-channels-") as folder:
        stack = Stack(Path(folder), f"{pytestconfig.getoption('project')}-channels", [], {})
        stack.down("--volumes")  # of a run that was killed
        try:
            yield stack
        finally:
            stack.down("--volumes")


@pytest.fixture
def caught() -> Generator[Caught]:
    with catchers() as caught:
        yield caught


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


def receivers(text: str) -> dict[str, dict[str, Any]]:
    """The configured channels, by receiver."""
    return {it.pop("name"): it for it in yaml.safe_load(text)["receivers"]}


def amtool(image: str, config: Path, *command: str) -> str:
    mounts = ["-v", f"{ROOT}/alertmanager:/etc/alertmanager:ro", "-v", f"{config}:/config.yml:ro"]
    return run("docker", "run", "--rm", "--network=none", *mounts, "--entrypoint=amtool", image, *command)


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


class Links(HTMLParser):
    """The links and the text of an HTML page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.to: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.to += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_critical_alert_and_its_resolution_arrive_on_every_channel(alone: Stack, caught: Caught) -> None:
    began = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    with running(alone, caught, every(caught), ALWAYS) as alertmanager:

        def arrived(count: int) -> bool:
            paths = ("/slack", "/pagerduty", "/webhook", "/history")
            return [len(caught.calls.get(it, [])) for it in paths] == [count] * 4 and len(caught.mails) == count

        def show() -> tuple[object, ...]:
            return {path: len(it) for path, it in caught.calls.items()}, len(caught.mails)

        alertmanager.send("critical", began)
        eventually(lambda: arrived(1), show=show)
        silence = caught.calls["/slack"][0].body["attachments"][0]["text"].split("<")[-1].partition("|Silence>")[0]
        assert silence.startswith("http://127.0.0.1:9093/#/silences/new?filter=%7Balertname%3D")
        assert set(" +").isdisjoint(silence)
        assert alertmanager.alerts(silence) == [SUMMARY]
        alertmanager.send("critical", began, resolved=True)
        eventually(lambda: arrived(2), show=show)

    said = "critical, database, since 2026-03-01 12:30 UTC"
    title, description = f"critical: {SUMMARY}", "7% of them failed; the threshold is <5%."

    slack, resolved = (it.body["attachments"][0] for it in caught.calls["/slack"])
    assert slack["title"] == slack["fallback"] == title
    assert slack["text"].strip().splitlines() == [
        "*Statements are failing: a &lt; b &amp; c*",
        "7% of them failed; the threshold is &lt;5%.",
        said,
        f"<{DASHBOARD}|Dashboard>  {RUNBOOK}  <{silence}|Silence>",
    ]
    assert (slack["color"], resolved["color"]) == ("danger", "good")
    assert resolved["title"] == f"[RESOLVED] {title}"
    assert f"{said}, resolved at 20" in resolved["text"]
    assert "Silence" not in resolved["text"]

    page, resolved = (it.body for it in caught.calls["/pagerduty"])
    assert (page["routing_key"], page["event_action"], resolved["event_action"]) == (KEY, "trigger", "resolve")
    assert page["dedup_key"] == resolved["dedup_key"]
    assert page["payload"]["summary"] == title
    assert (page["payload"]["severity"], page["payload"]["component"]) == ("critical", "database")
    text = page["payload"]["custom_details"]["alerts"].strip()
    assert text.splitlines() == [
        SUMMARY, description, said, f"Dashboard: {DASHBOARD}", f"Runbook: {RUNBOOK}", f"Silence: {silence}",
    ]  # fmt: skip
    assert page["links"] == [{"text": "Dashboard", "href": DASHBOARD}, {"text": "Silence", "href": silence}]

    hook, resolved = caught.calls["/webhook"]
    assert "Authorization" not in hook.headers, "the token is only for the service"
    assert (hook.body["version"], hook.body["receiver"], hook.body["externalURL"]) == ("4", "page", "http://127.0.0.1:9093")
    assert hook.body["alerts"][0]["annotations"] == {
        "summary": SUMMARY, "description": description, "dashboard_url": DASHBOARD, "runbook_url": RUNBOOK,
    }  # fmt: skip
    assert (hook.body["status"], resolved.body["status"]) == ("firing", "resolved")
    kept, resolved = caught.calls["/history"]
    assert kept.headers["Authorization"].startswith("Bearer ")
    assert (kept.body["status"], resolved.body["status"]) == ("firing", "resolved")

    assert caught.logins == [(USER, PASSWORD)] * 2
    mail, resolved = caught.mails
    assert (mail["Subject"], resolved["Subject"]) == (title, f"[RESOLVED] {title}")
    assert [it.addr_spec for it in mail["To"].addresses] == ["ops@example.org", "o'hara@example.org"]
    assert mail["From"] == "handoff@example.org"
    plain, rich = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert plain is not None
    assert plain.get_content().strip().splitlines() == text.splitlines()
    assert rich is not None
    page = Links(rich.get_content())
    assert page.to == [DASHBOARD, silence]
    assert [it.strip() for it in page.text.split("\n") if it.strip()] == [
        SUMMARY, description, said, f"Dashboard {RUNBOOK} Silence",
    ]  # fmt: skip
    plain = resolved.get_body(("plain",))
    assert plain is not None
    assert f"{said}, resolved at 20" in plain.get_content()


def test_a_warning_at_night_waits_until_morning_but_is_in_the_history_at_once(alone: Stack) -> None:
    for minutes in (1, 2, 4, 8):
        if passes_a_night(alone, minutes):
            return
    pytest.fail("even the longest night was over before the alerts had arrived")


def passes_a_night(alone: Stack, minutes: int) -> bool:
    """Send alerts in a night of so many minutes, and check what is notified when. False if it was too short for that."""
    if (second := datetime.now(UTC).second) > 20:
        sleep(61 - second)  # the night ends with a minute: the shortest one is not wasted on a few seconds
    now = datetime.now(UTC)
    morning = now.replace(second=0, microsecond=0) + timedelta(minutes=minutes)
    end = f"{morning:%H:%M}" if morning.date() == now.date() else "24:00"
    night = {"times": [{"start_time": f"{now:%H:%M}", "end_time": end}]}
    with catchers() as caught, running(alone, caught, every(caught), night) as alertmanager:
        alertmanager.send("warning", now, summary="it can wait")
        alertmanager.send("warning", now, summary="soon resolved")
        eventually(lambda: sorted(caught.summaries("/history")) == ["it can wait", "soon resolved"])
        alertmanager.send("warning", now, summary="soon resolved", resolved=True)
        eventually(
            lambda: any(it["status"] == "resolved" for call in caught.calls["/history"] for it in call.body["alerts"])
        )
        alertmanager.send("critical", now, summary="it cannot wait")
        eventually(lambda: caught.summaries("/webhook") and caught.calls.get("/slack") and caught.mails)
        suppressed = alertmanager.counted("alertmanager_notifications_suppressed_total", 'reason="mute_time_interval"')
        at_night = caught.summaries("/webhook")
        if datetime.now(UTC) >= morning:
            return False
        assert suppressed
        assert at_night == ["it cannot wait"]
        eventually(
            lambda: len(caught.summaries("/webhook")) > 1 and len(caught.mails) > 1, stalled_s=STALLED_S + 60 * minutes
        )
    assert caught.summaries("/webhook") == ["it cannot wait", "it can wait"]
    assert len(caught.calls["/slack"]) == len(caught.mails) == 2
    assert len(caught.calls["/pagerduty"]) == 1
    return True


def test_a_warning_by_day_notifies_without_paging_and_mail_requires_tls(alone: Stack, caught: Caught) -> None:
    with running(alone, caught, every(caught, mail=""), NEVER) as alertmanager:
        alertmanager.send("info", datetime.now(UTC), summary="for information")
        alertmanager.send("warning", datetime.now(UTC), runbook=RUNBOOK_OUTSIDE)
        eventually(lambda: len(caught.summaries("/history")) == 2 and len(caught.calls) == 3, show=lambda: caught.calls)
        eventually(lambda: alertmanager.counted("alertmanager_notifications_failed_total", 'integration="email"'))
    assert sorted(caught.summaries("/history")) == [SUMMARY, "for information"]
    assert caught.summaries("/webhook") == [SUMMARY]
    assert f"<{RUNBOOK_OUTSIDE}|Runbook>" in caught.calls["/slack"][0].body["attachments"][0]["text"]
    assert "/pagerduty" not in caught.calls
    assert caught.mails == caught.logins == []


@pytest.mark.parametrize("given", [(), *((name,) for name in CHANNELS), tuple(CHANNELS)], ids=" ".join)
def test_a_channel_is_enabled_while_its_file_exists(
    alone: Stack, images: dict[str, str], tmp_path: Path, given: tuple[str, ...]
) -> None:
    files = {name: text for name, text in every(Caught(http_port=1, smtp_port=25), mail="").items() if name in given}
    text = made(alone, files)
    found = receivers(text)
    assert set(found["page"]) == set[str]().union(*(CHANNELS[name][0] for name in given))
    assert set(found["ticket"]) == set[str]().union(*(CHANNELS[name][1] for name in given))
    assert {name: found[name] for name in ("history", "heartbeat")} == {
        name: it for name, it in receivers((ROOT / "alertmanager" / "alertmanager.yml").read_text()).items() if it
    }
    config = tmp_path / "alertmanager.yml"
    config.write_text(text)
    assert "SUCCESS" in amtool(images["alertmanager"], config, "check-config", "/config.yml")

    values = {"slack-url": "http://127.0.0.1:1/slack", "pagerduty-key": KEY, "webhook-url": "http://127.0.0.1:1/webhook",
              "email-password": PASSWORD}  # fmt: skip
    handed = {name for name in values if name.removesuffix("-password") in given}
    listed = alone.in_volume("secrets-alertmanager", "sh", "-c", "stat -c '%a %u %n' /volume/*").splitlines()
    assert listed == [f"400 65534 /volume/{name}" for name in sorted({"alertmanager-token", "alertmanager.yml"} | handed)]
    for name in handed:
        assert alone.in_volume("secrets-alertmanager", "cat", f"/volume/{name}") == values[name]
    assert not [name for name, value in values.items() if value in text]


def test_only_alertmanager_gets_the_secrets_of_a_channel(alone: Stack) -> None:
    made(alone, every(Caught(http_port=1, smtp_port=25)))
    for volume in READERS.keys() - {"secrets-demo"}:
        text = alone.in_volume(volume, "sh", "-c", "cat /volume/*")
        assert text
        there = [it for it in ("http://127.0.0.1:1/slack", "http://127.0.0.1:1/webhook", KEY, PASSWORD) if it in text]
        assert len(there) == (4 if volume == "secrets-alertmanager" else 0), volume


def test_the_two_commands_of_the_page_turn_a_channel_on_and_off(alone: Stack) -> None:
    text = (ROOT / "docs" / "alerting.md").read_text()
    assert "docker compose up -d --wait && docker compose kill -s HUP alertmanager" in text
    for it in alone.given.iterdir():
        it.unlink()
    file = alone.given / "slack-url"

    def page() -> set[str]:
        return set(receivers(alone.get("ALERTMANAGER_PORT", "/api/v2/status")["config"]["original"])["page"]) - {"labels"}

    for wanted in (set[str](), {"slack_configs"}, set[str]()):
        if wanted:
            file.write_text("https://hooks.example/x")
        else:
            file.unlink(missing_ok=True)
        alone.up("alertmanager")
        alone.compose("kill", "-s", "HUP", "alertmanager")
        eventually(lambda wanted=wanted: page() == wanted, show=page)


@pytest.mark.parametrize(
    ("name", "pattern", "instead", "why"),
    [
        ("email", "^to=.*", "#", "to= is missing"),
        ("email", "^from=", "#", "from= is missing"),
        ("email", "^smarthost=.*", "", "smarthost= is missing"),
        ("email", ":25", "", "smarthost= must be HOST:PORT"),
        ("email", "^password=.*", "", "password= is missing"),
        ("email", "^username=.*", "", "username= is missing"),
        ("email", "^#.*", "to=me@example.org", "to= is set more than once"),
        ("email", "^#.*", "require_tls=no", "require_tls= must be true or false"),
        ("email", "^password=", "", f"line 7 must start with one of {KEYS} or #"),
        ("slack-url", "^http:", "", "must be an address that starts with http:// or https://"),
        ("webhook-url", "^http:", "", "must be an address that starts with http:// or https://"),
    ],
)
def test_a_malformed_channel_file_is_refused_and_nothing_changes(
    alone: Stack, name: str, pattern: str, instead: str, why: str
) -> None:
    given = every(Caught(http_port=1, smtp_port=25), mail="")
    made(alone, given)
    look = ("sh", "-c", "cd /volume; stat -c '%n %Y' *; cat *")
    before = alone.in_volume("secrets-alertmanager", *look)
    wrong, count = re.subn(pattern, instead, given[name], flags=re.MULTILINE)
    assert count == 1
    with pytest.raises(Failed, match=f"exit 1\n(.*\n)*secrets: {re.escape(f'{name}: {why}')}") as refused:
        made(alone, {**given, "pagerduty-key": "another", name: wrong})
    assert PASSWORD not in str(refused.value)
    assert alone.in_volume("secrets-alertmanager", *look) == before


def test_quiet_hours_are_nights_and_weekends_and_the_time_zone_is_set_in_one_place(
    images: dict[str, str], tmp_path: Path
) -> None:
    text = (ROOT / "alertmanager" / "alertmanager.yml").read_text()
    [intervals] = [it["time_intervals"] for it in yaml.safe_load(text)["time_intervals"]]

    def quiet(at: datetime) -> bool:
        return any(
            any(it["start_time"] <= f"{at:%H:%M}" < it["end_time"] for it in one["times"])
            and f"{at:%A}".lower() in one.get("weekdays", [f"{at:%A}".lower()])
            for one in intervals
        )

    monday = datetime(2026, 3, 2, tzinfo=UTC)
    hours = [quiet(monday + timedelta(hours=hour)) for hour in range(7 * 24)]
    weekday = [True] * 7 + [False] * 15 + [True] * 2
    assert hours == weekday * 5 + [True] * 48
    assert text.count("location:") == 1
    config = tmp_path / "alertmanager.yml"
    config.write_text(text.replace("location: UTC", "location: Europe/Berlin"))
    assert "SUCCESS" in amtool(images["alertmanager"], config, "check-config", "/config.yml")


def test_silences_and_what_was_notified_outlive_a_kill(alone: Stack, caught: Caught) -> None:
    given, began = {"webhook-url": caught.url("/webhook")}, datetime.now(UTC)
    with TemporaryDirectory(prefix="handoff-channels-") as name:
        kept = Path(name)
        kept.chmod(0o777)  # Alertmanager runs as another user
        with running(alone, caught, given, ALWAYS, kept) as alertmanager:
            alertmanager.send("critical", began)
            eventually(lambda: caught.summaries("/webhook"))
            silence = alertmanager.silence()
            written = [f"alertmanager_{what}_maintenance_total" for what in ("silences", "nflog")]
            before = [alertmanager.counted(it) for it in written]
            # One may have been under way before the silence was made.
            eventually(
                lambda: all(alertmanager.counted(it) >= was + 2 for it, was in zip(written, before, strict=True)),
                show=lambda: (before, [alertmanager.counted(it) for it in written]),
            )

        with running(alone, caught, given, ALWAYS, kept) as alertmanager:
            assert alertmanager.silences() == [silence]
            httpx2.delete(f"{alertmanager.url}/api/v2/silence/{silence}", timeout=ANSWER_S).raise_for_status()
            asked = alertmanager.counted("alertmanager_nflog_queries_total")
            alertmanager.send("critical", began)
            eventually(lambda: alertmanager.counted("alertmanager_nflog_queries_total") >= asked + 4)  # two channels, twice
    assert len(caught.calls["/webhook"]) == 1, "what was notified before is not notified again"
