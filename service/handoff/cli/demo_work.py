"""`handoff demo --work`: checks the options, runs the simulation until a signal, and prints how it is doing."""

import asyncio
import secrets
import signal
from collections.abc import Generator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Final

from handoff.encoding import counted
from handoff.simulation.agents import NAMES, Fault, create_agents
from handoff.simulation.client import ServiceUnusable
from handoff.simulation.options import SimulationOptions
from handoff.simulation.runner import Runner
from handoff.simulation.schedule import ScheduledScenario, scheduled_scenarios

PROGRESS_S: Final = 30.0
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
AGENTS: Final = range(2, len(NAMES) + 1)
PACES: Final = (0.1, 100.0)


class InvalidOptions(ValueError):
    """An option is out of bounds, or the tokens can't be read. The message says what to do."""


def simulation_options(
    url: str,
    *,
    agents: int,
    seed: int,
    pace: float,
    faults: Sequence[Fault],
    for_s: float | None,
    tokens: Mapping[str, str],
    tokens_file: Path | None,
) -> SimulationOptions:
    """Check the options of the command line. If there are tokens, they name the agents. Raises InvalidOptions."""
    if tokens_file is not None:
        tokens = {**_read_tokens(tokens_file), **tokens}
    if agents not in AGENTS or (tokens and len(tokens) not in AGENTS):
        raise InvalidOptions(f"--agents must be from {AGENTS[0]} to {AGENTS[-1]}, and so must the number of tokens.")
    if not PACES[0] <= pace <= PACES[1]:
        raise InvalidOptions(f"--pace must be from {PACES[0]:g} to {PACES[1]:g} calls per second.")
    if for_s is not None and not 0 < for_s < float("inf"):
        raise InvalidOptions("--for must be a number of seconds greater than 0.")
    names = tuple(tokens) or NAMES[:agents]
    return SimulationOptions(url, names, seed, pace, tuple(dict.fromkeys(faults)), for_s, tokens)


def _read_tokens(path: Path) -> dict[str, str]:
    """Read tokens by agent from lines of the form agent=token."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOptions(f"--tokens-file {path}: {error}") from error
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    if not all(agent and token for agent, _, token in pairs):
        raise InvalidOptions(f"--tokens-file {path}: each line must have the form agent=token.")
    return {agent: token for agent, _, token in pairs}


def schedule_for(options: SimulationOptions) -> Generator[ScheduledScenario]:
    """Return the schedule of the options' seed, with idempotency keys that no other run uses."""
    run = f"demo-{secrets.token_hex(4)}"
    return scheduled_scenarios(options.seed, options.names, options.faults, run=run, with_tokens=bool(options.tokens))


async def run_simulation(options: SimulationOptions, schedule: Generator[ScheduledScenario]) -> int:
    """Run the simulation until its time is over or SIGINT or SIGTERM arrives, and return 0.

    A second signal leaves open what is still open.
    If the agents can't work with the service, print what to do and return 1.
    """
    runner = Runner(options, schedule, _print)
    began, stop, leave = monotonic(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        (leave if stop.is_set() else stop).set()

    for signal_number in STOP_SIGNALS:
        loop.add_signal_handler(signal_number, signalled)
    _print_introduction(options)
    progress = asyncio.create_task(_print_progress(runner, began))
    progress.add_done_callback(lambda _: stop.set())  # it ends early only if standard output is closed
    try:
        await runner.run(stop, leave)
    except ServiceUnusable as error:
        print(error)
        return 1
    finally:
        for signal_number in STOP_SIGNALS:
            loop.remove_signal_handler(signal_number)
        progress.cancel()
        await runner.close()
        await asyncio.gather(progress, return_exceptions=True)
    left = f"; {counted(runner.open_scenarios, 'session')} may still be open" if runner.open_scenarios else ""
    _print(f"Stopped after {_elapsed(began)}: {runner.totals}{left}")
    return 0


def _print_introduction(options: SimulationOptions) -> None:
    agents = create_agents(options.seed, options.names, options.faults)
    faults = f", with faults: {', '.join(options.faults)}" if options.faults else ""
    _print(f"{len(agents)} agents call {options.url}: {options.pace:g} calls per second, seed {options.seed}{faults}.")
    _print(", ".join(f"{agent.name} ({agent.role})" for agent in agents))
    _print("Press Ctrl-C to stop.")


async def _print_progress(runner: Runner, began: float) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        _print(f"{_elapsed(began)}  {runner.totals}; {counted(runner.open_scenarios, 'session')} open")


def _elapsed(began: float) -> timedelta:
    return timedelta(seconds=round(monotonic() - began))


def _print(line: str) -> None:
    print(line, flush=True)
