"""What a type of `handoff://analytics/{type}` declares, and the parameters of all of them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import Field

from handoff.context import Call
from handoff.errors import Invalid
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, Scope
from handoff.resources.contract import CursorArg, LimitArg, Query, TimeArg
from handoff.store.statistics import Granularity

RANGES: Final[dict[Granularity, timedelta]] = {  # without `since`
    "hour": timedelta(days=2),
    "day": timedelta(days=30),
    "week": timedelta(weeks=26),
    "month": timedelta(days=366),
}


class AnalyticsQuery(Query):
    """Selects a range, the length of its buckets, and rows, and pages. Each type takes some of these parameters."""

    since: TimeArg | None = None
    until: TimeArg | None = None
    granularity: Granularity = "day"
    agent: Annotated[str | None, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)] = None
    policy: Annotated[str | None, Field(max_length=100, pattern=NAME_PATTERN)] = None
    operation: Annotated[str | None, Field(max_length=100, pattern=r"^[\w/:.-]+$")] = None
    series: Annotated[str | None, Field(max_length=200, pattern=NAME_PATTERN)] = None
    cursor: CursorArg = None
    limit: LimitArg = 50


def range_of(query: AnalyticsQuery, default: timedelta) -> tuple[datetime, datetime]:
    """The range from `since`, by default so long ago, to `until`, by default now. Raises Invalid if it is empty."""
    until = query.until or datetime.now(UTC)
    since = query.since or until - default
    if since >= until:
        raise Invalid(
            "invalid_arguments",
            "The range from since to until is empty.",
            "Repeat the call with a since that is before until, both with a time zone.",
        )
    return since, until


@dataclass(frozen=True, slots=True)
class Type:
    """A type of analytics: how it is read, and which parameters of AnalyticsQuery it takes; others are refused.

    `read` is passed the agent whose figures are asked for, which a token may have decided; None is all agents. What belongs
    to no agent needs the scope admin.
    """

    read: Callable[[Call, AnalyticsQuery, str | None], Awaitable[dict[str, Any]]]
    parameters: frozenset[str]
    scope: Scope = "read"
