"""The vocabulary of the domain and the state machine of a handoff. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, get_args

SessionStatus = Literal["active", "dormant", "completed", "expired", "archived", "cancelled"]
OPEN_STATUSES: Final[tuple[SessionStatus, ...]] = ("active", "dormant")  # the statuses in which a session accepts entries

SessionAction = Literal["sleep", "wake", "expire", "complete", "cancel", "archive", "delete"]


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What an action does to a session: its new status, the kind of the one event that it records, and its open handoffs.

    The status is None when the session is deleted: then the event is in the audit, because those of the session go with it.

    Open handoffs are `kept`, or `ended`: those that are held lapse, and then all of them expire. `none` says that the action
    is refused, or waits, while there are any.
    """

    status: SessionStatus | None
    event: str
    open_handoffs: Literal["kept", "ended", "none"]


_ASLEEP: Final = SessionChange("dormant", "session.dormant", "none")
_AWAKE: Final = SessionChange("active", "session.reactivated", "kept")
_EXPIRED: Final = SessionChange("expired", "session.expired", "ended")
_ARCHIVED: Final = SessionChange("archived", "session.archived", "none")
_DELETED: Final = SessionChange(None, "session.deleted", "ended")
_COMPLETED: Final = SessionChange("completed", "session.status_changed", "none")
_CANCELLED: Final = SessionChange("cancelled", "session.status_changed", "none")

# All changes of a session's status. The store makes no other. tests/store/test_lifecycle_machine.py holds it to them.
SESSION_TRANSITIONS: Final[Mapping[tuple[SessionStatus, SessionAction], SessionChange]] = MappingProxyType(
    {
        ("active", "sleep"): _ASLEEP,
        ("dormant", "wake"): _AWAKE,
        ("active", "expire"): _EXPIRED,
        ("dormant", "expire"): _EXPIRED,
        ("active", "complete"): _COMPLETED,
        ("dormant", "complete"): _COMPLETED,
        ("active", "cancel"): _CANCELLED,
        ("dormant", "cancel"): _CANCELLED,
        ("completed", "archive"): _ARCHIVED,
        ("cancelled", "archive"): _ARCHIVED,
        ("expired", "archive"): _ARCHIVED,
        **{(status, "delete"): _DELETED for status in get_args(SessionStatus)},
    }
)

EntryType = Literal["message", "file", "tool_call", "system", "decision", "summary"]
ENTRY_TYPES: Final[tuple[EntryType, ...]] = get_args(EntryType)

# What an entry's metadata can mark it as, most important first: {"pinned": true} and so on.
Mark = Literal["pinned", "question", "todo"]
MARKS: Final[tuple[Mark, ...]] = get_args(Mark)
# Metadata of an entry that withdraws the entries that it supersedes, and replaces them by nothing: {"retraction": true}.
RETRACTION: Final = "retraction"

RequestType = Literal["context_transfer", "full_handoff", "collaboration"]
HandoffState = Literal["offered", "accepted", "blocked", "completed", "rejected", "cancelled", "expired"]
HandoffAction = Literal["accept", "renew", "block", "complete", "reject", "cancel", "amend", "lapse", "expire"]

# How a session that is handed on can go in circles, the most telling first: from one agent to another and back again and
# again, handoffs that each wait for the next, and too many handoffs.
Loop = Literal["rounds", "depth", "handoffs"]

HELD_STATES: Final[tuple[HandoffState, ...]] = ("accepted", "blocked")  # the states in which an agent holds the lease

# All transitions of a handoff. The store refuses any other. tests/store/test_state_machine.py holds the database to them.
TRANSITIONS: Final[Mapping[tuple[HandoffState, HandoffAction], HandoffState]] = MappingProxyType(
    {
        ("offered", "accept"): "accepted",
        ("offered", "reject"): "rejected",
        ("offered", "cancel"): "cancelled",
        ("offered", "amend"): "offered",
        ("offered", "expire"): "expired",
        ("accepted", "renew"): "accepted",
        ("accepted", "block"): "blocked",
        ("accepted", "complete"): "completed",
        ("accepted", "amend"): "accepted",
        ("accepted", "lapse"): "offered",
        ("blocked", "renew"): "accepted",
        ("blocked", "amend"): "blocked",
    }
)

# The kind of event that each action records. Error messages use its past participle.
EVENT_OF_ACTION: Final[Mapping[HandoffAction, str]] = MappingProxyType(
    {
        "accept": "handoff.accepted",
        "renew": "handoff.renewed",
        "block": "handoff.blocked",
        "complete": "handoff.completed",
        "reject": "handoff.rejected",
        "cancel": "handoff.cancelled",
        "amend": "handoff.amended",
        "lapse": "handoff.lapsed",
        "expire": "handoff.expired",
    }
)

# The parts of the system that an incident may come from.
Part = Literal["route", "tool", "agent", "service", "pool", "database", "cache", "host"]
Severity = Literal["warning", "critical"]

Scope = Literal["read", "write", "admin", "alerts"]
ALL_SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))

# The form of session keys, agents and capabilities: safe in a URI, a log line and a shell.
NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.:@+=~-]*$"
SESSION_KEY_CHARS_MAX: Final = 255
AGENT_CHARS_MAX: Final = 100
CAPABILITIES_MAX: Final = 32  # per agent
INSTRUCTIONS_CHARS_MAX: Final = 20_000
SEQUENCE_MAX: Final = 2**53 - 1  # the largest integer that every JSON parser represents exactly


@dataclass(frozen=True, slots=True)
class EntryCounts:
    """The number of a session's entries: `all` and `superseded` per type, `marked` (valid ones only) per (mark, type)."""

    all: Mapping[EntryType, int]
    superseded: Mapping[EntryType, int]
    marked: Mapping[tuple[Mark, EntryType], int]


def actions_from(state: HandoffState) -> list[HandoffAction]:
    """Return the actions that TRANSITIONS allows in this state, in its order."""
    return [action for (origin, action) in TRANSITIONS if origin == state]


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent that a token names, or None if the service runs without tokens, its scopes, and what it may declare.

    `capabilities` are those that the agent may declare, None if it may declare any.
    """

    agent: str | None = None
    scopes: frozenset[Scope] = field(default=ALL_SCOPES)
    capabilities: frozenset[str] | None = None

    def viewer(self, acting_as: str | None) -> str | None:
        """Return the agent whose permissions limit what this call can read, or None if there is no limit.

        There is none for an admin token, and none without tokens if the call names no agent (`acting_as` is None).
        """
        if self.agent is None:
            return acting_as
        return None if "admin" in self.scopes else self.agent
