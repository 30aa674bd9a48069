"""Sends records in a thread per signal. Memory is bounded, dropped records are counted, and callers never wait."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Literal, TypeVar

Verdict = Literal["taken", "refused", "away"]  # refused: will never be taken; away: may be taken later
Record = TypeVar("Record")

_PAUSE_S, _PAUSE_S_MAX = 0.5, 15.0


@dataclass(frozen=True, slots=True)
class Shipment:
    """A shipper's state, in records. `away_s` says for how long its receiver has not answered."""

    waiting: int
    sent: int
    dropped: int
    away_s: float


class Shipper(Generic[Record]):
    """Sends records in batches, in order.

    Records that the receiver can't take yet wait in a queue. When it holds `queue_max` records, the oldest are dropped and
    counted. So is a record with which `send` raises; the others of its batch are sent without it. `put` takes about a
    microsecond and never blocks.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[Record]], Verdict],
        *,
        queue_max: int,
        batch_max: int,
        every_s: float,
        on_change: Callable[[str, bool, int], None] | None = None,
    ) -> None:
        self.name = name
        self._send = send
        self._queue: deque[Record] = deque()
        self._queue_max = queue_max
        self._batch_max = batch_max
        self._every_s = every_s
        self._on_change = on_change
        self._batch: list[Record] = []  # used by the thread only; kept until it is taken or refused
        self._singly = False  # whether the batch is sent record by record
        self._sent = 0
        self._refused = 0
        self._overflowed = 0
        self._away_since: float | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"ship-{name}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record."""
        if len(self._queue) >= self._queue_max:
            with self._lock:
                if len(self._queue) >= self._queue_max:
                    self._queue.popleft()
                    self._overflowed += 1
        self._queue.append(record)
        if len(self._queue) == self._batch_max:
            self._wake.set()

    def state(self) -> Shipment:
        """The number of records that wait, were sent and were dropped, and how long the receiver has been away."""
        away = self._away_since
        return Shipment(
            len(self._queue) + len(self._batch),
            self._sent,
            self._refused + self._overflowed,
            0.0 if away is None else monotonic() - away,
        )

    def flush(self, within_s: float) -> None:
        """Wait at most `within_s` seconds until everything queued so far has been sent."""
        give_up = monotonic() + within_s
        while (self._queue or self._batch) and monotonic() < give_up and self._thread.is_alive():
            self._wake.set()
            threading.Event().wait(0.005)

    def stop(self, within_s: float) -> None:
        """Send what is left, for at most `within_s` seconds, and stop. The rest counts as dropped."""
        self._stop_at = monotonic() + within_s
        self._wake.set()
        self._thread.join(within_s + 0.2)

    def _run(self) -> None:
        pause_s = self._every_s
        while self._stop_at is None:
            self._wake.wait(pause_s)
            self._wake.clear()
            pause_s = self._ship_all(pause_s)
        while (self._queue or self._batch) and monotonic() < self._stop_at:
            if self._ship() == "away":
                break
        self._refused += len(self._batch) + len(self._queue)
        self._batch, self._queue = [], deque()

    def _ship_all(self, pause_s: float) -> float:
        """Send until the queue is empty or the receiver is away; return how long to pause, in seconds."""
        while self._batch or self._queue:
            if self._ship() == "away":
                return max(self._every_s, min(_PAUSE_S_MAX, max(_PAUSE_S, pause_s * 2)))
            if self._stop_at is not None:
                break
        return self._every_s

    def _ship(self) -> Verdict:
        if not self._batch:
            with self._lock:
                self._batch = [self._queue.popleft() for _ in range(min(self._batch_max, len(self._queue)))]
        sending = self._batch[:1] if self._singly else self._batch
        try:
            verdict = self._send(sending)
        except Exception:  # noqa: BLE001 - whatever it is, the thread must go on; the records are counted as dropped
            verdict = "refused"
            if len(sending) > 1:
                self._singly = True
                return verdict
        if verdict == "away":
            if self._away_since is None:
                self._away_since = monotonic()
                self._report(away=True)
            return verdict
        if verdict == "taken":
            self._sent += len(sending)
        else:
            self._refused += len(sending)
        self._batch = self._batch[len(sending) :]
        self._singly = self._singly and bool(self._batch)
        if self._away_since is not None:
            self._away_since = None
            self._report(away=False)
        return verdict

    def _report(self, *, away: bool) -> None:
        if self._on_change is not None:
            self._on_change(self.name, away, self._refused + self._overflowed)
