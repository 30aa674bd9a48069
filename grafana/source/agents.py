"""Who hands over to whom, who responds, and who goes silent?"""

from typing import Final

from grafana.source.page import Page, link_to, sql_variable
from grafana.source.panels import GOOD, WARN, stat_panel, table_panel, time_series
from grafana.source.queries import Loki, Sql

_OF_SELECTED_AGENTS: Final = (
    "(sender IN (${agent:sqlstring}) OR target_agent IN (${agent:sqlstring}) OR holder IN (${agent:sqlstring}))"
)
_AGENT_NAMES: Final = """
    SELECT agent FROM reporting.event
     UNION SELECT sender FROM reporting.handoff
     UNION SELECT target_agent FROM reporting.handoff WHERE target_agent IS NOT NULL
     ORDER BY 1 LIMIT 500"""
_ACTIVE: Final = """
    SELECT count(DISTINCT agent) AS agents FROM reporting.event WHERE $__timeFilter(at) AND agent IN (${agent:sqlstring})"""
_OFFERED: Final = (
    f"SELECT count(*) AS offers FROM reporting.handoff WHERE $__timeFilter(created_at) AND {_OF_SELECTED_AGENTS}"
)
_COMPLETED: Final = f"""
    SELECT count(*) FILTER (WHERE state = 'completed')::float8 / nullif(count(*), 0) AS completed, count(*) AS settled FROM reporting.handoff
     WHERE $__timeFilter(updated_at) AND state NOT IN ('offered', 'accepted', 'blocked') AND {_OF_SELECTED_AGENTS}"""
_LAPSED: Final = f"""
    SELECT coalesce(sum(lapses), 0) AS lapses FROM reporting.handoff WHERE $__timeFilter(updated_at) AND {_OF_SELECTED_AGENTS}"""
_ROUTES: Final = f"""
    SELECT sender AS "from", coalesce(target_agent, 'any agent with ' || target_capability) AS "to", count(*) AS offers,
           count(*) FILTER (WHERE state = 'completed') AS completed, count(*) FILTER (WHERE state = 'rejected') AS rejected,
           count(*) FILTER (WHERE state = 'expired') AS expired, sum(lapses) AS lapses,
           extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY accepted_at - created_at)) AS "median time to accept"
      FROM reporting.handoff WHERE $__timeFilter(created_at) AND {_OF_SELECTED_AGENTS}
     GROUP BY 1, 2 ORDER BY offers DESC LIMIT 100"""
_AGENTS: Final = """
    SELECT agent, count(*) AS events, max(at) AS "last seen", count(*) FILTER (WHERE kind = 'session.created') AS "sessions created",
           count(*) FILTER (WHERE kind = 'handoff.offered') AS offered, count(*) FILTER (WHERE kind = 'handoff.accepted') AS accepted,
           count(*) FILTER (WHERE kind = 'handoff.completed') AS completed, count(*) FILTER (WHERE kind = 'handoff.rejected') AS rejected
      FROM reporting.event WHERE $__timeFilter(at) AND agent IN (${agent:sqlstring})
     GROUP BY agent ORDER BY events DESC LIMIT 100"""
_EVENTS: Final = """
    SELECT $__timeGroupAlias(at, $__interval), agent AS metric, count(*)::float8 AS value
      FROM reporting.event WHERE $__timeFilter(at) AND agent IN (${agent:sqlstring}) GROUP BY 1, 2 ORDER BY 1"""
_WRITTEN: Final = """
    SELECT $__timeGroupAlias(created_at, $__interval), author AS metric, sum(size_bytes)::float8 AS value
      FROM reporting.context_entry WHERE $__timeFilter(created_at) AND author IN (${agent:sqlstring}) GROUP BY 1, 2 ORDER BY 1"""
_HELD: Final = """
    SELECT holder AS agent, id AS handoff, request_type AS type, sender AS "from", extract(epoch FROM now() - accepted_at) AS "held for",
           lease_expires_at AS "lease expires", lapses
      FROM reporting.handoff WHERE state IN ('accepted', 'blocked') AND holder IN (${agent:sqlstring}) ORDER BY accepted_at LIMIT 100"""

