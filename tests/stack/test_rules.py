"""Rules, routes and the runbook are consistent, and promtool and amtool accept them."""

import asyncio
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from grafana.source.runbook import link_to_entry
from tests.stack import quiet
from tests.stack.bundle import ROOT, Stack, run
from tests.stack.conftest import ADA_TOKEN
from tests.stack.rules import (
    FOREIGN,
    ONCE_A_QUEUE_WAS_FULL,
    ONLY_IN_THE_RUNBOOK,
    ONLY_WHERE_THERE_IS_ONE,
    RULES,
    SINCE_THE_QUIET_HOUR,
    alerts,
    declared,
    named,
    named_by_rules,
    rules,
    seconds,
)
from tests.stack.turns import TURNS

RUNBOOK = (ROOT / "prometheus" / "runbook.md").read_text()
RULE_TESTS = sorted((ROOT / "prometheus" / "tests").glob("*.yml"))
SEVERITIES = {"critical": "history,page", "warning": "history,ticket", "info": "history", "none": "heartbeat"}


def test_the_names_in_an_expression_are_found() -> None:
    assert named('sum by (le) (rate(a_bucket{x="y"}[5m])) / on (z) max(b:c:d5m) > scalar(t{of="n"}) or e') == {
        "a_bucket", "b:c:d5m", "t", "e",
    }  # fmt: skip


def test_promtool_accepts_every_rule(images: dict[str, str]) -> None:
    inside = "/etc/prometheus/rules"
    mounted = ["-v", f"{RULES}:{inside}:ro", "--entrypoint=promtool", images["prometheus"]]
    files = [f"{inside}/{file.name}" for file in sorted(RULES.glob("*.yml"))]
    assert len(files) > 6
    said = run("docker", "run", "--rm", "--network=none", *mounted, "check", "rules", "--lint=all", "--lint-fatal", *files)
    assert said.count("SUCCESS") == len(files)


@pytest.mark.parametrize("name", [it.name for it in RULE_TESTS])
def test_every_alert_fires_when_it_should_and_stays_quiet_when_it_should(images: dict[str, str], name: str) -> None:
    mounted = ["-v", f"{ROOT}/prometheus:/etc/prometheus:ro", "--entrypoint=promtool", images["prometheus"]]
    said = run("docker", "run", "--rm", "--network=none", *mounted, "test", "rules", f"/etc/prometheus/tests/{name}")
    assert said.count("SUCCESS") == 1


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_stays_quiet() -> None:
    tests = [it for file in RULE_TESTS for it in yaml.safe_load(file.read_text())["tests"]]
    cases = [case for it in tests for case in it.get("alert_rule_test", ())]
    fires = {it["alertname"] for it in cases if it["exp_alerts"]}
    quiet = {it["alertname"] for it in cases if not it["exp_alerts"]}
    assert fires & quiet == set(alerts()) - {"Watchdog"}  # which always fires


def test_the_recorded_hour_has_all_series_that_rules_use_and_shows_agents_at_work() -> None:
    names = {it.partition("{")[0] for it in quiet.recorded()}
    assert quiet.looked_at() - names == ONCE_A_QUEUE_WAS_FULL | ONLY_WHERE_THERE_IS_ONE | SINCE_THE_QUIET_HOUR
    calls = [
        it.split()
        for name, it in quiet.recorded().items()
        if name.startswith("mcp_server_operation_duration_seconds_count{")
    ]
    assert sum(float(it[-1]) - float(it[0]) for it in calls if it[0] != "_") > 5_000


def test_an_hour_of_normal_operation_fires_nothing(images: dict[str, str]) -> None:
    with TemporaryDirectory(
        prefix="handoff-quiet-"
    ) as folder:  # not below pytest's own folder, which only its user may enter
        Path(folder).chmod(0o755)
        (Path(folder) / "hour.yml").write_text(json.dumps(quiet.replay()))
        mounted = ["-v", f"{ROOT}/prometheus:/etc/prometheus:ro", "-v", f"{folder}:/quiet:ro", "--entrypoint=promtool"]
        run("docker", "run", "--rm", "--network=none", *mounted, images["prometheus"], "test", "rules", "/quiet/hour.yml")


