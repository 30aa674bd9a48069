"""The panel types. A colour means the same thing on every panel: red is where a critical alert fires, orange where a warning does."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, logs, stat, statetimeline, table, text, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import text as text_models

from grafana.source.queries import Loki, Prom, Query, Sql, Steps, Traces, source
from handoff.configuration import THRESHOLDS

WIDTH: Final = 24
_WRAPPED: Final = {
    "custom.cellOptions": {"type": "auto", "wrapText": True},
    "custom.wrapText": True,
}  # before and since Grafana 12.2
_COLUMN_PX_MIN: Final = 60  # Grafana's own, 150, pushes the last columns out of sight

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
    # A series and what was expected of it
    "value": "blue", "expected": "purple", "lower": "light-blue", "upper": "light-blue",
    # Use of a limited resource
    "used": "blue", "idle": "light-blue", "waiting": WARN, "max": BAD,
}  # fmt: skip
# The unit "short" is for counts: whole numbers, because the increase of a counter is seldom one.
_UNIT: Final = {"short": "locale"}
_DECIMALS: Final = {"short": 0, "percentunit": 1}
_DECIMALS_ELSE: Final = 2
# The least that an axis reaches to, so that a graph of zeros is not drawn against an axis to 100.
_AXIS_REACHES: Final = {"short": 5, "none": 1, "s": 0.001, "percentunit": 0.01, "bytes": 1000}
_AXIS_OF_RATES_REACHES: Final = 0.1
STATUSES: Final = ((0, "healthy", GOOD), (1, "degraded", WARN), (2, "unhealthy", BAD))

Panel = Builder[models.Panel]
TimeSeries = timeseries.Panel


def limit(name: str) -> float:
    """The default of a threshold, by its name (the label `of`)."""
    return THRESHOLDS[name].default


def _source_of(queries: Sequence[Query]) -> models.DataSourceRef:
    """The data source of a panel's queries, which must all have the same."""
    uids: dict[type, Literal["prometheus", "loki", "postgres", "jaeger"]] = {
        Prom: "prometheus",
        Sql: "postgres",
        Loki: "loki",
        Traces: "jaeger",
    }
    (query_type,) = {type(query) for query in queries}
    return source(uids[query_type])


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    thresholds = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)


def higher_is_worse(warning: float, critical: float | None = None) -> Steps:
    """Green below `warning`, orange from there, red from `critical`."""
    return [(None, GOOD), (warning, WARN), *([(critical, BAD)] if critical is not None else [])]


def lower_is_worse(critical: float, warning: float) -> Steps:
    """Red below `critical`, orange below `warning`, green from there."""
    return [(None, BAD), (critical, WARN), (warning, GOOD)]


NO_LIMITS: Final[Steps] = [(None, NEUTRAL)]  # for values that are neither good nor bad


def _second_unit(unit: str) -> list[models.DynamicConfigValue]:
    """Settings for a value in another unit than the panel's, to which the panel's limits don't apply."""
    return [*_unit(unit), models.DynamicConfigValue("thresholds", _thresholds(NO_LIMITS).build())]


def _unit(unit: str) -> list[models.DynamicConfigValue]:
    """A unit other than the panel's, with decimals of its own: those of a count would cut 1.4 s to 1 s."""
    decimals = _DECIMALS.get(unit, _DECIMALS_ELSE)
    return [models.DynamicConfigValue("unit", _UNIT.get(unit, unit)), models.DynamicConfigValue("decimals", decimals)]


def _or_failed(nothing: str) -> str:
    """The text of a panel without data. Grafana shows it also when the query failed, and then an error in the panel's corner."""
    return f"{nothing}, unless this panel shows an error"


def _links(links: Mapping[str, str]) -> list[Builder[models.DashboardLink]]:
    return [builders.DashboardLink(title).url(url) for title, url in links.items()]


def _statuses() -> list[models.ValueMapping]:
    options = {str(value): models.ValueMappingResult(text=name, color=colour) for value, name, colour in STATUSES}
    return [models.ValueMap(options=options)]


def _without_value(text_: str) -> models.SpecialValueMap:
    """A stat without a value is grey. It would have the colour of the lowest step, which can be red."""
    result = models.ValueMappingResult(text=text_, color=MUTED)
    return models.SpecialValueMap(
        options=models.DashboardSpecialValueMapOptions(match=models.SpecialValueMatch.NULL_AND_NAN, result=result)
    )


def _refs(queries: Sequence[Query]) -> list[tuple[str, Query]]:
    return [(chr(ord("A") + index), query) for index, query in enumerate(queries)]


