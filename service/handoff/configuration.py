"""What can be configured while the service runs: the models, their limits, and the thresholds. No I/O.

A configuration holds only what differs from the defaults, except for the retention policies, of which it holds all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SESSION_KEY_CHARS_MAX

POLICY_CHARS_MAX: Final = 50
POLICIES_MAX: Final = 50
FILTERS_MAX: Final = 100
PROMQL_MAX: Final = 20  # expressions, of at most 100 series each; all are read within a minute
SERIES_RULES_MAX: Final = 100
SENSITIVITY_MIN: Final = 0.25
SENSITIVITY_MAX: Final = 4.0
BUDGET: Final = 0.1  # alerts per series and week, below which the detector is calibrated to stay while all is quiet
BUDGET_MIN: Final = 0.01
BUDGET_MAX: Final = 10.0
LABEL_CHARS_MAX: Final = 200
DOCUMENT_BYTES_MAX: Final = 32 << 10  # of a version, as JSON: about 12,000 tokens
DEFAULT_POLICY: Final = "standard"  # which register_session uses if the call names none
TRAIL_MAX: Final = 200  # handoffs of a session, the newest, in which loops are looked for
JOB_INTERVAL_S_MIN: Final = 1.0
JOB_INTERVAL_S_MAX: Final = 7 * 86_400.0
_PROBLEMS_SHOWN: Final = 5

LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number that alerts or the health checks compare with: its default, and the range in which it may be set."""

    default: float
    least: float
    most: float


def _ratio(default: float, most: float = 1) -> Threshold:
    return Threshold(default, 0.001, most)


def _seconds(default: float) -> Threshold:
    return Threshold(default, 0.001, 365 * 86_400)


def _count(default: float) -> Threshold:
    return Threshold(default, 0, 1_000_000_000)


# The one home of every threshold. What it means is said beside it in prometheus/rules/thresholds.yml, which has the same
# defaults for as long as no process serves these, and in docs/health.md.
THRESHOLDS: Final[Mapping[str, Threshold]] = {
    "bad_events_min": _count(5),
    "page_ends_ratio": _ratio(0.5),
    "error_ratio": _ratio(0.05),
    "error_critical_ratio": _ratio(0.5),
    "refusal_ratio": _ratio(0.25),
    "refusals_calls_min": _count(50),
    "tool_slow_seconds": _seconds(2),
    "tool_very_slow_seconds": _seconds(10),
    "tool_very_slow_calls_min": _count(20),
    "concurrent_calls": _count(10),
    "concurrent_calls_critical": _count(20),
    "event_loop_lag_seconds": _seconds(0.25),
    "event_loop_lag_critical_seconds": _seconds(1),
    "memory_ratio": _ratio(0.8),
    "memory_critical_ratio": _ratio(0.95),
    "machine_memory_ratio": _ratio(0.9),
    "cpu_ratio": _ratio(0.8),
    "cpu_critical_ratio": _ratio(0.9),
    "pool_wait_ratio": _ratio(0.05),
    "pool_wait_critical_ratio": _ratio(0.5),
    "burn_1h": _count(14.4),
    "burn_6h": _count(6),
    "burn_1d": _count(3),
    "burn_3d": _count(1),
    "database_slow_seconds": _seconds(0.5),
    "cache_slow_seconds": _seconds(0.5),
    "statement_error_ratio": _ratio(0.05),
    "statements_min": _count(10),
    "slow_statements": _count(5),
    "database_connections_ratio": _ratio(0.8),
    "cache_error_ratio": _ratio(0.05),
    "cache_operations_min": _count(10),
    "cache_hit_ratio": _ratio(0.05),
    "cache_gets_min": _count(100),
    "offer_age_seconds": _seconds(3_600),
    "lapse_ratio": _ratio(0.6, most=100),  # of acceptances, of which each can lapse later, so it can exceed 1
    "lapses_min": _count(10),
    "reject_ratio": _ratio(0.4),
    "rejects_min": _count(10),
    "ping_pong_sessions": _count(0),
    "loop_warnings": _count(20),
    "jobs_late_seconds": _seconds(30),
    "jobs_age_seconds": _seconds(120),
    "job_failures": _count(3),
    "job_late_seconds": _seconds(300),
    "detector_lag_seconds": _seconds(900),
    "webhook_age_seconds": _seconds(600),
    "telemetry_away_seconds": _seconds(60),
    "tokens_refused_seconds": _seconds(10),
    "configuration_refused_seconds": _seconds(10),
    "heartbeat_ratio": _ratio(1, most=100),
    "collector_queue_ratio": _ratio(0.5),
    "disk_ratio": _ratio(0.85),
    "disk_critical_ratio": _ratio(0.95),
    "disk_forecast_seconds": _seconds(86_400),
    "disk_forecast_ratio": _ratio(0.5),
    "storage_forecast_seconds": _seconds(14 * 86_400),
    "certificate_seconds": _seconds(14 * 86_400),
    "certificate_critical_seconds": _seconds(3 * 86_400),
}
# The first must not exceed the second: otherwise the warning would come after the page.
ORDERED: Final = (
    ("error_ratio", "error_critical_ratio"),
    ("tool_slow_seconds", "tool_very_slow_seconds"),
    ("concurrent_calls", "concurrent_calls_critical"),
    ("event_loop_lag_seconds", "event_loop_lag_critical_seconds"),
    ("cpu_ratio", "cpu_critical_ratio"),
    ("memory_ratio", "memory_critical_ratio"),
    ("pool_wait_ratio", "pool_wait_critical_ratio"),
    ("jobs_late_seconds", "jobs_age_seconds"),
    ("disk_ratio", "disk_critical_ratio"),
    ("certificate_critical_seconds", "certificate_seconds"),
)


