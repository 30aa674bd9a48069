"""Sheds load: what callers divide among them, and how much of it one caller may use at a time.

A caller is the agent that a call acts as: the one that its token names or, without a tokens file, the one that the call
names itself. Calls that name nobody, such as reads of resources without tokens, count as one caller: nothing tells them
apart. A connection would not, because whoever wants a larger share opens more of them, and behind a proxy all have one peer.
Without tokens a caller can take any name anyway, so the shares protect agents from each other's mistakes, not from malice.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from handoff.errors import Busy, Unavailable
from handoff.settings import Settings

SUBSCRIPTIONS_MAX: Final = 1_000  # per process
READS_WAITING_MAX: Final = 32  # searches and briefs that wait for their turn, per process


class Share:
    """How much of something bounded each caller uses now. It holds an entry only for callers that use some of it."""

    def __init__(self, name: str, what: str, total: int, settings: Settings) -> None:
        self.name = name
        self.per_caller_max = max(1, int(total * settings.agent_share))
        self._what = what
        self._held: dict[str, int] = {}

    def take(self, caller: str) -> None:
        """Count one more for the caller. Raises Busy if it uses its whole share already."""
        held = self._held.get(caller, 0)
        if held >= self.per_caller_max:
            raise Busy(
                "share_used_up",
                f"Your share of {self._what} is {held}, and all of it is in use at this moment.",
                "Call again when one of them has ended, and make fewer at a time.",
                share=self.name,
            )
        self._held[caller] = held + 1

    def give_back(self, caller: str) -> None:
        """Count one less for the caller."""
        left = self._held[caller] - 1
        if left:
            self._held[caller] = left
        else:
            del self._held[caller]

    @contextmanager
    def held(self, caller: str) -> Generator[None]:
        """Count one more for the caller while the block runs. Raises Busy as `take` does."""
        self.take(caller)
        try:
            yield
        finally:
            self.give_back(caller)


class Turns:
    """Lets a few calls run at a time. The others wait for their turn, which goes round among the callers that wait."""

    def __init__(self, share: Share, *, running_max: int, waiting_max: int, wait_s_max: float) -> None:
        self._share = share
        self._free = running_max
        self._waiting_max = waiting_max
        self._wait_s_max = wait_s_max
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncGenerator[None]:
        """Run the block when it is the caller's turn.

        Raises Busy if the caller's share is used up, and Unavailable if too many wait or its turn does not come in time.
        """
        self._share.take(caller)
        try:
            if self._free:
                self._free -= 1
            else:
                await self._wait(caller)
            try:
                yield
            finally:
                self._pass_on()
        finally:
            self._share.give_back(caller)

    async def _wait(self, caller: str) -> None:
        if sum(map(len, self._waiting.values())) >= self._waiting_max:
            raise _too_many_reads()
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(granted)
        try:
            async with asyncio.timeout(self._wait_s_max):
                await granted
        except BaseException as error:
            if not granted.cancelled():  # the turn came at the same moment
                self._pass_on()
            else:
                self._forget(caller, granted)
            if isinstance(error, TimeoutError):
                raise _too_many_reads() from error
            raise

    def _forget(self, caller: str, granted: asyncio.Future[None]) -> None:
        queue = self._waiting.get(caller)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                del self._waiting[caller]

    def _pass_on(self) -> None:
        while self._waiting:
            caller, queue = self._waiting.popitem(last=False)
            granted = queue.popleft()
            if queue:
                self._waiting[caller] = queue  # behind the others
            if not granted.done():
                granted.set_result(None)
                return
        self._free += 1


class Admission:
    """Everything that callers divide among them in this process. Offers are counted in the database, for all processes."""

    def __init__(self, settings: Settings) -> None:
        self.waits = Share("waits", "calls that wait", settings.waiters_max, settings)
        self.appends = Share("appends", "appends that are being written", settings.append_queue_max, settings)
        self.subscriptions = Share("subscriptions", "open subscriptions", SUBSCRIPTIONS_MAX, settings)
        self.backtest = asyncio.Lock()  # held while one runs
        running_max = max(1, settings.pool_size // 4)  # most of the pool stays free for what is quick
        reads = Share("reads", "searches, briefs and summaries", running_max + READS_WAITING_MAX, settings)
        self.reads = Turns(
            reads, running_max=running_max, waiting_max=READS_WAITING_MAX, wait_s_max=settings.read_wait_s_max
        )


def _too_many_reads() -> Unavailable:
    return Unavailable(
        "overloaded",
        "Too many searches, briefs and summaries are waiting for their turn.",
        "Call again in a few seconds.",
    )
