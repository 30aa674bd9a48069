"""Deliberate errors: what happened, what to try, and whether a retry can help. Anything else that is raised is a bug."""

from typing import Any, ClassVar


class HandoffError(Exception):
    """An error that a caller may read.

    `code` is stable, `message` says what happened, `hint` what to try; `details` are JSON values a program can act on.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, code: str, message: str, hint: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """The form that a caller sees: code, message, try, retryable, and the details."""
        return {
            "code": self.code,
            "message": self.message,
            "try": self.hint,
            "retryable": self.retryable,
            **self.details,
        }


class Invalid(HandoffError):
    """The arguments can't be used as they are."""


class NotFound(HandoffError):
    """Nothing that the caller may see has this name."""


class Forbidden(HandoffError):
    """The caller may not do this."""


class Conflict(HandoffError):
    """The state is not what the call needs."""


class Unavailable(HandoffError):
    """Something that the service needs is away or full; the same call may succeed later."""

    retryable = True


def database_unavailable() -> Unavailable:
    """The database did not answer; whether a write took effect is unknown, and only its idempotency key can tell."""
    return Unavailable(
        "unavailable",
        "The database did not answer in time, so it is not known whether this call took effect.",
        "Call again in a few seconds with the same idempotency_key: what was done is then returned, not done twice.",
    )


def session_not_found(key: str) -> NotFound:
    """No session has this key, or the caller may not read it."""
    return NotFound(
        "session_not_found",
        f"There is no session {key!r} that you may see.",
        "Check the key; register_session creates one, get_inbox shows those handed to you.",
    )


def session_closed(key: str, status: str) -> Conflict:
    """The session is in a final status."""
    return Conflict(
        "session_closed",
        f"Session {key!r} is {status}: it takes no more entries and is not handed over.",
        "Read it with get_context; to go on, register a new session and name this one in its metadata.",
        status=status,
    )


def handoff_not_found(handoff_id: int) -> NotFound:
    """No handoff has this id, or the caller may not see it."""
    return NotFound(
        "handoff_not_found",
        f"There is no handoff {handoff_id} that you may see.",
        "get_inbox lists the handoffs that are open for you.",
    )
