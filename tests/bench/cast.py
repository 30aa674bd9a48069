"""Who acts in the recorded faults, and what goes wrong."""

from dataclasses import dataclass
from typing import Final

from handoff.simulation.agents import NAMES, Fault


@dataclass(slots=True)
class Conditions:
    """What is wrong at present; nothing by default."""

    agents: tuple[Fault, ...] = ()  # that the demo can be asked for
    absent: frozenset[str] = frozenset()  # agents
    pace: float = 1.0  # times the usual number of calls
    statement_s: float = 0.0  # by which every statement is slower
    slow_statement: str = ""  # those whose name begins so are slower by `slow_statement_s`
    slow_statement_s: float = 0.0
    acquire_s: float = 0.0  # mean wait for a connection of the pool
    leak_bytes: float = 0.0  # per minute
    stolen: float = 1.0  # times as long as everything in the process takes
    redis_away: bool = False
    refused_table: str = ""  # into which nothing can be inserted


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault: what is wrong, and where it is: any of these places is right."""

    name: str
    conditions: Conditions
    at: tuple[tuple[str, ...], ...]  # the part and its names


@dataclass(frozen=True, slots=True)
class Cast:
    """Agents, the seed of their habits and plans, and the faults that befall them. The first three are those at fault."""

    names: tuple[str, ...]
    seed: int
    much: float = 1.0  # times the amounts below
    slow_statement: str = "search"
    slow_tool: str = "search_context"
    refused_table: str = "handoff"
    refused_tools: tuple[str, ...] = ("request_handoff",)  # those that write into it

    @property
    def faults(self) -> tuple[Injected, ...]:
        """The faults, in the order of the numbers of their recordings."""
        one, other, third = self.names[:3]
        much, at = self.much, "service"
        return (
            Injected("slow agents (--fault slow)", Conditions(agents=("slow",)), ((at,),)),
            Injected("agents that make mistakes (--fault failing)", Conditions(agents=("failing",)), ((at,),)),
            Injected("agents that vanish (--fault silent)", Conditions(agents=("silent",)), ((at,),)),
            Injected(
                "ping-pong (--fault ping-pong)",
                Conditions(agents=("ping-pong",)),
                (("route", one, other), ("route", other, one)),
            ),
            Injected("entries that grow (--fault growing)", Conditions(agents=("growing",)), (("agent", other),)),
            Injected("a drop in traffic", Conditions(pace=0.1 / much), ((at,),)),
            Injected("an agent that is gone", Conditions(absent=frozenset({third})), (("agent", third),)),
            Injected(
                "latency of one tool",
                Conditions(slow_statement=self.slow_statement, slow_statement_s=0.3 * much),
                (("tool", self.slow_tool),),
            ),
            Injected(
                "errors of one tool",
                Conditions(refused_table=self.refused_table),
                tuple(("tool", it) for it in self.refused_tools),
            ),
            Injected("Postgres is slow", Conditions(statement_s=0.03 * much), (("database",),)),
            Injected("Redis is away", Conditions(redis_away=True), (("cache",),)),
            Injected("the pool is exhausted", Conditions(acquire_s=0.3 * much), (("pool",),)),
            Injected("a memory leak", Conditions(leak_bytes=1.5e6 * much), (("host",),)),
            Injected("the processor is taken", Conditions(stolen=8.0 * much), (("host",),)),
        )


CAST: Final = Cast(NAMES[:6], 1)
# Other agents with other habits, weaker faults, other tools. No rule was chosen with these recordings in view.
HELD_OUT: Final = Cast(
    NAMES[6:14], 7, 0.6, "offers", "request_handoff", "context_entry", ("register_session", "update_context")
)
