"""Logs: each structlog event is one JSON object per line, on a stream and, where telemetry is on, by OTLP.

Content, tokens and SQL are never logged, and what looks like a secret is redacted before a line is written. The rules for
redaction are SECRET_KEYS (names of fields) and _SECRET (patterns of values).
"""

import atexit
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import time_ns
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TextIO

import orjson
import structlog

from handoff.telemetry import calls
from handoff.telemetry.filters import LEVELS, Filters
from handoff.telemetry.shipper import Shipper, Verdict

_QUEUE_MAX = 50_000
_BATCH_MAX = 2_000
_EVERY_S = 0.1
_FLUSH_S = 2.0
_CHATTY: Final = (
    "uvicorn",
    "mcp",
    "httpx2",
)  # below the level warning, they report what clients do
_SILENT: Final = (
    "opentelemetry",
    "requests",
    "urllib3",
)  # what the exporters use: a line per export would itself have to be exported; otlp.py reports a failure once

_DETAIL = re.compile(r"\nDETAIL:.*?(?=\n\n(?:During handling|The above exception)|\Z)", re.DOTALL)
SECRET_KEYS: Final = frozenset(
    {
        "authorization",
        "cookie",
        "token",
        "password",
        "passwd",
        "secret",
        "api_key",
        "apikey",
        "dsn",
        "database_url",
        "redis_url",
    }
    | {"content", "instructions", "note", "outcome_text", "arguments", "metadata"}
)
_SECRET: Final = re.compile(
    r"(?i:(?<=bearer )[\w.~+/=-]{6,})"
    r"|(?<=://)[^\s/@:\"]*:[^\s/@\"]+(?=@)"
    r"|eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"
    r"|\bsk-[\w-]{12,}|\bghp_\w{20,}|\bAKIA[A-Z0-9]{12,}"
    r"|(?i:(?<=password=)[^\s&\"]+)"
)
_REDACTED: Final = "[redacted]"


def _may_hold_secret(text: str) -> bool:
    """Whether the text contains one of the words without which _SECRET can't match.

    Looking for these first is faster, and for a single rare character first of all. Lines that are written per call have
    neither a space nor a `=`.
    """
    return (
        " " in text
        or "=" in text
        or ("/" in text and "://" in text)
        or ("J" in text and "eyJ" in text)
        or ("K" in text and "AKIA" in text)
        or "sk-" in text
        or "ghp_" in text
    )


class LogLine(NamedTuple):
    """A line ready to be written. `text` is its JSON; `trace_id` and `span_id` are 0 outside a call."""

    at_ns: int
    level: str
    event: str
    text: str
    trace_id: int
    span_id: int


class _Log:
    """Where lines are written: to a stream, in a thread of its own so that a slow reader delays no call, and to OTLP."""

    def __init__(self, stream: TextIO, filters: Filters) -> None:
        self.filters = filters
        self.forward: Callable[[LogLine], None] | None = None
        self.origin = "}"  # the end of every line on the stream, rendered once; OTLP's resource says the same
        self.shipper: Shipper[str] = Shipper(
            "stdout", partial(_write, self, stream), queue_max=_QUEUE_MAX, batch_max=_BATCH_MAX, every_s=_EVERY_S
        )


_log: _Log | None = None


