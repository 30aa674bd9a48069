"""Waits that end by what has happened, not by how many seconds it took.

In one turn of a stack every target is scraped, every process pushes its metrics, and then every rule is evaluated. What has
not shown its effect after many turns will not show it, however slow the machine is; a slow machine only takes longer turns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic, sleep, time
from typing import Any, Final

import httpx2

# At the pace that ships a turn takes a minute, because some rules are evaluated once per minute; at the quick pace of the
# drills, 2 or 3 s.
TURNS: Final = 5
# Without a single turn for so long, or without a Prometheus that could count them, nothing will come: something hangs.
STALLED_S: Final = 300
POLL_S: Final = 0.5
# What was heard of within the last minute is expected again, even if it is late; what is silent for longer has been stopped.
ARRIVALS: Final = "max by (job) (timestamp(up)) or max by (service_name) (timestamp(handoff_build_info))"
EVALUATIONS: Final = "max by (rule_group) (prometheus_rule_group_last_evaluation_timestamp_seconds)"
EXPECTED_AGAIN: Final = "1m"

Times = Mapping[str, float]


@dataclass
class Turns:
    """Counts turns. `seen` returns the Unix times of the latest arrivals and of the latest evaluations, by source. `took_s`
    has the seconds that each turn took.
    """

    seen: Callable[[], tuple[Times, Times]]
    took_s: list[float] = field(default_factory=list[float])
    _began: float = field(default_factory=time)
    _since: float = 0
    _arrived: bool = False

    def __post_init__(self) -> None:
        self._since = self._began

    @property
    def count(self) -> int:
        """The number of turns so far."""
        return len(self.took_s)

    def look(self) -> int:
        """The number of turns so far. A turn ends only if it is looked at, so look often."""
        now = time()
        arrivals, evaluations = self.seen()
        if not self._arrived and arrivals and min(arrivals.values()) > self._since:
            self._arrived, self._since = True, now
        if self._arrived and evaluations and min(evaluations.values()) > self._since:
            self.took_s.append(now - self._began)
            self._arrived, self._since, self._began = False, now, now
        return self.count


class Vain(AssertionError):
    """What was waited for did not happen."""


def eventually(
    what: Callable[[], Any],
    *,
    show: Callable[[], Any] = str,
    turns: Turns | None = None,
    most: int = TURNS,
    retried: tuple[type[Exception], ...] = (httpx2.HTTPError,),
    stalled_s: float = STALLED_S,
) -> Any:
    """Call `what()` until it returns something true, and return that. Errors of the classes `retried` count as not yet.

    Fails, with the result of `show()`, after `most` turns, or if nothing turned for `stalled_s` seconds.
    """
    began = turned = monotonic()
    count, error = 0, None
    while True:
        try:
            if found := what():
                return found
            error = None
        except retried as failed:
            error = failed
        if turns is not None:
            try:
                seen = turns.look()
            except retried:  # Prometheus itself is stopped or starting
                seen = count
            if seen > count:
                count, turned = seen, monotonic()
        if count >= most or monotonic() - turned > stalled_s:
            break
        sleep(POLL_S)
    passed = f"nothing after {count} turns of the stack, in {monotonic() - began:.0f} s"
    if count < most:
        passed += f", the last {monotonic() - turned:.0f} s of them without a turn"
    raise Vain(f"{passed}: {_shown(show)}" + (f"; {error}" if error else ""))


def _shown(show: Callable[[], Any]) -> str:
    """What `show` says. It must not hide the failure by another one."""
    try:
        return str(show())
    except Exception as error:  # noqa: BLE001 - the program that it asks may be what failed
        return f"(nothing to show: {error})"
