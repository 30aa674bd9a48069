"""Every instrument, attribute and bucket, and what is recorded when. Names are OpenTelemetry's semantic conventions where
there is one; the rest begin with `handoff.`. Every label has a closed set of values: nothing that a caller chose is one.

In Prometheus the dots become underscores, the unit is appended, and counters end in `_total`:
`mcp.server.operation.duration` in seconds is `mcp_server_operation_duration_seconds`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, get_args

from handoff import __version__
from handoff.model import EntryType, HandoffAction, HandoffState, RequestType, SessionStatus
from handoff.telemetry.instruments import Attribute, Counter, Gauge, Histogram, Instrument

# Names of what lies above this module; tests/test_telemetry.py holds them to the code.
TOOL_NAMES: Final = (
    "register_session",
    "update_context",
    "get_context",
    "search_context",
    "request_handoff",
    "get_inbox",
    "accept_handoff",
    "renew_handoff",
    "resolve_handoff",
    "close_session",
    "lapse_handoff",
)
MCP_METHODS: Final = (
    "initialize",
    "ping",
    "server/discover",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "subscriptions/listen",
)
COMPONENTS: Final = ("database", "cache", "worker", "telemetry", "alerting", "memory", "disk", "event_loop")
SIGNALS: Final = ("traces", "metrics", "logs", "stdout")
JOBS: Final = ("settle", "measure", "heartbeat", "watchdog", "certificates")

# Attributes
METHOD: Final = Attribute("mcp.method.name", MCP_METHODS)
TOOL: Final = Attribute("gen_ai.tool.name", TOOL_NAMES)
ERROR: Final = Attribute(
    "error.type", at_most=48
)  # `tool_error` of a tool, else a code or class; left out when all went well
CODE: Final = Attribute("handoff.error.code", at_most=48)  # of errors.py: what a caller was told
TRANSPORT: Final = Attribute("network.transport", ("tcp", "pipe"))
HTTP_METHOD: Final = Attribute("http.request.method", ("GET", "POST", "DELETE", "OPTIONS"))
HTTP_STATUS: Final = Attribute(
    "http.response.status_code", map(str, (200, 202, 400, 401, 403, 404, 405, 413, 421, 500, 503))
)
HTTP_ROUTE: Final = Attribute("http.route", ("/mcp", "/healthz", "/readyz", "/alerts", "/watchdog"))
REFUSAL: Final = Attribute(
    "reason",
    (
        "header_twice",
        "host_not_allowed",
        "origin_not_allowed",
        "unauthorized",
        "scope_missing",
        "method_not_allowed",
        "body_too_large",
        "invalid_notification",
        "not_found",
    ),
)
STATEMENT: Final = Attribute("db.query.summary", at_most=80)  # the constant that holds the SQL: `handoffs.CHANGE`
POOL_STATE: Final = Attribute("db.client.connection.state", ("idle", "used"))
CACHE: Final = Attribute("cache", ("redis", "in-process"))
CACHE_OPERATION: Final = Attribute("operation", ("get", "put"))
CACHE_RESULT: Final = Attribute("result", ("hit", "miss", "stored", "error", "skipped"))
ACTION: Final = Attribute("handoff.action", ("offer", *get_args(HandoffAction)))
STATE: Final = Attribute("handoff.state", get_args(HandoffState))
TYPE: Final = Attribute("handoff.type", get_args(RequestType))
TARGET: Final = Attribute("handoff.target", ("agent", "capability"))
STATUS: Final = Attribute("session.status", get_args(SessionStatus))
ENTRY_TYPE: Final = Attribute("context.type", get_args(EntryType))
COMPONENT: Final = Attribute("component", COMPONENTS)
SIGNAL: Final = Attribute("signal", SIGNALS)
JOB: Final = Attribute("handoff.job", JOBS)  # not `job`, which is Prometheus's own
ALERT_STATUS: Final = Attribute("status", ("firing", "resolved"))
OUTCOME: Final = Attribute("outcome", ("ok", "error"))
KEPT: Final = Attribute("kept", ("asked", "noteworthy", "ordinary", "no"))
VERSION: Final = Attribute("version", (__version__,))

# Buckets
# Seconds. A good call takes 1 to 3 ms, so the conventions' edges, which begin at 10 ms, are continued downward.
CALL_S: Final = (
    0.0005,
    0.001,
    0.0015,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.5,
    2.5,
    5.5,
    10.5,
    30.5,
)
STATEMENT_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.5, 5.5)
WAIT_S: Final = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.5, 5.5)
CACHE_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
PEOPLE_S: Final = (0.5, 2.5, 5.5, 15.5, 30.5, 60.5, 120.5, 300.5, 600.5, 1800.5, 3600.5, 14400.5, 86400.5, 604800.5)
# Below a million: above, Prometheus writes an edge as 1.0485765e+06 where it scrapes, and 1048576.5 where it is pushed to.
SIZE_BYTES: Final = (64.5, 256.5, 1024.5, 4096.5, 16384.5, 65536.5, 102400.5, 262144.5, 524288.5, 999999.5)
TOKENS: Final = (100.5, 250.5, 500.5, 1000.5, 1500.5, 2500.5, 5000.5, 10000.5, 20000.5)
BATCH: Final = (1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5)  # no integer: `le="1"` and `le="1.0"` are two labels
LAG_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.5)

# Calls
OPERATION_DURATION: Final = Histogram(
    "mcp.server.operation.duration", "s", "Duration of MCP requests.", CALL_S, METHOD, TOOL, ERROR, CODE, TRANSPORT
)
ACTIVE_CALLS: Final = Gauge("handoff.calls.active", "{call}", "Tool calls under way, those that wait left out.")
WAITING_CALLS: Final = Gauge("handoff.calls.waiting", "{call}", "Tool calls that wait for something to happen.")
HTTP_DURATION: Final = Histogram(
    "http.server.request.duration", "s", "Duration of HTTP requests.", CALL_S, HTTP_METHOD, HTTP_STATUS, HTTP_ROUTE
)
REFUSALS: Final = Counter("handoff.refusals", "{request}", "HTTP requests refused before they became a call.", REFUSAL)
REPLAYS: Final = Counter("handoff.idempotent.replays", "{call}", "Calls answered with their first result.", TOOL)

# Handoffs
TRANSITIONS: Final = Counter("handoff.transitions", "{transition}", "Changes of handoffs, after commit.", ACTION, TYPE)
TIME_TO_ACCEPT: Final = Histogram("handoff.time_to_accept", "s", "From offer to acceptance.", PEOPLE_S, TYPE)
TIME_TO_COMPLETE: Final = Histogram("handoff.time_to_complete", "s", "From acceptance to completion.", PEOPLE_S, TYPE)

# Context
ENTRIES: Final = Counter("handoff.context.entries", "{entry}", "Entries appended, after commit.", ENTRY_TYPE)
ENTRY_SIZE: Final = Histogram("handoff.context.entry.size", "By", "Content of entries appended.", SIZE_BYTES, ENTRY_TYPE)
APPEND_BATCH: Final = Histogram("handoff.append.batch", "{call}", "Appends that shared a statement.", BATCH)
APPENDS_WAITING: Final = Gauge("handoff.append.waiting", "{call}", "Appends that wait for a statement.")
BRIEF_SIZE: Final = Histogram("handoff.brief.size", "{token}", "Size of briefs given out.", TOKENS)
BRIEF_OMITTED: Final = Counter("handoff.brief.omitted", "{entry}", "Entries that briefs left out.")

# Database and cache
STATEMENT_DURATION: Final = Histogram(
    "db.client.operation.duration", "s", "Duration of statements, by their name in the code.", STATEMENT_S, STATEMENT, ERROR
)
SLOW_STATEMENTS: Final = Counter("handoff.db.slow_statements", "{statement}", "Statements above 1 s.", STATEMENT)
POOL_CONNECTIONS: Final = Gauge("db.client.connection.count", "{connection}", "Connections of the pool.", POOL_STATE)
POOL_MAX: Final = Gauge("db.client.connection.max", "{connection}", "Connections that the pool may have.")
POOL_PENDING: Final = Gauge("db.client.connection.pending_requests", "{request}", "Who waits for a connection.")
POOL_TIMEOUTS: Final = Counter("db.client.connection.timeouts", "{timeout}", "Waits for a connection that were in vain.")
POOL_WAIT: Final = Histogram("db.client.connection.wait_time", "s", "Wait for a connection.", WAIT_S)
CACHE_DURATION: Final = Histogram(
    "handoff.cache.operation.duration", "s", "Duration of cache operations.", CACHE_S, CACHE, CACHE_OPERATION, CACHE_RESULT
)

# What the database holds, measured by one process (worker.py)
SESSIONS: Final = Gauge("handoff.sessions", "{session}", "Sessions by status.", STATUS)
HANDOFFS_OPEN: Final = Gauge("handoff.handoffs.open", "{handoff}", "Handoffs that are not settled.", STATE, TYPE)
INBOX_DEPTH: Final = Gauge("handoff.inbox.depth", "{handoff}", "Handoffs on offer.", TARGET)
OLDEST_OFFER: Final = Gauge("handoff.inbox.oldest_age", "s", "Age of the oldest handoff on offer.", TARGET)
DEEPEST_INBOX: Final = Gauge("handoff.inbox.deepest", "{handoff}", "Handoffs on offer to the one with the most.", TARGET)
PING_PONG: Final = Gauge(
    "handoff.sessions.ping_pong", "{session}", "Sessions handed to and fro between two agents, within an hour."
)
MEASURED_AT: Final = Gauge("handoff.measured.timestamp", "s", "When the database was measured last, in Unix time.")

# The process
EVENT_LOOP_LAG: Final = Histogram("handoff.event_loop.lag", "s", "How late the event loop ran a timer.", LAG_S)
MEMORY_LIMIT: Final = Gauge("handoff.process.memory.limit", "By", "Memory that the process may use.")
BUILD_INFO: Final = Gauge("handoff.build.info", "", "1, with the version as a label.", VERSION)
COMPONENT_STATUS: Final = Gauge("handoff.health.status", "", "0 healthy, 1 degraded, 2 unhealthy.", COMPONENT)
HEALTH_CHANGES: Final = Counter("handoff.health.changes", "{change}", "Changes of a component's status.", COMPONENT)
JOB_DURATION: Final = Histogram("handoff.job.duration", "s", "Duration of the worker's jobs.", CALL_S, JOB, OUTCOME)
JOB_LAST_SUCCESS: Final = Gauge("handoff.job.last_success.timestamp", "s", "When a job last succeeded, in Unix time.", JOB)
LEADER: Final = Gauge("handoff.worker.leader", "", "1 in the process that does the jobs.")

# Alerts, and what they are about outside of the process
ALERT_NOTIFICATIONS: Final = Counter(
    "handoff.alert.notifications", "{alert}", "Alerts stored from notifications, after commit.", ALERT_STATUS
)
WATCHDOG_AGE: Final = Gauge("handoff.watchdog.age", "s", "Since the rules were evaluated whose heartbeat arrived last.")
CERTIFICATE_EXPIRY: Final = Gauge(
    "handoff.certificate.expiry.timestamp", "s", "When the first certificate expires, in Unix time."
)
CERTIFICATES_UNREADABLE: Final = Gauge(
    "handoff.certificate.unreadable", "{certificate}", "Addresses whose certificate can't be read."
)

# Telemetry about telemetry
CALLS_TRACED: Final = Counter("handoff.traces", "{trace}", "Calls, by whether their trace was kept.", KEPT)
SIGNAL_QUEUE: Final = Gauge("handoff.telemetry.queue", "{record}", "Records that wait to be sent.", SIGNAL)
SIGNAL_SENT: Final = Counter("handoff.telemetry.sent", "{record}", "Records sent since the start.", SIGNAL)
SIGNAL_DROPPED: Final = Counter("handoff.telemetry.dropped", "{record}", "Records dropped since the start.", SIGNAL)
SIGNAL_AWAY: Final = Gauge("handoff.telemetry.away", "s", "How long the receiver has not answered.", SIGNAL)

INSTRUMENTS: Final[tuple[Instrument, ...]] = tuple(it for it in list(globals().values()) if isinstance(it, Instrument))

SLOW_STATEMENT_S: Final = 1.0

BUILD_INFO.set(1, __version__)


class Row(Protocol):
    """A row by column name, as the database's driver gives it."""

    def __getitem__(self, column: str, /) -> Any: ...


