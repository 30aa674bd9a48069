"""Who is at work: names, what they are good at, and habits. All of it follows from the seed."""

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

# What each role can take over. Every capability stands twice at least, so that two compete for it in a full house.
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
    """How an agent works. Shares are of 1; times are as they are at the default pace."""

    pause_s: float  # between two calls of one task
    late_s: float  # from an offer until it is taken
    diligence: int  # calls that write, in one part of a task
    content_bytes: int  # of a common entry
    curious: float  # how often it reads or searches before it writes
    delegating: float  # how often it hands over to a capability rather than to a name
    reminding: float  # how often it sets a deadline
    renewing: float  # how often it renews its lease in the middle
    repeating: float  # how often it makes a call again, as after an answer that was lost
    clumsy: float  # mistakes a call
    traced: float  # how many of its tasks are sampled


@dataclass(frozen=True, slots=True)
class Person:
    """An agent."""

    name: str
    role: str
    capabilities: tuple[str, ...]
    habits: Habits


def dice(*seed: object) -> Random:
    """Chance that is the same for the same seed, on every machine."""
    return Random(":".join(map(str, seed)))  # noqa: S311 - a play, not a secret


def cast(seed: int, names: Sequence[str], faults: Sequence[Fault] = ()) -> tuple[Person, ...]:
    """The agents of these names, each with a role and habits."""
    roles = list(ROLES)
    dice(seed, "roles").shuffle(roles)
    return tuple(
        Person(
            name, roles[place % len(roles)], ROLES[roles[place % len(roles)]], _habits(dice(seed, "habits", name), faults)
        )
        for place, name in enumerate(names)
    )


def _habits(chance: Random, faults: Sequence[Fault]) -> Habits:
    return Habits(
        pause_s=chance.uniform(1.5, 4.0),
        late_s=chance.uniform(2.0, 12.0),
        diligence=chance.randint(1, 4),
        content_bytes=int(chance.lognormvariate(5.3, 0.5)),  # about 200
        curious=chance.uniform(0.1, 0.5),
        delegating=chance.uniform(0.1, 0.5),
        reminding=chance.uniform(0.1, 0.4),
        renewing=chance.uniform(0.1, 0.5),
        repeating=chance.uniform(0.01, 0.05),
        clumsy=chance.uniform(0.01, 0.08) + ("failing" in faults) * 0.7,
        traced=chance.uniform(0.1, 0.5),
    )
