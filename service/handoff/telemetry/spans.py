"""Spans: one for each call, one for the HTTP request around it, one for each statement and cache operation, and the story
of a handoff. They are noted down cheaply as the call runs, and become spans only at its end, when it is known whether the
call failed or was slow; what is not kept costs about a microsecond.
"""

import random
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic, time_ns
from typing import Any, Final, Literal, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from handoff import __version__
from handoff.telemetry import metrics

SCOPE: Final = InstrumentationScope("handoff", __version__)
SPANS_A_CALL_MAX: Final = 64
_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_bits = random.Random().getrandbits  # noqa: S311 - identifiers, not secrets

Kept = Literal["asked", "noteworthy", "ordinary", "no"]
AttributeValue = str | int | float


@dataclass(slots=True)
class Part:
    """Something that a call did: its span, if the call is kept."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    error: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a request came: when (monotonic seconds), its `_meta`, its HTTP headers (None: over stdio), its size in bytes."""

    received: float
    meta: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    size_bytes: int = 0

    @property
    def transport(self) -> str:
        """As OpenTelemetry calls it."""
        return "pipe" if self.headers is None else "tcp"


@dataclass(slots=True)
class Call:
    """One call under way, and what it did so far."""

    trace_id: int
    span_id: int
    parent: SpanContext | None
    start_ns: int
    http_span_id: int = 0
    http_parent: SpanContext | None = None
    parts: list[Part] = field(default_factory=list[Part])
    links: list[Link] = field(default_factory=list[Link])

    def did(self, name: str, start_ns: int, error: str, **attributes: AttributeValue) -> None:
        """Note down what was done from `start_ns` until now; `error` is empty if it went well."""
        self.note(noted(name, start_ns, error, **attributes))

    def note(self, part: Part) -> None:
        """Note down something that was done, perhaps for other calls too."""
        if len(self.parts) < SPANS_A_CALL_MAX:
            self.parts.append(part)

    @property
    def context(self) -> SpanContext:
        """What others link to."""
        return SpanContext(self.trace_id, self.span_id, is_remote=False, trace_flags=_SAMPLED)

    @property
    def traceparent(self) -> str:
        """Its context as W3C text."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"


def noted(name: str, start_ns: int, error: str, **attributes: AttributeValue) -> Part:
    """What was done from `start_ns` until now."""
    return Part(name, start_ns, time_ns(), attributes, error)


class End(NamedTuple):
    """How a call ended: `error` is the convention's error.type, `code` what the caller was told; empty if all went well."""

    method: str
    tool: str = ""
    error: str = ""
    code: str = ""


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call | None:
    """The call under way here."""
    return _current.get()


def begin(meta: Mapping[str, Any] | None, headers: Mapping[str, str] | None) -> Call:
    """Begin a call. Its parent is what `_meta` names; else the HTTP request, whose own parent the headers name."""
    now = time_ns()
    parent = _parent(meta) if meta is not None and "traceparent" in meta else None
    outer = _parent(headers) if headers is not None and "traceparent" in headers else None
    http_span_id = (_bits(64) or 1) if headers is not None else 0
    trace = parent or outer
    trace_id = trace.trace_id if trace is not None else (_bits(128) or 1)
    call = Call(trace_id, _bits(64) or 1, parent, now, http_span_id, outer)
    _current.set(call)
    return call


def leave() -> None:
    """What follows here is no longer a part of the call."""
    _current.set(None)


def parse(traceparent: str | None) -> SpanContext | None:
    """A W3C traceparent, or None if it is none."""
    return _parent({"traceparent": traceparent}) if traceparent else None


def _parent(carrier: Mapping[str, Any]) -> SpanContext | None:
    named = {name: value for name in ("traceparent", "tracestate") if isinstance(value := carrier.get(name), str)}
    found = get_current_span(_PROPAGATOR.extract(named, Context())).get_span_context()
    return found if found.is_valid else None