def _whole(least: int, most: int) -> BeforeValidator:
    def check(value: object) -> object:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return BeforeValidator(check)


def _number_in(value: object, least: float, most: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least:.15g} to {most:.15g}")
    return float(value)


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RetentionPolicy(_Model):
    """How long what belongs to a session is kept."""

    active_hours: Annotated[int, _whole(1, 8_760)]  # after the last activity, until the session expires
    archived_days: Annotated[int, _whole(1, 3_650)]  # after it was archived, until it is deleted
    logs_days: Annotated[int, _whole(1, 3_650)]
    metrics_days: Annotated[int, _whole(1, 3_650)]
    dormant_minutes: Annotated[int, _whole(5, 525_600)]  # after the last activity, until the session is dormant
    keeps_secrets: bool = False  # that agents write into it; otherwise they are redacted

    @model_validator(mode="after")
    def _sleeps_before_it_expires(self) -> "RetentionPolicy":
        if self.dormant_minutes > 60 * self.active_hours:
            raise ValueError(f"dormant_minutes must be at most {60 * self.active_hours}, which is active_hours in minutes")
        return self


class LogFilter(_Model):
    """The lowest level of the log's lines about an event, a tool, an agent or a session, or about several of these."""

    level: Literal["debug", "info", "warning", "error", "off"]
    event: Annotated[str, Field(max_length=100, pattern=r"^[a-z_]+(\.[a-z_]+)+$")] | None = None
    tool: Annotated[str, Field(max_length=100, pattern=NAME_PATTERN)] | None = None
    agent: Annotated[str, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)] | None = None
    session: Annotated[str, Field(max_length=SESSION_KEY_CHARS_MAX, pattern=NAME_PATTERN)] | None = None

    @model_validator(mode="after")
    def _filters_something(self) -> "LogFilter":
        if not any((self.event, self.tool, self.agent, self.session)):
            raise ValueError("needs at least one of event, tool, agent and session; log_level is the level of all others")
        return self


class PromqlSeries(_Model):
    """What is read from Prometheus once a minute and judged as a series; each set of labels is a series of its own."""

    expression: Annotated[str, Field(min_length=1, max_length=1_000)]
    kind: Literal["counter", "count", "duration", "level"] = "level"  # a ratio without its parts is a level
    absence: Literal["zero", "gap", "alert"] = "gap"


