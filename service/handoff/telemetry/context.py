"""Lets installed instrumentors find the call in progress, so that their spans are part of its trace.

OpenTelemetry's API asks the process's runtime context what is current. This one answers with the call's span, which it makes
only when somebody asks. So a call costs nothing more; to attach a context to every call would cost several microseconds.
"""

from typing import Any, Final

from opentelemetry import context as api
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from handoff.telemetry import calls

_CALL: Final = api.create_key(
    "handoff-call"
)  # of which call a context is; one that is derived in the call keeps its own span


class _WithCalls:
    """A runtime context in which the span of the call in progress is current."""

    def __init__(self, below: Any) -> None:
        self._below = below
        self.attach = below.attach
        self.detach = below.detach

    def get_current(self) -> Context:
        found: Context = self._below.get_current()
        record = calls.current()
        if record is None or found.get(_CALL) is record:
            return found
        return api.set_value(_CALL, record, set_span_in_context(NonRecordingSpan(record.context), found))

    def below(self) -> Any:
        return self._below


def show_calls(*, shown: bool) -> None:
    """From now on, make the span of a call in progress the current one for OpenTelemetry's API, or stop that.

    The API has no public way to change the runtime context of a running process, so this replaces a private name.
    pyproject.toml caps the API's version at the one that this is tested with.
    """
    now: Any = api._RUNTIME_CONTEXT  # noqa: SLF001 - see above
    if shown and not isinstance(now, _WithCalls):
        api._RUNTIME_CONTEXT = _WithCalls(now)  # noqa: SLF001 - see above
    elif not shown and isinstance(now, _WithCalls):
        api._RUNTIME_CONTEXT = now.below()  # noqa: SLF001 - see above
