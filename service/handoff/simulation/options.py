"""What a simulation is asked to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from handoff.simulation.agents import Fault

DEFAULT_PACE: Final = 2.0  # calls per second; at this pace agents pause as their habits say


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The service to call, the agents that call it, and how.

    `pace` is in calls per second. `tokens` maps agents to bearer tokens and is empty where the service needs none. Without
    `for_s` the simulation runs until it is told to stop.
    """

    url: str
    names: Sequence[str]
    seed: int = 1
    pace: float = DEFAULT_PACE
    faults: Sequence[Fault] = ()
    for_s: float | None = None
    tokens: Mapping[str, str] = field(default_factory=dict[str, str])
