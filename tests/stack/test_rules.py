"""Rules, routes and the runbook hold together, and promtool and amtool accept them."""

import asyncio
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from tests.stack import quiet
from tests.stack.bundle import ROOT, Stack, eventually, run
from tests.stack.conftest import ADA_TOKEN
from tests.stack.rules import (
    FOREIGN,
    ONCE_A_QUEUE_WAS_FULL,
    ONLY_IN_THE_RUNBOOK,
    ONLY_WHERE_THERE_IS_ONE,
    RULES,
    alerts,
    declared,
    named,
    named_by_rules,
    rules,
    seconds,
)

RUNBOOK = (ROOT / "prometheus" / "runbook.md").read_text()
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


def test_every_alert_fires_when_it_should_and_stays_quiet_when_it_should(images: dict[str, str]) -> None:
    files = sorted((ROOT / "prometheus" / "tests").glob("*.yml"))
    inside = [f"/etc/prometheus/tests/{file.name}" for file in files]
    mounted = ["-v", f"{ROOT}/prometheus:/etc/prometheus:ro", "--entrypoint=promtool", images["prometheus"]]
    said = run("docker", "run", "--rm", "--network=none", *mounted, "test", "rules", *inside)
    assert said.count("SUCCESS") == len(files)
    tests = [it for file in files for it in yaml.safe_load(file.read_text())["tests"]]
    cases = [case for it in tests for case in it.get("alert_rule_test", ())]
    fires = {it["alertname"] for it in cases if it["exp_alerts"]}
    quiet = {it["alertname"] for it in cases if not it["exp_alerts"]}
    assert fires & quiet == set(alerts()) - {"Watchdog"}  # which is never quiet


def test_the_recorded_hour_holds_all_that_rules_look_at_and_agents_at_work() -> None:
    names = {it.partition("{")[0] for it in quiet.recorded()}
    assert quiet.looked_at() - names == ONCE_A_QUEUE_WAS_FULL | ONLY_WHERE_THERE_IS_ONE
    calls = [
        it.split()
        for name, it in quiet.recorded().items()
        if name.startswith("mcp_server_operation_duration_seconds_count{")
    ]
    assert sum(float(it[-1]) - float(it[0]) for it in calls if it[0] != "_") > 5_000


def test_an_hour_in_which_all_was_well_fires_nothing(images: dict[str, str]) -> None:
    with TemporaryDirectory(prefix="handoff-quiet-") as folder:  # not below pytest's own, which only its user may enter
        Path(folder).chmod(0o755)
        (Path(folder) / "hour.yml").write_text(json.dumps(quiet.replay()))
        mounted = ["-v", f"{ROOT}/prometheus:/etc/prometheus:ro", "-v", f"{folder}:/quiet:ro", "--entrypoint=promtool"]
        run("docker", "run", "--rm", "--network=none", *mounted, images["prometheus"], "test", "rules", "/quiet/hour.yml")


def test_every_alert_says_what_how_much_and_what_to_do() -> None:
    for name, it in alerts().items():
        labels, said = it["labels"], it["annotations"]
        assert labels["severity"] in SEVERITIES, name
        assert labels["component"] in {"service", "database", "cache", "handoffs", "worker", "pipeline", "host"}, name
        assert said["runbook_url"] == f"{{{{ $externalLabels.runbook }}}}#{name.lower()}"
        assert re.fullmatch(r"\{\{ \$externalLabels\.grafana \}\}/d/handoff-[a-z]+", said["dashboard_url"]), name
        assert said["summary"], name
        if "handoff:threshold" in it["expr"]:
            assert "$value" in said["description"], f"{name}: without the number"
        assert name == "Watchdog" or "for" in it, name


def test_every_alert_has_its_fault() -> None:
    drills = "".join(it.read_text() for it in (Path(__file__).parent / "drills").glob("test_*.py"))
    assert {name for name in alerts() if f'"{name}"' not in drills} == {"Watchdog"}  # whose silence is a fault


def test_every_alert_has_its_heading_in_the_runbook_and_every_heading_its_alert() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(headings) == sorted([*alerts(), "WatchdogSilent"])
    for section in RUNBOOK.split("\n## ")[1:]:
        for part in ("**Likely causes**", "**Check**", "**Fix**", "**Resolved when**"):
            assert part in section, section.split("\n")[0]


def test_every_number_stands_among_the_thresholds() -> None:
    known = {it["labels"]["of"] for it in rules() if it.get("record") == "handoff:threshold"}
    used: set[str] = set()
    for name, it in alerts().items():
        used |= set(re.findall(r'handoff:threshold\{of="(\w+)"\}', it["expr"]))
        bare = set(re.findall(r"[<>=]=?\s*([\d.]+)", re.sub(r'"[^"]*"', "", it["expr"])))
        assert bare <= {"0", "1", "2"}, f"{name}: {bare}"  # none, some; a status
    assert used == known


def test_every_metric_named_is_declared_recorded_or_known_to_be_anothers() -> None:
    recorded = {it["record"] for it in rules() if "record" in it}
    used = named_by_rules()
    assert {"handoff_build_info", "up", "handoff:disk:ratio"} <= used
    assert used - declared() - recorded - FOREIGN - ONCE_A_QUEUE_WAS_FULL == set()


