"""Deliberate errors, which tell the caller what happened, what to do, and whether the same call may succeed later.

Any other exception is a bug.
"""

from typing import Any


class HandoffError(Exception):
    """An error that is shown to the caller.

    `code` is stable, `message` says what happened and `hint` what to do. `details` are JSON values for programs. `retryable`
    says whether the caller may repeat the call unchanged; the hint says when, and how often.
    """

    retryable: bool = False

    def __init__(self, code: str, message: str, hint: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """Return the error in the form that callers receive: code, message, try, retryable and the details."""
        return {
            "code": self.code,
            "message": self.message,
            "try": self.hint,
            "retryable": self.retryable,
            **self.details,
        }


class Invalid(HandoffError):
    """The arguments are not valid."""


class NotFound(HandoffError):
    """It does not exist, or the caller may not see it."""


class Forbidden(HandoffError):
    """The caller does not have permission."""


class Conflict(HandoffError):
    """The current state does not allow the call."""


class Unavailable(HandoffError):
    """Something that the service needs is unreachable or overloaded; the same call may succeed later."""

    retryable = True


class Busy(HandoffError):
    """The caller uses its whole share of something that callers divide among them; the same call may succeed later."""

    retryable = True


def database_unavailable() -> Unavailable:
    """Return the error for a database that did not answer. For a write, callers receive `outcome_unknown` instead."""
    return Unavailable(
        "unavailable",
        "The database did not answer in time.",
        "Repeat this call unchanged in a few seconds.",
    )


def outcome_unknown(*, has_key: bool) -> Unavailable:
    """Return the error for a write during which the database did not answer: whether it took effect is unknown.

    A repeat is safe only with an idempotency key. Without one, the error is not retryable.
    """
    if has_key:
        return Unavailable(
            "unavailable",
            "The database did not answer in time. This call may or may not have taken effect.",
            "Repeat this call unchanged in a few seconds, with the same idempotency_key: if the first call took effect, you "
            "get its result.",
        )
    unknown = Unavailable(
        "unavailable",
        "The database did not answer in time. This call may or may not have taken effect, and it had no idempotency_key.",
        "In a few seconds, check with get_context or get_inbox whether it took effect, and repeat it only if it did not.",
    )
    unknown.retryable = False
    return unknown


def token_revoked() -> Forbidden:
    """Return the error for a call or subscription that was open when its token was removed or changed."""
    return Forbidden(
        "token_revoked",
        "The operator has removed or changed the token of this call.",
        "Ask the operator for a valid token. Call again with it.",
    )


def scope_missing(scope: str) -> Forbidden:
    """Return the error for a token that lacks a scope."""
    return Forbidden(
        "scope_missing",
        f"This token lacks the scope {scope}.",
        "Do not repeat this call. The operator can add the scope to the token in the tokens file.",
    )


def session_not_found(key: str) -> NotFound:
    """Return the error for a session that does not exist or that the caller may not read."""
    return NotFound(
        "session_not_found",
        f"There is no session {key!r} that you may see.",
        "Check the key. register_session creates a session, and get_inbox lists the handoffs that are open for you.",
    )


def session_closed(key: str, status: str) -> Conflict:
    """Return the error for a session in a final status."""
    return Conflict(
        "session_closed",
        f"Session {key!r} is {status}: it accepts no more entries or handoffs.",
        "You can still read it with get_context. To continue, call register_session with metadata "
        f'{{"continues": "{key}"}}, and write to the new session.',
        status=status,
    )


def handoff_not_found(handoff_id: int) -> NotFound:
    """Return the error for a handoff that does not exist or that the caller may not see."""
    return NotFound(
        "handoff_not_found",
        f"There is no handoff {handoff_id} that you may see.",
        "Check the id. get_inbox lists the handoffs that are open for you.",
    )
