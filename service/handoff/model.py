"""The domain's words and its state machine. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, get_args

SessionStatus = Literal["active", "dormant", "completed", "expired", "archived", "cancelled"]
OPEN_STATUSES: Final[tuple[SessionStatus, ...]] = ("active", "dormant")  # a session in these takes entries

RetentionPolicy = Literal["standard", "extended", "short"]
EntryType = Literal["message", "file", "tool_call", "system", "decision", "summary"]
ENTRY_TYPES: Final[tuple[EntryType, ...]] = get_args(EntryType)

RequestType = Literal["context_transfer", "full_handoff", "collaboration"]
HandoffState = Literal["offered", "accepted", "blocked", "completed", "rejected", "cancelled", "expired"]
HandoffAction = Literal["accept", "renew", "block", "complete", "reject", "cancel", "lapse", "expire"]

HELD_STATES: Final[tuple[HandoffState, ...]] = ("accepted", "blocked")  # someone holds the lease

# The only transitions there are. The store refuses what is not here; the state-machine test drives the database with it.
TRANSITIONS: Final[Mapping[tuple[HandoffState, HandoffAction], HandoffState]] = MappingProxyType(
    {
        ("offered", "accept"): "accepted",
        ("offered", "reject"): "rejected",
        ("offered", "cancel"): "cancelled",
        ("offered", "expire"): "expired",
        ("accepted", "renew"): "accepted",
        ("accepted", "block"): "blocked",
        ("accepted", "complete"): "completed",
        ("accepted", "lapse"): "offered",
        ("blocked", "renew"): "accepted",
    }
)

# What the past tense of each action is called in the event log.
EVENT_OF_ACTION: Final[Mapping[HandoffAction, str]] = MappingProxyType(
    {
        "accept": "handoff.accepted",
        "renew": "handoff.renewed",
        "block": "handoff.blocked",
        "complete": "handoff.completed",
        "reject": "handoff.rejected",
        "cancel": "handoff.cancelled",
        "lapse": "handoff.lapsed",
        "expire": "handoff.expired",
    }
)

Scope = Literal["read", "write", "admin", "alerts"]
ALL_SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))

# One form for session keys, agents and capabilities: it is safe in a URI, a log line and a shell.
NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.:@+=~-]*$"
SESSION_KEY_CHARS_MAX: Final = 255
AGENT_CHARS_MAX: Final = 100
SEQUENCE_MAX: Final = 2**53 - 1  # what JSON numbers hold exactly everywhere


def actions_from(state: HandoffState) -> list[HandoffAction]:
    """What can be done to a handoff in this state, in the table's order."""
    return [action for (origin, action) in TRANSITIONS if origin == state]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling: the agent that a token names (None where the service runs without tokens) and its scopes."""

    agent: str | None = None
    scopes: frozenset[Scope] = field(default=ALL_SCOPES)

    def viewer(self, acting_as: str | None) -> str | None:
        """Whose eyes bound what is seen. None sees all: an admin's token, or a local reader who named no agent."""
        if self.agent is None:
            return acting_as
        return None if "admin" in self.scopes else self.agent
