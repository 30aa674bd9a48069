"""The script of a working day without end: which scene follows which, who plays in it, and how it goes. All of it follows
from the seed; the service's answers only fill in keys, ids and tokens.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

from handoff.model import RequestType
from handoff.simulation import scenarios
from handoff.simulation.agents import Fault, Person, cast, dice
from handoff.simulation.mistakes import clumsily
from handoff.simulation.scenarios import Plot
from handoff.simulation.steps import Play, Scene
from handoff.simulation.text import TOPICS

T = TypeVar("T")

# Dealt from a shuffled deck rather than by dice, so that each of them happens within a few minutes.
PLOTS: Final[tuple[Plot, ...]] = (
    *(scenarios.finished,) * 6,
    scenarios.taken_late,
    *(scenarios.rejected,) * 2,
    scenarios.withdrawn,
    *(scenarios.blocked,) * 2,
    *(scenarios.lapsed,) * 2,
    scenarios.forgotten,
    scenarios.overdue,
    scenarios.relayed,
    *(scenarios.rounds,) * 2,
)
REQUEST_TYPES: Final[tuple[RequestType, ...]] = (
    "context_transfer",
    "context_transfer",
    "full_handoff",
    "collaboration",
)
# What a fault puts on top of each deck, so that it shows at once and goes on.
FAULT_PLOTS: Final[dict[Fault, tuple[Plot, ...]]] = {
    "silent": (scenarios.forgotten,) * 10,
    "ping-pong": (scenarios.volley,) * 2,
    "growing": (scenarios.swelling,) * 2,
}


@dataclass(frozen=True, slots=True)
class Act:
    """A scene, the name of its plot, and its play."""

    plot: str
    scene: Scene
    play: Play


def acts(
    seed: int, names: Sequence[str], faults: Sequence[Fault] = (), *, run: str = "", with_tokens: bool = False
) -> Generator[Act]:
    """One act after the other, without end. `run` begins every idempotency key: no two runs may share it."""
    people = cast(seed, names, faults)
    plot_of = _dealt(dice(seed, "plots"), PLOTS, [plot for fault in faults for plot in FAULT_PLOTS.get(fault, ())])
    kind_of = _dealt(dice(seed, "types"), REQUEST_TYPES, ())
    number = 0
    while True:
        number += 1
        plot, kind, chance = next(plot_of), next(kind_of), dice(seed, "act", number)
        scene = _scene(f"{run}/{number}", chance, people, plot)
        scene.faults, scene.with_tokens = frozenset(faults), with_tokens
        yield Act(plot.__name__, scene, clumsily(scene, plot(scene, kind)))


def _scene(name: str, chance: Random, people: tuple[Person, ...], plot: Plot) -> Scene:
    if plot is scenarios.volley:
        sender, receiver = people[:2]
    elif plot is scenarios.swelling:
        receiver, sender = people[:2]
    else:
        sender, receiver = chance.sample(people, 2)
    capability = chance.choice(receiver.capabilities) if chance.random() < sender.habits.delegating else ""
    strangers = [it for it in people if it not in (sender, receiver) and capability not in it.capabilities]
    stranger = chance.choice(strangers) if strangers else None
    return Scene(name, chance, chance.choice(TOPICS), sender, receiver, stranger, people, capability=capability)


def _dealt(chance: Random, cards: Sequence[T], on_top: Sequence[T]) -> Generator[T]:
    while True:
        deck = list(cards)
        chance.shuffle(deck)
        yield from (*on_top, *deck)
