"""Pages are what their source makes; links, units, colours, names and words hold together."""

import re
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, urlsplit

from grafana.source.__main__ import PAGES, page_json
from grafana.source.page import TAG
from handoff.configuration import THRESHOLDS
from handoff.telemetry.metrics import INSTRUMENTS
from tests.stack import panels
from tests.stack.bundle import ROOT
from tests.stack.drills.report import DOCUMENT
from tests.stack.panels import Json, dashboards, questions, variables
from tests.stack.rules import (
    FOREIGN,
    ONCE_A_QUEUE_WAS_FULL,
    ONLY_IN_THE_RUNBOOK,
    alerts,
    declared,
    named,
    named_by_rules,
    rules,
)

WIDTH = 24
RATES = {"reqps", "recps", "ops", "eps", "mps", "iops", "Bps"}
UNITS = {"short", "locale", "none", "s", "bytes", "percentunit", *RATES}
TABLE = "postgresql_table_name"
VARIABLES = ("tool", "instance", "statement", "type", "entry", "series")  # of PromQL


def every_panel() -> list[tuple[str, Json]]:
    return [(f"{page['title']} / {it['title']}", it) for page in dashboards().values() for it in panels.panels(page)]


def urls(node: Any) -> list[str]:
    """Each address that stands somewhere below a panel or a page."""
    if isinstance(node, dict):
        return [url for key, it in node.items() for url in ([it] if key == "url" and isinstance(it, str) else urls(it))]
    return [url for it in node for url in urls(it)] if isinstance(node, list) else []


def test_what_is_committed_is_what_the_source_makes() -> None:
    assert set(dashboards()) == {it.uid for it in PAGES}
    for it in PAGES:
        assert (panels.DASHBOARDS / f"{it.uid}.json").read_text() == page_json(it), f"{it.uid}: make dashboards"


def test_the_readme_has_every_page_and_its_question() -> None:
    text = (ROOT / "grafana" / "README.md").read_text()
    rows = {
        (title, name): question
        for title, name, question in re.findall(r"\| \[(.+)\]\(source/(\w+)\.py\) \| (.+\?) \|", text)
    }
    assert rows == {(it.title, it.name): it.question for it in PAGES}


def test_every_page_asks_a_question_and_shows_whether_it_is_well_first() -> None:
    for uid, page in dashboards().items():
        assert page["description"].endswith("?"), uid
        first = page["panels"][0]
        assert (first["type"], first["title"]) == (
            "row",
            "At a glance" if uid != "handoff-runbook" else "Select an alert",
        )
        (links,) = page["links"]
        assert (links["type"], links["tags"], links["keepTime"], links["includeVars"]) == ("dashboards", [TAG], True, True)
        assert page["tags"] == [TAG]
        assert page["editable"] is False


