"""What the process did within the last minute, sampled from its own metrics: calls, waits for a connection, CPU time."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, process_time
from typing import Final

from handoff.telemetry import metrics
from handoff.telemetry.instruments import Labels, quantile

WINDOW_S: Final = 60.0
FAILURES: Final = frozenset({"internal", "unavailable", "overloaded"})  # codes of calls that fail because of the service
LONG_WAIT_S: Final = 0.1  # for a connection of the pool; one of the buckets of POOL_WAIT
_SAMPLE_S: Final = 2.0
_WAITS_BY_DESIGN: Final = "get_inbox"  # left out of durations, as in the latency objective


@dataclass(frozen=True, slots=True)
class _Sample:
    """Counts since the process started, and the calls that were in progress at that moment."""

    at: float
    calls: int
    failed: int
    durations: Sequence[int]  # by bucket of OPERATION_DURATION
    acquired: int
    waited: int  # of those, longer than LONG_WAIT_S or in vain
    cpu_s: float
    active: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What happened within `seconds`. Durations are in seconds; `p95_s` is 0 where no call ended."""

    seconds: float
    calls: int
    failed: int
    timed: int  # calls whose duration counts
    p95_s: float
    acquired: int
    waited: int
    cpu_s: float
    active_mean: float


class Recent:
    """The samples of the last minute, taken while `run` is running."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque([_sample()])

    async def run(self) -> None:
        """Take a sample every two seconds, until cancelled."""
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self._samples.append(_sample())
            while self._samples[1].at < monotonic() - WINDOW_S:
                self._samples.popleft()

    def figures(self) -> Figures:
        """What happened from the oldest sample until now."""
        first, last = self._samples[0], _sample()
        durations = [now - then for then, now in zip(first.durations, last.durations, strict=True)]
        active = [sample.active for sample in self._samples]
        return Figures(
            last.at - first.at,
            last.calls - first.calls,
            last.failed - first.failed,
            sum(durations),
            quantile(0.95, metrics.OPERATION_DURATION.bounds, durations),
            last.acquired - first.acquired,
            last.waited - first.waited,
            last.cpu_s - first.cpu_s,
            sum(active) / len(active),
        )


def _sample() -> _Sample:
    calls = {labels: counts for labels, counts in metrics.OPERATION_DURATION.buckets().items() if labels[0] == "tools/call"}
    timed = [counts for labels, counts in calls.items() if labels[1] != _WAITS_BY_DESIGN]
    waits = metrics.POOL_WAIT.buckets().get((), [])
    in_vain = int(metrics.POOL_TIMEOUTS.value())
    short = metrics.POOL_WAIT.bounds.index(LONG_WAIT_S) + 1
    return _Sample(
        at=monotonic(),
        calls=_total(calls),
        failed=_total({labels: counts for labels, counts in calls.items() if labels[3] in FAILURES}),
        durations=[sum(bucket) for bucket in zip(*timed, strict=True)] or [0] * (len(metrics.OPERATION_DURATION.bounds) + 1),
        acquired=sum(waits) + in_vain,
        waited=sum(waits[short:]) + in_vain,
        cpu_s=process_time(),
        active=metrics.ACTIVE_CALLS.value(),
    )


def _total(cells: Mapping[Labels, Iterable[int]]) -> int:
    return sum(map(sum, cells.values()))


def cpu_limit() -> float:
    """The CPUs that this process can use: one, since calls run on one event loop, or its control group's share of one."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(1.0, int(quota) / int(period))  # without a limit, the quota is `max`
    return 1.0
