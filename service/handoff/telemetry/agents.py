"""What agents called in this process, counted since it started. Callers choose names, so at most AGENTS_MAX are counted.

These are no metrics: a metric with a label for each agent would have as many series as callers make up names.
"""

from typing import Final, NamedTuple

AGENTS_MAX: Final = 1_000  # 300 KB
_SILENT_MAX: Final = 60  # readings in which an agent called nothing; then it makes room for another


class Called(NamedTuple):
    """Tool calls of an agent, and the bytes of the requests of those that succeeded."""

    calls: int
    refused: int
    succeeded: int
    request_bytes: int


_counts: dict[str, list[int]] = {}  # in the order of Called, and for how many readings nothing was called


def count(agent: str, request_bytes: int, *, is_ok: bool, is_refused: bool) -> None:
    """Count a tool call that has ended. Only one that succeeded makes an agent known: others may name anybody."""
    counts = _counts.get(agent)
    if counts is None:
        if not is_ok or len(_counts) >= AGENTS_MAX:
            return
        counts = _counts[agent] = [0, 0, 0, 0, 0]
    counts[0] += 1
    counts[4] = 0
    if is_ok:
        counts[2] += 1
        counts[3] += request_bytes
    elif is_refused:
        counts[1] += 1


def read() -> dict[str, Called]:
    """The counts of each agent. Who has called nothing for _SILENT_MAX readings is forgotten."""
    for agent, counts in list(_counts.items()):
        counts[4] += 1
        if counts[4] > _SILENT_MAX:
            del _counts[agent]
    return {agent: Called(*counts[:4]) for agent, counts in _counts.items()}
