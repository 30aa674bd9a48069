"""Ranks what may have caused a symptom: which service lost more than usual, and more than its callees account for.

Time and failures travel up the calls: a slow table makes every service above it slow by the same seconds. So each service is
charged with its excess (`excess.py`) less that of the services it calls. What it is charged with, as a share of the
symptom's own excess, is what it explains. docs/causes.md has the reasons and what was measured.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

from handoff.analytics.excess import (
    Bools,
    Floats,
    Kind,
    Losses,
    Metrics,
    Usual,
    learn,
    losses,
    panel,
    statistics,
    strength,
)

# A cause must stand out from its own past by so many standard deviations: heavy-tailed series reach 3 every day.
STRENGTH_MIN: Final = 4.0
# And by more than the best candidate does in nine of ten equally long windows of the past: what is quiet is learnt per
# system.
QUIET: Final = 0.9
WINDOWS_MIN: Final = 20  # past windows from which that can be said
WINDOWS_MAX: Final = 1_000  # more say no more, and take time
ROWS_MAX: Final = 300  # of the window that is judged; the search for the symptom's rows takes their square
SHARE_MIN: Final = 0.1  # of the symptom. What explains less than a tenth of it is not why somebody was called.
SERVICES_MAX: Final = 1_000  # the graph is a dense matrix

Graph = Mapping[str, Collection[str]]  # caller to callees


@dataclass(frozen=True, slots=True)
class Symptom:
    """Where something was noticed: in latency (any unit of time) or in availability (percent of calls that succeed)."""

    service: str
    metric: Kind
    statistic: str = "Average"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a service is named: its metric over the symptom's rows, beside its own past."""

    metric: str
    usual: float  # latency, or percent of calls that succeed; NaN if it has none of its own
    seen: float
    strength: float  # standard deviations from the usual
    rows: tuple[int, int]  # of the window: from, and up to but not including
    path: tuple[str, ...]  # calls from the symptom's service to this one


@dataclass(frozen=True, slots=True)
class Cause:
    """A service that may be at fault. `score` is the share of the symptom that it explains for certain; it can exceed 1."""

    service: str
    score: float
    evidence: Evidence
    sentence: str


@dataclass(frozen=True, slots=True)
class _Verdicts:
    """Over the symptom's rows, from `first` up to `end`, of each window: (windows,) and (windows, services)."""

    first: NDArray[np.int64]
    end: NDArray[np.int64]
    own: Floats  # excess that no callee accounts for, as a share of the symptom's excess
    strength: Floats  # of that


@dataclass(frozen=True, slots=True)
class _System:
    """The services, in the order of all arrays, and who calls whom."""

    services: tuple[str, ...]
    calls: Bools  # (callers, callees)
    accounts: Floats  # the same without calls within a cycle: there nobody can say who passes the loss on to whom
    below: Bools  # (services,): the symptom's service and what it calls, directly or not
    symptom: int


def find_causes(graph: Graph, past: Metrics, now: Metrics, symptom: Symptom) -> list[Cause]:
    """Rank the services that may have caused a symptom, most likely first; empty if nothing stands out.

    `past` is an ordinary stretch before, `now` the window around the symptom, with rows of the same length in time.
    Each series is an array of shape (rows,). The calls of a service are counted by its metric ("requests", "Sum").

    Raises ValueError for a symptom, a window or a graph that can't be judged.
    """
    if symptom.metric not in ("latency", "availability"):
        raise ValueError(f"{symptom.metric} does not add up along calls. Ask for the causes of latency or availability.")
    system = _system(graph, past, now, symptom.service)
    kind = symptom.metric
    chosen = statistics(past, now, system.services, kind, symptom.statistic)
    before = panel(past, system.services, kind, chosen)
    window = panel(now, system.services, kind, chosen)
    if len(window.values) > ROWS_MAX:
        raise ValueError(
            f"The window has {len(window.values)} rows, but at most {ROWS_MAX} can be judged. Cut it around the symptom."
        )
    usual = learn(before, kind)
    if not len(window.values) or not usual.known[system.symptom]:
        return []
    lost = losses(window, usual, kind)
    verdict = _judge(system, usual, lost, len(window.values), kind)
    needed = _needed(_judge(system, usual, losses(before, usual, kind), len(window.values), kind))
    scores = verdict.own[0] * (1 - needed / np.maximum(verdict.strength[0], needed))  # what is explained beyond doubt
    named = [int(one) for one in np.argsort(-scores, kind="stable") if scores[one] > 0 and verdict.own[0, one] >= SHARE_MIN]
    return [_cause(system, usual, lost, verdict, one, float(scores[one]), window.counts, kind) for one in named]


