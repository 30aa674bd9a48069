"""The queries that panels, variables and annotations make."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import loki, prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from grafana.source.promql import quantile
from handoff.telemetry.instruments import Histogram

Steps = Sequence[tuple[float | None, str]]  # the colour from each value on


def source(uid: Literal["prometheus", "loki", "postgres", "jaeger"]) -> models.DataSourceRef:
    """A reference to one of the provisioned data sources."""
    types = {"postgres": "grafana-postgresql-datasource"}
    return models.DataSourceRef(type_val=types.get(uid, uid), uid=uid)


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
    steps: Steps | None = None

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
    steps: Steps | None = None

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
    steps: Steps | None = None

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
    steps: Steps | None = None

    def query(self, ref: str, _: Literal["range", "instant", "table", "heatmap"]) -> Builder[Dataquery]:
        """The query as Grafana's model has it, under the letter `ref`."""
        search = {"queryType": "search", "service": self.service, "tags": self.tags, "limit": 50}
        return _Raw({"refId": ref, "datasource": source("jaeger").to_json(), **search})


Query = Prom | Sql | Loki | Traces
