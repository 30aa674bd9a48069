"""Which findings belong together, and what their likely causes are.

Findings belong together if they are close in time and one of their places depends on the other: a route on its agents,
agents and tools on the service, the service on its connection pool, database, cache and host. Three places that only share
something on which all of them depend belong together too.

A cause explains its own findings, those of what depends on it, and those of a total most of whose deviation is its own.
It is excused by what explains it in the same way. docs/incidents.md has the reasons.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from handoff.analytics.kinds import RATIO_PRIOR
from handoff.model import Part

GOES_ON_S: Final = 3_600  # the same for an open incident, of which people have been notified
TOGETHER_S: Final = 900  # findings of one fault come within minutes; the detector needs up to 15 for a slow one
SIBLINGS_MIN: Final = 3  # two that are unusual at once may be a coincidence
MAJORITY: Final = 0.5  # of a total's deviation
INFERRED: Final = 0.8  # what a cause is worth of which nothing unusual was measured
SCORE_MIN: Final = 0.05
CAUSES_MAX: Final = 5
SIGNS_SHOWN: Final = 5  # per cause
SERIES_MAX: Final = 100  # the strongest, of which causes are ranked: that takes the square of their number

_BELOW: Final[Mapping[Part, tuple[Part, ...]]] = {
    "route": ("service", "pool", "database", "cache", "host"),
    "agent": ("service", "pool", "database", "cache", "host"),
    "tool": ("service", "pool", "database", "cache", "host"),
    "service": ("pool", "database", "cache", "host"),
    "pool": ("database", "host"),
    "database": ("host",),
    "cache": ("host",),
    "host": (),
}
# The part that a series without labels is about, by the first word of its name; all others are about the service.
_PARTS: Final[Mapping[str, Part]] = {
    "pool": "pool",
    "database": "database",
    "db": "database",
    "statements": "database",
    "cache": "cache",
    "host": "host",
    "cpu": "host",
    "memory": "host",
    "disk": "host",
    "process": "host",
    "event_loop": "host",
}
_RESOURCES: Final = frozenset({"pool", "database", "cache", "host"})
_LABELS: Final[Mapping[str, Part]] = {"agent": "agent", "tool": "tool", "operation": "tool"}
_ADDS_UP: Final = ("count", "counter")
_LONGER: Final = math.log(2)  # twice or half as long counts in full, a tenth longer by an eighth: however sure it is
# Series that count the same handoffs on their way, and the tools by which they take it.
_ONE_WAY: Final = frozenset({"handoffs.offered", "handoffs.accepted", "handoffs.completed"})
_WAY_TOOLS: Final = frozenset({"request_handoff", "accept_handoff", "resolve_handoff"})
_MEANS: Final = frozenset({"handoffs.time_to_accept", "handoffs.time_to_complete"})  # which most of the handoffs decide
_LOADS: Final = frozenset({"process.cpus"})  # which rise and fall with traffic
_BETTER_HIGH: Final = frozenset({"cache.hit_ratio"})
_HANDOFF_CALLS: Final = frozenset({"accept_handoff", "renew_handoff", "resolve_handoff", "resource:handoff"})
# Of what there is less when a tool fails, because it comes of its calls.
_COMES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "register_session": ("sessions.", "handoffs."),
    "request_handoff": ("handoffs.",),
    "accept_handoff": ("handoffs.accepted", "handoffs.completed"),
    "resolve_handoff": ("handoffs.completed", "handoffs.rejected"),
}
# What is counted at a place is also counted at, or costs something at.
_IN: Final[Mapping[Part, tuple[Part, ...]]] = {
    "service": ("route", "agent", "tool"),
    "tool": ("route", "agent"),
    "host": ("route", "agent", "tool", "service"),
}


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A part of the system: an agent, a tool, a route from agent to agent, or one of the parts of which there is one."""

    part: Part
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return its name as people read it."""
        return f"{self.part} {' -> '.join(self.names)}" if self.names else f"the {self.part}"


@dataclass(frozen=True, slots=True)
class Sign:
    """A finding about a series at the time `at`, in seconds since 1970."""

    series_id: int
    name: str
    kind: str
    place: Place
    at: int
    strength: float
    value: float
    expected: float
    sentence: str
    of: float | None = None  # of a ratio: how many there were

    @property
    def more(self) -> float:
        """How much more there was than expected; of a ratio, as a number of those of which it is a share."""
        return (self.value - self.expected) * (1.0 if self.of is None else self.of + RATIO_PRIOR)

    @property
    def weight(self) -> float:
        """How much there is to explain: how unusual it is and, of what takes time, by how much it takes longer or less."""
        if self.kind != "duration" or not (self.value > 0 and self.expected > 0):
            return self.strength
        return self.strength * min(1.0, abs(math.log(self.value / self.expected)) / _LONGER)

    @property
    def is_traffic(self) -> bool:
        """Whether it counts what callers do."""
        return self.kind in _ADDS_UP and self.place.part not in _RESOURCES

    @property
    def is_bad(self) -> bool:
        """Whether it can be the reason why something else takes longer or fails."""
        return not self.is_traffic and (self.value < self.expected) == (self.name in _BETTER_HIGH)

    @property
    def quantity(self) -> str:
        """What it counts: findings about the same can be compared. Empty for what does not add up."""
        if (
            self.name in _ONE_WAY
            or self.name in _MEANS
            or (self.name == "calls" and _WAY_TOOLS.issuperset(self.place.names[:1] or ("",)))
        ):
            return "handoffs"
        if math.isnan(self.value):  # absent: there is no number to compare
            return ""
        return self.name if self.kind in _ADDS_UP or self.of is not None else ""


@dataclass(slots=True)
class Cluster:
    """Findings that belong together; `incident` is the incident that they are known as, None if they are new."""

    signs: list[Sign] = field(default_factory=list[Sign])
    incident: int | None = None

    @property
    def within_s(self) -> int:
        """How close in time to one of its findings another one has to be."""
        return TOGETHER_S if self.incident is None else GOES_ON_S


@dataclass(frozen=True, slots=True)
class Suspect:
    """A likely cause. `score` is the share of what was found that it explains and nothing else excuses, 0 to 1."""

    place: Place
    score: float
    signs: tuple[Sign, ...]  # its own, the strongest first
    sentence: str


def place_of(name: str, labels: Mapping[str, str]) -> Place:
    """The place that a series is about."""
    if "from" in labels and "to" in labels:
        return Place("route", (labels["from"], labels["to"]))
    for label, part in _LABELS.items():
        if label in labels:
            return Place(part, (labels[label],))
    return Place(_PARTS.get(name.split(".", 1)[0], "service"))


@lru_cache(4_096)
def dependencies(place: Place) -> frozenset[Place]:
    """Everything on which a place depends."""
    agents = {Place("agent", (name,)) for name in place.names} if place.part == "route" else set[Place]()
    return frozenset(agents | {Place(part) for part in _BELOW[place.part]})


def gather(known: Iterable[Cluster], new: Sequence[Sign]) -> list[Cluster]:
    """Put new findings, in the order of time, to the clusters that are known, or into new ones; return all that changed.

    Clusters that are known are not merged: each has been told already.
    """
    clusters = list(known)
    changed: dict[int, Cluster] = {}
    for sign in new:
        joined = [it for it in clusters if any(_belong(sign, other, it.within_s) for other in it.signs)]
        if not joined:
            joined = _siblings(sign, clusters)
        target = min(joined, key=_seniority, default=None)
        if target is None:
            target = Cluster()
            clusters.append(target)
        for cluster in joined:
            if cluster is not target and cluster.incident is None:
                target.signs += cluster.signs
                clusters.remove(cluster)
                changed.pop(id(cluster), None)
        target.signs.append(sign)
        changed[id(target)] = target
    return list(changed.values())


def _seniority(cluster: Cluster) -> tuple[bool, int]:
    return cluster.incident is None, cluster.incident or cluster.signs[0].at


def _belong(one: Sign, other: Sign, within_s: int) -> bool:
    if one.series_id == other.series_id:
        return True  # a known cluster is open: it still goes on
    return abs(one.at - other.at) <= within_s and (
        one.place == other.place
        or other.place in dependencies(one.place)
        or one.place in dependencies(other.place)
        or _brings_about(one, other) > 0
        or _brings_about(other, one) > 0
    )


def _siblings(sign: Sign, clusters: Sequence[Cluster]) -> list[Cluster]:
    """The clusters of other places that became unusual at the same time, if there are enough for it to be no coincidence."""
    near = [it for it in clusters if any(abs(sign.at - other.at) <= TOGETHER_S for other in it.signs)]
    places = {other.place for it in near for other in it.signs if dependencies(other.place) & dependencies(sign.place)}
    return near if len(places) >= SIBLINGS_MIN - 1 else []


def suspects(signs: Sequence[Sign]) -> list[Suspect]:
    """Rank the likely causes of findings that belong together, the likeliest first; at most CAUSES_MAX."""
    strongest = {sign.series_id: sign for sign in sorted(signs, key=lambda it: (it.strength, -it.at))}
    worst = sorted(strongest.values(), key=lambda it: (-it.strength, it.at, it.series_id))[:SERIES_MAX]
    found = sorted(worst, key=lambda it: (it.at, -it.strength, it.series_id))
    own: dict[Place, list[Sign]] = {}
    for sign in found:
        own.setdefault(sign.place, []).append(sign)
    total = sum(sign.weight for sign in found) or 1.0
    ranked: list[Suspect] = []
    for place in {**own, **dict.fromkeys(_shared(own))}:
        explained = sum(sign.weight * _explains(place, own, sign) for sign in found) / total
        if place in own:
            score = explained * (1 - _excused(place, own))
            sentence = _said(place, own[place], score)
        else:
            score = explained * INFERRED
            count = sum(place in dependencies(other) for other in own)
            sentence = (
                f"{count} parts that depend on {place} became unusual together; nothing unusual was measured of it itself."
            )
        mine = tuple(sorted(own.get(place, ()), key=lambda it: -it.strength))
        ranked.append(Suspect(place, round(score, 2), mine, sentence))
    ranked.sort(key=lambda it: (-it.score, it.signs[0].at if it.signs else found[0].at, it.place))
    return [it for it in ranked if it.score >= SCORE_MIN][:CAUSES_MAX] or ranked[:1]


def _said(place: Place, signs: Sequence[Sign], score: float) -> str:
    count = f"{len(signs)} of its series are" if len(signs) > 1 else "one of its series is"
    return f"{count} unusual; {place} accounts for {score:.0%} of what was found."


def _explains(place: Place, own: Mapping[Place, Sequence[Sign]], sign: Sign) -> float:
    """How much of a finding a place explains, 0 to 1."""
    if sign.place == place:
        return 1.0
    return _from_below(place, own, sign) if place in dependencies(sign.place) else _of_total(place, own, sign)


def _from_below(place: Place, own: Mapping[Place, Sequence[Sign]], sign: Sign) -> float:
    """How much of a finding is passed on by a place on which its own place depends.

    Time and failures are passed on by what takes time or fails itself; traffic is passed on by agents and the service, not
    by resources: a slow database makes no agent offer more.
    """
    if sign.is_traffic and place.part in _RESOURCES:
        return 0.0
    if place not in own:
        return 1.0
    if place.part not in _RESOURCES:
        return float(any(it.is_traffic if sign.is_traffic else it.is_bad for it in own[place]))
    return min(1.0, max((it.weight for it in own[place] if it.is_bad), default=0.0) / max(sign.weight, 1e-9))


def _of_total(place: Place, own: Mapping[Place, Sequence[Sign]], sign: Sign) -> float:
    """How much of a finding a place explains because most of it is the place's own, or comes of what happens there."""
    return max((max(_share(part, sign), _brings_about(part, sign)) for part in own.get(place, ())), default=0.0)


