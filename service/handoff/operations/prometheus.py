"""Asks a Prometheus for the values of an expression, bounded in time, bytes and series."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import orjson

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 8 << 20
SERIES_MAX: Final = 100  # of an expression
POINTS_MAX: Final = 10_000  # of a series per question; Prometheus refuses more than 11,000


class PrometheusFailed(Exception):
    """Prometheus did not answer, refused, or answered too much. The message says which, without its address."""


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one series: its labels without the metric's name, and (Unix time in seconds, value) in order."""

    labels: dict[str, str]
    points: Sequence[tuple[int, float]]


async def ask(url: str, expression: str, since: datetime, until: datetime, step_s: int = 60) -> list[Values]:
    """Return the values from `since` to `until`, every `step_s`. Raises PrometheusFailed."""
    found: dict[tuple[tuple[str, str], ...], list[tuple[int, float]]] = {}
    while since <= until:
        end = min(until, since + timedelta(seconds=step_s * (POINTS_MAX - 1)))
        for labels, points in await _ask_once(url, expression, since, end, step_s):
            found.setdefault(tuple(sorted(labels.items())), []).extend(points)
        since = end + timedelta(seconds=step_s)
    if len(found) > SERIES_MAX:
        raise PrometheusFailed(f"the expression has {len(found)} series; at most {SERIES_MAX} are read")
    return [Values(dict(labels), points) for labels, points in found.items()]


async def _ask_once(
    url: str, expression: str, since: datetime, until: datetime, step_s: int
) -> list[tuple[dict[str, str], list[tuple[int, float]]]]:
    import aiohttp  # a large package, for what most processes never do

    asked = {"query": expression, "start": since.timestamp(), "end": until.timestamp(), "step": step_s, "timeout": "9s"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http,
            http.post(f"{url.rstrip('/')}/api/v1/query_range", data=asked) as answer,
        ):
            body = bytearray()
            async for chunk in answer.content.iter_chunked(65_536):
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise PrometheusFailed(f"the answer has more than {ANSWER_BYTES_MAX >> 20} MiB")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise PrometheusFailed(f"it does not answer ({type(error).__name__})") from error
    try:
        return _parsed(orjson.loads(body), answer.status)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PrometheusFailed(f"the answer is not Prometheus's (HTTP status {answer.status})") from error


def _parsed(said: dict[str, Any], status: int) -> list[tuple[dict[str, str], list[tuple[int, float]]]]:
    if said["status"] != "success":
        raise PrometheusFailed(f"it refused: {str(said.get('error', status))[:200]}")
    return [
        (
            {str(name): str(value) for name, value in series["metric"].items() if name != "__name__"},
            [(round(at), float(value)) for at, value in series["values"]],
        )
        for series in said["data"]["result"]
    ]
