"""The stored form of a detector: one small versioned blob per series.

A detector that is packed and unpacked goes on with the same bits as one that was not. What can be derived from the rest,
such as the fitted tails, is not stored. A series still in its warm-up has a shorter blob with its first points.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from handoff.analytics.detector import PARTS, WARM_UP, Detector, Memory, WarmUp

VERSION: Final = 2  # raise it with every change of a column, and teach `unpack` what the version before had
BYTES_MAX: Final = 4_096
_HEADER_BYTES: Final = 2  # version, whether it is still warming up
GROWN_BYTES: Final = _HEADER_BYTES + sum(part.stored_bytes() for part in PARTS.values())


def pack(detector: Detector) -> list[bytes]:
    """One blob per series, each at most `BYTES_MAX`."""
    warm_up, memory = detector.warm_up, detector.memory
    first = warm_up.pack()
    grown = np.concatenate([part.pack() for part in memory.parts()], axis=1)
    is_young = warm_up.held < WARM_UP
    return [
        bytes((VERSION, young)) + (first[number] if young else grown[number]).tobytes()
        for number, young in enumerate(is_young.tolist())
    ]


def unpack(blobs: Sequence[bytes], step_s: np.ndarray) -> Detector:
    """The detector of these blobs. An empty blob is a series of which nothing is known.

    Raises:
        ValueError: a blob is of a version that this code does not know, or of a wrong length.
    """
    memory, warm_up = Memory.empty(len(blobs)), WarmUp.empty(len(blobs))
    young, grown = [], []
    for number, blob in enumerate(blobs):
        if blob:
            _check(blob)
            (young if blob[1] else grown).append(number)
    if young:
        warm_up.put(np.array(young), WarmUp.unpack(_rows(blobs, young)))
    if grown:
        at, rows, start = np.array(grown), _rows(blobs, grown), 0
        warm_up.held[at] = WARM_UP
        for part in memory.parts():
            end = start + part.stored_bytes()
            part.put(at, part.unpack(rows[:, start:end]))
            start = end
    return Detector(step_s, memory, warm_up)


def _rows(blobs: Sequence[bytes], chosen: list[int]) -> np.ndarray:
    return np.stack([np.frombuffer(blobs[number], np.uint8)[_HEADER_BYTES:] for number in chosen])


def _check(blob: bytes) -> None:
    if blob[0] != VERSION:
        raise ValueError(
            f"The detector's state has version {blob[0]}; this program reads version {VERSION}. Let the series learn anew."
        )
    wanted = _HEADER_BYTES + WarmUp.stored_bytes() if blob[1] else GROWN_BYTES
    if len(blob) != wanted:
        raise ValueError(f"The detector's state has {len(blob)} bytes instead of {wanted}. Let the series learn anew.")
