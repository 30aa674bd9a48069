"""A page: one question, its variables, and what all pages share: links to the others, and what happened meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from grafana.source.panels import BAD, CALM, WATCH, Panel, Sql, source
from grafana.source.promql import label
from handoff.telemetry.instruments import Attribute

TAG: Final = "handoff"
ALL: Final = models.VariableOption(selected=True, text=["All"], value=["$__all"])


@dataclass(frozen=True)
class Page:
    """A dashboard. Rows are titles with their panels; the first has to answer whether all is well."""

    name: str
    title: str
    question: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    variables: Sequence[Any] = ()
    since: str = "now-1h"

    @property
    def uid(self) -> str:
        """What links name it by; never changed."""
        return f"handoff-{self.name}"

    def build(self) -> models.Dashboard:
        """As Grafana reads it. Panels are numbered in their order."""
        it = builders.Dashboard(self.title).uid(self.uid).description(self.question).tags([TAG]).timezone("browser")
        it = it.time(self.since, "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR).readonly()
        others = builders.DashboardLink("Handoff").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
        it = it.link(others.keep_time(True).include_vars(True))
        for variable in self.variables:
            it = it.with_variable(variable)
        for annotation in ANNOTATIONS:
            it = it.annotation(annotation)
        for title, panels in self.rows:
            it = it.with_row(builders.Row(title))
            for panel in panels:
                it = it.with_panel(panel)
        built = it.build()
        for number, panel in enumerate(built.panels or [], 1):
            panel.id_val = number
        return built


def to(page: str, **variables: str) -> str:
    """A link to another page that keeps the time range; `tool="${__data.fields.tool}"` sets its variable."""
    return "&".join(
        [f"/d/handoff-{page}?${{__url_time_range}}", *(f"var-{name}={value}" for name, value in variables.items())]
    )


def chosen(name: str, title: str, said: str, values: Sequence[str]) -> builders.CustomVariable:
    """A variable with a closed set of values; all of them, until some are chosen."""
    options = [models.VariableOption(selected=False, text=it, value=it) for it in values]
    it = builders.CustomVariable(name).label(title).description(said).values(",".join(values)).options([ALL, *options])
    return it.multi(True).include_all(True).current(ALL)


def seen(name: str, title: str, said: str, attribute: Attribute | str, metric: str) -> builders.QueryVariable:
    """A variable with the values of a label that Prometheus has seen; everything, until some are chosen."""
    ask: dict[str, object] = {"query": f"label_values({metric}, {label(attribute)})", "refId": "Variable"}
    it = builders.QueryVariable(name).label(title).description(said).query(ask).datasource(source("prometheus"))
    it = it.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return it.multi(True).include_all(True).all_value(".*").current(ALL)


def found(name: str, title: str, said: str, statement: str) -> builders.QueryVariable:
    """A variable with what SQL finds; all of them, until some are chosen."""
    it = builders.QueryVariable(name).label(title).description(said).query(statement).datasource(source("postgres"))
    it = it.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return it.multi(True).include_all(True).current(ALL)


def typed(name: str, title: str, said: str) -> builders.TextBoxVariable:
    """A variable that is typed; nothing, until it is."""
    return builders.TextBoxVariable(name).label(title).description(said).default_value("")


def _annotation(name: str, colour: str, statement: str) -> builders.AnnotationQuery:
    it = builders.AnnotationQuery().name(name).enable(True).icon_color(colour).datasource(source("postgres"))
    built = it.build()
    built.target = cast("Any", _Target(Sql(statement).content("Anno")))  # the SDK knows only Grafana's own annotations
    return it


@dataclass(frozen=True)
class _Target:
    content: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.content


ANNOTATIONS: Final = (
    _annotation("Alerts", BAD, """
        SELECT starts_at AS time, coalesce(ends_at, now()) AS timeend, alertname || ': ' || summary AS text,
               severity || ',' || component AS tags
          FROM reporting.alert
         WHERE starts_at <= $__timeTo() AND coalesce(ends_at, now()) >= $__timeFrom()
         ORDER BY starts_at DESC LIMIT 200"""),
    _annotation("Health", WATCH, """
        SELECT at AS time, component || ': ' || was || ' to ' || status AS text, component AS tags
          FROM reporting.health_event WHERE $__timeFilter(at) ORDER BY at DESC LIMIT 200"""),
    _annotation("Deployments", CALM, """
        SELECT started_at AS time, kind || ' ' || version || ' started' AS text, kind AS tags
          FROM reporting.instance WHERE $__timeFilter(started_at) ORDER BY started_at DESC LIMIT 200"""),
)  # fmt: skip
