"""A session as its simulated agents know it, and the steps they take in it.

There is no I/O here: a scenario yields steps and is sent the answers.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from handoff.simulation.agents import Fault, SimulatedAgent
from handoff.simulation.text import Topic

UNKNOWN_CALLER_REQUEST: Final = "a request with a token that nobody has"  # used in place of a tool's name
IDEMPOTENT_TOOLS: Final = frozenset(
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


def error_code(answer: Answer) -> str:
    """Return the error code of a refused call, or "" if the call succeeded."""
    return answer.get("error", {}).get("code", "")


class ScenarioFailed(Exception):
    """The session is not in the state that its scenario assumes, so the scenario can't continue.

    The code is that of an unexpected refusal, or names the change that did not happen.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Task:
    """One agent's part in a scenario. It is one trace, sampled or not."""

    agent: str
    number: int
    sampled: bool


@dataclass(frozen=True, slots=True)
class Step:
    """An agent's next call: a tool's name, or the URI of a resource to read.

    `pause_s` is the agent's own time and shrinks as the pace grows; `wait_s` is real time and does not. A mistake lists the
    error codes it may get in `expected_errors`, where "" stands for success. For any other call the list is empty, and the
    call must succeed.
    """

    task: Task
    operation: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    pause_s: float = 0.0
    wait_s: float = 0.0
    expected_errors: tuple[str, ...] = ()


Steps = Generator[Step, Answer, None]
StepsToAnswer = Generator[Step, Answer, Answer]  # returns its last answer


@dataclass(slots=True)
class SimulatedSession:
    """A session and what its agents know about it. The outsider takes no part in it and has no access to it."""

    name: str  # unique; the prefix of every idempotency key
    rng: Random
    topic: Topic
    sender: SimulatedAgent
    receiver: SimulatedAgent
    outsider: SimulatedAgent | None
    agents: tuple[SimulatedAgent, ...] = ()
    faults: frozenset[Fault] = frozenset()
    with_tokens: bool = False
    without_pauses: bool = False
    state_uncertain: bool = False  # a lease or a deadline may end at any moment
    key: str = ""
    owner: SimulatedAgent | None = None
    closed: bool = False
    handoff_id: int = 0
    handoff_token: int = 0
    handoff_state: str = ""
    capability: str = ""  # that the handoff is offered to; "" if it is offered to the receiver by name
    question: int = 0  # the sequence number of the open question; 0 if there is none
    used_keys: dict[str, str] = field(
        default_factory=dict[str, str]
    )  # each agent's latest idempotency key that was answered
    _tasks: dict[str, Task] = field(default_factory=dict[str, Task])
    _keys: int = 0

    def step(
        self, agent: SimulatedAgent, operation: str, /, pauses: float = 1.0, wait_s: float = 0.0, **arguments: Any
    ) -> Step:
        """Create the agent's next step, made after `pauses` times its usual pause plus `wait_s`. Writes get a key."""
        pause_s = 0.0 if self.without_pauses else agent.habits.pause_s * pauses * self.rng.uniform(0.5, 1.5)
        if "://" not in operation:
            arguments = {"agent": agent.name, **arguments}
        if operation in IDEMPOTENT_TOOLS:
            self._keys += 1
            arguments["idempotency_key"] = f"{self.name}/{self._keys}"
        return Step(self.task(agent), operation, arguments, pause_s, wait_s)

    def mistake(self, agent: SimulatedAgent, operation: str, /, *expected_errors: str, **arguments: Any) -> Step:
        """Create a step that is refused with one of the expected error codes."""
        if "://" not in operation:
            arguments = {"agent": agent.name, **arguments}
        pause_s = 0.0 if self.without_pauses else agent.habits.pause_s
        return Step(self.task(agent), operation, arguments, pause_s, 0.0, expected_errors)

    def task(self, agent: SimulatedAgent) -> Task:
        """Return the agent's task in this session."""
        if agent.name not in self._tasks:
            sampled = self.rng.random() < agent.habits.sample_probability
            self._tasks[agent.name] = Task(agent.name, len(self._tasks), sampled)
        return self._tasks[agent.name]
