"""One piece of work: who takes part, what stands so far, and how its next step is made. No I/O: a play yields steps and is
sent answers.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from handoff.simulation.agents import Fault, Person
from handoff.simulation.text import Topic

STRANGE_REQUEST: Final = "a request with a token that nobody has"  # in the place of a tool's name
KEYED: Final = frozenset(
    {
        "register_session",
        "update_context",
        "request_handoff",
        "accept_handoff",
        "renew_handoff",
        "resolve_handoff",
        "close_session",
    }
)
Answer = dict[str, Any]


class Refused(Exception):
    """A step was refused that was not meant to be. The scene is no longer what its play takes it for."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Task:
    """What one agent does in a scene: one trace, which is sampled or not."""

    agent: str
    number: int
    sampled: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What an agent does next: call a tool, or read a resource by its URI.

    `pause_s` is the agent's own time and shrinks as the pace grows; `wait_s` is the clock's and does not. `refusals` are the
    error codes of which a mistake must get one; it is empty where the call must succeed, and "" in it is success.
    """

    task: Task
    call: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    pause_s: float = 0.0
    wait_s: float = 0.0
    refusals: tuple[str, ...] = ()


Play = Generator[Step, Answer, None]
Part = Generator[Step, Answer, Answer]


@dataclass(slots=True)
class Scene:
    """A session, and what its agents know of it. `stranger` takes no part in it and can't."""

    name: str  # no other scene has it; it begins every idempotency key
    chance: Random
    topic: Topic
    sender: Person
    receiver: Person
    stranger: Person | None
    cast: tuple[Person, ...] = ()
    faults: frozenset[Fault] = frozenset()
    with_tokens: bool = False
    hasty: bool = False  # nobody pauses
    timed: bool = False  # leases or deadlines end on their own, so that nobody can be sure of a state
    key: str = ""
    owner: Person | None = None
    closed: bool = False
    handoff_id: int = 0
    token: int = 0
    state: str = ""
    capability: str = ""
    question: int = 0  # the sequence number of an open one
    used_keys: dict[str, str] = field(default_factory=dict[str, str])  # an agent's latest idempotency key that was answered
    _tasks: dict[str, Task] = field(default_factory=dict[str, Task])
    _count: int = 0

    def step(self, person: Person, call: str, pauses: float = 1.0, wait_s: float = 0.0, **arguments: Any) -> Step:
        """What a person does next, after `pauses` times its usual pause and `wait_s` on top. Writes get a key."""
        pause_s = 0.0 if self.hasty else person.habits.pause_s * pauses * self.chance.uniform(0.5, 1.5)
        if "://" not in call:
            arguments = {"agent": person.name, **arguments}
        if call in KEYED:
            self._count += 1
            arguments["idempotency_key"] = f"{self.name}/{self._count}"
        return Step(self.task(person), call, arguments, pause_s, wait_s)

    def slip(self, person: Person, call: str, *refusals: str, **arguments: Any) -> Step:
        """A mistake of a person, and the codes of which it is refused with one."""
        if "://" not in call:
            arguments = {"agent": person.name, **arguments}
        return Step(self.task(person), call, arguments, 0.0 if self.hasty else person.habits.pause_s, 0.0, refusals)

    def task(self, person: Person) -> Task:
        """The person's part in this scene."""
        if person.name not in self._tasks:
            sampled = self.chance.random() < person.habits.traced
            self._tasks[person.name] = Task(person.name, len(self._tasks), sampled)
        return self._tasks[person.name]
