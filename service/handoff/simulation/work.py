"""Agents at work against a service, at a chosen pace, until they are told to stop."""

import asyncio
import secrets
import signal
from collections.abc import Generator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final

from handoff.simulation.agents import NAMES, Fault, cast
from handoff.simulation.client import Unwelcome
from handoff.simulation.runner import Company, Job
from handoff.simulation.schedule import Act, acts

REPORT_S: Final = 30.0
CALLS_LEFT_S: Final = 0.3  # what calls under way have at the end
CANCEL_S: Final = 0.1  # and those that do not end by then
CLEARING_S: Final = 1.2  # and then the clearing up: Ctrl-C is to end all within 2 s
ENDED_BY: Final = (signal.SIGINT, signal.SIGTERM)
AGENTS: Final = range(2, len(NAMES) + 1)
PACES: Final = (0.1, 100.0)


class JobImpossible(ValueError):
    """What was asked is beyond a bound, or the tokens can't be read. The message says what to do."""


def job_of(
    url: str,
    *,
    agents: int,
    seed: int,
    pace: float,
    faults: Sequence[Fault],
    for_s: float | None,
    tokens: Mapping[str, str],
    tokens_file: Path | None,
) -> Job:
    """What is asked of the agents. Where there are tokens, they name the agents. Raises JobImpossible."""
    if tokens_file is not None:
        tokens = {**_tokens(tokens_file), **tokens}
    if agents not in AGENTS or (tokens and len(tokens) not in AGENTS):
        raise JobImpossible(f"{AGENTS[0]} to {AGENTS[-1]} agents can work: --agents, or as many tokens.")
    if not PACES[0] <= pace <= PACES[1]:
        raise JobImpossible(f"--pace is {PACES[0]:g} to {PACES[1]:g} calls a second.")
    if for_s is not None and not 0 < for_s < float("inf"):
        raise JobImpossible("--for is a number of seconds above 0.")
    return Job(url, tuple(tokens) or NAMES[:agents], seed, pace, tuple(dict.fromkeys(faults)), for_s, tokens)


def _tokens(path: Path) -> dict[str, str]:
    """Agents and their tokens, from lines of agent=token."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise JobImpossible(f"--tokens-file {path}: {error}") from error
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    if not all(agent and token for agent, _, token in pairs):
        raise JobImpossible(f"--tokens-file {path}: each line is agent=token.")
    return {agent: token for agent, _, token in pairs}


def script_of(job: Job) -> Generator[Act]:
    """The script that the job's seed gives, with idempotency keys that no other run has."""
    return acts(job.seed, job.names, job.faults, run=f"demo-{secrets.token_hex(4)}", with_tokens=bool(job.tokens))


async def work(job: Job, script: Generator[Act]) -> int:
    """Let agents work until the time is over, or SIGINT or SIGTERM comes; 0.

    A service that is away is waited for. One that does not let them in ends it: a sentence says what to do, and 1.
    """
    company = Company(job, script)
    _introduce(job)
    began, told_to_stop = monotonic(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in ENDED_BY:
        loop.add_signal_handler(name, told_to_stop.set)
    lines = [asyncio.create_task(line.run()) for line in company.lines.values()]
    turns = asyncio.create_task(company.run())
    reports = asyncio.create_task(_report(company, began))
    told = asyncio.create_task(told_to_stop.wait())
    everything: list[asyncio.Task[Any]] = [*lines, turns, reports, told]
    try:
        ended, _ = await asyncio.wait(everything, timeout=job.for_s, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()  # raises what went wrong
        company.dismiss()
        await asyncio.wait((turns,), timeout=CALLS_LEFT_S)
        turns.cancel()
        await asyncio.wait((turns,), timeout=CANCEL_S)
        clearing = asyncio.create_task(company.clear_up())
        await asyncio.wait((clearing,), timeout=CLEARING_S)
        clearing.cancel()
    except Unwelcome as error:
        print(error)
        return 1
    finally:
        for name in ENDED_BY:
            loop.remove_signal_handler(name)
        await _end(everything)
    print(f"Ended after {_clock(began)}: {company.tally}", flush=True)
    return 0


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel until all have ended: a client whose connection is just breaking may take a cancellation for its own."""
    while any(not task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCEL_S)
    await asyncio.gather(*tasks, return_exceptions=True)


def _introduce(job: Job) -> None:
    people = ", ".join(f"{person.name} ({person.role})" for person in cast(job.seed, job.names, job.faults))
    faults = f", with faults: {', '.join(job.faults)}" if job.faults else ""
    print(
        f"At work on {job.url}, {job.pace:g} calls a second, seed {job.seed}{faults}. Ctrl-C ends it.\n{people}", flush=True
    )


async def _report(company: Company, began: float) -> None:
    while True:
        await asyncio.sleep(REPORT_S)
        print(f"{_clock(began)}  {company.tally}; {company.open_acts} sessions open", flush=True)


def _clock(began: float) -> timedelta:
    return timedelta(seconds=round(monotonic() - began))
