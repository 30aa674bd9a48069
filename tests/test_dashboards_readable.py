"""Pages can be read: every column is in sight, red is critical, and a query that failed never reads as nothing to show."""

import re

from handoff.configuration import THRESHOLDS
from tests.stack.bundle import ROOT
from tests.stack.panels import Json, dashboards, questions
from tests.stack.rules import alerts
from tests.test_dashboards import WIDTH, every_panel


def _overrides(panel: Json, name: str) -> Json:
    """What is set for one column or series by its name."""
    found = [it for it in panel["fieldConfig"].get("overrides", []) if it["matcher"] == {"id": "byName", "options": name}]
    return {set_["id"]: set_["value"] for it in found for set_ in it["properties"]}


def _columns(panel: Json) -> dict[str, int | None]:
    """The columns whose layout is set, and their widths in pixels; None for those that share what is left."""
    widths = {
        it["matcher"]["options"]: _overrides(panel, it["matcher"]["options"]) for it in panel["fieldConfig"]["overrides"]
    }
    return {
        name: set_.get("custom.width") for name, set_ in widths.items() if {"custom.width", "custom.wrapText"} & set(set_)
    }


def every_table() -> list[tuple[str, Json]]:
    return [(name, it) for name, it in every_panel() if it["type"] == "table"]


def test_a_cell_without_a_value_is_not_an_empty_table() -> None:
    for name, it in every_table():
        (cells,) = [one["properties"] for one in it["fieldConfig"]["overrides"] if one["matcher"]["id"] == "byRegexp"]
        assert cells == [{"id": "noValue", "value": "-"}], name


def test_a_panel_whose_query_failed_does_not_say_that_there_is_nothing() -> None:
    """Grafana shows the same text then, beside an error."""
    for name, it in every_panel():
        nothing = it["fieldConfig"]["defaults"].get("noValue", "no data")
        assert nothing in {"no data", "none"} or nothing.endswith(", unless this panel shows an error"), name
        assert nothing != "none" or it["type"] == "stat", name


def test_a_number_that_there_is_not_is_grey() -> None:
    """Without a mapping it has the colour of the lowest step, which is red where lower is worse."""
    for name, it in every_panel():
        if it["type"] == "stat":
            results = [
                one["options"]["result"] for one in it["fieldConfig"]["defaults"]["mappings"] if one["type"] == "special"
            ]
            assert results == [{"text": it["fieldConfig"]["defaults"]["noValue"], "color": "text"}], name


def _steps(panel: Json) -> list[Json]:
    fields = panel["fieldConfig"]
    sets = [set_["value"] for it in fields.get("overrides", []) for set_ in it["properties"] if set_["id"] == "thresholds"]
    found = [fields["defaults"]["thresholds"]] if "thresholds" in fields["defaults"] else []
    return [step for it in [*found, *sets] for step in it["steps"]]


def test_red_is_only_what_a_critical_alert_would_say() -> None:
    of = {name: it.default for name, it in THRESHOLDS.items()}
    critical = {
        of[name]
        for it in alerts().values()
        if it["labels"]["severity"] == "critical"
        for name in re.findall(r'of="(\w+)"', it["expr"])
    }
    critical |= {240}  # WatchdogSilent, which the worker sends itself
    elsewhere = {
        "Overview / Alerts firing": 1,
        "Overview / Availability": None,
        "Overview / Latency": None,
        "Overview / Time to accept": None,
        "Overview / Next certificate expiry": None,
    }
    red = 0
    for name, it in every_panel():
        healthy = any(one["type"] == "value" for one in it["fieldConfig"]["defaults"].get("mappings", []))
        for step in _steps(it) if not healthy else ():
            if step["color"] == "red":
                red += 1
                assert step["value"] in critical or (name in elsewhere and step["value"] == elsewhere[name]), (
                    f"{name}: {step}"
                )
    assert red > 15


