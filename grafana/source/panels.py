"""The few kinds of panel. The same colour means the same thing on all of them; limits are those of the alerts."""

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

GOOD, WATCH, BAD, CALM, QUIET = "green", "orange", "red", "blue", "text"
COLOURS: Final = {
    # How it went
    "ok": GOOD, "refused": WATCH, "failed": BAD, "error": BAD, "hit": GOOD, "miss": CALM, "stored": "light-blue",
    "skipped": WATCH, "dropped": BAD, "sent": GOOD, "info": CALM, "warning": WATCH, "critical": BAD, "debug": QUIET,
    "noteworthy": WATCH, "ordinary": CALM, "asked": "purple", "no": QUIET, "slow": WATCH,
    # How long
    "p50": "light-blue", "p95": "blue", "p99": "purple", "limit": BAD,
    # What became of a handoff
    "offer": "blue", "accept": "light-green", "renew": "semi-dark-green", "complete": "green", "block": "semi-dark-orange",
    "reject": "orange", "expire": "yellow", "cancel": "purple", "lapse": "red", "blocked": "semi-dark-orange",
    "offered": "blue", "accepted": "light-green", "completed": "green", "rejected": "orange", "expired": "yellow",
    "cancelled": "purple",
    # How much of what there is
    "used": "blue", "idle": "light-blue", "waiting": WATCH, "max": BAD,
}  # fmt: skip
STATUSES: Final = ((0, "healthy", GOOD), (1, "degraded", WATCH), (2, "unhealthy", BAD))

Panel = Builder[models.Panel]
Steps = Sequence[tuple[float | None, str]]


def limit(of: str) -> float:
    """A threshold of the alerts, by its name in prometheus/rules/thresholds.yml."""
    groups = yaml.safe_load(THRESHOLDS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if rule["record"] == "handoff:threshold"]
    (expression,) = [rule["expr"] for rule in rules if rule["labels"]["of"] == of]
    return float(expression.removeprefix("vector(").removesuffix(")"))


def source(uid: Literal["prometheus", "loki", "postgres", "jaeger"]) -> models.DataSourceRef:
    """A provisioned data source."""
    kinds = {"postgres": "grafana-postgresql-datasource"}
    return models.DataSourceRef(type_val=kinds.get(uid, uid), uid=uid)


def _source_of(queries: "Sequence[Query]") -> models.DataSourceRef:
    """What a panel's queries are put to: all of them to one."""
    kinds: dict[type, Literal["prometheus", "loki", "postgres", "jaeger"]] = {
        Prom: "prometheus",
        Sql: "postgres",
        Loki: "loki",
        Traces: "jaeger",
    }
    (kind,) = {type(it) for it in queries}
    return source(kinds[kind])


class _Raw(Dataquery, Builder[Dataquery]):
    """A query of a source for which the SDK has no builder."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def to_json(self) -> Mapping[str, Any]:
        return self._content

    def build(self) -> Dataquery:
        return self


@dataclass(frozen=True)
class Prom:
    """PromQL. `unit` differs from the panel's where a count stands beside a ratio: it then has an axis of its own."""

    expression: str
    legend: str = ""
    unit: str | None = None

    def query(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        it = prometheus.Dataquery().ref_id(ref).expr(self.expression).datasource(source("prometheus"))
        it = it.legend_format(self.legend or "__auto").editor_mode(prometheus_models.QueryEditorMode.CODE)
        match kind:
            case "instant":
                return it.instant()
            case "table":
                return it.instant().format(prometheus_models.PromQueryFormat.TABLE)
            case "heatmap":
                return it.range().exemplar(True).format(prometheus_models.PromQueryFormat.HEATMAP)
            case "range":
                return it.range().exemplar(self.legend == "p99")  # once a panel is enough


def percentiles(it: Histogram, only: Sequence[str] = ()) -> list[Prom]:
    """What 50, 95 and 99 of 100 stay below."""
    return [Prom(quantile(q, it, only=only), name) for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))]


