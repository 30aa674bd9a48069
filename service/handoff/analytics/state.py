"""The stored form of a detector: one small versioned blob per series.

A detector that is packed and unpacked goes on with the same bits as one that was not. A series still in its warm-up has a
shorter blob with its first points.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from handoff.analytics.columns import Columns, Flags
from handoff.analytics.detector import PARTS, WARM_UP, Detector, Memory, WarmUp
from handoff.analytics.earlier import EARLIER

VERSION: Final = 7  # raise it with every change of a column, and teach `earlier` what the version before had
BYTES_MAX: Final = 4_096
_HEADER_BYTES: Final = 3  # version, whether it is still warming up, phase of the histograms
GROWN_BYTES: Final = _HEADER_BYTES + sum(part.stored_bytes() for part in PARTS.values())


def pack(detector: Detector) -> list[bytes]:
    """One blob per series, each at most `BYTES_MAX`."""
    warm_up, memory = detector.warm_up, detector.memory
    first = warm_up.pack()
    grown = np.concatenate([part.pack() for part in memory.parts()], axis=1)
    is_young = warm_up.held < WARM_UP
    return [
        bytes((VERSION, young, phase)) + (first[number] if young else grown[number]).tobytes()
        for number, (young, phase) in enumerate(zip(is_young.tolist(), memory.histograms.phase.tolist(), strict=True))
    ]


def unpack(blobs: Sequence[bytes], step_s: np.ndarray, count_events: Flags | None = None) -> Detector:
    """The detector of these blobs. An empty blob is a series of which nothing is known.

    Steps and which series count events, if any, are not stored.

    Raises:
        ValueError: a blob is of a version that this code does not know, or of a wrong length.
    """
    memory, warm_up = Memory.empty(len(blobs)), WarmUp.empty(len(blobs))
    young: list[int] = []
    grown: dict[int, list[int]] = {}
    for number, blob in enumerate(blobs):
        if blob:
            _check(blob)
            memory.histograms.phase[number] = blob[2]
            (young if blob[1] else grown.setdefault(blob[0], [])).append(number)
    if young:
        warm_up.put(np.array(young), WarmUp.unpack(_rows(blobs, young)))
    for version, numbers in grown.items():
        at, rows = np.array(numbers), _rows(blobs, numbers)
        warm_up.held[at] = WARM_UP
        parts = _parts(rows, _parts_of(version))
        read = EARLIER[version].read(parts) if version in EARLIER else Memory(**parts)
        for part, other in zip(memory.parts(), read.parts(), strict=True):
            part.put(at, other)
    return Detector(step_s, memory, warm_up, count_events)


def _rows(blobs: Sequence[bytes], chosen: list[int]) -> np.ndarray:
    return np.stack([np.frombuffer(blobs[number], np.uint8)[_HEADER_BYTES:] for number in chosen])


def _parts(rows: np.ndarray, parts: Mapping[str, type[Columns]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    start = 0
    for name, part in parts.items():
        end = start + part.stored_bytes()
        read[name] = part.unpack(rows[:, start:end])
        start = end
    return read


def _parts_of(version: int) -> Mapping[str, type[Columns]]:
    return EARLIER[version].parts if version in EARLIER else PARTS


def _grown_bytes(version: int) -> int:
    return sum(part.stored_bytes() for part in _parts_of(version).values())


def _check(blob: bytes) -> None:
    if not 1 <= blob[0] <= VERSION:
        raise ValueError(
            f"The detector's state has version {blob[0]}; this program reads versions 1 to {VERSION}. Let the series "
            "learn anew."
        )
    wanted = _HEADER_BYTES + (WarmUp.stored_bytes() if blob[1] else _grown_bytes(blob[0]))
    if len(blob) != wanted:
        raise ValueError(f"The detector's state has {len(blob)} bytes instead of {wanted}. Let the series learn anew.")
