"""Notifications to people. Alertmanager runs as it ships, and catchers stand in for each kind of channel."""

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from time import sleep
from typing import Any, Final

import pytest
import yaml

from tests.stack.alertmanager import (
    ALWAYS,
    DASHBOARD,
    KEY,
    PASSWORD,
    RUNBOOK,
    SUMMARY,
    USER,
    every,
    made,
    running,
)
from tests.stack.bundle import ROOT, Failed, Stack, run
from tests.stack.catchers import Caught, catchers
from tests.stack.test_secrets import READERS
from tests.stack.turns import STALLED_S, eventually

KEYS: Final = "to=, from=, smarthost=, username=, password=, require_tls="
CHANNELS: Final = {  # file: the channels that it enables for critical alerts, and for warnings
    "slack-url": ({"slack_configs"}, {"slack_configs"}),
    "pagerduty-key": ({"pagerduty_configs"}, set[str]()),
    "email": ({"email_configs"}, {"email_configs"}),
    "webhook-url": ({"webhook_configs"}, {"webhook_configs"}),
}
RUNBOOK_OUTSIDE: Final = "https://wiki.example/runbook#handoffstatementsfail"
NEVER: Final = {"years": ["1999"]}


def receivers(text: str) -> dict[str, dict[str, Any]]:
    """The configured channels, by receiver."""
    return {it.pop("name"): it for it in yaml.safe_load(text)["receivers"]}


def amtool(image: str, config: Path, *command: str) -> str:
    mounts = ["-v", f"{ROOT}/alertmanager:/etc/alertmanager:ro", "-v", f"{config}:/config.yml:ro"]
    return run("docker", "run", "--rm", "--network=none", *mounts, "--entrypoint=amtool", image, *command)


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