def _are_thresholds(value: dict[str, Any]) -> dict[str, float]:
    for name in value:
        if name not in THRESHOLDS:
            raise ValueError(f"{name[:50]!r} is not a threshold; the thresholds are {', '.join(THRESHOLDS)}")
    found = {name: _number_in(it, THRESHOLDS[name].least, THRESHOLDS[name].most, name) for name, it in value.items()}
    for less, more in ORDERED:
        if (least := found.get(less, THRESHOLDS[less].default)) > (most := found.get(more, THRESHOLDS[more].default)):
            raise ValueError(f"{less} is {least:.15g}, but must be at most {more}, which is {most:.15g}")
    return found


def _are_intervals(value: dict[str, Any]) -> dict[str, float]:
    return {name: _number_in(it, JOB_INTERVAL_S_MIN, JOB_INTERVAL_S_MAX, name) for name, it in value.items()}


SeriesName = Annotated[str, Field(max_length=100, pattern=NAME_PATTERN)]


class LoopLimits(_Model):
    """From when on an offer is told that its session goes in circles, and from when on it is refused; None never refuses."""

    rounds: Annotated[int, _whole(1, TRAIL_MAX)] = 2  # from the sender to this target and back, within 24 hours
    depth: Annotated[int, _whole(2, TRAIL_MAX)] = 5  # handoffs that wait for one another, with this one
    handoffs: Annotated[int, _whole(1, TRAIL_MAX)] = 20  # of the session that were accepted so far
    refuse_rounds: Annotated[int, _whole(1, TRAIL_MAX)] | None = None
    refuse_depth: Annotated[int, _whole(2, TRAIL_MAX)] | None = None
    refuse_handoffs: Annotated[int, _whole(1, TRAIL_MAX)] | None = None


class MonitoringConfig(_Model):
    """What is watched, how often, and what is logged. What is left out has its default."""

    thresholds: Annotated[dict[str, Any], AfterValidator(_are_thresholds)] = Field(default_factory=dict)
    job_intervals_s: Annotated[dict[str, Any], AfterValidator(_are_intervals)] = Field(default_factory=dict)
    loops: LoopLimits = Field(default_factory=LoopLimits)
    log_level: LogLevel | None = None
    log_filters: Annotated[list[LogFilter], Field(max_length=FILTERS_MAX)] = Field(default_factory=list)  # the first decides
    promql: Annotated[dict[SeriesName, PromqlSeries], Field(max_length=PROMQL_MAX)] = Field(default_factory=dict)


def _is_a_time(value: object) -> object:
    """Read a time from JSON, which has none of its own."""
    found = value
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            found = None
    if not isinstance(found, datetime) or found.tzinfo is None:
        raise ValueError("must be a time in ISO 8601 with a time zone, for instance 2026-11-29T22:00:00Z")
    return found.astimezone(UTC)


def _is_sensitivity(value: object) -> float:
    return _number_in(value, SENSITIVITY_MIN, SENSITIVITY_MAX, "sensitivity")


def _is_budget(value: object) -> float:
    return _number_in(value, BUDGET_MIN, BUDGET_MAX, "alerts_per_series_week")


Time = Annotated[datetime, BeforeValidator(_is_a_time)]
LabelValue = Annotated[str, Field(min_length=1, max_length=LABEL_CHARS_MAX, pattern=r"^[^\x00-\x1f]+$")]


