"""The panel types. A colour means the same thing on every panel, and where an alert has a limit, panels use the same one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, logs, loki, prometheus, stat, statetimeline, table, text, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import text as text_models

from grafana.source.promql import quantile
from handoff.telemetry.instruments import Histogram

THRESHOLDS: Final = Path(__file__).parents[2] / "prometheus" / "rules" / "thresholds.yml"
WIDTH: Final = 24

GOOD, WARN, BAD, NEUTRAL, MUTED = "green", "orange", "red", "blue", "text"
COLOURS: Final = {
    # Outcomes
    "ok": GOOD, "refused": WARN, "failed": BAD, "error": BAD, "hit": GOOD, "miss": NEUTRAL, "stored": "light-blue",
    "skipped": WARN, "dropped": BAD, "attempted": GOOD, "info": NEUTRAL, "warning": WARN, "critical": BAD, "debug": MUTED,
    "noteworthy": WARN, "ordinary": NEUTRAL, "asked": "purple", "no": MUTED, "slow": WARN, "commits": GOOD, "rollbacks": BAD,
    # Latencies
    "p50": "light-blue", "p95": "blue", "p99": "purple", "limit": BAD,
    # Actions on handoffs, and their states
    "offer": "blue", "accept": "light-green", "renew": "semi-dark-green", "complete": "green", "block": "semi-dark-orange",
    "reject": "orange", "expire": "yellow", "cancel": "purple", "lapse": "red", "blocked": "semi-dark-orange",
    "offered": "blue", "accepted": "light-green", "completed": "green", "rejected": "orange", "expired": "yellow",
    "cancelled": "purple",
    # Use of a limited resource
    "used": "blue", "idle": "light-blue", "waiting": WARN, "max": BAD,
}  # fmt: skip
STATUSES: Final = ((0, "healthy", GOOD), (1, "degraded", WARN), (2, "unhealthy", BAD))

Panel = Builder[models.Panel]
Steps = Sequence[tuple[float | None, str]]


def limit(name: str) -> float:
    """An alert threshold, by its name (the label `of`) in prometheus/rules/thresholds.yml."""
    groups = yaml.safe_load(THRESHOLDS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if rule["record"] == "handoff:threshold"]
    (expression,) = [rule["expr"] for rule in rules if rule["labels"]["of"] == name]
    return float(expression.removeprefix("vector(").removesuffix(")"))


def source(uid: Literal["prometheus", "loki", "postgres", "jaeger"]) -> models.DataSourceRef:
    """A reference to one of the provisioned data sources."""
    types = {"postgres": "grafana-postgresql-datasource"}
    return models.DataSourceRef(type_val=types.get(uid, uid), uid=uid)


def _source_of(queries: "Sequence[Query]") -> models.DataSourceRef:
    """The data source of a panel's queries, which must all have the same."""
    uids: dict[type, Literal["prometheus", "loki", "postgres", "jaeger"]] = {
        Prom: "prometheus",
        Sql: "postgres",
        Loki: "loki",
        Traces: "jaeger",
    }
    (query_type,) = {type(query) for query in queries}
    return source(uids[query_type])


class _Raw(Dataquery, Builder[Dataquery]):
    """A query to a data source for which the SDK has no builder."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def to_json(self) -> Mapping[str, Any]:
        return self._content

    def build(self) -> Dataquery:
        return self


@dataclass(frozen=True)
class Prom:
    """A PromQL query. `unit` is set where it differs from the panel's, as for a count beside a ratio; it then gets its own axis."""

    expression: str
    legend: str = ""
    unit: str | None = None

    def query(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        """The query as Grafana's model has it, under the letter `ref`."""
        query = prometheus.Dataquery().ref_id(ref).expr(self.expression).datasource(source("prometheus"))
        query = query.legend_format(self.legend or "__auto").editor_mode(prometheus_models.QueryEditorMode.CODE)
        match kind:
            case "instant":
                return query.instant()
            case "table":
                return query.instant().format(prometheus_models.PromQueryFormat.TABLE)
            case "heatmap":
                return query.range().exemplar(True).format(prometheus_models.PromQueryFormat.HEATMAP)
            case "range":
                return query.range().exemplar(self.legend == "p99")  # one query per panel is enough for exemplars


def percentiles(histogram: Histogram, only: Sequence[str] = ()) -> list[Prom]:
    """Queries for the 50th, 95th and 99th percentile."""
    return [Prom(quantile(q, histogram, only=only), name) for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))]


