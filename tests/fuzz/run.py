"""Sends many malformed requests to a service, and reports those that it answers badly."""

import asyncio
import json
import random
import re
import subprocess
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import psutil

from tests.fuzz.requests import Request, request
from tests.processes import HANDOFF, PATIENCE_S, Service, environment

AT_ONCE: Final = 8
# Growth after the first quarter, in which caches and pools fill: of the resident memory of the service.
GROWTH_BYTES_MAX: Final = 24 << 20
_DEFECT: Final = re.compile(rb'\\?"code\\?":\s*(\\?"internal\\?"|-32603)|Traceback')


@dataclass(slots=True)
class Outcome:
    """What came of a run: the requests that were answered badly, and the memory after the first quarter and at the end."""

    bad: list[str] = field(default_factory=list[str])
    statuses: dict[int, int] = field(default_factory=dict[int, int])
    memory_bytes: tuple[int, int] = (0, 0)

    @property
    def growth_bytes(self) -> int:
        """How much the service grew after the first quarter."""
        return self.memory_bytes[1] - self.memory_bytes[0]


async def over_http(service: Service, count: int, seed: int) -> Outcome:
    """Send requests to a service, several at a time."""
    outcome = Outcome()
    process = psutil.Process(service.process.pid)
    base = f"http://127.0.0.1:{service.port}"
    async with httpx2.AsyncClient(base_url=base, timeout=PATIENCE_S) as client:

        async def send(numbers: range) -> None:
            for number in numbers:
                sent = request(random.Random(f"{seed}/{number}"))  # noqa: S311 - it must be repeatable
                try:
                    answer = await client.post(sent.path, content=sent.body, headers=sent.headers)
                except httpx2.HTTPError as error:
                    outcome.bad.append(_told(number, sent, f"no answer: {error!r}"))
                    continue
                status = int(answer.status_code)
                outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
                if (status >= 500 and status != 503) or _DEFECT.search(answer.content):
                    outcome.bad.append(_told(number, sent, f"{status} {answer.text[:500]}"))

        first = count // 4
        await asyncio.gather(*(send(range(lane, first, AT_ONCE)) for lane in range(AT_ONCE)))
        before = process.memory_info().rss
        await asyncio.gather(*(send(range(first + lane, count, AT_ONCE)) for lane in range(AT_ONCE)))
        outcome.memory_bytes = (before, process.memory_info().rss)
    return outcome


def over_stdio(database_url: str, count: int, seed: int) -> Outcome:
    """Send the bodies of requests as lines, and end the input. Every line with an id must be answered."""
    outcome = Outcome()
    made = (request(random.Random(f"{seed}/{number}")) for number in range(count))  # noqa: S311 - it must be repeatable
    lines = [one.body.replace(b"\n", b" ") for one in made]
    done = subprocess.run(
        [HANDOFF, "serve", "--stdio"],
        env=environment(database_url=database_url, log_level="error"),
        input=b"\n".join(lines) + b"\n",
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode != 0 or b"Traceback" in done.stderr:
        outcome.bad.append(f"the process ended with status {done.returncode}: {done.stderr.decode()[-2_000:]}")
    said = done.stdout.splitlines()
    outcome.bad += [line.decode()[:500] for line in said if _DEFECT.search(line)]
    asked = [parsed["id"] for line in lines if isinstance(parsed := _parsed(line), dict) and _is_request(parsed)]
    answered = [json.loads(line)["id"] for line in said]
    outcome.bad += [f"no answer to id {number!r}" for number in asked if number not in answered]
    return outcome


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None


def _is_request(parsed: dict[str, Any]) -> bool:
    return type(parsed.get("id")) in (int, str) and not {"result", "error"} & parsed.keys()


def _told(number: int, sent: Request, what: str) -> str:
    return f"request {number}: {sent.path} {dict(sent.headers)} {sent.body[:1_000]!r} -> {what}"
