"""The codebook: triples of consecutive values that have been seen, and how far the present one is from the nearest of them.

A pattern that has occurred before is nearby, however odd it looks: this is what tells a daily job from an incident. Ordinary
triples are overwritten as time goes on. Rare ones, far from all others when they came, have slots of their own.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column, to_half

ORDINARY: Final = 64
RARE: Final = 48
TRIPLES: Final = ORDINARY + RARE
_START: Final = 16  # triples that are kept whatever their distance
_NEAR: Final = 0.5  # of the usual distance: nearer ones add nothing
_FAR: Final = 4.0  # times the usual distance: a rare triple
_CAP: Final = 5.0  # times the usual distance: more than that does not move it further
_RATE_MIN: Final = 0.002
_SPREAD: Final = 40_503  # odd, near 2**16 / golden ratio: which ordinary triple is overwritten next
_BLOCK: Final = 1_024  # series at a time: their distances stay in the processor's cache


@dataclass(slots=True)
class Codebook(Columns):
    """Values in the series' unit. An unused triple is infinitely far."""

    triples: Single = column("half", 3, TRIPLES, fill=np.inf, unit=1)
    usual: Single = column("single", unit=1)  # the usual distance to the nearest triple
    ordinary: np.ndarray = column("byte")
    rare: np.ndarray = column("byte")  # how many came, modulo their slots once all are used


def nearest(book: Codebook, x: Single, before: Single, earlier: Single, seen: np.ndarray) -> tuple[Single, Single]:
    """Distance of (x, before, earlier), and of (x, before), to the nearest triple. 0 before four values have been seen."""
    used = int(min(max(int(book.ordinary.max(initial=0)), 1), ORDINARY))
    if used == ORDINARY:
        used += int(min(int(book.rare.max(initial=0)), RARE))
    three, two = np.empty_like(x), np.empty_like(x)
    for start in range(0, len(x), _BLOCK):
        block = slice(start, start + _BLOCK)
        squared = book.triples[0, :used, block] - x[block]
        squared *= squared
        step = book.triples[1, :used, block] - before[block]
        step *= step
        squared += step
        two[block] = squared.min(axis=0)
        np.subtract(book.triples[2, :used, block], earlier[block], out=step)
        step *= step
        squared += step
        three[block] = squared.min(axis=0)
    known = seen >= 4
    return np.where(known, np.sqrt(three), np.float32(0)), np.where(known, np.sqrt(two), np.float32(0))


def learn(
    book: Codebook, x: Single, before: Single, earlier: Single, distance: Single, seen: np.ndarray, measured: Flags
) -> None:
    """Keep the triples that add something."""
    change = np.minimum(distance, _CAP * book.usual + np.where(seen < 50, distance, np.float32(0)))
    change -= book.usual
    change *= np.maximum(1 / (seen + np.float32(1)), _RATE_MIN, dtype=np.float32)
    change *= measured
    book.usual += change
    full = book.ordinary >= ORDINARY
    triple = np.stack((x, before, earlier))
    _insert_ordinary(book, triple, measured & ((distance > _NEAR * book.usual) | (book.ordinary < _START)), seen)
    _insert_rare(book, triple, measured & full & (distance > _FAR * book.usual))


def _insert_ordinary(book: Codebook, triple: Single, chosen: Flags, seen: np.ndarray) -> None:
    at = np.nonzero(chosen)[0]
    full = book.ordinary[at] >= ORDINARY
    slot = np.where(full, (seen[at].astype(np.int64) * _SPREAD) % ORDINARY, book.ordinary[at])
    _write(book, slot, at, triple)
    book.ordinary[at] += ~full


def _insert_rare(book: Codebook, triple: Single, chosen: Flags) -> None:
    at = np.nonzero(chosen)[0]
    if len(at):
        number = book.rare[at]
        _write(book, ORDINARY + number.astype(np.int64) % RARE, at, triple)
        book.rare[at] = np.where(number == 2 * RARE - 1, RARE, number + 1)  # from RARE on all slots are used


def _write(book: Codebook, slot: np.ndarray, at: np.ndarray, triple: Single) -> None:
    places = slot * triple.shape[1] + at
    book.triples.reshape(3, -1)[:, places] = to_half(np.take(triple, at, axis=1))