def test_nothing_is_recorded_that_nobody_asks() -> None:
    asked = set().union(*(named(str(it["expr"])) for it in rules()))
    recorded = {it["record"] for it in rules() if "record" in it}
    assert {name for name in recorded - asked if name not in RUNBOOK} == set()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_every_severity_goes_to_its_receivers(images: dict[str, str], severity: str) -> None:
    name = "Watchdog" if severity == "none" else "HandoffAny"
    mounted = ["-v", f"{ROOT}/alertmanager:/etc/alertmanager:ro", "--entrypoint=amtool", images["alertmanager"]]
    ask = ["config", "routes", "test", "--config.file=/etc/alertmanager/alertmanager.yml"]
    wanted = f"--verify.receivers={SEVERITIES[severity]}"
    for component in ("service", "pipeline"):
        alert = [f"alertname={name}", f"severity={severity}", f"component={component}"]
        run("docker", "run", "--rm", "--network=none", *mounted, *ask, wanted, *alert)


def test_what_mutes_and_what_is_muted_are_alerts_that_there_are() -> None:
    for one in (one for pair in muting() for one in pair):
        assert matching(one), one


def test_what_mutes_a_page_outlives_it_or_keeps_it_from_firing() -> None:
    found = alerts()
    for source, target in ((a, b) for one, other in muting() for a in matching(one) for b in matching(other)):
        rule, page = found[source], found[target]
        if page["labels"]["severity"] == "critical":
            guards = re.findall(r'unless on \(\) handoff:cause_known:max30m\{alertname=~"([^"]+)"', page["expr"])
            looks_back_s = min((seconds(it) for it in re.findall(r"(?:\[|_|[a-z])(\d+m)\b", page["expr"])), default=0)
            outlives = seconds(rule.get("keep_firing_for", "")) > looks_back_s + seconds(page.get("keep_firing_for", ""))
            assert outlives or (guards and source in guards[0].split("|")), f"{source} leaves {target} to page after it"


def test_what_pages_stays_a_while_so_that_what_comes_and_goes_is_one_page() -> None:
    pages = {name: it for name, it in alerts().items() if it["labels"]["severity"] == "critical"}
    pages.pop("HandoffCertificateExpiresSoon")  # which time alone does not mend
    for name, it in pages.items():
        assert seconds(it.get("keep_firing_for", "")) >= 180, name
        stays = f"keeps firing for another {seconds(it['keep_firing_for']) // 60} minutes"
        assert stays in RUNBOOK.partition(f"\n## {name}\n")[2].partition("\n## ")[0], f"{name}: the runbook says how long"


def muting() -> list[tuple[str, str]]:
    """Patterns of alerts: what mutes, and what it mutes."""
    config = yaml.safe_load((ROOT / "alertmanager" / "alertmanager.yml").read_text())
    pairs: list[tuple[str, str]] = []
    for it in config["inhibit_rules"]:
        (source,), (target,) = it["source_matchers"], it["target_matchers"]
        one, other = (matcher.partition("~ " if "=~" in matcher else "= ")[2].strip('"') for matcher in (source, target))
        pairs += [(one, part) for part in re.split(r"\|(?![^(]*\))", other)]
    return pairs


def matching(pattern: str) -> list[str]:
    """The alerts that a pattern names."""
    return [name for name in alerts() if re.fullmatch(pattern, name)]


async def test_the_rules_are_evaluated_and_what_they_name_of_others_is_there(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada:  # what receivers say of a signal is there once it has come
        await ada.offer(await ada.session("ada"), "operator", "ada")
    groups = stack.get("PROMETHEUS_PORT", "/api/v1/rules")["data"]["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} >= set(alerts())
    eventually(lambda: stack.promql("handoff:threshold"))
    for name in sorted((FOREIGN & named_by_rules()) | ONLY_IN_THE_RUNBOOK):
        eventually(lambda name=name: stack.promql(name), within_s=60, show=lambda name=name: name)
    groups = stack.get("PROMETHEUS_PORT", "/api/v1/rules")["data"]["groups"]
    broken = [(rule["name"], rule["lastError"]) for group in groups for rule in group["rules"] if rule.get("lastError")]
    assert broken == []


async def test_what_the_collector_counts_is_not_counted_again_by_a_back_end_built_alike(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada:
        await ada.session("ada")
    eventually(lambda: stack.promql('otelcol_receiver_accepted_spans_total{job="otel-collector"} > 0'), within_s=60)
    eventually(lambda: stack.promql('otelcol_process_uptime_seconds_total{job="jaeger"} > 30'), within_s=60)
    counting = stack.promql('group by (job) ({__name__=~"otelcol_(receiver|processor|exporter)_.+"})')
    assert [it["metric"]["job"] for it in counting] == ["otel-collector"]


async def test_the_heartbeat_arrives_and_can_be_read(stack: Stack) -> None:
    async with stack.agent(stack.secret("operator-token")) as operator, asyncio.timeout(150):
        while (heard := (await operator.read("handoff://alerts"))["watchdog"])["age_s"] is None:
            await asyncio.sleep(1)
    assert heard["expected"] is True
    assert 0 <= heard["age_s"] < 150