PAGE: Final = Page(
    "agents",
    "Agents",
    "Who hands over to whom, who responds, and who goes silent?",
    variables=[
        sql_variable("agent", "Agent", "The agents to show: all that did something or were offered something.", _AGENT_NAMES)
    ],
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Active agents",
                    "Number of selected agents that did something in the selected time range.",
                    "short",
                    Sql(_ACTIVE),
                    width=6,
                ),
                stat_panel(
                    "Handoffs offered",
                    "Number of handoffs offered in the selected time range of which a selected agent is the sender, the recipient or the holder.",
                    "short",
                    Sql(_OFFERED),
                    width=6,
                ),
                stat_panel(
                    "Completed",
                    "Share of the handoffs settled in the selected time range that were completed. Beside it, the number settled, that is, completed, rejected, cancelled or expired.",
                    "percentunit",
                    Sql(_COMPLETED),
                    units={"settled": "short"},
                    width=6,
                ),
                stat_panel(
                    "Lapsed leases",
                    "Number of leases that lapsed because the holder was not heard from, summed over the handoffs that changed in the selected time range.",
                    "short",
                    Sql(_LAPSED),
                    width=6,
                ),
            ],
        ),
        (
            "Activity",
            [
                table_panel(
                    "Agents",
                    "The 100 busiest agents in the selected time range: number of events in total and of the main kinds, and when the agent was last seen. Click a name for its log lines.",
                    Sql(_AGENTS),
                    width=24,
                    height=9,
                    widths={
                        "agent": 0,
                        "events": 100,
                        "last seen": 150,
                        "sessions created": 150,
                        "offered": 100,
                        "accepted": 100,
                        "completed": 100,
                        "rejected": 100,
                    },
                    units={"last seen": "dateTimeFromNow"},
                    links={
                        "agent": {
                            "Log lines": link_to("logs", find="${__value.raw}"),
                            "Show only this agent": link_to("agents", agent="${__value.raw}"),
                        }
                    },
                ),
                time_series(
                    "Events",
                    "Number of changes to sessions and handoffs, by the agent that made them, in each interval of the graph.",
                    "short",
                    Sql(_EVENTS),
                    many=True,
                    stacked=True,
                    width=8,
                ),
                time_series(
                    "Content written",
                    "Size of the content written in each interval of the graph, by author. Content that has since been deleted is not counted.",
                    "bytes",
                    Sql(_WRITTEN),
                    many=True,
                    stacked=True,
                    width=8,
                ),
                time_series(
                    "Failed and refused calls",
                    "Calls per second that failed or were refused, by agent, counted from log lines. Empty while there are none.",
                    "reqps",
                    Loki(
                        'sum by (agent) (rate({service_name="handoff"} | json | event="tool.call" | outcome!~"ok|cancelled" [$__auto]))',
                        "{{agent}}",
                    ),
                    many=True,
                    width=8,
                ),
            ],
        ),
        (
            "Who hands over to whom",
            [
                table_panel(
                    "Routes",
                    "Handoffs offered in the selected time range, by sender and recipient: the 100 routes with the most offers.",
                    Sql(_ROUTES),
                    width=24,
                    height=10,
                    widths={
                        "from": 0,
                        "to": 0,
                        "offers": 90,
                        "completed": 100,
                        "rejected": 100,
                        "expired": 100,
                        "lapses": 90,
                        "median time to accept": 190,
                    },
                    units={"median time to accept": "s"},
                    steps={
                        "rejected": [(None, GOOD), (1, WARN)],
                        "expired": [(None, GOOD), (1, WARN)],
                        "lapses": [(None, GOOD), (1, WARN)],
                    },
                ),
                table_panel(
                    "Handoffs held",
                    "Handoffs that an agent holds now (accepted or blocked), those held longest first, at most 100. Empty while no agent holds one.",
                    Sql(_HELD),
                    width=24,
                    height=9,
                    nothing="no handoffs held",
                    widths={
                        "agent": 0,
                        "handoff": 100,
                        "type": 130,
                        "from": 0,
                        "held for": 110,
                        "lease expires": 190,
                        "lapses": 90,
                    },
                    units={"held for": "s", "lease expires": "dateTimeAsLocal"},
                ),
            ],
        ),
    ],
)