@dataclass(frozen=True)
class Sql:
    """An SQL query on the schema `reporting`, which holds no content. For a time series the first column is `time`."""

    statement: str
    legend: str = ""
    unit: str | None = None

    def content(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"] = "table") -> dict[str, Any]:
        """The target as Grafana's Postgres data source expects it."""
        return {
            "refId": ref,
            "datasource": source("postgres").to_json(),
            "editorMode": "code",
            "format": "time_series" if kind == "range" else "table",
            "rawQuery": True,
            "rawSql": re.sub(r"\s+", " ", self.statement).strip(),
        }

    def query(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        """The query as Grafana's model has it, under the letter `ref`."""
        return _Raw(self.content(ref, kind))


@dataclass(frozen=True)
class Loki:
    """A LogQL query."""

    expression: str
    legend: str = ""
    unit: str | None = None

    def query(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        """The query as Grafana's model has it, under the letter `ref`."""
        query = loki.Dataquery().ref_id(ref).expr(self.expression).datasource(source("loki")).legend_format(self.legend)
        query = query.query_type("range" if kind == "range" else "instant")
        return query.max_lines(500) if kind == "range" else query


@dataclass(frozen=True)
class Traces:
    """A search in Jaeger for the newest traces of a service."""

    service: str
    tags: str = ""
    legend: str = ""
    unit: str | None = None

    def query(self, ref: str, _: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        """The query as Grafana's model has it, under the letter `ref`."""
        search = {"queryType": "search", "service": self.service, "tags": self.tags, "limit": 50}
        return _Raw({"refId": ref, "datasource": source("jaeger").to_json(), **search})


Query = Prom | Sql | Loki | Traces


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    thresholds = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)


def higher_is_worse(warn: float, bad: float | None = None) -> Steps:
    """Green below `warn`, orange from there, red from `bad`; with one limit, red from there."""
    return [(None, GOOD), (warn, WARN if bad is not None else BAD), *([(bad, BAD)] if bad is not None else [])]


def lower_is_worse(bad: float, warn: float) -> Steps:
    """Red below `bad`, orange below `warn`, green from there."""
    return [(None, BAD), (bad, WARN), (warn, GOOD)]


NO_LIMITS: Final[Steps] = [(None, NEUTRAL)]  # for values that are neither good nor bad


def _second_unit(unit: str) -> list[models.DynamicConfigValue]:
    """Settings for a value in another unit than the panel's, to which the panel's limits don't apply."""
    return [
        models.DynamicConfigValue("unit", unit),
        models.DynamicConfigValue("thresholds", _thresholds(NO_LIMITS).build()),
    ]


def _links(links: Mapping[str, str]) -> list[Builder[models.DashboardLink]]:
    return [builders.DashboardLink(title).url(url) for title, url in links.items()]


def _statuses() -> list[models.ValueMapping]:
    options = {str(value): models.ValueMappingResult(text=name, color=colour) for value, name, colour in STATUSES}
    return [models.ValueMap(options=options)]


def _refs(queries: Sequence[Query]) -> list[tuple[str, Query]]:
    return [(chr(ord("A") + index), query) for index, query in enumerate(queries)]


def stat_panel(
    title: str, description: str, unit: str, *queries: Query, steps: Steps = NO_LIMITS, width: int = 4, height: int = 4, no_value: str = "no data",
    statuses: bool = False, units: Mapping[str, str] | None = None, links: Mapping[str, str] | None = None,
) -> Panel:  # fmt: skip
    """One number per query, coloured by the limits in `steps`. `units` gives the unit of SQL columns that differ from the panel's."""
    panel = stat.Panel().title(title).description(description).unit(unit).span(width).height(height).no_value(no_value)
    panel = panel.thresholds(_thresholds(steps)).color_mode(
        common.BigValueColorMode.BACKGROUND_SOLID if statuses else common.BigValueColorMode.VALUE
    )
    panel = (
        panel.graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]))
        .data_links(_links(links or {}))
    )
    panel = panel.text_mode(common.BigValueTextMode.AUTO).datasource(_source_of(queries))
    for ref, query in _refs(queries):
        panel = panel.with_target(query.query(ref, "instant"))
        if query.unit is not None:
            panel = panel.override_by_query(ref, _second_unit(query.unit))
    for name, column_unit in (units or {}).items():
        panel = panel.override_by_name(name, _second_unit(column_unit))
    return panel.mappings(_statuses()) if statuses else panel