def test_every_panel_has_a_unit_a_description_and_an_empty_state() -> None:
    for name, it in every_panel():
        assert re.search(r"[.]$", it["description"]), name
        defaults = it["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, name
        if it["type"] != "text":
            assert defaults["noValue"], name
            assert it["targets"], name
        if it["type"] == "stat":
            assert defaults["thresholds"]["steps"][0]["value"] is None, name


def test_titles_and_numbers_are_told_apart_on_a_page() -> None:
    for page in dashboards().values():
        numbers = [it["id"] for it in page["panels"]]
        assert len(set(numbers)) == len(numbers)
        titles = Counter((it["title"], it["type"]) for it in panels.panels(page))
        assert [it for it, count in titles.items() if count > 1] == [], page["title"]


def test_panels_fill_the_grid_and_none_covers_another() -> None:
    for page in dashboards().values():
        taken: set[tuple[int, int]] = set()
        for it in page["panels"]:
            at = it["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert at["x"] + at["w"] <= WIDTH
            assert not cells & taken, f"{page['title']} / {it['title']}"
            taken |= cells
        widths = Counter(y for _, y in taken)
        assert set(widths.values()) == {WIDTH}, f"{page['title']}: a gap beside a panel"


def test_rates_say_that_they_are_a_second() -> None:
    for name, it in every_panel():
        units = {ref["options"]: ref_unit for ref, ref_unit in _units_by_query(it)}
        for target in it.get("targets", []):
            unit = units.get(target["refId"], it["fieldConfig"]["defaults"]["unit"])
            bare = re.fullmatch(r"(?:topk\(\d+, )?sum(?: by \([^)]*\))? \(rate\(.*", target.get("expr", "")) is not None
            if bare and "_seconds_total" not in target["expr"] and " / " not in target["expr"]:
                assert unit in RATES, f"{name} {target['refId']}"
        if it["fieldConfig"]["defaults"]["unit"] in RATES:
            assert "second" in f"{it['title']} {it['description']}", name


def test_a_count_beside_a_ratio_is_not_judged_by_the_ratios_limits() -> None:
    beside = 0
    for name, it in every_panel():
        for override in it["fieldConfig"].get("overrides", []) if it["type"] != "table" else ():
            changed = {set_["id"]: set_["value"] for set_ in override["properties"]}
            if "unit" in changed:
                beside += 1
                assert [step["value"] for step in changed["thresholds"]["steps"]] == [None], name
                if it["type"] == "timeseries":
                    assert changed["custom.thresholdsStyle"] == {"mode": "off"}, name
    assert beside > 8


def test_sums_that_stand_in_for_one_another_are_told_apart_by_a_label() -> None:
    """Of `sum(a) or sum(b)` only the first is ever shown: both have no label."""
    for page in dashboards().values():
        for it in questions(page):
            sides = it.text.split(" or ") if it.source == "prometheus" else []
            for side in sides[1:]:
                assert re.match(r"vector\(0\)|label_replace\(|sum by ", side), it


def test_the_uid_of_a_page_never_changes_at_its_path() -> None:
    """Grafana would keep the page under its old uid, and say nothing."""
    assert {f"{it.uid}.json": it.uid for it in PAGES} == {
        "handoff-overview.json": "handoff-overview", "handoff-tools.json": "handoff-tools",
        "handoff-handoffs.json": "handoff-handoffs", "handoff-context.json": "handoff-context",
        "handoff-database.json": "handoff-database", "handoff-agents.json": "handoff-agents",
        "handoff-analytics.json": "handoff-analytics", "handoff-lifecycle.json": "handoff-lifecycle",
        "handoff-pipeline.json": "handoff-pipeline", "handoff-logs.json": "handoff-logs",
        "handoff-runbook.json": "handoff-runbook",
    }  # fmt: skip


def _units_by_query(panel: Json) -> list[tuple[Json, str]]:
    found = panel["fieldConfig"].get("overrides", [])
    return [
        (it["matcher"], set_["value"])
        for it in found
        if it["matcher"]["id"] == "byFrameRefID"
        for set_ in it["properties"]
        if set_["id"] == "unit"
    ]


def test_a_colour_means_the_same_on_every_page() -> None:
    colours: dict[str, set[str]] = {}
    for _, it in every_panel():
        for override in it["fieldConfig"].get("overrides", []):
            for set_ in override["properties"]:
                if set_["id"] == "color":
                    colours.setdefault(override["matcher"]["options"], set()).add(set_["value"]["fixedColor"])
    assert {"p50", "p95", "p99", "failed", "ok"} <= set(colours)
    assert {name: it for name, it in colours.items() if len(it) > 1} == {}


def test_latency_is_shown_as_p50_p95_p99_and_a_heat_map() -> None:
    for uid in ("handoff-tools", "handoff-database", "handoff-handoffs"):
        page = dashboards()[uid]
        legends = [{target.get("legendFormat") for target in it.get("targets", [])} for it in panels.panels(page)]
        assert {"p50", "p95", "p99"} in legends, uid
        assert "heatmap" in {it["type"] for it in panels.panels(page)}, uid


def test_calls_that_wait_by_design_are_left_out_of_what_all_calls_take() -> None:
    asked = [it.text for page in dashboards().values() for it in questions(page)]
    timed = [it for it in asked if "mcp_server_operation_duration_seconds_bucket" in it and "by (gen_ai_tool_name" not in it]
    assert len(timed) > 7
    assert [it for it in timed if 'gen_ai_tool_name!="get_inbox"' not in it] == []


def test_every_ratio_that_is_counted_has_its_count_beside_it() -> None:
    for name, it in every_panel():
        shares = re.findall(
            r"increase.* or vector\(0\)\) / \(", " ".join(target.get("expr", "") for target in it.get("targets", []))
        )
        if shares:
            assert any(unit == "locale" for _, unit in _units_by_query(it)), name


def test_links_lead_to_pages_that_there_are_and_keep_the_time() -> None:
    pages = dashboards()
    led: set[str] = set()
    for page in pages.values():
        for url in urls([it for it in page["panels"] if it["type"] != "row"]):
            if url.startswith("${ui}/handoffs/"):
                assert "ui" in variables(page), url
                continue  # a page of the service
            path = urlsplit(url)
            if "viewPanel" in path.query:
                continue  # an entry of the runbook, which has a test of its own
            uid = path.path.removeprefix("/d/")
            assert uid in pages, url
            assert path.query.startswith("${__url_time_range}"), url
            wanted = {name.removeprefix("var-") for name in parse_qs(path.query) if name.startswith("var-")}
            assert wanted <= set(variables(pages[uid])), url
            led.add(uid)
    assert {"handoff-tools", "handoff-handoffs", "handoff-database", "handoff-pipeline", "handoff-logs"} <= led


def test_alerts_lead_to_pages_that_there_are() -> None:
    uids = {it["annotations"]["dashboard_url"].rpartition("/")[2] for it in alerts().values()}
    assert uids <= set(dashboards())


def test_the_link_of_an_alert_opens_its_entry_in_the_runbook() -> None:
    page = dashboards()["handoff-runbook"]
    entries = {it["id"]: it for it in panels.panels(page)}
    severities = {name: it["labels"]["severity"] for name, it in alerts().items()} | {"WatchdogSilent": "critical"}
    assert {it["title"] for it in entries.values()} == {*severities, "Alerts"}
    for name, it in alerts().items():
        url = it["annotations"]["runbook_url"]
        (number,) = parse_qs(urlsplit(url.replace("{{ $externalLabels.runbook }}", "")).query)["viewPanel"]
        entry = entries[int(number.removeprefix("panel-"))]
        assert entry["title"] == name, url
        assert entry["options"]["content"].startswith(f"*{severities[name]}, "), name


def test_links_within_the_runbook_open_entries() -> None:
    page = dashboards()["handoff-runbook"]
    entries = {it["id"]: it["title"] for it in panels.panels(page)}
    text = "".join(it["options"]["content"] for it in panels.panels(page))
    links = re.findall(r"\[(\w+)\]\(/d/handoff-runbook\?viewPanel=panel-(\d+)#\w+\)", text)
    assert len(links) == text.count("](")
    assert {name for name, _ in links} == {*alerts(), "WatchdogSilent"}
    assert [name for name, number in links if entries[int(number)] != name] == []


def test_the_page_of_alerts_has_each_and_its_fault() -> None:
    rows = re.findall(
        r"^\| (Handoff\w+|WatchdogSilent)(?: \(\w+\))? \| (\w+) \| ([^|]+) \|", DOCUMENT.read_text(), re.MULTILINE
    )
    assert {name: severity for name, severity, _ in rows} == {
        name: it["labels"]["severity"] for name, it in alerts().items() if name != "Watchdog"
    } | {"WatchdogSilent": "critical"}


def test_variables_are_used_where_they_are_declared_and_declared_where_they_are_used() -> None:
    for page in dashboards().values():
        links = [url for url in urls([it for it in page["panels"] if it["type"] != "row"]) if url.startswith("${")]
        asked = " ".join([*(it.text for it in questions(page)), *links])
        used = set(re.findall(r"\$\{?([a-z]\w*)", re.sub(r"\$__\w+", "", asked)))
        assert used == set(variables(page)), page["title"]
        for it in variables(page).values():
            assert it["label"], it["name"]
            assert it["description"].endswith("."), it["name"]


def test_every_metric_on_a_page_is_declared_recorded_or_known_to_be_anothers() -> None:
    recorded = {it["record"] for it in rules() if "record" in it}
    asked = [it for page in dashboards().values() for it in questions(page) if it.source == "prometheus"]
    assert len(asked) > 150
    used: set[str] = set()
    for it in asked:
        names = named(panels.filled(it.text, {name: ["x"] for name in VARIABLES}))
        assert names, it
        assert names - declared() - recorded - FOREIGN == set(), it
        used |= names
    assert FOREIGN - used - named_by_rules() == set(), "of others, and nobody names them"


def test_every_metric_in_the_runbook_is_declared_recorded_or_known_to_be_anothers() -> None:
    spans = re.findall(r"`([^`]+)`", (ROOT / "prometheus" / "runbook.md").read_text())
    asked = [it for it in spans if not re.search(r"\| json|docker|SELECT|promtool|curl|[.]/|/$", it)]
    whose = "handoff|mcp|db_client|http_server|otelcol|prometheus|alertmanager|postgresql|redis|system|process|slo"
    first = rf"\b((?:{whose})[_:][\w:]+)"
    labels = {it.name.replace(".", "_") for instrument in INSTRUMENTS for it in instrument.attributes} | {TABLE}
    found = {name for it in asked for name in re.findall(first, re.sub(r'"[^"]*"', "", it))} - labels
    recorded = {it["record"] for it in rules() if "record" in it}
    assert len(found) > 20
    assert found - declared() - recorded - FOREIGN - ONLY_IN_THE_RUNBOOK - ONCE_A_QUEUE_WAS_FULL == set()
    assert ONLY_IN_THE_RUNBOOK - found == set()


def test_no_panel_shows_what_a_role_may_not_see() -> None:
    asked = [it for page in dashboards().values() for it in questions(page) if it.source == "postgres"]
    assert asked
    for it in asked:
        tables = re.findall(r"(?:FROM|JOIN) ([a-z_.]+)", re.sub(r"(?i)extract\([^)]*\)", "", it.text))
        assert {name for name in tables if not name.startswith("reporting.")} == set(), it


def test_the_thresholds_drawn_are_those_of_the_alerts() -> None:
    of = {name: it.default for name, it in THRESHOLDS.items()}
    (failed,) = [it for name, it in every_panel() if name == "Overview / Failed calls"]
    assert failed["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == of["error_ratio"]
