"""Runs a schedule against a service: which scenario makes the next call, at what pace, and what happens at the end."""

import asyncio
import heapq
import random
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from handoff.simulation.cleanup import clean_up_session
from handoff.simulation.client import AgentClient, NoAnswer, backoff
from handoff.simulation.options import DEFAULT_PACE, SimulationOptions
from handoff.simulation.schedule import ScheduledScenario
from handoff.simulation.steps import Answer, ScenarioFailed, SimulatedSession, Step, Steps, Task, error_code
from handoff.simulation.totals import Totals

PAUSE_S_MAX: Final = 600.0
SCENARIOS_PER_AGENT_MAX: Final = 8
# At the end, one after another.
PENDING_CALLS_S: Final = 15.0  # what a call that is cut off has begun is known to nobody, and stays open
CANCEL_S: Final = 0.1
RETRY_S: Final = 0.1
CLEANUP_S: Final = 60.0  # what is open takes under a second to close, unless the machine or the service is slow
SLOW_S: Final = 2.0  # after which whoever waits is told why


@dataclass(slots=True, eq=False)
class RunningScenario:
    """A scenario that has begun: its next step, and the trace of each task in it."""

    session: SimulatedSession
    steps: Steps
    next_step: Step
    cleaning_up: bool = False
    asked: bool = False  # whether its first call was made
    traceparents: dict[Task, str] = field(default_factory=dict[Task, str])

    def traceparent(self) -> str:
        """Return the W3C trace context of the next step's task."""
        task = self.next_step.task
        if task not in self.traceparents:
            trace_id, span_id = (random.getrandbits(bits) or 1 for bits in (128, 64))
            self.traceparents[task] = f"00-{trace_id:032x}-{span_id:016x}-{'01' if task.sampled else '00'}"
        return self.traceparents[task]

    def advance(self, answer: Answer) -> bool:
        """Take an answer and return whether there is a next step. After an unexpected refusal the rest is cleanup."""
        code = error_code(answer)
        try:
            if code and code not in self.next_step.expected_errors:
                self.next_step = self.steps.throw(ScenarioFailed(code))
            else:
                self.next_step = self.steps.send(answer)
        except StopIteration:
            return False
        except ScenarioFailed:
            return self.start_cleanup()
        return True

    def start_cleanup(self) -> bool:
        """Replace the remaining steps by those that end what is open; return whether there are any."""
        if self.cleaning_up or not self.session.key or self.session.closed:
            return False
        self.cleaning_up = True
        self.steps = clean_up_session(self.session)
        self.next_step = next(self.steps)
        return True