def _share(part: Sign, whole: Sign) -> float:
    """The share of a total's deviation that is one of its parts' own; 0 if that is not most of it."""
    if not _is_part(part.place, whole.place):
        return 0.0
    if whole.name in _LOADS and part.is_traffic:
        return min(1.0, part.strength / whole.strength) if (part.more > 0) == (whole.more > 0) else 0.0
    if not part.quantity or part.quantity != whole.quantity:
        return 0.0
    if whole.name in _MEANS:
        return MAJORITY if part.value > 2 * part.expected else 0.0
    if part.more * whole.more <= 0:
        return 0.0
    share = min(1.0, part.more / whole.more)
    return share if share >= MAJORITY else 0.0


def _brings_about(cause: Sign, effect: Sign) -> float:
    """How much of a finding another one brings about elsewhere: failures leave things undone, large requests take long."""
    if cause.more <= 0:
        return 0.0
    if cause.place.part == "agent" and effect.place.part == "tool":
        is_load = cause.name == "calls.request_bytes" and effect.kind == "duration" and effect.more > 0
        return min(1.0, cause.weight / max(effect.weight, 1e-9)) if is_load else 0.0
    if cause.place.part != "tool" or cause.name != "calls.failed_ratio" or not effect.more < 0:
        return 0.0
    (tool,) = cause.place.names
    is_next = effect.name == "calls" and tool == "request_handoff" and _HANDOFF_CALLS.issuperset(effect.place.names)
    comes_of_it = effect.kind in _ADDS_UP and effect.name.startswith(_COMES_OF.get(tool, ()))
    return min(1.0, cause.more / -effect.more) if is_next or comes_of_it else 0.0


