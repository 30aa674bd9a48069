"""The agents of one run: who has the next turn, what was answered, and whether the service is there."""

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from handoff.simulation import scenarios
from handoff.simulation.agents import Fault
from handoff.simulation.client import Away, Line, backoff
from handoff.simulation.schedule import Act
from handoff.simulation.steps import Answer, Play, Refused, Scene, Step, Task

PACE: Final = 2.0  # calls a second; at this one, agents pause as their habits say
PAUSE_S_MAX: Final = 600.0
OPEN_ACTS_MAX: Final = 8  # an agent
_SURPRISES_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of the agents. `tokens` is empty where the service needs none; `for_s` None is until a signal."""

    url: str
    names: Sequence[str]
    seed: int = 1
    pace: float = PACE
    faults: Sequence[Fault] = ()
    for_s: float | None = None
    tokens: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class Tally:
    """What was done so far. `unmeant` counts the codes of refusals that nobody meant; "none" is a mistake that passed."""

    calls: int = 0
    completed: int = 0
    refused: int = 0
    unmeant: Counter[str] = field(default_factory=Counter[str])

    def note(self, step: Step, answer: Answer) -> None:
        """Count a call that was answered."""
        code = answer.get("error", {}).get("code", "")
        self.calls += 1
        self.refused += bool(code)
        self.completed += answer.get("state") == "completed" and step.arguments.get("action") == "complete"
        if code not in (step.refusals or ("",)):
            self.unmeant[code or "none"] += 1

    def __str__(self) -> str:
        said = f"{self.calls} calls, {self.completed} handoffs completed, {self.refused} refused"
        if self.unmeant:
            named = ", ".join(f"{count} {code}" for code, count in self.unmeant.most_common(_SURPRISES_NAMED))
            said += f" (not as meant: {named})"
        return said


@dataclass(slots=True, eq=False)
class Playing:
    """An act under way: its next step, and the trace of each task in it."""

    scene: Scene
    play: Play
    step: Step
    clearing: bool = False
    traces: dict[Task, str] = field(default_factory=dict[Task, str])

    def traceparent(self) -> str:
        """The W3C trace context of the task to which the next step belongs."""
        task = self.step.task
        if task not in self.traces:
            trace_id, span_id = (random.getrandbits(bits) or 1 for bits in (128, 64))
            self.traces[task] = f"00-{trace_id:032x}-{span_id:016x}-{'01' if task.sampled else '00'}"
        return self.traces[task]

    def go_on(self, answer: Answer) -> bool:
        """Take in an answer; whether there is a next step. A play that is refused is left, and what it began is ended."""
        code = answer.get("error", {}).get("code", "")
        try:
            if code and code not in self.step.refusals:
                self.step = self.play.throw(Refused(code))
            else:
                self.step = self.play.send(answer)
        except StopIteration:
            return False
        except Refused:
            return self.clear_up()
        return True

    def clear_up(self) -> bool:
        """From now on only end what is open; whether anything is."""
        if self.clearing or not self.scene.key or self.scene.closed:
            return False
        self.clearing = True
        self.play = scenarios.leave(self.scene)
        self.step = next(self.play)
        return True


class Company:
    """The agents at work. Their lines are kept open by who made the company."""

    def __init__(self, job: Job, script: Generator[Act]) -> None:
        self.tally = Tally()
        self.lines = {name: Line(job.url, name, job.tokens.get(name), self._miss) for name in job.names}
        self._job = job
        self._script = script
        self._playing: set[Playing] = set()
        self._due: list[tuple[float, int, Playing]] = []
        self._count = 0
        self._calls = 0
        self._something_due = asyncio.Event()
        self._dismissed = asyncio.Event()
        self._there = asyncio.Event()
        self._there.set()
        self._missed_at = 0.0

    @property
    def open_acts(self) -> int:
        """How many acts are under way."""
        return len(self._playing)

    async def run(self) -> None:
        """Give turns, `pace` a second, until dismissed: to the act that waits longest, else to a new one."""
        at = monotonic()
        async with asyncio.TaskGroup() as turns:
            while not self._dismissed.is_set():
                if self._calls:  # of which the first that is answered says that the service is there
                    await self._there.wait()
                playing = self._next()
                if playing is None:
                    await _wait(self._something_due, self._due[0][0] - monotonic() if self._due else None)
                    self._something_due.clear()
                    continue
                self._calls += 1
                turns.create_task(self._turn(playing))
                at = max(at + 1 / self._job.pace, monotonic() - 1)  # what was missed for longer is not made up for
                await _wait(self._dismissed, at - monotonic())

    def dismiss(self) -> None:
        """Give no more turns. `run` ends with the calls that are under way."""
        self._dismissed.set()
        self._something_due.set()

    async def clear_up(self) -> None:
        """End what is open in the acts under way, without pauses."""
        await asyncio.gather(*(self._clear_up(playing) for playing in self._playing))

    async def _clear_up(self, playing: Playing) -> None:
        unclear = playing.clearing or playing.clear_up()
        while unclear:
            try:
                answer = await self.lines[playing.step.task.agent].call(playing.step, playing.traceparent())
            except Away:
                return
            self.tally.note(playing.step, answer)
            unclear = playing.go_on(answer)

    def _next(self) -> Playing | None:
        """Whose turn it is. New acts begin while there are fewer than agents, or nobody else is ready."""
        count, agents = len(self._playing), len(self._job.names)
        nobody_ready = not self._due or self._due[0][0] > monotonic()
        if count < agents or (nobody_ready and count < agents * OPEN_ACTS_MAX):
            act = next(self._script)
            playing = Playing(act.scene, act.play, next(act.play))
            self._playing.add(playing)
            self._queue(playing, 0.0)
        if self._due and self._due[0][0] <= monotonic():
            return heapq.heappop(self._due)[2]
        return None

    def _queue(self, playing: Playing, after_s: float) -> None:
        self._count += 1
        heapq.heappush(self._due, (monotonic() + after_s, self._count, playing))
        self._something_due.set()

    async def _turn(self, playing: Playing) -> None:
        try:
            answer = await self._answer(playing)
        finally:
            self._calls -= 1
        self.tally.note(playing.step, answer)
        if playing.go_on(answer):
            step = playing.step
            self._queue(playing, min(PAUSE_S_MAX, step.pause_s * PACE / self._job.pace) + step.wait_s)
        else:
            self._playing.discard(playing)
            self._something_due.set()

    async def _answer(self, playing: Playing) -> Answer:
        """Make the call, again and again until it is answered: its key makes that safe."""
        pauses = backoff()
        while True:
            try:
                answer = await self.lines[playing.step.task.agent].call(playing.step, playing.traceparent())
            except Away:
                self._miss()
                await asyncio.sleep(next(pauses))
            else:
                self._find()
                return answer

    def _miss(self) -> None:
        if self._there.is_set():
            self._there.clear()
            self._missed_at = monotonic()
            print(f"{self._job.url} does not answer. The agents go on when it does.", flush=True)

    def _find(self) -> None:
        if not self._there.is_set():
            self._there.set()
            print(f"{self._job.url} answers again, after {monotonic() - self._missed_at:.0f} s.", flush=True)


async def _wait(event: asyncio.Event, for_s: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(for_s):
            await event.wait()
