"""The simulated agents: their names, roles, capabilities and habits. Everything follows from the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, get_args

Fault = Literal["slow", "failing", "silent", "ping-pong", "growing"]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)

NAMES: Final = (
    "ada", "grace", "linus", "margaret", "alan", "barbara", "edsger", "frances", "donald", "radia", "tony", "hedy",
    "ken", "katherine", "niklaus", "karen", "dennis", "adele", "john", "mary", "robin", "sophie", "peter", "evelyn",
)  # fmt: skip

# The capabilities of each role. Each one is listed at least twice, so that with all roles present two agents compete for it.
ROLES: Final = {
    "backend": ("python", "sql"),
    "operations": ("deploy", "monitoring"),
    "testing": ("python", "review"),
    "data": ("sql", "analysis"),
    "security": ("review", "deploy"),
    "research": ("analysis", "writing"),
    "documentation": ("writing", "monitoring"),
}


@dataclass(frozen=True, slots=True)
class Habits:
    """How an agent works. Probabilities are from 0 to 1; times are those at the default pace."""

    pause_s: float  # between two calls of the same task
    response_delay_s: float  # from an offer until the agent sees it
    writes: int  # calls to update_context in one part of a task
    content_bytes: int  # of a typical entry
    read_probability: float  # of reading or searching before each write
    capability_probability: float  # of offering a handoff to a capability instead of a named agent
    deadline_probability: float  # of setting a deadline on an offer
    renew_probability: float  # of renewing the lease halfway through
    repeat_probability: float  # of repeating a call, as after a lost answer
    mistake_probability: float  # of a mistake before each call
    sample_probability: float  # of a task's trace being sampled


@dataclass(frozen=True, slots=True)
class SimulatedAgent:
    """An agent that takes part in the simulation."""

    name: str
    role: str
    capabilities: tuple[str, ...]
    habits: Habits


def seeded_random(*seed: object) -> Random:
    """Return a generator that gives the same numbers for the same seed, on every machine."""
    return Random(":".join(map(str, seed)))  # noqa: S311 - a simulation needs no secure randomness


def create_agents(seed: int, names: Sequence[str], faults: Sequence[Fault] = ()) -> tuple[SimulatedAgent, ...]:
    """Create an agent for each name, with a role and habits."""
    roles = list(ROLES)
    seeded_random(seed, "roles").shuffle(roles)
    agents: list[SimulatedAgent] = []
    for position, name in enumerate(names):
        role = roles[position % len(roles)]
        agents.append(SimulatedAgent(name, role, ROLES[role], _habits(seeded_random(seed, "habits", name), faults)))
    return tuple(agents)


def _habits(rng: Random, faults: Sequence[Fault]) -> Habits:
    return Habits(
        pause_s=rng.uniform(1.5, 4.0),
        response_delay_s=rng.uniform(2.0, 12.0),
        writes=rng.randint(1, 4),
        content_bytes=int(rng.lognormvariate(5.3, 0.5)),  # about 200
        read_probability=rng.uniform(0.1, 0.5),
        capability_probability=rng.uniform(0.1, 0.5),
        deadline_probability=rng.uniform(0.1, 0.4),
        renew_probability=rng.uniform(0.1, 0.5),
        repeat_probability=rng.uniform(0.01, 0.05),
        mistake_probability=rng.uniform(0.01, 0.08) + ("failing" in faults) * 0.7,
        sample_probability=rng.uniform(0.1, 0.5),
    )