class _Bucket:
    """At most `per_s` a second, and as many at once after a second of rest."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at = monotonic()

    def take(self) -> bool:
        now = monotonic()
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Tracer:
    """Decides what is kept, and hands it on as finished spans.

    A call whose parent was sampled is kept. Calls that failed, were slow or changed a handoff have a budget of
    `per_s_max` a second, all others another.
    """

    def __init__(self, resource: Resource, offer: Callable[[ReadableSpan], None], *, per_s_max: float) -> None:
        self._resource = resource
        self._offer = offer
        self._noteworthy = _Bucket(per_s_max)
        self._ordinary = _Bucket(per_s_max)

    def decide(self, call: Call, *, noteworthy: bool) -> Kept:
        """Whether the call's trace is kept, and why."""
        above = call.parent or call.http_parent
        if above is not None and above.trace_flags.sampled:
            return "asked"
        if noteworthy and self._noteworthy.take():
            return "noteworthy"
        # A caller that samples and left this call out wants it left out; who does not sample leaves it to us.
        return "ordinary" if above is None and self._ordinary.take() else "no"

    def keep(self, call: Call, name: str, attributes: dict[str, AttributeValue], error: str) -> None:
        """Make the call's spans, and hand them on."""
        end_ns = time_ns()
        links = list(call.links)
        parent = call.parent
        if call.http_span_id:
            http_trace_id = call.http_parent.trace_id if call.http_parent is not None else call.trace_id
            http = SpanContext(http_trace_id, call.http_span_id, is_remote=False, trace_flags=_SAMPLED)
            http_parent = call.http_parent or parent
            if parent is None:
                parent = http
            else:
                links.append(Link(http))
            described: dict[str, AttributeValue] = {
                "http.request.method": "POST",
                "http.route": "/mcp",
                "http.response.status_code": 200,  # a call that fails is answered in its result
            }
            self._span("POST /mcp", http, http_parent, SpanKind.SERVER, call.start_ns, end_ns, described, "")
        self._span(name, call.context, parent, SpanKind.SERVER, call.start_ns, end_ns, attributes, error, links)
        for part in call.parts:
            own = SpanContext(call.trace_id, _bits(64) or 1, is_remote=False, trace_flags=_SAMPLED)
            kind = SpanKind.CLIENT
            self._span(part.name, own, call.context, kind, part.start_ns, part.end_ns, dict(part.attributes), part.error)

    def stretch(
        self,
        name: str,
        offer: SpanContext,
        began: datetime,
        ended: datetime,
        attributes: dict[str, AttributeValue],
        error: str,
        by: Call | None,
    ) -> None:
        """A stretch of a handoff's life, in the trace of its offer, with a link to the call that ended it."""
        own = SpanContext(offer.trace_id, _bits(64) or 1, is_remote=False, trace_flags=_SAMPLED)
        links = [Link(by.context)] if by is not None else []
        times = (_ns(began), _ns(ended))
        self._span(name, own, offer, SpanKind.INTERNAL, *times, attributes, error, links)

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        start_ns: int,
        end_ns: int,
        attributes: dict[str, AttributeValue],
        error: str,
        links: list[Link] | None = None,
    ) -> None:
        if error:
            attributes = {**attributes, "error.type": error}
        self._offer(
            ReadableSpan(
                name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                links=links or (),
                kind=kind,
                instrumentation_scope=SCOPE,
                status=Status(StatusCode.ERROR, error) if error else Status(),
                start_time=start_ns,
                end_time=end_ns,
            )
        )


_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """The process's tracer from now on; None: nothing is kept."""
    global _tracer  # noqa: PLW0603 - a process has one tracer
    _tracer = tracer


def tracer() -> Tracer | None:
    """The process's tracer."""
    return _tracer


def end(call: Call, arrival: Arrival, how: End, noteworthy_s: float) -> float:
    """Record a call that has ended, and keep its trace if it is to be kept; returns its duration in seconds.

    From `noteworthy_s` seconds on it is noteworthy: 0 for one that failed, infinity for one that was waiting.
    """
    duration_s = monotonic() - arrival.received
    transport = arrival.transport
    metrics.OPERATION_DURATION.record(duration_s, how.method, how.tool, how.error, how.code, transport)
    if _tracer is None:
        return duration_s
    kept = _tracer.decide(call, noteworthy=duration_s >= noteworthy_s)
    metrics.CALLS_TRACED.add(1, kept)
    if kept == "no":
        return duration_s
    attributes: dict[str, AttributeValue] = {"mcp.method.name": how.method, "network.transport": transport}
    if how.tool:
        attributes |= {"gen_ai.tool.name": how.tool, "gen_ai.operation.name": "execute_tool"}
    if how.code:
        attributes["handoff.error.code"] = how.code
    if arrival.meta is not None and isinstance(version := arrival.meta.get(_VERSION_KEY), str):
        attributes["mcp.protocol.version"] = version[:20]
    name = f"{how.method} {how.tool}".rstrip()
    _tracer.keep(call, name, attributes, how.error)
    metrics.OPERATION_DURATION.exemplify(
        duration_s, call.trace_id, call.span_id, how.method, how.tool, how.error, how.code, transport
    )
    return duration_s


# What ends which stretch of a handoff's life: waiting on offer, or being worked on by its holder.
_ENDS_WAIT: Final = frozenset({"accept", "reject", "cancel", "expire"})
_ENDS_WORK: Final = frozenset({"complete", "lapse"})


def continue_story(action: str, before: metrics.Row, after: metrics.Row) -> None:
    """A handoff was changed by the call under way, or by the clock: link the call to the offer, and put the stretch that has
    ended into the offer's trace. `before` and `after` are its rows.
    """
    offer = parse(before["traceparent"])
    if offer is None:
        return
    call = current()
    if call is not None:
        call.links.append(Link(offer, {"handoff.action": action}))
    if _tracer is None:
        return
    attributes: dict[str, AttributeValue] = {
        "handoff.id": before["id"],
        "handoff.type": before["request_type"],
        "handoff.action": action,
    }
    times = (before["updated_at"], after["updated_at"])
    if action in _ENDS_WAIT and before["state"] == "offered":
        error = action if action == "expire" else ""
        _tracer.stretch("handoff wait", offer, *times, attributes, error, call)
    elif action in _ENDS_WORK and before["accepted_at"] is not None:
        error = action if action == "lapse" else ""
        _tracer.stretch("handoff work", offer, before["accepted_at"], after["updated_at"], attributes, error, call)


def _ns(at: datetime) -> int:
    return round(at.timestamp() * 1e6) * 1_000