def _system(graph: Graph, past: Metrics, now: Metrics, symptom: str) -> _System:
    names = dict.fromkeys([symptom, *graph, *(callee for callees in graph.values() for callee in callees)])
    measured = {service for service, _, _ in (*past, *now)}
    if symptom not in measured:
        raise ValueError(
            f"{symptom} has no metrics. Name the service, as it is in the metrics, where the symptom was noticed."
        )
    services = tuple(sorted(names))  # an order of its own, so that the callers' does not decide
    if len(services) > SERVICES_MAX:
        raise ValueError(
            f"The graph has {len(services)} services, but at most {SERVICES_MAX} can be judged. Leave out distant ones."
        )
    index = {service: number for number, service in enumerate(services)}
    calls = np.zeros((len(services), len(services)), dtype=np.bool_)
    for caller, callees in graph.items():
        for callee in callees:
            calls[index[caller], index[callee]] = caller != callee
    _, cycle = connected_components(csr_array(calls), directed=True, connection="strong")
    accounts = (calls & (cycle[:, None] != cycle[None, :])).astype(np.float64)
    distance = cast("Floats", dijkstra(csr_array(calls), indices=index[symptom], unweighted=True))
    return _System(services, calls, accounts, np.isfinite(distance), index[symptom])


def _judge(system: _System, usual: Usual, lost: Losses, rows: int, kind: Kind) -> _Verdicts:
    """Judge every window of so many rows: in which of its rows was the symptom worst, and who accounts for it there?"""
    starts = np.arange(len(lost.seen) - rows + 1)
    starts = starts[:: max(1, -(-len(starts) // WINDOWS_MAX))]
    seen, expected = (np.vstack([np.zeros((1, each.shape[1])), each.cumsum(axis=0)]) for each in (lost.seen, lost.usual))
    first, end = _worst_rows(
        seen[:, system.symptom], expected[:, system.symptom], starts, rows, usual.spread[system.symptom], kind
    )
    seen, expected = seen[end] - seen[first], expected[end] - expected[first]
    excess = seen - expected
    own = np.maximum(excess - np.maximum(excess, 0) @ system.accounts.T, 0) * system.below
    far = strength(seen, expected, (end - first)[:, None], usual.spread, kind)
    with np.errstate(divide="ignore", invalid="ignore"):
        own_part = np.where(excess > 0, own / excess, 0.0)
        share = np.where(excess[:, [system.symptom]] > 0, own / excess[:, [system.symptom]], 0.0)
    return _Verdicts(first - starts, end - starts, share, far * own_part)


def _worst_rows(
    seen: Floats, expected: Floats, starts: NDArray[np.int64], rows: int, spread: float, kind: Kind
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """In each window, the rows in succession over which the symptom is strongest: a fault rarely fills the window."""
    strongest = np.full(len(starts), -np.inf)
    first, end = starts.copy(), starts + rows
    for length in range(1, rows + 1):
        at = starts[:, None] + np.arange(rows - length + 1)
        far = strength(seen[at + length] - seen[at], expected[at + length] - expected[at], length, np.asarray(spread), kind)
        best = far.argmax(axis=1)
        far = far[np.arange(len(starts)), best]
        better = far > strongest
        strongest[better] = far[better]
        first[better], end[better] = (starts + best)[better], (starts + best + length)[better]
    return first, end


def _needed(past: _Verdicts) -> float:
    """The strength that a cause needs, given the strongest candidate of each window of the past."""
    if len(past.first) < WINDOWS_MIN:
        return STRENGTH_MIN
    strongest = np.where(past.own >= SHARE_MIN, past.strength, 0.0).max(axis=1)
    return max(STRENGTH_MIN, float(np.quantile(strongest, QUIET)))


def _cause(
    system: _System, usual: Usual, lost: Losses, verdict: _Verdicts, one: int, score: float, counts: Floats, kind: Kind
) -> Cause:
    first, end = int(verdict.first[0]), int(verdict.end[0])
    there = lost.usual[first:end, one] != 0
    calls = float(counts[first:end, one][there].sum()) or 1.0
    rate = float(lost.seen[first:end, one].sum()) / calls
    path = _path(system, one)
    name, at = system.services[one], system.services[system.symptom]
    explained = min(100, round(100 * float(verdict.own[0, one])))
    if kind == "latency":
        usually, now = float(usual.rate[one]), rate
        sentence = f"{name} took {now:.3g} on average instead of {usually:.3g}; no callee accounts for that."
        what = "extra time"
    else:
        usually, now = 100 * (1 - float(usual.rate[one])), 100 * (1 - rate)
        sentence = (
            f"{name} failed {100 - now:.3g} % of its calls, usually {100 - usually:.2g} %; no callee accounts for that."
        )
        what = "extra failures"
    sentence += f" It explains {explained} % of the {what} of {at}" + (f" ({' -> '.join(path)})." if len(path) > 1 else ".")
    return Cause(name, score, Evidence(kind, usually, now, float(verdict.strength[0, one]), (first, end), path), sentence)


def _path(system: _System, one: int) -> tuple[str, ...]:
    """The shortest chain of calls from the symptom's service."""
    _, before = cast(
        "tuple[Floats, NDArray[np.int32]]",
        dijkstra(csr_array(system.calls), indices=system.symptom, unweighted=True, return_predecessors=True),
    )
    path = [one]
    while path[-1] != system.symptom:
        path.append(int(before[path[-1]]))
    return tuple(system.services[each] for each in reversed(path))
