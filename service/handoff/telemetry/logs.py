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
from typing import Any, Final, NamedTuple, TextIO

import orjson
import structlog

from handoff.telemetry import calls
from handoff.telemetry.shipper import Shipper, Verdict

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}
_QUEUE_MAX = 50_000
_BATCH_MAX = 2_000
_EVERY_S = 0.1
_FLUSH_S = 2.0
_FILTERS_MAX = 200
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
# Every match of _SECRET contains one of these, and looking for them first is faster. Lines that are written per call have
# neither a space nor a `=`.
_HINTS: Final = (" ", "=", "://", "eyJ", "sk-", "ghp_", "AKIA")
_SECRET: Final = re.compile(
    r"(?i:(?<=bearer )[\w.~+/=-]{6,})"
    r"|(?<=://)[^\s/@:\"]*:[^\s/@\"]+(?=@)"
    r"|eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"
    r"|\bsk-[\w-]{12,}|\bghp_\w{20,}|\bAKIA[A-Z0-9]{12,}"
    r"|(?i:(?<=password=)[^\s&\"]+)"
)
_REDACTED: Final = "[redacted]"


class LogLine(NamedTuple):
    """A line ready to be written. `text` is its JSON; `trace_id` and `span_id` are 0 outside a call."""

    at_ns: int
    level: str
    event: str
    text: str
    trace_id: int
    span_id: int


class Filters:
    """The lowest level that is written, in general and for single events. Both can change while the service runs."""

    def __init__(self, level: str) -> None:
        self._default = LEVELS[level]
        self._file: Path | None = None
        self._stamp: tuple[int, int] | None = None
        self.level = self._default
        self.events: dict[str, int] = {}

    def passes(self, event: str, level: int) -> bool:
        """Whether an event of this level is written."""
        return level >= (self.events.get(event, self.level) if self.events else self.level)

    def follow(self, file: Path) -> None:
        """Read the filters from a file, now and whenever `refresh` finds that it has changed."""
        self._file = file
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed.

        A line is `event level`, where the event `*` stands for all others. Lines that can't be read are skipped and counted.
        """
        if self._file is None:
            return
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            lines = self._file.read_text(encoding="utf-8").splitlines()[:_FILTERS_MAX]
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp != (0, 0):
                self._stamp = (0, 0)
                _own.warning("logging.file_unreadable", error=str(error))
            return
        level, events, wrong = self._default, dict[str, int](), 0
        for line in lines:
            words = line.split("#", 1)[0].split()
            if len(words) == 2 and words[1] in LEVELS:
                if words[0] == "*":
                    level = LEVELS[words[1]]
                else:
                    events[words[0]] = LEVELS[words[1]]
            elif words:
                wrong += 1
        self.level, self.events = level, events
        logging.getLogger().setLevel(events.get("library.logged", level))
        _own.info("logging.changed", file=str(self._file), events=len(events), lines_wrong=wrong)


class _Log:
    """Where lines are written: to a stream, in a thread of its own so that a slow reader delays no call, and to OTLP."""

    def __init__(self, stream: TextIO, filters: Filters) -> None:
        self.filters = filters
        self.forward: Callable[[LogLine], None] | None = None
        self.shipper: Shipper[str] = Shipper(
            "stdout", partial(_write, stream), queue_max=_QUEUE_MAX, batch_max=_BATCH_MAX, every_s=_EVERY_S
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
    structlog.configure(
        processors=[_render],
        wrapper_class=_Logger,
        logger_factory=lambda *_: _Output(),
        cache_logger_on_first_use=True,
    )
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


def flush_logs(within_s: float = _FLUSH_S) -> None:
    """Wait at most `within_s` seconds until everything logged so far has been written."""
    if _log is not None:
        _log.shipper.flush(within_s)


def log_shipper() -> Shipper[str] | None:
    """The shipper that writes lines to the stream, or None before `configure_logs`."""
    return _log.shipper if _log is not None else None


def _write(stream: TextIO, lines: Sequence[str]) -> Verdict:
    try:
        stream.write("\n".join(lines) + "\n")
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
Event = structlog.typing.EventDict


class _Logger(structlog.BoundLoggerBase):
    """The methods of `log`. Each asks the filters first, whose levels change at run time."""

    def debug(self, event: str, **fields: Any) -> None:
        if _passes(event, LEVELS["debug"]):
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        if _passes(event, LEVELS["info"]):
            self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        if _passes(event, LEVELS["warning"]):
            self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        if _passes(event, LEVELS["error"]):
            self._proxy_to_logger("error", event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        self.error(event, **{"exc_info": True, **fields})


def _passes(event: str, level: int) -> bool:
    return _log is not None and _log.filters.passes(event, level)


def _render(_: object, method: str, event: Event) -> tuple[tuple[LogLine], dict[str, Any]]:
    """Turn the event into a line, the argument of `_Output`'s methods."""
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(_, method, event)
        if "exception" in event:
            event["exception"] = _DETAIL.sub("\nDETAIL:  (left out)", event["exception"])
    at_ns = time_ns()
    name: str = event.pop("event")
    line: dict[str, Any] = {"time": _rfc3339(at_ns), "level": method, "event": name, **redacted(event)}
    record = calls.current()
    trace_id, span_id = (record.trace_id, record.span_id) if record is not None else (0, 0)
    if trace_id:
        line["trace_id"], line["span_id"] = f"{trace_id:032x}", f"{span_id:016x}"
    text = _json(line)
    for hint in _HINTS:
        if hint in text:
            text = _SECRET.sub(_REDACTED, text)
            break
    return (LogLine(at_ns, method, name, text, trace_id, span_id),), {}


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


class _Output:
    """The logger that structlog calls with a finished line: it queues the line for the stream, and forwards it."""

    def _write(self, line: LogLine) -> None:
        if _log is None:
            return
        _log.shipper.put(line.text)
        if _log.forward is not None:
            _log.forward(line)

    debug = info = warning = error = _write


def redacted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without None values, and with the values redacted whose names are in SECRET_KEYS."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if name in SECRET_KEYS:
            kept[name] = _REDACTED
        else:
            kept[name] = redacted(value) if isinstance(value, dict) else value
    return kept


_second: tuple[int, str] = (0, "")


def _rfc3339(at_ns: int) -> str:
    """The time in UTC with microseconds. The text of the last second is cached, because most lines share it."""
    global _second  # noqa: PLW0603 - a cache with one value
    seconds, rest = divmod(at_ns, 1_000_000_000)
    if _second[0] != seconds:
        _second = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return f"{_second[1]}.{rest // 1000:06d}Z"
