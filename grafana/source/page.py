"""A page: the question it answers, its rows and variables, and what all pages share (links to the others, annotations)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from grafana.source.panels import BAD, NEUTRAL, WARN, Panel
from grafana.source.promql import label, series
from grafana.source.queries import Prom, Sql, source
from handoff.telemetry.instruments import Attribute
from handoff.telemetry.metrics import BUILD_INFO

TAG: Final = "handoff"
CRITICAL_ALERTS: Final = "Critical alerts"
DEPLOYMENTS: Final = "Deployments"
_RUNNING: Final = f"group by (service_name, version) (%s({series(BUILD_INFO)}%s))"
_NEW_VERSION: Final = f"{_RUNNING % ('', '')} unless {_RUNNING % ('last_over_time', '[1h] offset 2m')}"
ALL: Final = models.VariableOption(selected=True, text=["All"], value=["$__all"])


@dataclass(frozen=True)
class Page:
    """A dashboard. Each row is a title with its panels; the first row shows whether all is well."""

    name: str
    title: str
    question: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    variables: Sequence[Any] = ()
    time_from: str = "now-1h"
    marks: str = DEPLOYMENTS  # the kind of marks that its graphs show when it is opened

    @property
    def uid(self) -> str:
        """The uid that links use; it never changes."""
        return f"handoff-{self.name}"

    def build(self) -> models.Dashboard:
        """Return the dashboard as Grafana loads it. Panels without a number get their place as theirs."""
        dashboard = builders.Dashboard(self.title).uid(self.uid).description(self.question).tags([TAG]).timezone("browser")
        dashboard = dashboard.time(self.time_from, "now").refresh("30s")
        dashboard = dashboard.tooltip(models.DashboardCursorSync.CROSSHAIR).readonly()
        other_pages = builders.DashboardLink("Handoff").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
        dashboard = dashboard.link(other_pages.keep_time(True).include_vars(True))
        for variable in self.variables:
            dashboard = dashboard.with_variable(variable)
        for annotation in _annotations(self.marks):
            dashboard = dashboard.annotation(annotation)
        for title, panels in self.rows:
            dashboard = dashboard.with_row(builders.Row(title))
            for panel in panels:
                dashboard = dashboard.with_panel(panel)
        built = dashboard.build()
        for number, panel in enumerate(built.panels or [], 1):
            if not panel.id_val:
                panel.id_val = number
        return built


def link_to(page: str, **variables: str) -> str:
    """A link to another page that keeps the time range; `tool="${__data.fields.tool}"` sets that page's variable `tool`."""
    return "&".join(
        [f"/d/handoff-{page}?${{__url_time_range}}", *(f"var-{name}={value}" for name, value in variables.items())]
    )


def address_variable(name: str, title: str, description: str, address: str) -> builders.TextBoxVariable:
    """A variable with the address of another program, which a reader can change; links begin with it."""
    return builders.TextBoxVariable(name).label(title).description(description).default_value(address)


def choice_variable(name: str, title: str, description: str, values: Sequence[str]) -> builders.CustomVariable:
    """A variable with a fixed set of values; by default all of them are selected."""
    options = [models.VariableOption(selected=False, text=value, value=value) for value in values]
    variable = builders.CustomVariable(name).label(title).description(description)
    variable = variable.values(",".join(values)).options([ALL, *options])
    return variable.multi(True).include_all(True).current(ALL)


def label_variable(
    name: str, title: str, description: str, attribute: Attribute | str, metric: str, *, first: str = ""
) -> builders.QueryVariable:
    """A variable with the values that a metric's label has in Prometheus; by default it matches everything.

    With `first`, one value is chosen at a time, and that one when the page is opened.
    """
    query: dict[str, object] = {"query": f"label_values({metric}, {label(attribute)})", "refId": "Variable"}
    variable = builders.QueryVariable(name).label(title).description(description).query(query)
    variable = variable.datasource(source("prometheus"))
    variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    if first:
        return variable.current(models.VariableOption(selected=True, text=first, value=first))
    return variable.multi(True).include_all(True).all_value(".*").current(ALL)


def sql_variable(name: str, title: str, description: str, statement: str) -> builders.QueryVariable:
    """A variable with the values that an SQL statement returns; by default all of them are selected."""
    variable = builders.QueryVariable(name).label(title).description(description).query(statement)
    variable = variable.datasource(source("postgres"))
    variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return variable.multi(True).include_all(True).current(ALL)


def text_variable(name: str, title: str, description: str) -> builders.TextBoxVariable:
    """A variable that the reader types; empty by default."""
    return builders.TextBoxVariable(name).label(title).description(description).default_value("")


class _Marks(models.AnnotationQuery, Builder[models.AnnotationQuery]):
    """A kind of mark on graphs. The SDK has a type for the targets of Grafana's own marks only, and no titles."""

    marks: dict[str, Any]

    def build(self) -> models.AnnotationQuery:
        return self

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self.marks


def _annotation(name: str, colour: str, query: Sql | Prom) -> _Marks:
    uid: Literal["postgres", "prometheus"] = "postgres" if isinstance(query, Sql) else "prometheus"
    annotation = _Marks(name=name, datasource=source(uid), enable=False, icon_color=colour)
    if isinstance(query, Sql):
        annotation.marks = {"target": query.content("Anno")}
    else:
        annotation.marks = {
            "target": {"refId": "Anno", "datasource": source(uid).to_json(), "expr": query.expression, "interval": "1m"},
            "titleFormat": query.legend,
        }
    return annotation


def _alerts(severities: str) -> str:
    return f"""
        SELECT starts_at AS time, coalesce(ends_at, now()) AS timeend, alertname || ': ' || summary AS text,
               severity || ',' || component AS tags
          FROM reporting.alert
         WHERE severity {severities} AND starts_at <= $__timeTo() AND coalesce(ends_at, now()) >= $__timeFrom()
         ORDER BY starts_at DESC LIMIT 200"""


def _annotations(shown: str) -> tuple[_Marks, ...]:
    """The kinds of marks, of which only `shown` is on when the page is opened: all together they would hide the data."""
    kinds = (
        _annotation(CRITICAL_ALERTS, BAD, Sql(_alerts("= 'critical'"))),
        _annotation("Other alerts", WARN, Sql(_alerts("<> 'critical'"))),
        _annotation("Incidents", WARN, Sql("""
            SELECT opened_at AS time, coalesce(closed_at, now()) AS timeend, summary AS text, severity || ',' || component AS tags
              FROM reporting.incident
             WHERE opened_at <= $__timeTo() AND coalesce(closed_at, now()) >= $__timeFrom()
             ORDER BY opened_at DESC LIMIT 200""")),
        _annotation("Health changes", WARN, Sql("""
            SELECT at AS time, component || ' changed from ' || was || ' to ' || status AS text, component AS tags
              FROM reporting.health_event WHERE $__timeFilter(at) ORDER BY at DESC LIMIT 200""")),
        _annotation(DEPLOYMENTS, NEUTRAL, Prom(_NEW_VERSION, "{{service_name}} {{version}}")),
        _annotation("Process starts", NEUTRAL, Sql("""
            SELECT started_at AS time, kind || ' ' || version || ' started' AS text, kind AS tags
              FROM reporting.instance WHERE $__timeFilter(started_at) ORDER BY started_at DESC LIMIT 200""")),
    )  # fmt: skip
    for kind in kinds:
        kind.enable = kind.name == shown
    return kinds
