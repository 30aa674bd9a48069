"""The record of a call: how it arrived, which trace it belongs to, and which operations it made.

While the call runs, operations are only appended to a list. Spans are made at its end, and only if its trace is kept (see
`spans`), so recording a call whose trace is not kept costs about a microsecond.
"""

import random
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

OPERATIONS_PER_CALL_MAX: Final = 64
SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_random_bits = random.Random().getrandbits  # noqa: S311 - identifiers, not secrets

AttributeValue = str | int | float


@dataclass(slots=True)
class Operation:
    """A statement or a cache operation that a call made. `error` is empty if it succeeded."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    error: str


@dataclass(slots=True)  # not frozen: one is built for every call
class Arrival:
    """How a request arrived.

    `received` is in monotonic seconds, `meta` the request's `_meta`, and `headers` its HTTP headers (None over stdio).
    """

    received: float
    meta: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    size_bytes: int = 0
    request_id: str | int | None = None
    protocol_version: str | None = None
    has_ended: bool = False  # whether the call that arrived has been recorded
    kept: "CallRecord | None" = None  # the call's record, if its trace is kept

    @property
    def transport(self) -> str:
        """The value of OpenTelemetry's attribute `network.transport`."""
        return "pipe" if self.headers is None else "tcp"


@dataclass(slots=True)
class CallRecord:
    """A call in progress, and what it has done so far."""

    trace_id: int
    span_id: int
    parent: SpanContext | None
    start_ns: int
    http_span_id: int = 0
    http_parent: SpanContext | None = None
    operations: list[Operation] = field(default_factory=list[Operation])
    links: list[Link] = field(default_factory=list[Link])
    spans: "list[ReadableSpan] | None" = None  # of installed instrumentors; exported if the call's trace is kept
    noted: Callable[[], dict[str, AttributeValue | None]] | None = None  # further fields of its log line, if it is written

    def add(self, operation: Operation) -> None:
        """Record an operation, which several calls can share. Operations beyond OPERATIONS_PER_CALL_MAX are left out."""
        if len(self.operations) < OPERATIONS_PER_CALL_MAX:
            self.operations.append(operation)

    def hold(self, span: "ReadableSpan") -> None:
        """Hold a span that an instrumentor made within the call. Those beyond OPERATIONS_PER_CALL_MAX are left out."""
        if self.spans is None:
            self.spans = []
        if len(self.spans) < OPERATIONS_PER_CALL_MAX:
            self.spans.append(span)

    @property
    def context(self) -> SpanContext:
        """The call's span context, for links to it."""
        return SpanContext(self.trace_id, self.span_id, is_remote=False, trace_flags=SAMPLED)

    @property
    def traceparent(self) -> str:
        """The call's context as a W3C traceparent."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"


def finished(name: str, start_ns: int, error: str, **attributes: AttributeValue) -> Operation:
    """An operation that ran from `start_ns` (Unix time) until now; `error` is empty if it succeeded."""
    return Operation(name, start_ns, time_ns(), attributes, error)


_current: ContextVar[CallRecord | None] = ContextVar("call", default=None)


def current() -> CallRecord | None:
    """The call in progress in this context, or None."""
    return _current.get()


_reads_parents = True


def read_parents(*, flag: bool) -> None:
    """From now on, read the trace context that callers send, or ignore it."""
    global _reads_parents  # noqa: PLW0603 - one for the process, as OTEL_PROPAGATORS is
    _reads_parents = flag


def begin(meta: Mapping[str, Any] | None, headers: Mapping[str, str] | None) -> CallRecord:
    """Begin a call and make it the current one.

    Its parent is the span that `_meta` names or, without one, the HTTP request's span, whose own parent the headers name.
    """
    now = time_ns()
    parent = _extract(meta) if meta is not None and "traceparent" in meta and _reads_parents else None
    http_parent = _extract(headers) if headers is not None and "traceparent" in headers and _reads_parents else None
    http_span_id = new_span_id() if headers is not None else 0
    above = parent or http_parent
    trace_id = above.trace_id if above is not None else (_random_bits(128) or 1)
    record = CallRecord(trace_id, new_span_id(), parent, now, http_span_id, http_parent)
    _current.set(record)
    return record


def leave() -> None:
    """Make no call the current one. Operations that follow are recorded for none."""
    _current.set(None)


def new_span_id() -> int:
    """A random span id, never 0."""
    return _random_bits(64) or 1


def parse_traceparent(traceparent: str | None) -> SpanContext | None:
    """The span context in a W3C traceparent, or None if there is no valid one."""
    return _extract({"traceparent": traceparent}) if traceparent else None


def _extract(carrier: Mapping[str, Any]) -> SpanContext | None:
    fields = {name: value for name in ("traceparent", "tracestate") if isinstance(value := carrier.get(name), str)}
    found = get_current_span(_PROPAGATOR.extract(fields, Context())).get_span_context()
    return found if found.is_valid else None
