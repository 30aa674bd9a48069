"""The shipper sends records in order from a bounded queue, counts what it drops, and never blocks its callers."""

import threading
import time
from collections.abc import Callable, Sequence

from handoff.telemetry.shipper import Shipper, Verdict
from tests.processes import PATIENCE_S


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up, f"it did not come to hold in {PATIENCE_S} s"
        time.sleep(0.005)


class Receiver:
    """A receiver whose verdict a test chooses: taken, refused or away."""

    def __init__(self) -> None:
        self.verdict: Verdict = "taken"
        self.taken: list[int] = []
        self.changes: list[tuple[str, bool, int]] = []

    def __call__(self, records: Sequence[int]) -> Verdict:
        if self.verdict == "taken":
            self.taken += records
        return self.verdict

    def changed(self, name: str, away: bool, dropped: int) -> None:  # noqa: FBT001 - a callback's state
        self.changes.append((name, away, dropped))


def shipper(receiver: Callable[[Sequence[int]], Verdict], queue_max: int = 100) -> Shipper[int]:
    changed = receiver.changed if isinstance(receiver, Receiver) else None
    return Shipper("logs", receiver, queue_max=queue_max, batch_max=8, every_s=0.01, on_change=changed)


def test_every_record_arrives_once_and_in_order() -> None:
    receiver = Receiver()
    out = shipper(receiver, queue_max=1_000)
    for number in range(500):
        out.put(number)
    out.stop(2)

    assert receiver.taken == list(range(500))
    assert (out.state().sent, out.state().dropped, out.state().waiting) == (500, 0, 0)


def test_records_wait_for_an_unreachable_receiver_and_beyond_the_bound_the_oldest_are_dropped_and_counted() -> None:
    receiver = Receiver()
    receiver.verdict = "away"
    out = shipper(receiver, queue_max=100)
    out.put(-1)
    until(lambda: out.state().away_s > 0)  # the first batch is being sent, and stays queued
    for number in range(250):
        out.put(number)

    state = out.state()
    assert (state.waiting, state.dropped, state.sent) == (101, 150, 0)
    receiver.verdict = "taken"
    until(lambda: out.state().sent == 101)
    assert receiver.taken == [-1, *range(150, 250)]
    assert receiver.changes == [("logs", True, 0), ("logs", False, 150)]
    assert out.state().away_s == 0
    out.stop(1)


def test_refused_records_are_counted_and_do_not_block_later_ones() -> None:
    receiver = Receiver()
    receiver.verdict = "refused"
    out = shipper(receiver)
    for number in range(16):
        out.put(number)
    until(lambda: out.state().dropped == 16)
    receiver.verdict = "taken"
    out.put(16)
    out.stop(1)

    assert receiver.taken == [16]
    assert receiver.changes == []


def test_a_record_that_makes_send_raise_is_dropped_and_counted_and_all_others_are_sent_in_order() -> None:
    receiver = Receiver()
    receiver.verdict = "away"

    def failing(records: Sequence[int]) -> Verdict:
        if 3 in records and receiver.verdict == "taken":
            raise ValueError(records)
        return receiver(records)

    out = shipper(failing)
    for number in range(20):
        out.put(number)
    receiver.verdict = "taken"
    until(lambda: out.state().waiting == 0)
    for number in range(20, 40):
        out.put(number)
    out.stop(2)

    assert receiver.taken == [number for number in range(40) if number != 3]
    assert (out.state().sent, out.state().dropped, out.state().waiting) == (39, 1, 0)


def test_a_send_that_always_raises_drops_what_it_is_given_and_says_so() -> None:
    def failing(_: Sequence[int]) -> Verdict:
        raise OSError

    out = shipper(failing)
    for number in range(20):
        out.put(number)
    until(lambda: out.state().dropped == 20)
    out.put(20)
    until(lambda: out.state().dropped == 21)
    out.stop(1)


def test_a_receiver_that_hangs_delays_neither_who_offers_nor_the_end() -> None:
    hang, let_go = threading.Event(), threading.Event()

    def hanging(_: Sequence[int]) -> Verdict:
        hang.wait(PATIENCE_S)
        let_go.set()
        return "taken"

    out = shipper(hanging)
    out.put(0)
    until(lambda: out.state().waiting == 1)
    for number in range(1_000):
        out.put(number)
    out.stop(0.3)
    assert not let_go.is_set(), "it was waited for"
    hang.set()


def test_records_left_at_the_stop_count_as_dropped() -> None:
    receiver = Receiver()
    receiver.verdict = "away"
    out = shipper(receiver)
    for number in range(20):
        out.put(number)
    out.stop(0.2)

    assert (out.state().dropped, out.state().sent) == (20, 0)
