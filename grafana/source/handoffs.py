"""Are handoffs accepted, how soon, and where do they get stuck?"""

from typing import Final, get_args

from grafana.source.page import Page, address_variable, choice_variable, link_to
from grafana.source.panels import (
    GOOD,
    WARN,
    heatmap_panel,
    higher_is_worse,
    limit,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, matcher, quantile, rate, ratio
from grafana.source.queries import Prom, Sql, percentiles
from handoff.model import HandoffAction, HandoffState, Loop, RequestType, SessionStatus
from handoff.telemetry import metrics as t

_TYPE: Final = (matcher(t.TYPE, "$type"),)
_ACTION: Final = label(t.ACTION)
_STATE: Final = label(t.STATE)
_TARGET: Final = label(t.TARGET)
_LOOP: Final = label(t.LOOP)
_STATUS: Final = label(t.STATUS)
_ACCEPTED: Final = (*_TYPE, matcher(t.ACTION, "accept", "="))
_LAPSED: Final = (*_TYPE, matcher(t.ACTION, "lapse", "="))
_REJECTED: Final = (*_TYPE, matcher(t.ACTION, "reject", "="))
_ANSWERED: Final = (*_TYPE, matcher(t.ACTION, "accept|reject"))
_UI: Final = "http://127.0.0.1:8642/ui"
_OPEN: Final = """
    SELECT id AS handoff, request_type AS type, sender AS "from", coalesce(target_agent, 'any agent with ' || target_capability) AS "to",
           state, holder, lapses, extract(epoch FROM now() - updated_at) AS "unchanged for", lease_expires_at AS "lease expires", trace_id AS trace
      FROM reporting.handoff
     WHERE state IN ('offered', 'accepted', 'blocked') AND request_type IN (${type:sqlstring})
     ORDER BY updated_at LIMIT 100"""
_SESSIONS: Final = """
    SELECT id AS session, owner, status, last_sequence AS entries, content_bytes AS bytes, created_at AS created,
           last_activity_at AS "last used", expires_at AS expires
      FROM reporting.session WHERE status IN ('active', 'dormant') ORDER BY last_activity_at DESC LIMIT 100"""

PAGE: Final = Page(
    "handoffs",
    "Handoffs and sessions",
    "Are handoffs accepted, how soon, and where do they get stuck?",
    variables=[
        choice_variable("type", "Type", "The types of handoff to show.", get_args(RequestType)),
        address_variable("ui", "Pages", "The address of Handoff's pages, to which the numbers of handoffs lead.", _UI),
    ],
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Open offers",
                    "Number of handoffs offered and not yet accepted. All types are counted.",
                    "short",
                    Prom(gauge(t.INBOX_DEPTH, aggregate="sum")),
                    width=3,
                ),
                stat_panel(
                    "Oldest offer",
                    "Time that the oldest open offer has been waiting to be accepted; 0 while there is no open offer. All types are counted.",
                    "s",
                    Prom(gauge(t.OLDEST_OFFER)),
                    steps=higher_is_worse(limit("offer_age_seconds")),
                    width=3,
                ),
                stat_panel(
                    "Deepest inbox",
                    "Number of open offers to the agent or capability that has the most. All types are counted.",
                    "short",
                    Prom(gauge(t.DEEPEST_INBOX)),
                    width=3,
                ),
                stat_panel(
                    "Time to accept p95",
                    "95th percentile of the time from offer to acceptance, of handoffs accepted in the selected time range. Empty if none was accepted.",
                    "s",
                    Prom(quantile(0.95, t.TIME_TO_ACCEPT, only=_TYPE, over="$__range")),
                    steps=higher_is_worse(300),  # the objective
                    width=3,
                ),
                stat_panel(
                    "Lapsed leases",
                    "Leases that lapsed because the holder was not heard from, as a share of the handoffs accepted in the selected time range. Beside it, the number accepted.",
                    "percentunit",
                    Prom(ratio(increase(t.TRANSITIONS, only=_LAPSED), increase(t.TRANSITIONS, only=_ACCEPTED)), "lapsed"),
                    Prom(increase(t.TRANSITIONS, only=_ACCEPTED), "accepted", unit="short"),
                    steps=higher_is_worse(limit("lapse_ratio")),
                    width=4,
                ),
                stat_panel(
                    "Rejected",
                    "Share of the offers answered in the selected time range that were rejected. Beside it, the number answered, that is, accepted or rejected.",
                    "percentunit",
                    Prom(
                        ratio(increase(t.TRANSITIONS, only=_REJECTED), increase(t.TRANSITIONS, only=_ANSWERED)), "rejected"
                    ),
                    Prom(increase(t.TRANSITIONS, only=_ANSWERED), "answered", unit="short"),
                    steps=higher_is_worse(limit("reject_ratio")),
                    width=5,
                ),
                stat_panel(
                    "Bouncing between agents",
                    "Number of sessions that the same two agents handed back and forth several times in the last hour.",
                    "short",
                    Prom(gauge(t.PING_PONG)),
                    steps=higher_is_worse(limit("ping_pong_sessions") + 0.5),
                    width=3,
                ),
            ],
        ),
        (
            "Handoff activity",
            [
                time_series(
                    "Handoff actions",
                    "Actions on handoffs per second, by action: offer, accept, renew, reject and so on.",
                    "eps",
                    Prom(rate(t.TRANSITIONS, t.ACTION, only=_TYPE), f"{{{{{_ACTION}}}}}"),
                    names=["offer", *get_args(HandoffAction)],
                ),
                time_series(
                    "Open handoffs",
                    "Number of open handoffs, by state: offered, accepted or blocked.",
                    "short",
                    Prom(gauge(t.HANDOFFS_OPEN, t.STATE, aggregate="sum", only=_TYPE), f"{{{{{_STATE}}}}}"),
                    names=get_args(HandoffState),
                    stacked=True,
                ),
                time_series(
                    "Oldest offer",
                    "Time that the oldest open offer has been waiting, by target: an agent by name, or any agent with a capability. All types are counted.",
                    "s",
                    Prom(gauge(t.OLDEST_OFFER, t.TARGET), f"{{{{{_TARGET}}}}}"),
                    steps=higher_is_worse(limit("offer_age_seconds")),
                ),
                time_series(
                    "Going in circles",
                    "Offers whose sender was warned, by kind: rounds (from one agent to another and back), depth (handoffs that wait for one another), handoffs (handed over too often). Number per hour. Empty while there is none.",
                    "short",
                    Prom(increase(t.LOOP_WARNINGS, t.LOOP, over="1h"), f"{{{{{_LOOP}}}}}"),
                    names=get_args(Loop),
                    width=24,
                ),
            ],
        ),
        (
            "Durations",
            [
                time_series(
                    "Time to accept",
                    "Time from offer to acceptance: 50th, 95th and 99th percentile. Empty while none is accepted.",
                    "s",
                    *percentiles(t.TIME_TO_ACCEPT, only=_TYPE),
                ),
                time_series(
                    "Time to complete",
                    "Time from acceptance to completion: 50th, 95th and 99th percentile. Empty while none is completed.",
                    "s",
                    *percentiles(t.TIME_TO_COMPLETE, only=_TYPE),
                ),
                heatmap_panel(
                    "Time to accept: distribution",
                    "Number of handoffs accepted, by the time from offer to acceptance.",
                    "s",
                    Prom(bucket_counts(t.TIME_TO_ACCEPT, _TYPE), "{{le}}"),
                    width=8,
                ),
            ],
        ),
        (
            "Open handoffs",
            [
                table_panel(
                    "Open handoffs",
                    "Open handoffs, those longest unchanged first, at most 100. The trace is that of the call that made the offer. Empty while none is open.",
                    Sql(_OPEN),
                    width=24,
                    height=10,
                    nothing="no open handoffs",
                    widths={
                        "handoff": 100,
                        "type": 120,
                        "from": 0,
                        "to": 0,
                        "state": 100,
                        "holder": 120,
                        "lapses": 80,
                        "unchanged for": 130,
                        "lease expires": 180,
                        "trace": 160,
                    },
                    units={"unchanged for": "s", "lease expires": "dateTimeAsLocal"},
                    steps={
                        "unchanged for": higher_is_worse(limit("offer_age_seconds")),
                        "lapses": [(None, GOOD), (1, WARN)],
                    },
                    links={
                        "handoff": {"The handoff's page": "${ui}/handoffs/${__value.raw}"},
                        "trace": {"Log lines and trace": link_to("logs", trace="${__value.raw}")},
                    },
                ),
            ],
        ),
        (
            "Sessions",
            [
                time_series(
                    "Sessions",
                    "Number of sessions, by status.",
                    "short",
                    Prom(gauge(t.SESSIONS, t.STATUS, aggregate="sum"), f"{{{{{_STATUS}}}}}"),
                    names=get_args(SessionStatus),
                ),
                table_panel(
                    "Active and dormant sessions",
                    "Active and dormant sessions, the most recently used first, at most 100. Session keys are not shown: only the agents know them.",
                    Sql(_SESSIONS),
                    width=16,
                    widths={
                        "session": 90,
                        "owner": 0,
                        "status": 90,
                        "entries": 80,
                        "bytes": 90,
                        "created": 165,
                        "last used": 165,
                        "expires": 165,
                    },
                    units={
                        "bytes": "bytes",
                        "created": "dateTimeAsLocal",
                        "last used": "dateTimeAsLocal",
                        "expires": "dateTimeAsLocal",
                    },
                ),
            ],
        ),
    ],
)
