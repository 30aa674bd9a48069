"""What can be configured while the service runs: the models, their limits, and the thresholds. No I/O.

A configuration holds only what differs from the defaults, except for the retention policies, of which it holds all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SESSION_KEY_CHARS_MAX

POLICY_CHARS_MAX: Final = 50
POLICIES_MAX: Final = 50
FILTERS_MAX: Final = 100
DOCUMENT_BYTES_MAX: Final = 32 << 10  # of a version, as JSON: about 12,000 tokens
DEFAULT_POLICY: Final = "standard"  # which register_session uses if the call names none
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
    "jobs_late_seconds": _seconds(30),
    "jobs_age_seconds": _seconds(120),
    "job_failures": _count(3),
    "job_late_seconds": _seconds(300),
    "detector_lag_seconds": _seconds(900),
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


class MonitoringConfig(_Model):
    """What is watched, how often, and what is logged. What is left out has its default."""

    thresholds: Annotated[dict[str, Any], AfterValidator(_are_thresholds)] = Field(default_factory=dict)
    job_intervals_s: Annotated[dict[str, Any], AfterValidator(_are_intervals)] = Field(default_factory=dict)
    log_level: LogLevel | None = None
    log_filters: Annotated[list[LogFilter], Field(max_length=FILTERS_MAX)] = Field(default_factory=list)  # the first decides


PolicyName = Annotated[str, Field(max_length=POLICY_CHARS_MAX, pattern=NAME_PATTERN)]


class Configuration(_Model):
    """A version of the configuration, as the database holds it."""

    retention: Annotated[dict[PolicyName, RetentionPolicy], Field(max_length=POLICIES_MAX)]
    monitoring: MonitoringConfig = Field(default_factory=MonitoringConfig)

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
