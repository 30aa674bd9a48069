"""Slow, obvious twins of the fast kernels: one series at a time, in plain Python."""

from collections.abc import Sequence
from itertools import pairwise, takewhile
from math import exp, isfinite, log, log10, sqrt
from struct import pack, unpack


def nearest(triples: Sequence[tuple[float, float, float]], point: tuple[float, float, float]) -> tuple[float, float]:
    """Distance of a triple, and of its first two values, to the nearest of the others."""
    three = min(sqrt(sum((a - b) ** 2 for a, b in zip(it, point, strict=True))) for it in triples)
    two = min(sqrt(sum((a - b) ** 2 for a, b in zip(it[:2], point[:2], strict=True))) for it in triples)
    return three, two


def rarity(past: Sequence[float], value: float, *, is_raw: bool) -> float:
    """-log10 of how often a feature has been as large as this, from all its past values."""
    if len(past) < 10:
        return 0.0

    def bin_of(it: float) -> int:
        return min(47, max(0, int((log(max(it, 1e-9)) + 10) * 3)))

    def read(it: float) -> float:
        return exp(it) if is_raw else it

    bins = [bin_of(it) for it in past]
    centres = [read(-10 + (it + 0.5) / 3) for it in bins]
    above = [sum(it >= edge for it in bins) / len(bins) for edge in range(49)]
    first = next(edge for edge in range(49) if above[edge] <= 0.05)
    start = read(-10 + first / 3)
    mean = sum(centres) / len(centres)
    deviation = sqrt(max(0.0, sum(it * it for it in centres) / len(centres) - mean * mean))
    tail = [centre - start for centre, bin_ in zip(centres, bins, strict=True) if bin_ >= first]
    prior = 0.5 * deviation if is_raw else 0.3
    excess = max((sum(tail) + 10 * prior) / (len(tail) + 10), 0.05 * deviation)
    x = value if is_raw else log(max(value, 1e-9))
    if x > start:
        return min(5.0, -log10(max(len(tail), 1) / len(bins)) + (x - start) / (excess * log(10)))
    middle = read(-10 + next(edge for edge in range(49) if above[edge] <= 0.5) / 3)
    at_start = -log10(max(len(tail), 1) / len(bins))
    below = at_start + (x - start) * (at_start - log10(2)) / max(start - middle, 1e-6)
    return min(max(below, 0.0), 1.301)


def fold(points: Sequence[tuple[int, float]], step_s: float, into_s: int) -> list[tuple[int, float, int]]:
    """(start, mean, index of the point that closes it) of each closed bucket."""
    out: list[tuple[int, float, int]] = []
    held: list[float] = []
    bucket, done = -1, -1
    for index, (t, x) in enumerate(points):
        if t // into_s != bucket:
            if bucket not in (-1, done):
                out.append((bucket * into_s, mean_of(held), index))
            bucket, held = t // into_s, []
        if bucket == done:
            continue
        held.append(x)
        if t + step_s >= (bucket + 1) * into_s:
            out.append((bucket * into_s, mean_of(held), index))
            done = bucket
    return out


def mean_of(values: Sequence[float]) -> float:
    measured = [it for it in values if isfinite(it)]
    return sum(measured) / len(measured) if measured else float("nan")


def echoes(rarities: Sequence[float | None]) -> list[bool]:
    """`follow` over one series, from all of its past; None where a point does not count."""
    past: list[float] = []
    found: list[bool] = []
    for rarity in rarities:
        if rarity is None:
            found.append(False)
            continue
        past.append(rarity)
        followed = [(a, b) for a, b in pairwise(past) if a >= 1.6]
        alone = sum(b < 1.3 for _, b in followed)
        is_near = any(it >= 1.6 for it in past[-13:-1])
        found.append(rarity < 1.3 and is_near and len(followed) >= 15 and alone >= 0.9 * len(followed))
    return found


def lasting(unusual: Sequence[float | None], *needed: int) -> list[float]:
    """`follow` over one series, from all of its past; None where nothing was measured."""
    found: list[float] = []
    for at, now in enumerate(unusual):
        past = [it for it in unusual[: at + 1] if it is not None]
        runs = [list(takewhile(lambda it, least=share * 10: it >= least, reversed(past))) for share in (1.0, 0.8)]
        lasts = [min(run) / share for run, share, count in zip(runs, (1.0, 0.8), needed, strict=True) if len(run) >= count]
        found.append(max(lasts, default=0) if now is not None else 0)
    return found


def half(value: float) -> float:
    """What a float16 makes of it."""
    return unpack("<e", pack("<e", value))[0]


def profile(points: Sequence[tuple[int, float, bool]]) -> dict[int, tuple[float, float, float]]:
    """Usual value, lowest and highest of each bin that was visited, from all (bin, value, whether a gap is before it)."""
    visits: list[tuple[int, list[float]]] = []
    usual: dict[int, float] = {}
    band: dict[int, tuple[float, float]] = {}
    spread = 0.0
    for at, value, gap in points:
        if visits and (gap or visits[-1][0] != at):
            left, seen = visits[-1]
            low, high = band.get(left, (min(seen), max(seen)))
            low = min(seen) if min(seen) < low else low + 0.02 * (usual[left] - low)
            high = max(seen) if max(seen) > high else high + 0.02 * (usual[left] - high)
            band[left] = (half(low), half(high)) if left in band else (half(min(seen)), half(max(seen)))
        if not visits or gap or visits[-1][0] != at:
            visits.append((at, []))
        visits[-1][1].append(value)
        if at in usual:
            residual = value - usual[at]
            spread += 0.01 * (min(abs(residual), 5 * spread or abs(residual)) - spread)
            bounded = max(-4 * spread, min(4 * spread, residual))
            known = sum(it == at for it, _ in visits[:-1])
            usual[at] = half(usual[at] + max(1 / (known + 1), 0.15) * bounded)
        else:
            usual[at] = half(value)
    return {at: (usual[at], *band[at]) for at in band}