def stat_panel(
    title: str, description: str, unit: str, *queries: Query, steps: Steps = NO_LIMITS, width: int = 4, height: int = 4, no_value: str = "no data",
    statuses: bool = False, decimals: int | None = None, units: Mapping[str, str] | None = None, links: Mapping[str, str] | None = None,
) -> Panel:  # fmt: skip
    """One number per query, coloured by the query's `steps` or else the panel's.

    `units` gives the unit of SQL columns that differ from the panel's.
    """
    panel = stat.Panel().title(title).description(description).unit(_UNIT.get(unit, unit)).span(width).height(height)
    panel = panel.no_value(no_value)
    if (places := _DECIMALS.get(unit) if decimals is None else decimals) is not None:
        panel = panel.decimals(places)
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
        if query.steps is not None:
            own_limits = models.DynamicConfigValue("thresholds", _thresholds(query.steps).build())
            panel = panel.override_by_query(ref, [own_limits])
    for name, column_unit in (units or {}).items():
        panel = panel.override_by_name(name, _second_unit(column_unit))
    return panel.mappings([*(_statuses() if statuses else ()), _without_value(no_value)])


def time_series(
    title: str, description: str, unit: str, *queries: Query, steps: Steps | None = None, width: int = 8, height: int = 8,
    names: Sequence[str] = (), stacked: bool = False, axis_max: float | None = None, links: Mapping[str, str] | None = None,
    many: bool = False,
) -> TimeSeries:  # fmt: skip
    """Lines over time, with the limits in `steps` as dashed lines.

    `names` lists the values that a legend such as `{{handoff_action}}` can take, so that each gets its fixed colour. With `many`
    series the legend is a table, one name per row, because a row of long names is cut off.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(_UNIT.get(unit, unit))
        .span(width)
        .height(height)
        .no_value("no data")
        .min(0)
    )
    if unit == "short":
        panel = panel.decimals(0)
    if axis_max is None:
        panel = panel.axis_soft_max(_AXIS_REACHES.get(unit, _AXIS_OF_RATES_REACHES))
    panel = panel.datasource(_source_of(queries))
    panel = panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    panel = panel.legend(
        build.VizLegendOptions()
        .show_legend(True)
        .placement(common.LegendPlacement.BOTTOM)
        .display_mode(common.LegendDisplayMode.TABLE if many else common.LegendDisplayMode.LIST)
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
                "axisSoftMax": _AXIS_REACHES.get(query.unit, _AXIS_OF_RATES_REACHES),
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


def with_range(panel: TimeSeries, lower: str, upper: str) -> Panel:
    """The panel with the area between two of its lines, given by their legends, filled and the lines not drawn."""
    filled = {"fillBelowTo": lower, "fillOpacity": 20, "lineWidth": 0}
    for name, style in ((lower, {"lineWidth": 0}), (upper, filled)):
        custom = [models.DynamicConfigValue(f"custom.{key}", value) for key, value in style.items()]
        panel = panel.override_by_name(name, custom)
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
    title: str, description: str, *queries: Query, widths: Mapping[str, int], width: int = 12, height: int = 8, nothing: str = "no data",
    columns: Mapping[str, str] | None = None, units: Mapping[str, str] | None = None, steps: Mapping[str, Steps] | None = None,
    links: Mapping[str, Mapping[str, str]] | None = None, sort: Sequence[str] = (),
) -> Panel:  # fmt: skip
    """A table.

    `widths` has every column with its width in pixels, in display order; columns of width 0 share what is left, and their text wraps.
    `columns` maps the fields of a PromQL result to column names; other fields are hidden. `units`, `steps` and `links` are keyed by
    column name. `sort` names the columns that order the rows of queries that can't do so themselves, with a minus before a name
    for descending. `nothing` is what an empty table says.
    """
    panel = table.Panel().title(title).description(description).unit(_UNIT["short"]).decimals(0).span(width).height(height)
    panel = panel.no_value(_or_failed(nothing)).min_width(_COLUMN_PX_MIN)
    panel = panel.datasource(_source_of(queries)).cell_height(common.TableCellHeight.SM)
    panel = panel.override_by_regexp(
        ".*", [models.DynamicConfigValue("noValue", "-")]
    )  # of a cell: the panel's is for the whole table
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
    order_by: list[Builder[common.TableSortByFieldState]] = [
        build.TableSortByFieldState().display_name(name.removeprefix("-")).desc(name.startswith("-")) for name in sort
    ]
    panel = panel.sort_by(order_by)
    for name, pixels in widths.items():
        layout = {"custom.width": pixels} if pixels else _WRAPPED
        panel = panel.override_by_name(name, [models.DynamicConfigValue(key, value) for key, value in layout.items()])
    for name, unit in (units or {}).items():
        panel = panel.override_by_name(name, _unit(unit))
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
        .no_value(_or_failed("no matching lines"))
    )
    panel = panel.datasource(source("loki")).show_time(True).wrap_log_message(True).enable_log_details(True)
    return panel.sort_order(common.LogsSortOrder.DESCENDING).with_target(query.query("A", "range"))


def text_panel(
    title: str, description: str, markdown: str, width: int = 24, height: int = 24, number: int | None = None
) -> Panel:
    """A text in Markdown. Links can open the panel alone by its `number`; without one it gets the next on its page."""
    panel = text.Panel().title(title).description(description).unit("short").span(width).height(height)
    if number is not None:
        panel = panel.id(number)
    return panel.mode(text_models.TextMode.MARKDOWN).content(markdown)
