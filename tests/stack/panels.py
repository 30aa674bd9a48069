"""The queries of the dashboards, filled in as Grafana does, and sent to their data sources."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import time
from typing import Any, Final

import httpx2

from tests.stack.bundle import ANSWER_S, ROOT, Stack

DASHBOARDS: Final = ROOT / "grafana" / "dashboards"
SHOWN_S: Final = 900  # now-15m to now
EMPTY: Final = "Empty "  # a panel whose description contains this may be empty
MAY_BE_EMPTY: Final = re.compile(r" > 0$| offset 1h")  # a query for what is seldom there, beside one that always has data
_STEPS: Final = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": f"{SHOWN_S}s", "$__auto": "1m"}

Json = dict[str, Any]
Chosen = Mapping[str, list[str]]


def dashboards() -> dict[str, Json]:
    """The committed dashboards, by uid."""
    found = [json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))]
    return {it["uid"]: it for it in found}


def panels(dashboard: Json) -> list[Json]:
    """The panels of a dashboard, without its rows."""
    return [it for it in dashboard["panels"] if it["type"] != "row"]


@dataclass(frozen=True)
class Question:
    """A query: a target of a panel, or that of an annotation."""

    page: str
    panel: str
    source: str
    target: Json
    may_be_empty: bool

    def __str__(self) -> str:
        return f"{self.page} / {self.panel} / {self.target.get('refId', '')}"

    @property
    def text(self) -> str:
        """The query as it is written, before variables are filled in."""
        return self.target.get("expr") or self.target.get("rawSql") or json.dumps(self.target)


def questions(dashboard: Json) -> Iterator[Question]:
    """All queries of a dashboard."""
    page = dashboard["title"]
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            may_be_empty = EMPTY in panel["description"] or MAY_BE_EMPTY.search(target.get("expr", "")) is not None
            yield Question(page, panel["title"], target["datasource"]["uid"], target, may_be_empty)
    for it in dashboard["annotations"]["list"]:
        yield Question(page, f"annotation {it['name']}", it["datasource"]["uid"], it["target"], may_be_empty=True)


def variables(dashboard: Json) -> dict[str, Json]:
    """The variables of a dashboard, by name."""
    return {it["name"]: it for it in dashboard.get("templating", {}).get("list", [])}


def _escaped(value: str) -> str:
    """Escape a value as Grafana does for a regular expression in quotes."""
    return re.sub(r"([$^*{}\[\]'+?.()|])", r"\\\\\1", value.replace("\\", "\\\\\\\\"))


def filled(text: str, chosen: Chosen, all_values: Mapping[str, str] | None = None) -> str:
    """Fill in the variables and macros of PromQL or LogQL. `all_values` are the values that stand for "All"."""
    for name, value in _STEPS.items():
        text = text.replace(name, value)

    def regex(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        values = chosen[name]
        if not values:
            return (all_values or {}).get(name, "")
        return values[0] if len(values) == 1 else f"({'|'.join(map(_escaped, values))})"

    return re.sub(r"\$\{(\w+)(?::\w+)?\}|\$([a-z]\w*)", regex, text)


def filled_sql(statement: str, chosen: Chosen, until: float) -> str:
    """Fill in the variables and Grafana's macros in SQL. `until` is the end of the shown time range, in Unix time."""
    begin, end = f"to_timestamp({until - SHOWN_S})", f"to_timestamp({until})"
    statement = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {begin} AND {end}", statement)
    statement = re.sub(
        r"\$__timeGroupAlias\((\w+), *\$__interval\)", r"date_bin('15 s', \1, to_timestamp(0)) AS time", statement
    )
    statement = statement.replace("$__timeFrom()", begin).replace("$__timeTo()", end)

    def quoted(found: re.Match[str]) -> str:
        return ", ".join("'" + it.replace("'", "''") + "'" for it in chosen[found[1]])

    return re.sub(r"\$\{(\w+):sqlstring\}", quoted, statement)


class Sources:
    """The data sources, queried directly, in the same way as Grafana does."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._password = stack.secret("database-grafana")

    def values(self, variable: Json) -> list[str]:
        """The values that a variable offers."""
        if variable["type"] == "custom":
            return variable["query"].split(",")
        if variable["type"] == "textbox":
            return []
        if variable["datasource"]["uid"] == "postgres":
            return self._stack.psql("grafana", self._password, variable["query"]).split()
        ask = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert ask is not None, variable
        found = self._stack.get("PROMETHEUS_PORT", f"/api/v1/label/{ask[2]}/values", **{"match[]": ask[1]})
        return found["data"]

    def answers(self, question: Question, chosen: Chosen, all_values: Mapping[str, str]) -> int:
        """The number of samples (without NaN), rows, lines or traces returned. Raises if the query is refused."""
        match question.source:
            case "prometheus":
                query = filled(question.text, chosen, all_values)
                found = self._stack.promql(query)
                return sum(not math.isnan(float(it["value"][1])) for it in found)
            case "postgres":
                statement = filled_sql(question.text, chosen, time())
                return len(
                    [it for it in self._stack.psql("grafana", self._password, statement).splitlines() if it.strip("|")]
                )
            case "loki":
                query = filled(question.text, chosen, all_values)
                way = "/loki/api/v1/query" if question.target["queryType"] == "instant" else "/loki/api/v1/query_range"
                span = {} if way.endswith("query") else {"since": f"{SHOWN_S}s"}
                found = self._stack.get("LOKI_PORT", way, query=query, **span)["data"]["result"]
                return sum(len(it.get("values", [it.get("value")])) for it in found)
            case "jaeger":
                tags = dict(it.split("=") for it in question.target["tags"].split())
                ask = {"service": question.target["service"], "limit": str(question.target["limit"])}
                ask |= {"tags": json.dumps(tags)} if tags else {}
                return len(self._stack.get("JAEGER_PORT", "/api/traces", **ask)["data"])
            case other:
                raise AssertionError(other)


class Grafana:
    """The same queries through Grafana's API."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=ANSWER_S)  # the address contains the credentials

    def dashboard(self, uid: str) -> Json:
        """A dashboard as provisioned in Grafana."""
        return self._http.get(f"/api/dashboards/uid/{uid}").raise_for_status().json()["dashboard"]

    def answers(self, question: Question, chosen: Chosen, all_values: Mapping[str, str]) -> int:
        """The number of rows returned. Raises if the query is refused."""
        target = dict(question.target)
        if "expr" in target:
            target["expr"] = filled(target["expr"], chosen, all_values)
        elif "rawSql" in target:
            names = re.findall(r"\$\{(\w+):sqlstring\}", target["rawSql"])
            for name in names:
                values = ", ".join("'" + it.replace("'", "''") + "'" for it in chosen[name])
                target["rawSql"] = target["rawSql"].replace(f"${{{name}:sqlstring}}", values)
        ask = {"from": f"now-{SHOWN_S}s", "to": "now", "queries": [target | {"intervalMs": 15_000, "maxDataPoints": 200}]}
        answer = self._http.post("/api/ds/query", json=ask)
        result = answer.json()["results"][target["refId"]]
        assert answer.status_code == 200, result
        assert "error" not in result, result["error"]
        columns = [frame["data"]["values"] for frame in result["frames"]]
        return sum(len(it[0]) for it in columns if it)