def test_no_graph_draws_a_line_for_what_did_not_happen_on_top_of_what_did() -> None:
    stacked = 0
    for name, it in every_panel():
        if it["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal":
            stacked += 1
            for target in it["targets"]:
                assert "vector(0)" not in target.get("expr", ""), name
                if target.get("legendFormat") in {"failed", "refused"}:
                    assert target["expr"].endswith(" > 0"), name
    assert stacked > 5


def test_limits_are_drawn_only_over_what_they_apply_to() -> None:
    for name, it in every_panel():
        mode = it["fieldConfig"]["defaults"].get("custom", {}).get("thresholdsStyle", {}).get("mode", "off")
        for target in it.get("targets", []) if mode != "off" else ():
            if "mcp_server_operation_duration_seconds_bucket" in target["expr"]:
                assert 'gen_ai_tool_name!="get_inbox"' in target["expr"], name
            if "handoff_job_last_success" in target["expr"]:
                assert 'handoff_job=~"settle|measure|heartbeat"' in target["expr"], name
            if "waiting" in target["expr"]:
                own = [
                    one["properties"]
                    for one in it["fieldConfig"]["overrides"]
                    if one["matcher"]["options"] == target["refId"]
                ]
                assert {"id": "custom.thresholdsStyle", "value": {"mode": "off"}} in own[0], name


def test_one_kind_of_marks_is_on_when_a_page_is_opened_and_the_others_are_one_click_away() -> None:
    for uid, page in dashboards().items():
        kinds = {it["name"]: it["enable"] for it in page["annotations"]["list"]}
        assert set(kinds) == {
            "Critical alerts",
            "Other alerts",
            "Incidents",
            "Health changes",
            "Deployments",
            "Process starts",
        }
        shown = "Critical alerts" if uid == "handoff-overview" else "Deployments"
        assert [name for name, on in kinds.items() if on] == [shown], uid
        red = [it["name"] for it in page["annotations"]["list"] if it["iconColor"] == "red"]
        assert red == ["Critical alerts"]


def test_every_column_of_a_table_is_in_sight_on_a_screen_1600_pixels_wide() -> None:
    """The menu, the scroll bar and the gaps between panels take some of it; a column that shares what is left needs 110."""
    for name, it in every_table():
        room = (1600 - 70) * it["gridPos"]["w"] / WIDTH - 20
        widths = _columns(it)
        assert None in widths.values(), name
        assert sum(110 if width is None else width for width in widths.values()) <= room, name
        assert it["fieldConfig"]["defaults"]["custom"]["minWidth"] <= min(width or 110 for width in widths.values()), name


def test_every_column_of_a_table_has_its_width() -> None:
    for name, it in every_table():
        columns = set(_columns(it))
        for transformation in it.get("transformations", []):
            if transformation["id"] == "organize":
                options = transformation["options"]
                assert columns == {options["renameByName"].get(field, field) for field in options["indexByName"]}, name
        for target in it["targets"]:
            if "rawSql" in target:
                assert columns == _selected(target["rawSql"]), name


def _selected(statement: str) -> set[str]:
    """The columns of an SQL statement, as Postgres names them."""
    top = re.sub(r"\s+", " ", statement)
    while (inner := re.sub(r"\([^()]*\)", "", top)) != top:
        top = inner
    listed = top.removeprefix("SELECT ").partition(" FROM ")[0].split(",")
    return {it.split(" AS ")[-1].strip().strip('"') for it in listed}


def test_every_table_is_sorted() -> None:
    for name, it in every_table():
        columns = _columns(it)
        sort = [one["displayName"] for one in it["options"].get("sortBy", [])]
        assert set(sort) <= set(columns), name
        assert sort or all("ORDER BY" in target.get("rawSql", "") for target in it["targets"]), name


def test_counts_have_no_decimals() -> None:
    for name, it in every_panel():
        fields = it["fieldConfig"]
        sets = [{set_["id"]: set_["value"] for set_ in one["properties"]} for one in fields.get("overrides", [])]
        for one in [fields["defaults"], *sets] if it["type"] in {"stat", "table", "timeseries"} else ():
            assert one.get("unit") != "locale" or one["decimals"] == 0, name


def test_what_is_no_count_beside_counts_keeps_its_decimals() -> None:
    for name, it in every_panel():
        for override in it["fieldConfig"].get("overrides", []):
            sets = {set_["id"]: set_["value"] for set_ in override["properties"]}
            if sets.get("unit", "locale") != "locale" and it["fieldConfig"]["defaults"].get("decimals") == 0:
                assert sets["decimals"] > 0, f"{name}: {override['matcher']}"


def test_the_axis_of_a_graph_of_zeros_does_not_reach_to_100() -> None:
    for name, it in every_panel():
        if it["type"] == "timeseries":
            fields = it["fieldConfig"]["defaults"]
            assert "max" in fields or 0 < fields["custom"]["axisSoftMax"] <= 1000, name


def test_no_forecast_of_free_disk_is_larger_than_the_disk() -> None:
    forecasts = [
        target["expr"] for _, it in every_panel() for target in it.get("targets", []) if "predict_linear" in str(target)
    ]
    assert len(forecasts) == 1
    assert re.fullmatch(r"min\(clamp\(predict_linear\(.+, 0, scalar\(max\(.+\)\)\)\)", forecasts[0])


def test_log_lines_are_asked_for_by_outcomes_that_there_are() -> None:
    """The outcome of a call is `ok`, `cancelled` or the code of an error; no code is `error`."""
    asked = [it.text for page in dashboards().values() for it in questions(page) if "outcome" in it.text]
    asked += re.findall(r"`(\{service_name[^`]*outcome[^`]*)`", (ROOT / "prometheus" / "runbook.md").read_text())
    assert len(asked) > 2
    assert [it for it in asked if re.search(r'outcome\s*=~?\s*"error"|\| code', it)] == []
