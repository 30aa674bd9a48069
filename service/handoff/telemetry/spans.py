"""Spans: of a call, the HTTP request around it, its statements and cache operations, and the stages of a handoff's life.

Spans are made from the record of a call (see `calls`) when it ends, because only then is it known whether it failed or was
slow.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Final, Literal

from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, set_span_in_context

from handoff.telemetry import calls
from handoff.telemetry.calls import SAMPLED, AttributeValue, CallRecord
from handoff.telemetry.metrics import Row

if TYPE_CHECKING:  # the SDK is loaded by whoever exports
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

_SERVER_FAULT: Final = 500  # statuses below are no errors of a server, by OpenTelemetry's conventions

Kept = Literal["asked", "noteworthy", "ordinary", "no"]


class _TokenBucket:
    """Allows `take` to succeed `per_s` times per second, and as often at once after an idle second."""

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
    """Decides of which calls the traces are kept, and exports their spans.

    The trace of a call whose parent was sampled is always kept. Calls that failed, were slow or changed a handoff share a
    budget of `per_s_max` traces per second. All other calls share a second budget of the same size.
    """

    def __init__(
        self,
        resource: "Resource",
        export: "Callable[[ReadableSpan], None]",
        *,
        per_s_max: float,
        sampler: "Sampler | None" = None,
        database: str = "",
    ) -> None:
        """`sampler` decides instead, if an operator has chosen one by OTEL_TRACES_SAMPLER. `database` is Postgres's name."""
        from opentelemetry.sdk.trace import ReadableSpan

        from handoff.telemetry.scope import SCOPE

        self._new_span = ReadableSpan
        self._database = database
        self._sampler = sampler
        self._resource = resource
        self._scope = SCOPE
        self._export = export
        self._noteworthy = _TokenBucket(per_s_max)
        self._ordinary = _TokenBucket(per_s_max)

    def decide(self, record: CallRecord, *, noteworthy: bool) -> Kept:
        """Decide whether the call's trace is kept, and why."""
        above = record.parent or record.http_parent
        if self._sampler is not None:
            context = set_span_in_context(NonRecordingSpan(above), Context()) if above is not None else Context()
            if not self._sampler.should_sample(context, record.trace_id, "").decision.is_sampled():
                return "no"
            return "asked" if above is not None and above.trace_flags.sampled else "ordinary"
        if above is not None and above.trace_flags.sampled:
            return "asked"
        if noteworthy and self._noteworthy.take():
            return "noteworthy"
        # A caller that sent a context without the sampled flag does not want this trace. Without a context, we decide.
        return "ordinary" if above is None and self._ordinary.take() else "no"

    def export_call(self, record: CallRecord, name: str, attributes: dict[str, AttributeValue], error: str) -> None:
        """Make the spans of a call that has just ended, and export them."""
        end_ns = time_ns()
        links = list(record.links)
        parent = record.parent
        if record.http_span_id:
            if parent is None:
                parent = _http_context(record)
            else:
                links.append(Link(_http_context(record)))
        self._span(name, record.context, parent, SpanKind.SERVER, record.start_ns, end_ns, attributes, error, links)
        for done in record.operations:
            own = SpanContext(record.trace_id, calls.new_span_id(), is_remote=False, trace_flags=SAMPLED)
            times = (done.start_ns, done.end_ns)
            described = dict(done.attributes)
            if self._database and described.get("db.system.name") == "postgresql":
                described["db.namespace"] = self._database
            self._span(done.name, own, record.context, SpanKind.CLIENT, *times, described, done.error)
        for span in record.spans or ():
            self._export(span)

    def export_http(
        self,
        record: CallRecord,
        method: str,
        route: str,
        duration_s: float,
        attributes: dict[str, AttributeValue],
        status: int,
    ) -> None:
        """Make the span of an HTTP request that has just ended, around the call that `record` is of, and export it.

        `status` is 0 if the client went away before it was answered, which is no error of ours.
        """
        end_ns = time_ns()
        described = {"http.request.method": method, "http.route": route, **attributes}
        if status:
            described["http.response.status_code"] = status
        self._span(
            f"{method} {route}".strip(),
            _http_context(record),
            record.http_parent or record.parent,
            SpanKind.SERVER,
            end_ns - round(duration_s * 1e9),
            end_ns,
            {name: value for name, value in described.items() if value != ""},
            str(status) if status >= _SERVER_FAULT else "",
        )

    def export_stage(
        self,
        name: str,
        offer: SpanContext,
        began: datetime,
        ended: datetime,
        attributes: dict[str, AttributeValue],
        error: str,
        ended_by: CallRecord | None,
    ) -> None:
        """Export a stage of a handoff's life, in the trace of its offer, with a link to the call that ended it."""
        own = SpanContext(offer.trace_id, calls.new_span_id(), is_remote=False, trace_flags=SAMPLED)
        links = [Link(ended_by.context)] if ended_by is not None else []
        times = (_unix_ns(began), _unix_ns(ended))
        self._span(name, own, offer, SpanKind.INTERNAL, *times, attributes, error, links)

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, AttributeValue],
        error: str,
        links: list[Link] | None = None,
    ) -> None:
        if error:
            attributes = {**attributes, "error.type": error}
        self._export(
            self._new_span(
                name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                links=links or (),
                kind=kind,
                instrumentation_scope=self._scope,
                status=Status(StatusCode.ERROR, error) if error else Status(),
                start_time=start_ns,
                end_time=end_ns,
            )
        )


_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Make `tracer` the process's tracer. With None, no trace is kept."""
    global _tracer  # noqa: PLW0603 - a process has one tracer
    _tracer = tracer


def tracer() -> Tracer | None:
    """The process's tracer, or None where telemetry is off."""
    return _tracer


# The actions that end a stage of a handoff's life: the stage in which it is on offer, or that in which it is held.
_ENDS_WAIT: Final = frozenset({"accept", "reject", "cancel", "expire"})
_ENDS_WORK: Final = frozenset({"complete", "lapse"})


def continue_story(action: str, before: Row, after: Row) -> None:
    """Link the current call to a handoff's offer, and export the stage that it has ended in the trace of the offer.

    The current call, or the clock if there is none, has changed the handoff by `action`. `before` and `after` are its rows.
    """
    offer = calls.parse_traceparent(before["traceparent"])
    if offer is None:
        return
    record = calls.current()
    if record is not None:
        record.links.append(Link(offer, {"handoff.action": action}))
    if _tracer is None:
        return
    attributes: dict[str, AttributeValue] = {
        "handoff.id": before["id"],
        "handoff.type": before["request_type"],
        "handoff.action": action,
    }
    if action in _ENDS_WAIT and before["state"] == "offered":
        error = action if action == "expire" else ""
        times = (before["updated_at"], after["updated_at"])
        _tracer.export_stage("handoff wait", offer, *times, attributes, error, record)
    elif action in _ENDS_WORK and before["accepted_at"] is not None:
        error = action if action == "lapse" else ""
        times = (before["accepted_at"], after["updated_at"])
        _tracer.export_stage("handoff work", offer, *times, attributes, error, record)


def _http_context(record: CallRecord) -> SpanContext:
    """The context of the span of the HTTP request that brought a call."""
    trace_id = record.http_parent.trace_id if record.http_parent is not None else record.trace_id
    return SpanContext(trace_id, record.http_span_id, is_remote=False, trace_flags=SAMPLED)


def _unix_ns(at: datetime) -> int:
    return round(at.timestamp() * 1e6) * 1_000