def _is_part(part: Place, whole: Place) -> bool:
    """Whether what happens at one place is counted at the other, too."""
    if whole.part == "agent":
        return part.part == "route" and whole.names[0] in part.names
    return part.part in _IN.get(whole.part, ())


def _excused(place: Place, own: Mapping[Place, Sequence[Sign]]) -> float:
    """How much of a place's own findings others account for: what it depends on, or most of what it is the total of.

    What it depends on is no excuse as far as that is a total most of whose deviation is this place's own.
    """
    excuses = {
        other: 1 - _mean(_of_total(place, own, sign) for sign in own[other]) if other in dependencies(place) else 1.0
        for other in own
        if other != place
    }
    total = sum(sign.weight for sign in own[place]) or 1.0
    excused = sum(
        sign.weight * max((share * _explains(other, own, sign) for other, share in excuses.items()), default=0.0)
        for sign in own[place]
    )
    return excused / total


def _mean(shares: Iterable[float]) -> float:
    known = list(shares)
    return sum(known) / len(known)


def _shared(own: Mapping[Place, Sequence[Sign]]) -> list[Place]:
    """What SIBLINGS_MIN places or more depend on, of which nothing was found: the nearest only, not what is below it."""
    counts: dict[Place, int] = {}
    for place, signs in own.items():
        for below in dependencies(place):
            if any(_from_below(below, {}, sign) for sign in signs):
                counts[below] = counts.get(below, 0) + 1
    shared = [place for place, count in counts.items() if count >= SIBLINGS_MIN]
    return sorted(it for it in shared if it not in own and not any(it in dependencies(other) for other in shared))
