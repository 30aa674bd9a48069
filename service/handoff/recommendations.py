"""What the service recommends to its operators: each kind, from when to when it holds, and what to do. No I/O.

A recommendation opens when its figure reaches `opens_at` with enough evidence, and closes when it falls below `closes_at`,
so that it does not open and close with every measurement. All figures are worse the higher they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from handoff.telemetry import metrics


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of recommendation. `figure` says what its figure is; `runbook` is the entry that leads on."""

    figure: str
    opens_at: float
    closes_at: float
    what_to_do: str
    expected_effect: str
    runbook: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure of one subject. `is_enough` says whether there is evidence enough to open a recommendation.

    `agents` are those that it concerns, who may read it beside the operators.
    """

    kind: str
    subject: str
    figure: float
    is_enough: bool
    evidence: Mapping[str, Any]
    agents: tuple[str, ...] = field(default=())


KINDS: Final[Mapping[str, Kind]] = {
    "scale": Kind(
        "share of the minutes of an hour in which the processes of the service were saturated and the database was not, in "
        "the hour of the last 24 that had most",
        0.5,
        0.25,
        "Run as many processes of the service as processes_needed says, behind one address and with a CPU for each. If "
        "cpus_per_process is below 1, give each process a whole CPU first.",
        "With as many processes they use 60 % of their CPU in such an hour: calls no longer wait for one another, and none "
        "is refused as overloaded.",
        "HandoffCpuHigh",
    ),
    "scale_ahead": Kind(
        "CPU that the service is expected to use in the busiest hour of the day in 30 days, as a share of 80 % of what its "
        "processes may use",
        1.0,
        0.9,
        "Run as many processes of the service as processes_needed says before limit_reached, behind one address and with a "
        "CPU for each.",
        "The growth that is forecast for 30 days does not make calls wait for one another.",
        "HandoffCpuHigh",
    ),
    "pool_size": Kind(
        "share of the requests for a connection that waited longer than 50 ms, in the minutes of the last 24 hours in which "
        "the processes were not saturated",
        0.05,
        0.02,
        "Look for slow statements first, because each keeps its connection for as long. If there are none, and Postgres has "
        "connections and CPU to spare, raise HANDOFF_POOL_SIZE.",
        "Calls no longer wait for a connection: they take less by the time in the evidence, and none fails for want of one.",
        "HandoffDatabasePoolExhausted",
    ),
    "cache_lifetime": Kind(
        "share of the reads of the cache that found nothing, in 24 hours",
        0.95,
        0.85,
        "See whether entries are evicted before they are read again: give Redis more memory, or raise "
        "HANDOFF_CACHE_LOCAL_ENTRIES_MAX without Redis. If none are evicted, sessions change between any two reads, and "
        "nothing needs to be done.",
        "Briefs and summaries that did not change are read from the cache instead of being put together again.",
        "HandoffCacheHitRatioLow",
    ),
    "slow_query": Kind(
        "mean duration of the statement since it was last measured, in ms",
        200,
        100,
        "Look at the plan in the evidence: a sequential scan of a large table wants an index, or ANALYZE of the table. If "
        "the plan is good, the database lacks CPU, memory or a fast disk.",
        "The statement takes less than 100 ms on average, and the calls that use it take so much less.",
        "HandoffDatabaseSlowStatements",
    ),
    "retention": Kind(
        "what the tables will take in 30 days, as a share of HANDOFF_STORAGE_BYTES_MAX",
        1.0,
        0.9,
        "Keep archived sessions of this retention policy for the shorter time in the evidence (tool configuration), or "
        "raise HANDOFF_STORAGE_BYTES_MAX.",
        "The archive takes saves_bytes less once the job delete has run.",
        "HandoffStorageFilling",
    ),
    "oversized_context": Kind(
        "entries above 100 KB that the agent wrote in 3 days",
        10,
        3,
        "Tell the agent's owner to write what was found instead of whole files and logs, and to name the file by "
        "metadata.path.",
        "Briefs cut such an entry to 4,000 characters at most, so their receivers lose nothing; storage grows by "
        "large_bytes less in 3 days.",
        "HandoffStorageFilling",
    ),
    "rejecting_route": Kind(
        "share of the offers answered in 3 days that the target rejected",
        0.4,
        0.25,
        "Read why (the reason of each rejected handoff), and tell the sender's owner to offer this work to another agent or "
        "capability, or to write what the target needs into the instructions.",
        "Each rejection that is avoided saves one offer and the time until it was answered.",
        "HandoffRejectRatioHigh",
    ),
    "looping_route": Kind(
        "offers made in 3 days although the session went in circles",
        5,
        2,
        "Compare the instructions in both directions with the agents' owners; set monitoring.loops.refuse_rounds if the "
        "agents do not act on the warning.",
        "Each turn that is avoided saves a brief and the work on it.",
        "HandoffLooping",
    ),
    "lapsing_agent": Kind(
        "leases of the agent that lapsed in 3 days, as a share of the handoffs that it accepted",
        0.3,
        0.15,
        "See whether the agent crashes, and whether its lease is shorter than its work: it should ask for a longer one "
        "(lease_seconds of accept_handoff) or renew it in time.",
        "Its handoffs are done by whoever accepted them first, instead of waiting for the lease to pass.",
        "HandoffLeasesLapsing",
    ),
}
metrics.RECOMMENDATION.admit(*KINDS)
