"""Is work taken over, how soon, and where does it get stuck?"""

from typing import Final, get_args

from grafana.source.page import Page, choice_variable, link_to
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    Prom,
    Sql,
    heatmap_panel,
    higher_is_worse,
    limit,
    percentiles,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, matcher, quantile, rate, ratio
from handoff import telemetry as t
from handoff.model import HandoffAction, HandoffState, RequestType, SessionStatus

_TYPE: Final = (matcher(t.TYPE, "$type"),)
_ACTION: Final = label(t.ACTION)
_STATE: Final = label(t.STATE)
_TARGET: Final = label(t.TARGET)
_STATUS: Final = label(t.STATUS)
_LEASES: Final = (*_TYPE, matcher(t.ACTION, "accept", "="))
_LAPSES: Final = (*_TYPE, matcher(t.ACTION, "lapse", "="))
_REJECTS: Final = (*_TYPE, matcher(t.ACTION, "reject", "="))
_ANSWERS: Final = (*_TYPE, matcher(t.ACTION, "accept|reject"))
_OPEN: Final = """
    SELECT id AS handoff, request_type AS type, sender AS "from", coalesce(target_agent, 'any with ' || target_capability) AS "to",
           state, holder, lapses, extract(epoch FROM now() - updated_at) AS "since", lease_expires_at AS "lease until", trace_id AS trace
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
    "Is work taken over, how soon, and where does it get stuck?",
    variables=[choice_variable("type", "Type", "What is handed over.", get_args(RequestType))],
    rows=[
        (
            "Is it well?",
            [
                stat_panel(
                    "On offer",
                    "Handoffs that wait for somebody to take them.",
                    "short",
                    Prom(gauge(t.INBOX_DEPTH, aggregate="sum")),
                    width=3,
                ),
                stat_panel(
                    "Oldest offer",
                    "How long the one has waited that has waited longest.",
                    "s",
                    Prom(gauge(t.OLDEST_OFFER)),
                    steps=higher_is_worse(limit("offer_age_seconds") / 2, limit("offer_age_seconds")),
                    width=3,
                ),
                stat_panel(
                    "Deepest inbox",
                    "Handoffs on offer to the agent or capability with the most.",
                    "short",
                    Prom(gauge(t.DEEPEST_INBOX)),
                    width=3,
                ),
                stat_panel(
                    "p95 until taken",
                    "What 95 of 100 handoffs waited at most, of those taken in the time shown. Empty while none was.",
                    "s",
                    Prom(quantile(0.95, t.TIME_TO_ACCEPT, only=_TYPE, over="$__range")),
                    steps=higher_is_worse(150, 300),
                    width=3,
                ),
                stat_panel(
                    "Leases that lapsed",
                    "Share of the leases taken in the time shown after which nothing was heard; beside it, how many were taken.",
                    "percentunit",
                    Prom(ratio(increase(t.TRANSITIONS, only=_LAPSES), increase(t.TRANSITIONS, only=_LEASES)), "lapsed"),
                    Prom(increase(t.TRANSITIONS, only=_LEASES), "of leases", unit="short"),
                    steps=higher_is_worse(limit("lapse_ratio") * 0.8, limit("lapse_ratio")),
                    width=5,
                ),
                stat_panel(
                    "Turned down",
                    "Share of the offers answered in the time shown that were; beside it, how many were answered.",
                    "percentunit",
                    Prom(
                        ratio(increase(t.TRANSITIONS, only=_REJECTS), increase(t.TRANSITIONS, only=_ANSWERS)), "turned down"
                    ),
                    Prom(increase(t.TRANSITIONS, only=_ANSWERS), "of answers", unit="short"),
                    steps=higher_is_worse(limit("reject_ratio") / 2, limit("reject_ratio")),
                    width=5,
                ),
                stat_panel(
                    "To and fro",
                    "Sessions that went back and forth between the same two agents, within an hour.",
                    "short",
                    Prom(gauge(t.PING_PONG)),
                    steps=higher_is_worse(limit("ping_pong_sessions") + 0.5),
                    width=2,
                ),
            ],
        ),
        (
            "What happens to handoffs",
            [
                time_series(
                    "Changes",
                    "Offers, acceptances and what else becomes of a handoff, a second.",
                    "eps",
                    Prom(rate(t.TRANSITIONS, t.ACTION, only=_TYPE), f"{{{{{_ACTION}}}}}"),
                    names=["offer", *get_args(HandoffAction)],
                ),
                time_series(
                    "Open handoffs",
                    "By state.",
                    "short",
                    Prom(gauge(t.HANDOFFS_OPEN, t.STATE, aggregate="sum", only=_TYPE), f"{{{{{_STATE}}}}}"),
                    names=get_args(HandoffState),
                    stacked=True,
                ),
                time_series(
                    "Age of the oldest offer",
                    "To an agent by name, and to whoever has a capability.",
                    "s",
                    Prom(gauge(t.OLDEST_OFFER, t.TARGET), f"{{{{{_TARGET}}}}}"),
                    steps=[(None, GOOD), (limit("offer_age_seconds"), BAD)],
                ),
            ],
        ),
        (
            "How long it takes",
            [
                time_series(
                    "Until taken",
                    "From offer to acceptance: what 50, 95 and 99 of 100 stay below. Empty while none is taken.",
                    "s",
                    *percentiles(t.TIME_TO_ACCEPT, only=_TYPE),
                ),
                time_series(
                    "Until done",
                    "From acceptance to completion: what 50, 95 and 99 of 100 stay below. Empty while none is done.",
                    "s",
                    *percentiles(t.TIME_TO_COMPLETE, only=_TYPE),
                ),
                heatmap_panel(
                    "Until taken, all of them",
                    "How many handoffs waited how long.",
                    "s",
                    Prom(bucket_counts(t.TIME_TO_ACCEPT, _TYPE), "{{le}}"),
                    width=8,
                ),
            ],
        ),
        (
            "Those that are open",
            [
                table_panel(
                    "Open handoffs",
                    "The longest unchanged first; the trace is that of the call that offered it. Empty while none is open.",
                    Sql(_OPEN),
                    width=24,
                    height=10,
                    no_value="none is open",
                    units={"since": "s", "lease until": "dateTimeAsLocal"},
                    steps={
                        "since": [(None, GOOD), (limit("offer_age_seconds") / 2, WARN), (limit("offer_age_seconds"), BAD)],
                        "lapses": [(None, GOOD), (1, WARN), (3, BAD)],
                    },
                    links={"trace": {"Its log lines and trace": link_to("logs", trace="${__value.raw}")}},
                ),
            ],
        ),
        (
            "Sessions",
            [
                time_series(
                    "Sessions",
                    "By status.",
                    "short",
                    Prom(gauge(t.SESSIONS, t.STATUS, aggregate="sum"), f"{{{{{_STATUS}}}}}"),
                    names=get_args(SessionStatus),
                ),
                table_panel(
                    "Sessions in use",
                    "The newest first; their keys are known to their agents only.",
                    Sql(_SESSIONS),
                    width=16,
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