@dataclass(frozen=True)
class Sql:
    """SQL over the schema `reporting`, which holds no content. For lines the first column is `time`."""

    statement: str
    legend: str = ""
    unit: str | None = None

    def content(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"] = "table") -> dict[str, Any]:
        """As Grafana wants it."""
        return {
            "refId": ref,
            "datasource": source("postgres").to_json(),
            "editorMode": "code",
            "format": "time_series" if kind == "range" else "table",
            "rawQuery": True,
            "rawSql": re.sub(r"\s+", " ", self.statement).strip(),
        }

    def query(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        return _Raw(self.content(ref, kind))


@dataclass(frozen=True)
class Loki:
    """LogQL."""

    expression: str
    legend: str = ""
    unit: str | None = None

    def query(self, ref: str, kind: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        it = loki.Dataquery().ref_id(ref).expr(self.expression).datasource(source("loki")).legend_format(self.legend)
        it = it.query_type("range" if kind == "range" else "instant")
        return it.max_lines(500) if kind == "range" else it


@dataclass(frozen=True)
class Traces:
    """The newest traces of a service, found by Jaeger."""

    service: str
    tags: str = ""
    legend: str = ""
    unit: str | None = None

    def query(self, ref: str, _: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        ask = {"queryType": "search", "service": self.service, "tags": self.tags, "limit": 50}
        return _Raw({"refId": ref, "datasource": source("jaeger").to_json(), **ask})


Query = Prom | Sql | Loki | Traces


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    found = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def rising(watch: float, bad: float | None = None) -> Steps:
    """Good below, and worse the higher it is."""
    return [(None, GOOD), (watch, WATCH if bad is not None else BAD), *([(bad, BAD)] if bad is not None else [])]


def falling(bad: float, watch: float) -> Steps:
    """Good above, and worse the lower it is."""
    return [(None, BAD), (bad, WATCH), (watch, GOOD)]


PLAIN: Final[Steps] = [(None, CALM)]  # neither good nor bad


def _beside(unit: str) -> list[models.DynamicConfigValue]:
    """Of what stands beside a panel's own figures: the limits are not its."""
    return [
        models.DynamicConfigValue("unit", unit),
        models.DynamicConfigValue("thresholds", _thresholds(PLAIN).build()),
    ]


def _links(links: Mapping[str, str]) -> list[Builder[models.DashboardLink]]:
    return [builders.DashboardLink(title).url(url) for title, url in links.items()]


def _statuses() -> list[models.ValueMapping]:
    found = {str(value): models.ValueMappingResult(text=name, color=colour) for value, name, colour in STATUSES}
    return [models.ValueMap(options=found)]


def _refs(queries: Sequence[Query]) -> list[tuple[str, Query]]:
    return [(chr(ord("A") + index), it) for index, it in enumerate(queries)]


def figure(
    title: str, said: str, unit: str, *queries: Query, steps: Steps = PLAIN, width: int = 4, height: int = 4, empty: str = "none",
    statuses: bool = False, units: Mapping[str, str] | None = None, links: Mapping[str, str] | None = None,
) -> Panel:  # fmt: skip
    """One number as it is now, coloured by its limits."""
    it = stat.Panel().title(title).description(said).unit(unit).span(width).height(height).no_value(empty)
    it = it.thresholds(_thresholds(steps)).color_mode(
        common.BigValueColorMode.BACKGROUND_SOLID if statuses else common.BigValueColorMode.VALUE
    )
    it = (
        it.graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]))
        .data_links(_links(links or {}))
    )
    it = it.text_mode(common.BigValueTextMode.AUTO).datasource(_source_of(queries))
    for ref, query in _refs(queries):
        it = it.with_target(query.query(ref, "instant"))
        if query.unit is not None:
            it = it.override_by_query(ref, _beside(query.unit))
    for name, its_unit in (units or {}).items():
        it = it.override_by_name(name, _beside(its_unit))
    return it.mappings(_statuses()) if statuses else it


def lines(
    title: str, said: str, unit: str, *queries: Query, steps: Steps | None = None, width: int = 8, height: int = 8,
    names: Sequence[str] = (), stacked: bool = False, top: float | None = None, links: Mapping[str, str] | None = None,
) -> Panel:  # fmt: skip
    """How it went over time. `names` are those that a legend like `{{handoff_action}}` may become; limits are drawn as lines."""
    it = timeseries.Panel().title(title).description(said).unit(unit).span(width).height(height).no_value("none").min(0)
    it = it.datasource(_source_of(queries))
    it = it.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    it = it.legend(
        build.VizLegendOptions()
        .show_legend(True)
        .placement(common.LegendPlacement.BOTTOM)
        .display_mode(common.LegendDisplayMode.LIST)
    )
    it = it.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    it = (
        it.fill_opacity(20 if stacked else 0)
        .line_width(1)
        .show_points(common.VisibilityMode.AUTO)
        .data_links(_links(links or {}))
    )
    if stacked:
        it = it.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if top is not None:
        it = it.max(top)
    if steps is not None:
        it = it.thresholds(_thresholds(steps)).thresholds_style(
            build.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    for ref, query in _refs(queries):
        it = it.with_target(query.query(ref, "range"))
        if query.unit is not None:
            style = {
                "axisPlacement": "right",
                "lineStyle": {"fill": "dot", "dash": [0, 10]},
                "thresholdsStyle": {"mode": "off"},
            }
            own = [models.DynamicConfigValue(f"custom.{name}", value) for name, value in style.items()]
            it = it.override_by_query(ref, [*_beside(query.unit), *own])
    for name in (*names, *(query.legend for query in queries)):
        if name in COLOURS:
            colour = {"mode": "fixed", "fixedColor": COLOURS[name]}
            it = it.override_by_name(name, [models.DynamicConfigValue("color", colour)])
    return it


def heat(title: str, said: str, unit: str, query: Prom, width: int = 12, height: int = 8) -> Panel:
    """How many events took how long, over time."""
    it = heatmap.Panel().title(title).description(said).unit("short").span(width).height(height).no_value("none")
    it = it.datasource(source("prometheus")).calculate(False)
    it = it.y_axis(heatmap.YAxisConfig().unit(unit)).cell_gap(1)
    it = it.color(
        heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(32)
        .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL).exponent(0.5)
    )  # fmt: skip
    return it.with_target(query.query("A", "heatmap"))


def rows(
    title: str, said: str, *queries: Query, width: int = 12, height: int = 8, empty: str = "none", columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None, steps: Mapping[str, Steps] | None = None, links: Mapping[str, Mapping[str, str]] | None = None,
) -> Panel:  # fmt: skip
    """A table. `columns` names what PromQL calls otherwise, in their order, and hides the rest; `units`, `steps` and `links` are by column."""
    it = table.Panel().title(title).description(said).unit("short").span(width).height(height).no_value(empty)
    it = it.datasource(_source_of(queries)).cell_height(common.TableCellHeight.SM)
    for ref, query in _refs(queries):
        it = it.with_target(query.query(ref, "table"))
    if len(queries) > 1:
        it = it.with_transformation(models.DataTransformerConfig("merge", options={}))
    if columns is not None:
        order = {name: index for index, name in enumerate(columns)}
        renamed = {name: shown for name, shown in columns.items() if name != shown}
        it = it.with_transformation(
            models.DataTransformerConfig("filterFieldsByName", options={"include": {"names": list(columns)}})
        )
        it = it.with_transformation(
            models.DataTransformerConfig("organize", options={"indexByName": order, "renameByName": renamed})
        )
    for name, unit in (units or {}).items():
        it = it.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    for name, limits in (steps or {}).items():
        cell = [
            models.DynamicConfigValue("thresholds", _thresholds(limits).build()),
            models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
        ]
        it = it.override_by_name(name, cell)
    for name, ways in (links or {}).items():
        to = [{"title": shown, "url": url} for shown, url in ways.items()]
        it = it.override_by_name(name, [models.DynamicConfigValue("links", to)])
    return it


def states(title: str, said: str, query: Prom, width: int = 24, height: int = 7) -> Panel:
    """Healthy, degraded or unhealthy, over time."""
    it = statetimeline.Panel().title(title).description(said).unit("short").span(width).height(height).no_value("none")
    it = it.datasource(source("prometheus")).mappings(_statuses()).show_value(common.VisibilityMode.NEVER)
    it = it.thresholds(_thresholds([(value or None, colour) for value, _, colour in STATUSES]))
    return it.merge_values(True).fill_opacity(80).with_target(query.query("A", "range"))


def lines_of_logs(title: str, said: str, query: Loki, width: int = 24, height: int = 12) -> Panel:
    """Log lines, the newest first; each leads to its trace."""
    it = logs.Panel().title(title).description(said).unit("short").span(width).height(height).no_value("no such line")
    it = it.datasource(source("loki")).show_time(True).wrap_log_message(True).enable_log_details(True)
    return it.sort_order(common.LogsSortOrder.DESCENDING).with_target(query.query("A", "range"))


def words(title: str, said: str, markdown: str, width: int = 24, height: int = 24) -> Panel:
    """Text."""
    it = text.Panel().title(title).description(said).unit("short").span(width).height(height)
    return it.mode(text_models.TextMode.MARKDOWN).content(markdown)
