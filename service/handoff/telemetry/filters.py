"""Which lines of the log are written: levels in general, for single events, and for one tool, agent or session."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}
_LINES_MAX: Final = 200  # of the file; all lines with a field are compared with each line of the log
_NEVER: Final = 1_000
# The fields of a log line that a filter is compared with. A change of a handoff names two or three agents.
_FIELDS: Final = {"tool": ("tool",), "agent": ("agent", "sender", "target_agent", "holder"), "session": ("session",)}

_own = structlog.get_logger("handoff.telemetry.logs")


class _Rule(NamedTuple):
    """The lowest level of the lines that have these fields and, unless it is empty, this event."""

    event: str
    fields: tuple[tuple[tuple[str, ...], str], ...]
    level: int

    def fits(self, event: str, fields: Mapping[str, Any]) -> bool:
        return self.event in ("", event) and all(
            any(fields.get(name) == value for name in names) for names, value in self.fields
        )


class Filters:
    """The lowest level that is written, in general, for single events and for lines about a tool, an agent or a session.

    All can change while the service runs.
    """

    def __init__(self, level: str) -> None:
        self._default = LEVELS[level]
        self._configured: tuple[int | None, tuple[_Rule, ...]] = (None, ())
        self._lines: tuple[_Rule, ...] = ()  # of the file
        self._file: Path | None = None
        self._stamp: tuple[int, int] | None = None
        self._rules: tuple[_Rule, ...] = ()  # the last one that fits decides
        self._least = _NEVER  # the lowest level among the rules
        self.level = self._default
        self.events: dict[str, int] = {}

    def may_pass(self, event: str, level: int) -> bool:
        """Whether an event of this level is written if its fields are such. Ask this before you compute fields."""
        return level >= (self.events.get(event, self.level) if self.events else self.level) or level >= self._least

    def passes(self, event: str, level: int, fields: Mapping[str, Any]) -> bool:
        """Whether an event with this level and these fields is written."""
        for rule in self._rules:
            if rule.fits(event, fields):
                return level >= rule.level
        return level >= (self.events.get(event, self.level) if self.events else self.level)

    def follow(self, file: Path) -> None:
        """Read the filters from a file, now and whenever `refresh` finds that it has changed."""
        self._file = file
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed.

        A line is `event level`, where the event `*` stands for all others, or `tool=NAME level`, with `agent` and `session`
        alike; an event and several of these can be combined. Lines that can't be read are skipped and counted.
        """
        if self._file is None:
            return
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            lines = self._file.read_text(encoding="utf-8").splitlines()[:_LINES_MAX]
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp != (0, 0):
                self._stamp = (0, 0)
                _own.warning("logging.file_unreadable", error=str(error))
            return
        found: list[_Rule] = []
        wrong = 0
        for line in lines:
            try:
                rule = _parsed(line)
            except ValueError:
                wrong += 1
                continue
            if rule is not None:
                found.append(rule)
        self._lines = tuple(found)
        self._combine()
        _own.info(
            "logging.changed", file=str(self._file), events=len(self.events), rules=len(self._rules), lines_wrong=wrong
        )

    def configure(self, level: str | None, filters: Sequence[Mapping[str, str]]) -> None:
        """Set the level of all lines that nothing else decides, and filters, the first of which that fits decides.

        A filter has a level, and an event, a tool, an agent and a session, or some of these. What the file says goes first.
        """
        rules = [
            _Rule(
                it.get("event", ""), tuple((_FIELDS[name], it[name]) for name in _FIELDS if name in it), LEVELS[it["level"]]
            )
            for it in filters
        ]
        self._configured = (LEVELS[level] if level is not None else None, tuple(reversed(rules)))
        self._combine()

    def _combine(self) -> None:
        """Combine what is configured and what the file says, of which the last that fits decides."""
        configured, configured_rules = self._configured
        level = self._default if configured is None else configured
        events, rules = dict[str, int](), list[_Rule]()
        for rule in (*configured_rules, *self._lines):
            if rule.fields:
                rules.insert(0, rule)
            elif rule.event:
                events[rule.event] = rule.level
            else:
                level = rule.level
        self.level, self.events = level, events
        self._rules, self._least = tuple(rules), min((rule.level for rule in rules), default=_NEVER)
        logging.getLogger().setLevel(events.get("library.logged", level))


def _parsed(line: str) -> _Rule | None:
    """What a line of the file says, None if it says nothing. Raises ValueError if it can't be read."""
    words = shlex.split(line, comments=True)
    if not words:
        return None
    *said, level = words
    events = [word for word in said if "=" not in word]
    fields = [word.partition("=")[::2] for word in said if "=" in word]
    if level not in LEVELS or not said or len(events) > 1 or not all(name in _FIELDS and value for name, value in fields):
        raise ValueError(line)
    compared = tuple((_FIELDS[name], value) for name, value in fields)
    return _Rule("" if events in ([], ["*"]) else events[0], compared, LEVELS[level])