class SeriesRule(_Model):
    """What is different for the series that it selects: those of this name and with these labels; without any, for all.

    It applies from `since` to `until`, so that muting within a time is a maintenance window.
    """

    series: Annotated[str, Field(max_length=LABEL_CHARS_MAX, pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")] | None = None
    agent: LabelValue | None = None
    tool: LabelValue | None = None
    sender: LabelValue | None = None  # of a route
    target: LabelValue | None = None
    since: Time | None = None
    until: Time | None = None
    sensitivity: Annotated[float, BeforeValidator(_is_sensitivity)] | None = None  # 2: half as unusual is told, too
    muted: bool | None = None  # shown, but nobody is notified
    tell: Literal["learnt", "always"] | None = None  # always: from now on, although the series is still being learnt

    @model_validator(mode="after")
    def _says_something(self) -> "SeriesRule":
        if self.sensitivity is None and self.muted is None and self.tell is None:
            raise ValueError("needs at least one of sensitivity, muted and tell")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("since must be before until")
        return self

    def applies_to(self, name: str, labels: Mapping[str, str], at: datetime) -> bool:
        """Whether it selects a series at this time."""
        wanted = {"agent": self.agent, "from": self.sender, "to": self.target}
        return (
            self.series in (None, name)
            and all(value in (None, labels.get(label)) for label, value in wanted.items())
            and self.tool in (None, labels.get("operation"), labels.get("tool"))
            and (self.since is None or self.since <= at)
            and (self.until is None or at < self.until)
        )


@dataclass(frozen=True, slots=True)
class Watching:
    """How a series is watched: what the strength of its findings is multiplied by, and whether anybody is notified."""

    sensitivity: float = 1.0
    muted: bool = False
    tell: Literal["learnt", "always"] = "learnt"


class AnalyticsConfig(_Model):
    """How series are watched. For each field of a rule, the first rule that selects the series and has the field decides."""

    alerts_per_series_week: Annotated[float, BeforeValidator(_is_budget)] = BUDGET
    series: Annotated[list[SeriesRule], Field(max_length=SERIES_RULES_MAX)] = Field(default_factory=list)

    def watching(self, name: str, labels: Mapping[str, str], at: datetime) -> Watching:
        """How a series is watched at this time."""
        found: dict[str, Any] = {}
        for rule in self.series:
            if rule.applies_to(name, labels, at):
                said = {"sensitivity": rule.sensitivity, "muted": rule.muted, "tell": rule.tell}
                found = {field: value for field, value in said.items() if value is not None} | found
        return Watching(**found)


PolicyName = Annotated[str, Field(max_length=POLICY_CHARS_MAX, pattern=NAME_PATTERN)]


class Configuration(_Model):
    """A version of the configuration, as the database holds it."""

    retention: Annotated[dict[PolicyName, RetentionPolicy], Field(max_length=POLICIES_MAX)]
    monitoring: MonitoringConfig = Field(default_factory=MonitoringConfig)
    analytics: AnalyticsConfig = Field(default_factory=AnalyticsConfig)

    @model_validator(mode="after")
    def _has_the_default_policy(self) -> "Configuration":
        if DEFAULT_POLICY not in self.retention:
            raise ValueError(f"retention must contain {DEFAULT_POLICY!r}, which sessions have whose call names no policy")
        return self


class File(_Model):
    """A configuration file. It holds defaults; retention policies are in the database only, which all processes share."""

    monitoring: MonitoringConfig = Field(default_factory=MonitoringConfig)


def document_of(configuration: Configuration) -> dict[str, Any]:
    """The configuration as JSON values, without what is left out."""
    return {"monitoring": {}, **configuration.model_dump(mode="json", exclude_defaults=True)}


def problems_of(error: ValidationError) -> str:
    """What is wrong, one field after the other, each with what is allowed. Repeats no text that was sent."""
    found = error.errors(include_url=False, include_input=False)
    shown = [
        f"{'.'.join(str(part)[:50] for part in it['loc'] if part != '[key]') or 'the configuration'}: "
        f"{it['msg'].removeprefix('Value error, ')}"
        for it in found[:_PROBLEMS_SHOWN]
    ]
    return "; ".join(shown) + (f" (and {len(found) - _PROBLEMS_SHOWN} more)" if len(found) > _PROBLEMS_SHOWN else "")


def patched(document: Any, patch: Any) -> Any:
    """The document after a JSON merge patch (RFC 7396): null removes a name, objects are merged, all else is replaced."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = patched(merged.get(name), value)
    return merged


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What differs between two documents: the path of each field, and its value in each. A missing value is left out."""
    one, other = dict(_leaves(before)), dict(_leaves(after))
    return [
        {"field": field, **{name: it[field] for name, it in (("from", one), ("to", other)) if field in it}}
        for field in sorted(one.keys() | other.keys())
        if one.get(field) != other.get(field)
    ]


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
