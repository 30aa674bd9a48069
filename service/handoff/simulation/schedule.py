"""The endless schedule of a simulation: which scenario comes next, who takes part, and how it goes.

Everything follows from the seed; the service's answers only fill in keys, ids and tokens.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

from handoff.model import RequestType
from handoff.simulation import fault_scenarios, scenarios
from handoff.simulation.agents import Fault, SimulatedAgent, create_agents, seeded_random
from handoff.simulation.mistakes import with_mistakes
from handoff.simulation.scenarios import Scenario
from handoff.simulation.steps import SimulatedSession, Steps
from handoff.simulation.text import TOPICS

T = TypeVar("T")

# A batch is shuffled rather than drawn from at random, so that each scenario happens within a few minutes.
SCENARIO_BATCH: Final[tuple[Scenario, ...]] = (
    *(scenarios.completed,) * 6,
    scenarios.accepted_late,
    *(scenarios.rejected,) * 2,
    scenarios.cancelled,
    *(scenarios.blocked,) * 2,
    *(scenarios.lease_lapsed,) * 2,
    scenarios.abandoned,
    scenarios.deadline_missed,
    scenarios.handed_back,
    *(scenarios.inbox_and_cleanup,) * 2,
)
REQUEST_TYPE_BATCH: Final[tuple[RequestType, ...]] = (
    "context_transfer",
    "context_transfer",
    "full_handoff",
    "collaboration",
)
# Added before each batch, so that the fault shows at once and continues.
FAULT_SCENARIOS: Final[dict[Fault, tuple[Scenario, ...]]] = {
    "silent": (scenarios.abandoned,) * 10,
    "ping-pong": (fault_scenarios.ping_pong,) * 2,
    "growing": (fault_scenarios.growing,) * 2,
}


@dataclass(frozen=True, slots=True)
class ScheduledScenario:
    """A scenario that is ready to run: its name, its session and its steps."""

    name: str
    session: SimulatedSession
    steps: Steps


def scheduled_scenarios(
    seed: int, names: Sequence[str], faults: Sequence[Fault] = (), *, run: str = "", with_tokens: bool = False
) -> Generator[ScheduledScenario]:
    """Yield one scenario after another, without end.

    `run` is the prefix of every idempotency key and must be different for each run. The labels given to `seeded_random` are
    part of the seed: changing one changes every schedule.
    """
    agents = create_agents(seed, names, faults)
    fault_batch = [scenario for fault in faults for scenario in FAULT_SCENARIOS.get(fault, ())]
    batches = _shuffled_batches(seeded_random(seed, "plots"), SCENARIO_BATCH, fault_batch)
    request_types = _shuffled_batches(seeded_random(seed, "types"), REQUEST_TYPE_BATCH, ())
    number = 0
    while True:
        number += 1
        scenario, request_type, rng = next(batches), next(request_types), seeded_random(seed, "act", number)
        session = _session(f"{run}/{number}", rng, agents, scenario)
        session.faults, session.with_tokens = frozenset(faults), with_tokens
        yield ScheduledScenario(scenario.__name__, session, with_mistakes(session, scenario(session, request_type)))


def _session(name: str, rng: Random, agents: tuple[SimulatedAgent, ...], scenario: Scenario) -> SimulatedSession:
    if scenario is fault_scenarios.ping_pong:  # always the same two
        sender, receiver = agents[:2]
    elif scenario is fault_scenarios.growing:  # always the same agent writes
        receiver, sender = agents[:2]
    else:
        sender, receiver = rng.sample(agents, 2)
    capability = rng.choice(receiver.capabilities) if rng.random() < sender.habits.capability_probability else ""
    outsiders = [agent for agent in agents if agent not in (sender, receiver) and capability not in agent.capabilities]
    outsider = rng.choice(outsiders) if outsiders else None
    return SimulatedSession(name, rng, rng.choice(TOPICS), sender, receiver, outsider, agents, capability=capability)


def _shuffled_batches(rng: Random, batch: Sequence[T], before_each: Sequence[T]) -> Generator[T]:
    while True:
        shuffled = list(batch)
        rng.shuffle(shuffled)
        yield from (*before_each, *shuffled)