def test_every_alert_has_a_severity_a_component_a_summary_its_value_and_links() -> None:
    for name, it in alerts().items():
        labels, said = it["labels"], it["annotations"]
        assert labels["severity"] in SEVERITIES, name
        assert labels["component"] in {"service", "database", "cache", "handoffs", "worker", "pipeline", "host"}, name
        assert said["runbook_url"] == f"{{{{ $externalLabels.runbook }}}}{link_to_entry(name)}", name
        assert re.fullmatch(r"\{\{ \$externalLabels\.grafana \}\}/d/handoff-[a-z]+", said["dashboard_url"]), name
        assert said["summary"], name
        if "handoff:threshold" in it["expr"]:
            assert "$value" in said["description"], f"{name}: the description lacks the value"
        assert name == "Watchdog" or "for" in it, name


def test_every_alert_has_a_drill() -> None:
    drills = "".join(it.read_text() for it in (Path(__file__).parent / "drills").glob("test_*.py"))
    assert {name for name in alerts() if f'"{name}"' not in drills} == {
        "Watchdog",  # its silence has one
        "HandoffCpuHigh",  # a process that uses up its CPU for as long as that slows every other drill down, and one that is
        "HandoffCpuCritical",  # throttled instead stalls, which other alerts tell; promtool has the cases
        "HandoffDetectorBehind",  # whose usual fault, a job that hangs or is paused, has a drill of HandoffJobLate
        "HandoffPromqlFailing",  # the stack reads no expression; tests/jobs/test_promql.py has a Prometheus that fails
        "HandoffPromqlEmpty",  # likewise
        "HandoffSeriesRefused",  # its limit is set by a restart
        "HandoffWebhooksLate",  # the stack has no endpoint; tests/jobs/test_webhooks.py has receivers that fail and hang
        "HandoffStorageFilling",  # its forecast needs a day of measurements, and a limit that a restart sets
    }


def test_the_runbook_has_one_complete_entry_per_alert_and_no_other() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(headings) == sorted([*alerts(), "WatchdogSilent"])
    for section in RUNBOOK.split("\n## ")[1:]:
        for part in ("**Likely causes**", "**Check**", "**Fix**", "**Resolved when**"):
            assert part in section, section.split("\n")[0]


def test_every_number_in_an_alert_comes_from_the_thresholds() -> None:
    known = {it["labels"]["of"] for it in rules() if it.get("record") == "handoff:threshold"}
    used: set[str] = set()
    for name, it in alerts().items():
        used |= set(re.findall(r'handoff:threshold\{of="(\w+)"\}', it["expr"]))
        bare = set(re.findall(r"[<>=]=?\s*([\d.]+)", re.sub(r'"[^"]*"', "", it["expr"])))
        assert bare <= {"0", "1", "2"}, f"{name}: {bare}"  # none or some; a health status
    assert used == known


def test_every_metric_in_a_rule_is_declared_recorded_or_known_from_elsewhere() -> None:
    recorded = {it["record"] for it in rules() if "record" in it}
    used = named_by_rules()
    assert {"handoff_build_info", "up", "handoff:disk:ratio"} <= used
    assert used - declared() - recorded - FOREIGN - ONCE_A_QUEUE_WAS_FULL == set()


def test_every_recorded_series_is_used() -> None:
    asked = set().union(*(named(str(it["expr"])) for it in rules()))
    recorded = {it["record"] for it in rules() if "record" in it}
    assert {name for name in recorded - asked if name not in RUNBOOK} == set()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_every_severity_is_routed_to_its_receivers(images: dict[str, str], severity: str) -> None:
    name = "Watchdog" if severity == "none" else "HandoffAny"
    mounted = ["-v", f"{ROOT}/alertmanager:/etc/alertmanager:ro", "--entrypoint=amtool", images["alertmanager"]]
    ask = ["config", "routes", "test", "--config.file=/etc/alertmanager/alertmanager.yml"]
    wanted = f"--verify.receivers={SEVERITIES[severity]}"
    for component in ("service", "pipeline"):
        alert = [f"alertname={name}", f"severity={severity}", f"component={component}"]
        run("docker", "run", "--rm", "--network=none", *mounted, *ask, wanted, *alert)