class Runner:
    """Runs the scenarios of a schedule. `run` ends when it is told to; `close` must follow it.

    `report` is given a sentence when the service stops answering, and when it answers again.
    """

    def __init__(
        self, options: SimulationOptions, schedule: Generator[ScheduledScenario], report: Callable[[str], None]
    ) -> None:
        self.totals = Totals()
        self._options = options
        self._schedule = schedule
        self._report = report
        self._clients = {
            name: AgentClient(options.url, name, options.tokens.get(name), self._unreachable) for name in options.names
        }
        self._connections: list[asyncio.Task[None]] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._running: set[RunningScenario] = set()
        self._queue: list[tuple[float, int, RunningScenario]] = []  # a heap: due time, order of arrival
        self._queued = 0
        self._pending_calls = 0
        self._queue_changed = asyncio.Event()
        self._finishing = asyncio.Event()
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._unreachable_since = 0.0

    @property
    def open_scenarios(self) -> int:
        """How many scenarios have begun and not ended."""
        return len(self._running)

    async def run(self, stop: asyncio.Event, leave: asyncio.Event) -> None:
        """Let the agents work until `stop` is set or the time is over, and clean up. Raises ServiceUnusable.

        While the service is unreachable, the agents wait for it. Once `leave` is set, what is still open stays open.
        """
        self._connections = [asyncio.create_task(client.run()) for client in self._clients.values()]
        calls = asyncio.create_task(self._make_calls())
        self._tasks = [calls, asyncio.create_task(stop.wait())]
        ended, _ = await asyncio.wait(
            self._connections + self._tasks, timeout=self._options.for_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in ended:
            task.result()  # raises what went wrong
        self._finishing.set()
        self._queue_changed.set()
        finish = asyncio.create_task(self._finish(calls))
        left = asyncio.create_task(leave.wait())
        self._tasks += [finish, left]
        done, _ = await asyncio.wait((finish, left), timeout=SLOW_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._report("Closing what is open. Press Ctrl-C again to leave it open.")
            await asyncio.wait((finish, left), timeout=CLEANUP_S, return_when=asyncio.FIRST_COMPLETED)

    async def _finish(self, calls: "asyncio.Task[None]") -> None:
        """Let the pending calls end, then close what is open."""
        await asyncio.wait((calls,), timeout=PENDING_CALLS_S)
        calls.cancel()
        await asyncio.wait((calls,), timeout=CANCEL_S)
        await self._clean_up()

    async def close(self) -> None:
        """End the calls, then close the agents' connections."""
        self._finishing.set()
        for task in self._tasks:
            if not task.cancelling():  # a second cancellation would interrupt what the first one closes
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients.values():
            client.close()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _make_calls(self) -> None:
        """Start calls at the chosen pace until the run ends. Ends with the calls that are pending."""
        at = monotonic()
        async with asyncio.TaskGroup() as calls:
            while not self._finishing.is_set():
                if self._pending_calls:  # the first of them to be answered shows that the service is reachable
                    await self._reachable.wait()
                scenario = self._next_scenario()
                if scenario is None:
                    await _wait(self._queue_changed, self._queue[0][0] - monotonic() if self._queue else None)
                    self._queue_changed.clear()
                    continue
                self._pending_calls += 1
                calls.create_task(self._make_call(scenario))
                at = max(at + 1 / self._options.pace, monotonic() - 1)  # a delay of more than 1 s is not made up for
                await _wait(self._finishing, at - monotonic())

    def _next_scenario(self) -> RunningScenario | None:
        """Return the scenario that has been due for longest.

        A new one begins while there are fewer than agents, or when no other is due.
        """
        count, agents = len(self._running), len(self._options.names)
        none_due = not self._queue or self._queue[0][0] > monotonic()
        if count < agents or (none_due and count < agents * SCENARIOS_PER_AGENT_MAX):
            scheduled = next(self._schedule)
            scenario = RunningScenario(scheduled.session, scheduled.steps, next(scheduled.steps))
            self._running.add(scenario)
            self._enqueue(scenario, 0.0)
        if self._queue and self._queue[0][0] <= monotonic():
            return heapq.heappop(self._queue)[2]
        return None

    def _enqueue(self, scenario: RunningScenario, after_s: float) -> None:
        self._queued += 1
        heapq.heappush(self._queue, (monotonic() + after_s, self._queued, scenario))
        self._queue_changed.set()

    async def _make_call(self, scenario: RunningScenario) -> None:
        try:
            answer = await self._call_until_answered(scenario)
        except NoAnswer:
            return
        finally:
            self._pending_calls -= 1
        self.totals.add(scenario.next_step, answer)
        if scenario.advance(answer):
            step = scenario.next_step
            pause_s = min(PAUSE_S_MAX, step.pause_s * DEFAULT_PACE / self._options.pace)
            self._enqueue(scenario, pause_s + step.wait_s)
        else:
            self._running.discard(scenario)
            self._queue_changed.set()

    async def _call_until_answered(self, scenario: RunningScenario) -> Answer:
        """Make the scenario's next call, repeatedly until it is answered; its idempotency key makes that safe.

        Raises NoAnswer if the run ends first.
        """
        pauses = backoff()
        while True:
            try:
                answer = await self._call(scenario)
            except NoAnswer:
                if self._finishing.is_set():
                    raise
                self._unreachable()
                await asyncio.sleep(next(pauses))
            else:
                self._reachable_again()
                return answer

    async def _call(self, scenario: RunningScenario) -> Answer:
        step = scenario.next_step
        scenario.asked = True
        return await self._clients[step.task.agent].call(step, scenario.traceparent())

    async def _clean_up(self) -> None:
        """End what is open in all running scenarios, without pauses."""
        await asyncio.gather(*(self._clean_up_scenario(scenario) for scenario in self._running))

    async def _clean_up_scenario(self, scenario: RunningScenario) -> None:
        if scenario.asked and not scenario.session.key:  # its session may be there: the same call, repeated, tells
            await self._answered(scenario)
        has_step = scenario.cleaning_up or scenario.start_cleanup()
        while has_step:
            has_step = await self._answered(scenario)
        self._running.discard(scenario)

    async def _answered(self, scenario: RunningScenario) -> bool:
        """Make the scenario's next call until it is answered; return whether there is another one."""
        while True:
            try:
                answer = await self._call(scenario)
            except NoAnswer:  # also when all scenarios together ask for more than an agent's share
                await asyncio.sleep(RETRY_S)
                continue
            self.totals.add(scenario.next_step, answer)
            return scenario.advance(answer)

    def _unreachable(self) -> None:
        if self._reachable.is_set():
            self._reachable.clear()
            self._unreachable_since = monotonic()
            self._report(f"{self._options.url} does not answer. The agents continue when it does.")

    def _reachable_again(self) -> None:
        if not self._reachable.is_set():
            self._reachable.set()
            self._report(f"{self._options.url} answers again, after {monotonic() - self._unreachable_since:.0f} s.")


async def _wait(event: asyncio.Event, for_s: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(for_s):
            await event.wait()