def handoff_changed(action: str, before: Row, after: Row) -> None:
    """Count a change of a handoff that has been committed; rows as the store has them."""
    kind = after["request_type"]
    TRANSITIONS.add(1, action, kind)
    if action == "accept":
        TIME_TO_ACCEPT.record((after["updated_at"] - before["updated_at"]).total_seconds(), kind)
    elif action == "complete" and before["accepted_at"] is not None:
        TIME_TO_COMPLETE.record((after["updated_at"] - before["accepted_at"]).total_seconds(), kind)


def entries_appended(entries: Sequence[tuple[EntryType, int]]) -> None:
    """Count entries that have been committed: type and size in bytes of each."""
    for kind, size in entries:
        ENTRIES.add(1, kind)
        ENTRY_SIZE.record(size, kind)


def brief_given(brief: Mapping[str, Any]) -> None:
    """Record a brief that was given out."""
    BRIEF_SIZE.record(brief["tokens"])
    BRIEF_OMITTED.add(brief["omitted"]["entries"])


def statement_ran(name: str, elapsed_s: float, error: str) -> None:
    """Record a statement; `error` is the exception's class, or empty."""
    STATEMENT_DURATION.record(elapsed_s, name, error)
    if elapsed_s > SLOW_STATEMENT_S:
        SLOW_STATEMENTS.add(1, name)