def test_inhibit_rules_only_name_existing_alerts() -> None:
    for one in (one for pair in muting() for one in pair):
        assert matching(one), one


def test_an_alert_that_inhibits_a_page_outlasts_it_or_keeps_it_from_firing() -> None:
    found = alerts()
    for source, target in ((a, b) for one, other in muting() for a in matching(one) for b in matching(other)):
        rule, page = found[source], found[target]
        if page["labels"]["severity"] == "critical":
            guards = re.findall(r'unless on \(\) handoff:cause_known:max30m\{alertname=~"([^"]+)"', page["expr"])
            looks_back_s = min((seconds(it) for it in re.findall(r"(?:\[|_|[a-z])(\d+m)\b", page["expr"])), default=0)
            outlives = seconds(rule.get("keep_firing_for", "")) > looks_back_s + seconds(page.get("keep_firing_for", ""))
            assert outlives or (guards and source in guards[0].split("|")), f"{target} may page after {source} has resolved"


def test_pages_keep_firing_for_a_while_so_that_an_intermittent_fault_pages_once() -> None:
    pages = {name: it for name, it in alerts().items() if it["labels"]["severity"] == "critical"}
    pages.pop("HandoffCertificateExpiresSoon")  # this does not come and go
    for name, it in pages.items():
        assert seconds(it.get("keep_firing_for", "")) >= 180, name
        stays = f"keeps firing for another {seconds(it['keep_firing_for']) // 60} minutes"
        assert stays in RUNBOOK.partition(f"\n## {name}\n")[2].partition("\n## ")[0], (
            f"{name}: the runbook must say for how long"
        )


def muting() -> list[tuple[str, str]]:
    """Pairs of alert name patterns: one that inhibits, and one that it inhibits."""
    config = yaml.safe_load((ROOT / "alertmanager" / "alertmanager.yml").read_text())
    pairs: list[tuple[str, str]] = []
    for it in config["inhibit_rules"]:
        (source,), (target,) = it["source_matchers"], it["target_matchers"]
        one, other = (matcher.partition("~ " if "=~" in matcher else "= ")[2].strip('"') for matcher in (source, target))
        pairs += [(one, part) for part in re.split(r"\|(?![^(]*\))", other)]
    return pairs


def matching(pattern: str) -> list[str]:
    """The names of the alerts that match a pattern."""
    return [name for name in alerts() if re.fullmatch(pattern, name)]


async def test_all_rules_are_evaluated_and_the_external_metrics_they_use_exist(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada:  # the counters of a receiver only exist once it has received something
        await ada.offer(await ada.session("ada"), "operator", "ada")
    groups = stack.get("PROMETHEUS_PORT", "/api/v1/rules")["data"]["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} >= set(alerts())
    stack.eventually(lambda: stack.promql("handoff:threshold"))
    for name in sorted((FOREIGN & named_by_rules()) | ONLY_IN_THE_RUNBOOK):
        stack.eventually(lambda name=name: stack.promql(name), show=lambda name=name: name)
    groups = stack.get("PROMETHEUS_PORT", "/api/v1/rules")["data"]["groups"]
    broken = [(rule["name"], rule["lastError"]) for group in groups for rule in group["rules"] if rule.get("lastError")]
    assert broken == []


async def test_telemetry_counted_by_the_collector_is_not_counted_again_by_jaeger(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada:
        await ada.session("ada")
    stack.eventually(lambda: stack.promql('otelcol_receiver_accepted_spans_total{job="otel-collector"} > 0'))
    stack.eventually(lambda: stack.promql('otelcol_process_uptime_seconds_total{job="jaeger"} > 30'))
    counting = stack.promql('group by (job) ({__name__=~"otelcol_(receiver|processor|exporter)_.+"})')
    assert [it["metric"]["job"] for it in counting] == ["otel-collector"]


async def test_the_watchdog_heartbeat_arrives_and_can_be_read(stack: Stack) -> None:
    turns = stack.turns()
    async with stack.agent(stack.secret("operator-token")) as operator:
        while (heard := (await operator.read("handoff://alerts"))["watchdog"])["age_s"] is None:
            assert turns.look() < TURNS, heard
            await asyncio.sleep(1)
    assert heard["expected"] is True
    assert heard["age_s"] >= 0