def time_series(
    title: str, description: str, unit: str, *queries: Query, steps: Steps | None = None, width: int = 8, height: int = 8,
    names: Sequence[str] = (), stacked: bool = False, axis_max: float | None = None, links: Mapping[str, str] | None = None,
) -> Panel:  # fmt: skip
    """Lines over time, with the limits in `steps` as dashed lines.

    `names` lists the values that a legend such as `{{handoff_action}}` can take, so that each gets its fixed colour.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(width)
        .height(height)
        .no_value("no data")
        .min(0)
    )
    panel = panel.datasource(_source_of(queries))
    panel = panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    panel = panel.legend(
        build.VizLegendOptions()
        .show_legend(True)
        .placement(common.LegendPlacement.BOTTOM)
        .display_mode(common.LegendDisplayMode.LIST)
    )
    panel = panel.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    panel = (
        panel.fill_opacity(20 if stacked else 0)
        .line_width(1)
        .show_points(common.VisibilityMode.AUTO)
        .data_links(_links(links or {}))
    )
    if stacked:
        panel = panel.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if axis_max is not None:
        panel = panel.max(axis_max)
    if steps is not None:
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(
            build.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    for ref, query in _refs(queries):
        panel = panel.with_target(query.query(ref, "range"))
        if query.unit is not None:
            style = {
                "axisPlacement": "right",
                "lineStyle": {"fill": "dot", "dash": [0, 10]},
                "thresholdsStyle": {"mode": "off"},
            }
            overrides = [models.DynamicConfigValue(f"custom.{name}", value) for name, value in style.items()]
            panel = panel.override_by_query(ref, [*_second_unit(query.unit), *overrides])
    for name in (*names, *(query.legend for query in queries)):
        if name in COLOURS:
            colour = {"mode": "fixed", "fixedColor": COLOURS[name]}
            panel = panel.override_by_name(name, [models.DynamicConfigValue("color", colour)])
    return panel


def heatmap_panel(title: str, description: str, unit: str, query: Prom, width: int = 12, height: int = 8) -> Panel:
    """The distribution of a histogram over time; `unit` is that of the histogram."""
    panel = (
        heatmap.Panel().title(title).description(description).unit("short").span(width).height(height).no_value("no data")
    )
    panel = panel.datasource(source("prometheus")).calculate(False)
    panel = panel.y_axis(heatmap.YAxisConfig().unit(unit)).cell_gap(1)
    panel = panel.color(
        heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(32)
        .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL).exponent(0.5)
    )  # fmt: skip
    return panel.with_target(query.query("A", "heatmap"))


def table_panel(
    title: str, description: str, *queries: Query, width: int = 12, height: int = 8, no_value: str = "no data", columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None, steps: Mapping[str, Steps] | None = None, links: Mapping[str, Mapping[str, str]] | None = None,
) -> Panel:  # fmt: skip
    """A table.

    `columns` maps the fields of a PromQL result to column names, in display order; other fields are hidden. `units`, `steps`
    and `links` are keyed by column name.
    """
    panel = table.Panel().title(title).description(description).unit("short").span(width).height(height).no_value(no_value)
    panel = panel.datasource(_source_of(queries)).cell_height(common.TableCellHeight.SM)
    for ref, query in _refs(queries):
        panel = panel.with_target(query.query(ref, "table"))
    if len(queries) > 1:
        panel = panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    if columns is not None:
        order = {field: index for index, field in enumerate(columns)}
        renamed = {field: column for field, column in columns.items() if field != column}
        panel = panel.with_transformation(
            models.DataTransformerConfig("filterFieldsByName", options={"include": {"names": list(columns)}})
        )
        panel = panel.with_transformation(
            models.DataTransformerConfig("organize", options={"indexByName": order, "renameByName": renamed})
        )
    for name, unit in (units or {}).items():
        panel = panel.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    for name, limits in (steps or {}).items():
        cell = [
            models.DynamicConfigValue("thresholds", _thresholds(limits).build()),
            models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
        ]
        panel = panel.override_by_name(name, cell)
    for name, column_links in (links or {}).items():
        data_links = [{"title": link_title, "url": url} for link_title, url in column_links.items()]
        panel = panel.override_by_name(name, [models.DynamicConfigValue("links", data_links)])
    return panel


def status_timeline(title: str, description: str, query: Prom, width: int = 24, height: int = 7) -> Panel:
    """Whether each series was healthy, degraded or unhealthy, over time."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .span(width)
        .height(height)
        .no_value("no data")
    )
    panel = panel.datasource(source("prometheus")).mappings(_statuses()).show_value(common.VisibilityMode.NEVER)
    panel = panel.thresholds(_thresholds([(value or None, colour) for value, _, colour in STATUSES]))
    return panel.merge_values(True).fill_opacity(80).with_target(query.query("A", "range"))


def log_panel(title: str, description: str, query: Loki, width: int = 24, height: int = 12) -> Panel:
    """Log lines, newest first; a line with a trace ID links to its trace."""
    panel = (
        logs.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .span(width)
        .height(height)
        .no_value("no matching lines")
    )
    panel = panel.datasource(source("loki")).show_time(True).wrap_log_message(True).enable_log_details(True)
    return panel.sort_order(common.LogsSortOrder.DESCENDING).with_target(query.query("A", "range"))


def text_panel(title: str, description: str, markdown: str, width: int = 24, height: int = 24) -> Panel:
    """A text in Markdown."""
    panel = text.Panel().title(title).description(description).unit("short").span(width).height(height)
    return panel.mode(text_models.TextMode.MARKDOWN).content(markdown)
