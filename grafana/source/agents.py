"""Who hands over to whom, who answers, and who falls silent?"""

from typing import Final

from grafana.source.page import Page, link_to, sql_variable
from grafana.source.panels import BAD, GOOD, WARN, Loki, Sql, stat_panel, table_panel, time_series

_BETWEEN: Final = (
    "(sender IN (${agent:sqlstring}) OR target_agent IN (${agent:sqlstring}) OR holder IN (${agent:sqlstring}))"
)
_FOUND: Final = """
    SELECT agent FROM reporting.event
     UNION SELECT sender FROM reporting.handoff
     UNION SELECT target_agent FROM reporting.handoff WHERE target_agent IS NOT NULL
     ORDER BY 1 LIMIT 500"""
_ACTIVE: Final = """
    SELECT count(DISTINCT agent) AS agents FROM reporting.event WHERE $__timeFilter(at) AND agent IN (${agent:sqlstring})"""
_OFFERED: Final = f"SELECT count(*) AS offers FROM reporting.handoff WHERE $__timeFilter(created_at) AND {_BETWEEN}"
_DONE: Final = f"""
    SELECT count(*) FILTER (WHERE state = 'completed')::float8 / nullif(count(*), 0) AS done, count(*) AS settled FROM reporting.handoff
     WHERE $__timeFilter(updated_at) AND state NOT IN ('offered', 'accepted', 'blocked') AND {_BETWEEN}"""
_SILENT: Final = f"""
    SELECT coalesce(sum(lapses), 0) AS lapses FROM reporting.handoff WHERE $__timeFilter(updated_at) AND {_BETWEEN}"""
_ROUTES: Final = f"""
    SELECT sender AS "from", coalesce(target_agent, 'any with ' || target_capability) AS "to", count(*) AS offers,
           count(*) FILTER (WHERE state = 'completed') AS completed, count(*) FILTER (WHERE state = 'rejected') AS rejected,
           count(*) FILTER (WHERE state = 'expired') AS expired, sum(lapses) AS lapses,
           extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY accepted_at - created_at)) AS "median until taken"
      FROM reporting.handoff WHERE $__timeFilter(created_at) AND {_BETWEEN}
     GROUP BY 1, 2 ORDER BY offers DESC LIMIT 100"""
_AGENTS: Final = """
    SELECT agent, count(*) AS events, max(at) AS "last heard of", count(*) FILTER (WHERE kind = 'session.created') AS sessions,
           count(*) FILTER (WHERE kind = 'handoff.offered') AS offered, count(*) FILTER (WHERE kind = 'handoff.accepted') AS accepted,
           count(*) FILTER (WHERE kind = 'handoff.completed') AS completed, count(*) FILTER (WHERE kind = 'handoff.rejected') AS rejected
      FROM reporting.event WHERE $__timeFilter(at) AND agent IN (${agent:sqlstring})
     GROUP BY agent ORDER BY events DESC LIMIT 100"""
_EVENTS: Final = """
    SELECT $__timeGroupAlias(at, $__interval), agent AS metric, count(*)::float8 AS value
      FROM reporting.event WHERE $__timeFilter(at) AND agent IN (${agent:sqlstring}) GROUP BY 1, 2 ORDER BY 1"""
_WRITES: Final = """
    SELECT $__timeGroupAlias(created_at, $__interval), author AS metric, sum(size_bytes)::float8 AS value
      FROM reporting.context_entry WHERE $__timeFilter(created_at) AND author IN (${agent:sqlstring}) GROUP BY 1, 2 ORDER BY 1"""
_HOLDS: Final = """
    SELECT holder AS agent, id AS handoff, request_type AS type, sender AS "from", extract(epoch FROM now() - accepted_at) AS "held for",
           lease_expires_at AS "lease until", lapses
      FROM reporting.handoff WHERE state IN ('accepted', 'blocked') AND holder IN (${agent:sqlstring}) ORDER BY accepted_at LIMIT 100"""

PAGE: Final = Page(
    "agents",
    "Agents",
    "Who hands over to whom, who answers, and who falls silent?",
    variables=[sql_variable("agent", "Agent", "Agents that did something or were offered something.", _FOUND)],
    rows=[
        (
            "Is it well?",
            [
                stat_panel("Agents", "That did something, in the time shown.", "short", Sql(_ACTIVE), width=6),
                stat_panel(
                    "Offers",
                    "Handoffs offered by or to the chosen agents, in the time shown.",
                    "short",
                    Sql(_OFFERED),
                    width=6,
                ),
                stat_panel(
                    "Completed",
                    "Share of the handoffs settled in the time shown that were completed; beside it, how many were settled.",
                    "percentunit",
                    Sql(_DONE),
                    units={"settled": "short"},
                    width=6,
                ),
                stat_panel(
                    "Fell silent",
                    "Leases that lapsed, of handoffs changed in the time shown.",
                    "short",
                    Sql(_SILENT),
                    width=6,
                ),
            ],
        ),
        (
            "Who does what",
            [
                table_panel(
                    "Agents",
                    "What each did, in the time shown. The name leads to its log lines.",
                    Sql(_AGENTS),
                    width=24,
                    height=9,
                    units={"last heard of": "dateTimeFromNow"},
                    links={
                        "agent": {
                            "Its log lines": link_to("logs", find="${__value.raw}"),
                            "Only this agent": link_to("agents", agent="${__value.raw}"),
                        }
                    },
                ),
                time_series(
                    "Events",
                    "Changes of sessions and handoffs, by who made them, each point a count.",
                    "short",
                    Sql(_EVENTS),
                    stacked=True,
                    width=8,
                ),
                time_series("Content", "Bytes written, by author.", "bytes", Sql(_WRITES), stacked=True, width=8),
                time_series(
                    "Mistakes",
                    "Calls a second that failed or were refused, by agent, of log lines. Empty while there is none.",
                    "reqps",
                    Loki(
                        'sum by (agent) (rate({service_name="handoff"} | json | event="tool.call" | outcome="error" [$__auto]))',
                        "{{agent}}",
                    ),
                    width=8,
                ),
            ],
        ),
        (
            "Who hands over to whom",
            [
                table_panel(
                    "Routes",
                    "Handoffs offered in the time shown, by sender and receiver.",
                    Sql(_ROUTES),
                    width=14,
                    height=12,
                    units={"median until taken": "s"},
                    steps={
                        "rejected": [(None, GOOD), (1, WARN)],
                        "expired": [(None, GOOD), (1, WARN)],
                        "lapses": [(None, GOOD), (1, WARN), (10, BAD)],
                    },
                ),
                table_panel(
                    "In hand",
                    "Handoffs that an agent holds now, the longest first. Empty while nobody holds one.",
                    Sql(_HOLDS),
                    width=10,
                    height=12,
                    no_value="nobody holds one",
                    units={"held for": "s", "lease until": "dateTimeAsLocal"},
                ),
            ],
        ),
    ],
)