def configure_logs(level: str, stream: TextIO | None = None) -> Filters:
    """Write the lines of this package and of libraries to `stream` (default: standard error). Returns the filters."""
    global _log  # noqa: PLW0603 - a process has one log
    if _log is not None:
        _log.shipper.stop(_FLUSH_S)
    else:
        atexit.register(flush_logs)
    filters = Filters(level)
    _log = _Log(stream or sys.stderr, filters)
    structlog.configure(processors=[], wrapper_class=_Logger, cache_logger_on_first_use=True)
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(LEVELS[level])
    for name in ("mcp", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _CHATTY:
        logging.getLogger(name).setLevel("WARNING")
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return filters


def follow_filters(file: Path | None) -> Filters:
    """The filters of the process's log, which follow `file` from now on if there is one."""
    filters = _log.filters if _log is not None else Filters("info")
    if file is not None:
        filters.follow(file)
    return filters


def forward_logs(to: Callable[[LogLine], None] | None) -> None:
    """From now on, pass every line to `to` too. None stops that."""
    if _log is not None:
        _log.forward = to


def identify_logs(service: str, instance: str, version: str) -> None:
    """From now on, say on every line of the stream which process wrote it."""
    if _log is not None:
        _log.origin = "," + orjson.dumps({"service": service, "instance": instance, "version": version}).decode()[1:]


def may_pass(event: str, level: str) -> bool:
    """Whether an event of this level is written if its fields are such. Ask this before you compute fields."""
    return _log is not None and _log.filters.may_pass(event, LEVELS[level])


def write(level: str, event: str, fields: Mapping[str, Any]) -> None:
    """Write an event, if the filters let it pass. Their levels change at run time.

    The methods of `log` end here. What is written per call begins here, which saves 1.5 µs.
    """
    if _log is not None and _log.filters.passes(event, LEVELS[level], fields):
        _emit(_log, level, event, fields)


def flush_logs(within_s: float = _FLUSH_S) -> None:
    """Wait at most `within_s` seconds until everything logged so far has been written."""
    if _log is not None:
        _log.shipper.flush(within_s)


def log_shipper() -> Shipper[str] | None:
    """The shipper that writes lines to the stream, or None before `configure_logs`."""
    return _log.shipper if _log is not None else None


def _write(to: _Log, stream: TextIO, lines: Sequence[str]) -> Verdict:
    try:
        stream.write("".join(f"{line[:-1]}{to.origin}\n" for line in lines))
        stream.flush()
    except (OSError, ValueError):  # the stream is closed
        return "refused"
    return "taken"


class _Bridge(logging.Handler):
    """Turns what libraries log into lines like ours. It never raises into the library that logged."""

    def emit(self, record: logging.LogRecord) -> None:
        level = next((name for name in ("error", "warning", "info") if record.levelno >= LEVELS[name]), "debug")
        write = getattr(_own, level)
        try:
            write("library.logged", logger=record.name, message=_message(record), exc_info=record.exc_info)
        except Exception as error:  # noqa: BLE001 - a library must not fail because of what it logs
            write("library.logged", logger=record.name, message="(unreadable)", error=type(error).__name__)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - arguments that don't fit, or whose own methods raise
        return f"{record.msg} (its arguments don't fit: {type(error).__name__})"


_own = structlog.get_logger(__name__)


class _Logger(structlog.BoundLoggerBase):
    """The methods of `log`. They write without structlog's processors, which would cost 2 µs per line."""

    def debug(self, event: str, **fields: Any) -> None:
        write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self.error(event, **{"exc_info": True, **fields})


def _emit(to: _Log, level: str, event: str, fields: Mapping[str, Any]) -> None:
    """Make a line of an event, queue it for the stream, and forward it."""
    if "exc_info" in fields:
        fields = dict(structlog.processors.format_exc_info(None, level, dict(fields)))
        if "exception" in fields:
            fields["exception"] = _DETAIL.sub("\nDETAIL:  (left out)", fields["exception"])
    at_ns = time_ns()
    line = redacted(fields, {"time": _rfc3339(at_ns), "level": level, "event": event})
    record = calls.current()
    trace_id, span_id = (record.trace_id, record.span_id) if record is not None else (0, 0)
    if trace_id:
        line["trace_id"], line["span_id"] = f"{trace_id:032x}", f"{span_id:016x}"
    text = _json(line)
    if _may_hold_secret(text):
        text = _SECRET.sub(_REDACTED, text)
    to.shipper.put(text)
    if to.forward is not None:
        to.forward(LogLine(at_ns, level, event, text, trace_id, span_id))


def _json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:
        return orjson.dumps({name: _writable(value) for name, value in line.items()}).decode()


def _writable(value: object) -> orjson.Fragment | str:
    """The value as JSON; one that JSON can't hold as text, in which half surrogate pairs are escaped."""
    try:
        return orjson.Fragment(orjson.dumps(value, default=str))
    except TypeError:
        try:
            text = str(value)
        except Exception:  # noqa: BLE001 - raised by the value's own method
            text = f"({type(value).__name__})"
        return text.encode(errors="backslashreplace").decode()


def redacted(fields: Mapping[str, Any], before: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The fields without None values, after those of `before`; those whose names are in SECRET_KEYS have no value left."""
    kept: dict[str, Any] = {**before}
    for name, value in fields.items():
        if value is not None:
            kept[name] = redacted(value) if isinstance(value, dict) else value
    if not SECRET_KEYS.isdisjoint(kept):
        kept.update((name, _REDACTED) for name in SECRET_KEYS.intersection(kept))
    return kept


_second: tuple[int, str] = (0, "")


def _rfc3339(at_ns: int) -> str:
    """The time in UTC with microseconds. The text of the last second is cached, because most lines share it."""
    global _second  # noqa: PLW0603 - a cache with one value
    seconds, rest = divmod(at_ns, 1_000_000_000)
    if _second[0] != seconds:
        _second = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return f"{_second[1]}.{rest // 1000:06d}Z"
