"""The dashboards' questions, filled in as Grafana fills them in, and put to the sources that are to answer them."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import time
from typing import Any, Final

import httpx2

from tests.stack.bundle import ROOT, Stack

DASHBOARDS: Final = ROOT / "grafana" / "dashboards"
SHOWN_S: Final = 900  # now-15m to now
EMPTY: Final = "Empty "  # how a description says that a panel is rightly empty now and then
_STEPS: Final = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": f"{SHOWN_S}s", "$__auto": "1m"}

Json = dict[str, Any]
Chosen = Mapping[str, list[str]]


def dashboards() -> dict[str, Json]:
    """Each committed dashboard, by its uid."""
    found = [json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))]
    return {it["uid"]: it for it in found}


def panels(dashboard: Json) -> list[Json]:
    """Each panel that is no row."""
    return [it for it in dashboard["panels"] if it["type"] != "row"]


@dataclass(frozen=True)
class Question:
    """A target of a panel, or the query of an annotation or a variable."""

    page: str
    panel: str
    source: str
    target: Json
    may_be_empty: bool

    def __str__(self) -> str:
        return f"{self.page} / {self.panel} / {self.target.get('refId', '')}"

    @property
    def text(self) -> str:
        """What is asked, before it is filled in."""
        return self.target.get("expr") or self.target.get("rawSql") or json.dumps(self.target)


def questions(dashboard: Json) -> Iterator[Question]:
    """All that a dashboard asks of its sources."""
    page = dashboard["title"]
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield Question(page, panel["title"], target["datasource"]["uid"], target, EMPTY in panel["description"])
    for it in dashboard["annotations"]["list"]:
        yield Question(page, f"annotation {it['name']}", it["datasource"]["uid"], it["target"], may_be_empty=True)


def variables(dashboard: Json) -> dict[str, Json]:
    """The dashboard's variables, by name."""
    return {it["name"]: it for it in dashboard.get("templating", {}).get("list", [])}


def _escaped(value: str) -> str:
    """As Grafana puts a value into a regular expression that stands in quotes."""
    return re.sub(r"([$^*{}\[\]'+?.()|])", r"\\\\\1", value.replace("\\", "\\\\\\\\"))


def filled(text: str, chosen: Chosen, all_values: Mapping[str, str] | None = None) -> str:
    """With the variables and macros of PromQL and LogQL filled in; `all_values` are those that stand for everything."""
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
    """The same of SQL, with Grafana's macros."""
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
    """The data sources that Grafana would ask, asked as it asks them."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._password = stack.secret("database-grafana")

    def values(self, variable: Json) -> list[str]:
        """What a variable offers to choose from."""
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
        """How many samples, rows, lines or traces come back; a sample that is no number is none. Raises if it is refused."""
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
    """The same through Grafana's query API."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=30)  # who signs in stands in the address

    def dashboard(self, uid: str) -> Json:
        """A dashboard as Grafana has provisioned it."""
        return self._http.get(f"/api/dashboards/uid/{uid}").raise_for_status().json()["dashboard"]

    def answers(self, question: Question, chosen: Chosen, all_values: Mapping[str, str]) -> int:
        """How many rows come back. Raises if it is refused."""
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
