"""Reads the notifications that Alertmanager's webhook sends.

What can be stored is stored: a text that is too long is cut, an impossible time is clamped, and a value of the wrong type is
written out as JSON. Only a body that is no notification is refused: Alertmanager does not send again what is refused, so the
history would lack every alert of the group.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from handoff.errors import Invalid

NAMES_MAX: Final = 64  # labels of an alert, and annotations; the rest is left out
NAME_CHARS_MAX: Final = 200
VALUE_CHARS_MAX: Final = 8_000
FINGERPRINT_CHARS_MAX: Final = 64
CUT: Final = "… (cut)"  # ends a text that was too long
HEARTBEAT_AHEAD_MAX: Final = timedelta(minutes=5)  # by which Prometheus's clock may be ahead of ours

# What the history shows, which is kept when there are too many names.
_SHOWN: Final = ("alertname", "severity", "component", "summary", "description", "runbook_url", "dashboard_url")
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)  # Alertmanager sends the year 1 for a time that is not known
_UNKNOWN: Final = datetime(
    9999, 1, 1, tzinfo=UTC
)  # a start of which nothing is known; the history shows when we heard of it
_TIME: Final = TypeAdapter(datetime)


@dataclass(slots=True)
class Alert:
    """An alert that can be stored. `adjusted` says in what it differs from what was sent."""

    fingerprint: str
    status: str
    starts_at: datetime
    ends_at: datetime | None
    labels: dict[str, str]
    annotations: dict[str, str]
    adjusted: set[str] = field(default_factory=set[str])


def read(body: bytes) -> list[Alert]:
    """Return the alerts of a notification. Raises Invalid if it is none, or if no alert in it has a fingerprint."""
    try:
        notification = json.loads(body.decode(errors="replace"), parse_int=str)  # an integer may have any number of digits
    except (ValueError, RecursionError):
        raise _no_notification("The body is not JSON.") from None
    sent = notification.get("alerts") if isinstance(notification, dict) else None
    if not isinstance(sent, list):
        raise _no_notification("The body is not a JSON object with a list of alerts.")
    found = [
        _alert(it) for it in sent if isinstance(it, dict) and isinstance(it.get("fingerprint"), str) and it["fingerprint"]
    ]
    if sent and not found:
        raise _no_notification("None of the alerts has a fingerprint.")
    return found


def evaluated_at(alert: Alert) -> datetime:
    """Return when Prometheus evaluated the Watchdog's rule, which is never later than now. Raises Invalid."""
    now = datetime.now(UTC)
    try:
        at = datetime.fromtimestamp(float(alert.annotations["evaluated_at"]), UTC)
    except (KeyError, ValueError, OverflowError, OSError):
        at = None
    if at is None or not _EARLIEST <= at <= now + HEARTBEAT_AHEAD_MAX:
        raise Invalid(
            "invalid_notification",
            "The annotation evaluated_at is missing, is not a Unix time, or is more than 5 minutes in the future.",
            "Send only alerts of the rule Watchdog here, and make the clocks of this machine and Prometheus's agree.",
        )
    return min(at, now)


def _no_notification(message: str) -> Invalid:
    return Invalid("invalid_notification", message, "Send notifications in the format of Alertmanager's webhook, version 4.")


def _alert(sent: Mapping[str, Any]) -> Alert:
    now, adjusted = datetime.now(UTC), set[str]()
    starts_at, ends_at = _time(sent.get("startsAt")), _time(sent.get("endsAt"))
    if starts_at is None or not _EARLIEST <= starts_at <= now:
        adjusted.add("time_clamped")
    starts_at = _UNKNOWN if starts_at is None else min(max(starts_at, _EARLIEST), _UNKNOWN)
    has_ended = ends_at is not None and _EARLIEST <= ends_at <= now
    status = sent.get("status")
    if status not in ("firing", "resolved"):
        adjusted.add("status_guessed")
        status = "resolved" if has_ended else "firing"
    if status == "firing":
        ends_at = None
    elif not has_ended:
        adjusted.add("time_clamped")
        ends_at = now
    return Alert(
        _fingerprint(sent["fingerprint"]),
        status,
        starts_at,
        ends_at,
        _texts(sent.get("labels"), adjusted),
        _texts(sent.get("annotations"), adjusted),
        adjusted,
    )


def _time(value: object) -> datetime | None:
    try:
        at = _TIME.validate_python(value)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValidationError, OverflowError, ValueError):
        return None


def _fingerprint(sent: str) -> str:
    """The fingerprint, or its digest if it can't be stored, so that different ones stay different."""
    if len(sent) <= FINGERPRINT_CHARS_MAX and sent.isprintable():
        return sent
    return sha256(sent.encode(errors="surrogatepass")).hexdigest()


def _texts(sent: object, adjusted: set[str]) -> dict[str, str]:
    """Labels or annotations as texts: at most NAMES_MAX, those that the history shows before others."""
    if not isinstance(sent, dict):
        if sent is not None:
            adjusted.add("value_unreadable")
        return {}
    texts: dict[str, object] = sent
    names = list(texts)
    if len(names) > NAMES_MAX:
        adjusted.add("names_left_out")
        names = sorted(names, key=lambda name: name not in _SHOWN)[:NAMES_MAX]
    return {_text(name, NAME_CHARS_MAX, adjusted): _text(texts[name], VALUE_CHARS_MAX, adjusted) for name in names}


def _text(value: object, chars_max: int, adjusted: set[str]) -> str:
    """A value as a text that Postgres can store."""
    if not isinstance(value, str):
        adjusted.add("value_unreadable")
        try:
            value = json.dumps(value)
        except RecursionError:
            value = CUT
    if len(value) > chars_max:
        adjusted.add("text_cut")
        value = value[: chars_max - len(CUT)] + CUT
    text = value.replace("\0", "\ufffd").encode(errors="replace").decode()
    if text != value:
        adjusted.add("characters_replaced")
    return text
