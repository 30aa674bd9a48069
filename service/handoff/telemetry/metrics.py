"""All metrics and labels, and functions that record an event in the metrics that it concerns. Add a metric here.

Names follow OpenTelemetry's semantic conventions where there is one; all others begin with `handoff.`. Every label has a
closed set of values, none of which a caller can choose.

In Prometheus the dots become underscores, the unit is appended, and counters end in `_total`:
`mcp.server.operation.duration` in seconds is `mcp_server_operation_duration_seconds`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, get_args

from handoff import __version__
from handoff.model import EntryType, HandoffAction, HandoffState, Loop, Part, RequestType, SessionStatus, Severity
from handoff.secret_patterns import KINDS
from handoff.telemetry.buckets import BATCH, CACHE_S, CALL_S, LAG_S, PEOPLE_S, SIZE_BYTES, STATEMENT_S, TOKENS, WAIT_S
from handoff.telemetry.instruments import Attribute, Counter, Gauge, Histogram, Instrument, UpDownCounter

# Attributes
METHOD: Final = Attribute("mcp.method.name", other="_OTHER")  # admitted by server/protocol.py
RESOURCE: Final = Attribute("handoff.resource")  # admitted by server/catalog.py
TOOL: Final = Attribute("gen_ai.tool.name")  # admitted by tools/contract.py
# `tool_error` for a tool, `cancelled` for a call whose caller has gone, the code of a JSON-RPC error that is ours, or an
# exception's class; left out when the call succeeded, and when the caller was at fault in the terms of JSON-RPC
ERROR: Final = Attribute("error.type", learned_max=48)
CODE: Final = Attribute("handoff.error.code", learned_max=48)  # the error code that the caller received
TRANSPORT: Final = Attribute("network.transport", ("tcp", "pipe"))
PROMPT: Final = Attribute("gen_ai.prompt.name")  # admitted by server/catalog.py
RPC_CODE: Final = Attribute("rpc.response.status_code", learned_max=16)  # of a JSON-RPC error that the caller received
HTTP_METHOD: Final = Attribute(
    "http.request.method",
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"),
    other="_OTHER",
)
HTTP_STATUS: Final = Attribute(
    "http.response.status_code", map(str, (200, 202, 400, 401, 403, 404, 405, 406, 413, 415, 421, 500, 503))
)
HTTP_ROUTE: Final = Attribute("http.route")  # admitted by server/edge.py
REFUSAL: Final = Attribute("reason", learned_max=32)  # the error code of a request that was refused before it became a call
STATEMENT: Final = Attribute("db.query.summary", learned_max=400)  # the constant that holds the SQL: `handoffs.CHANGE`
SQLSTATE: Final = Attribute("db.response.status_code", learned_max=48)  # of a statement that Postgres refused
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
SECRET: Final = Attribute("handoff.secret.kind", KINDS)
COMPONENT: Final = Attribute("component")  # admitted by operations/checks.py
SIGNAL: Final = Attribute("signal", ("traces", "metrics", "logs", "stdout"))
JOB: Final = Attribute("handoff.job")  # admitted by jobs/table.py; not `job`, which is Prometheus's own
TABLE: Final = Attribute("db.collection.name", learned_max=48)  # our tables; the archive counts as one
LOOP: Final = Attribute("handoff.loop", get_args(Loop))
RECOMMENDATION: Final = Attribute("handoff.recommendation")  # admitted by recommendations.py
DAMAGE: Final = Attribute("reason", ("content", "sequence", "receipt"))  # why a session is in quarantine
ALERT_STATUS: Final = Attribute("status", ("firing", "resolved"))
SERIES_KIND: Final = Attribute("handoff.series.kind", ("counter", "ratio", "count", "duration", "level"))
SERIES_NAME: Final = Attribute("handoff.series.name", chosen_max=100)  # chosen by jobs/bands.py, no name of a caller
SEVERITY: Final = Attribute("severity", get_args(Severity))
PART: Final = Attribute("handoff.part", get_args(Part))  # where the likeliest cause of an incident is
OUTCOME: Final = Attribute("outcome", ("ok", "error"))
DELIVERY: Final = Attribute("outcome", ("delivered", "failed", "dead"))
KEPT: Final = Attribute("kept", ("asked", "noteworthy", "ordinary", "no"))
VERSION: Final = Attribute("version", (__version__,))
THRESHOLD_NAME: Final = Attribute("of")  # admitted by configuration.py

HTTP: Final = {"network.protocol.name": "http", "network.protocol.version": "1.1"}  # the only one that uvicorn speaks


def _of_call(labels: Mapping[str, str]) -> dict[str, str]:
    """What the conventions recommend beside the labels of a call, and what follows from them."""
    protocol = HTTP if labels.get(TRANSPORT.name) == "tcp" else {}
    return {**protocol, "gen_ai.operation.name": "execute_tool"} if TOOL.name in labels else {**protocol}


def _of_request(labels: Mapping[str, str]) -> dict[str, str]:
    """The error of an HTTP request is its status, where it is the server's."""
    status = labels[HTTP_STATUS.name]
    return {ERROR.name: status} if status.startswith("5") else {}


# Calls
OPERATION_DURATION: Final = Histogram(
    "mcp.server.operation.duration",
    "s",
    "Duration of MCP requests.",
    CALL_S,
    METHOD,
    TOOL,
    ERROR,
    CODE,
    TRANSPORT,
    RESOURCE,
    PROMPT,
    RPC_CODE,
    implied=_of_call,
)
ACTIVE_CALLS: Final = Gauge(
    "handoff.calls.active", "{call}", "Tool calls in progress, without those that wait for something to happen."
)
WAITING_CALLS: Final = Gauge("handoff.calls.waiting", "{call}", "Tool calls that are waiting for something to happen.")
HTTP_DURATION: Final = Histogram(
    "http.server.request.duration",
    "s",
    "Duration of HTTP requests.",
    CALL_S,
    HTTP_METHOD,
    HTTP_STATUS,
    HTTP_ROUTE,
    always={"url.scheme": "http", "network.protocol.version": HTTP["network.protocol.version"]},  # TLS ends before it
    implied=_of_request,
)
REFUSALS: Final = Counter(
    "handoff.refusals", "{request}", "HTTP requests and connections refused before they became a call.", REFUSAL
)
HTTP_CONNECTIONS: Final = Gauge("handoff.http.connections", "{connection}", "Open HTTP connections.")
HTTP_CONNECTIONS_MAX: Final = Gauge(
    "handoff.http.connections.max", "{connection}", "HTTP connections that may be open; beyond it, idle ones are closed."
)
HTTP_BODIES: Final = Gauge("handoff.http.bodies", "By", "Bodies of requests in progress.")
HTTP_BODIES_MAX: Final = Gauge(
    "handoff.http.bodies.max", "By", "Bodies of requests in progress that are taken; beyond it, requests are refused."
)
REPLAYS: Final = Counter(
    "handoff.idempotent.replays", "{call}", "Repeated calls that were answered with the first result.", TOOL
)

# Handoffs
TRANSITIONS: Final = Counter(
    "handoff.transitions", "{transition}", "Handoff state changes that were committed.", ACTION, TYPE
)
LOOP_WARNINGS: Final = Counter(
    "handoff.loop.warnings", "{handoff}", "Offers whose sender was warned that the session goes in circles.", LOOP
)
TIME_TO_ACCEPT: Final = Histogram("handoff.time_to_accept", "s", "Time from offer to acceptance.", PEOPLE_S, TYPE)
TIME_TO_COMPLETE: Final = Histogram("handoff.time_to_complete", "s", "Time from acceptance to completion.", PEOPLE_S, TYPE)

# Context
ENTRIES: Final = Counter("handoff.context.entries", "{entry}", "Entries that were appended and committed.", ENTRY_TYPE)
ENTRY_SIZE: Final = Histogram(
    "handoff.context.entry.size", "By", "Size of the content of appended entries.", SIZE_BYTES, ENTRY_TYPE
)
LARGE_ENTRIES: Final = Counter(
    "handoff.context.entries.large", "{entry}", "Appended entries with more than 100 KB of content.", ENTRY_TYPE
)
APPEND_BATCH: Final = Histogram("handoff.append.batch", "{call}", "Appends written by one statement.", BATCH)
APPENDS_WAITING: Final = Gauge("handoff.append.waiting", "{call}", "Appends waiting to be written.")
SECRETS_REDACTED: Final = Counter(
    "handoff.secrets.redacted", "{secret}", "Secrets that were redacted in what agents wrote and was committed.", SECRET
)
BRIEF_SIZE: Final = Histogram("handoff.brief.size", "{token}", "Size of the briefs that were returned.", TOKENS)
BRIEF_OMITTED: Final = Counter("handoff.brief.omitted", "{entry}", "Entries that were left out of briefs.")

# Database and cache
STATEMENT_DURATION: Final = Histogram(
    "db.client.operation.duration",
    "s",
    "Duration of SQL statements, by their name in the code.",
    STATEMENT_S,
    STATEMENT,
    ERROR,
    SQLSTATE,
    always={"db.system.name": "postgresql"},
)
SLOW_STATEMENTS: Final = Counter(
    "handoff.db.slow_statements", "{statement}", "SQL statements that took more than 1 s.", STATEMENT
)
_POOL: Final = {"db.client.connection.pool.name": "handoff"}  # the conventions require it; a process has one pool
POOL_CONNECTIONS: Final = UpDownCounter(
    "db.client.connection.count", "{connection}", "Connections in the pool.", POOL_STATE, always=_POOL
)
POOL_MAX: Final = UpDownCounter(
    "db.client.connection.max", "{connection}", "Connections that the pool may open.", always=_POOL
)
POOL_PENDING: Final = UpDownCounter(
    "db.client.connection.pending_requests", "{request}", "Requests waiting for a connection.", always=_POOL
)
POOL_TIMEOUTS: Final = Counter(
    "db.client.connection.timeouts", "{timeout}", "Requests that timed out waiting for a connection.", always=_POOL
)
POOL_WAIT: Final = Histogram(
    "db.client.connection.wait_time", "s", "Time spent waiting for a connection.", WAIT_S, always=_POOL
)
CACHE_DURATION: Final = Histogram(
    "handoff.cache.operation.duration", "s", "Duration of cache operations.", CACHE_S, CACHE, CACHE_OPERATION, CACHE_RESULT
)

CACHE_LARGE: Final = Counter("handoff.cache.values.large", "{value}", "Values of more than 1 MB put into the cache.", CACHE)

# What the database holds, measured by the process that runs the jobs (jobs/measure.py)
SESSIONS: Final = Gauge("handoff.sessions", "{session}", "Sessions by status.", STATUS)
HANDOFFS_OPEN: Final = Gauge("handoff.handoffs.open", "{handoff}", "Open handoffs.", STATE, TYPE)
INBOX_DEPTH: Final = Gauge("handoff.inbox.depth", "{handoff}", "Handoffs on offer.", TARGET)
OLDEST_OFFER: Final = Gauge("handoff.inbox.oldest_age", "s", "Age of the oldest handoff on offer.", TARGET)
DEEPEST_INBOX: Final = Gauge(
    "handoff.inbox.deepest", "{handoff}", "Handoffs on offer to the agent or capability that has the most.", TARGET
)
PING_PONG: Final = Gauge(
    "handoff.sessions.ping_pong", "{session}", "Sessions handed back and forth between two agents within an hour."
)
MEASURED_AT: Final = Gauge("handoff.measured.timestamp", "s", "Unix time of the last measurement of the database.")

# The process
EVENT_LOOP_LAG: Final = Histogram("handoff.event_loop.lag", "s", "How late the event loop ran a timer.", LAG_S)
MEMORY_LIMIT: Final = Gauge("handoff.process.memory.limit", "By", "Memory that the process may use.")
CPU_LIMIT: Final = Gauge(
    "handoff.process.cpu.limit", "{cpu}", "CPUs that the process may use: one at most, because calls run on one event loop."
)
BUILD_INFO: Final = Gauge("handoff.build.info", "", "Always 1, with the version as a label.", VERSION)
THRESHOLD: Final = Gauge(
    "handoff.threshold", "", "Thresholds in force, which alerts and health compare with.", THRESHOLD_NAME
)
CONFIGURATION_VERSION: Final = Gauge("handoff.configuration.version", "", "Version of the configuration in force.")
COMPONENT_STATUS: Final = Gauge("handoff.health.status", "", "0 is healthy, 1 degraded, 2 unhealthy.", COMPONENT)
HEALTH_CHANGES: Final = Counter("handoff.health.changes", "{change}", "Changes of a component's health status.", COMPONENT)
JOB_DURATION: Final = Histogram("handoff.job.duration", "s", "Duration of job runs.", CALL_S, JOB, OUTCOME)
JOB_LAST_SUCCESS: Final = Gauge("handoff.job.last_success.timestamp", "s", "Unix time at which the job last succeeded.", JOB)
ROWS_DELETED: Final = Counter(
    "handoff.retention.deleted", "{row}", "Rows deleted because their time was over, by table.", TABLE
)
STORAGE_SIZE: Final = Gauge("handoff.storage.size", "By", "What a table takes on disk, with its indexes.", TABLE)
STORAGE_GROWTH: Final = Gauge("handoff.storage.growth", "By", "Growth of all tables per day, over the last 7 days.")
STORAGE_LIMIT: Final = Gauge("handoff.storage.limit", "By", "What all tables may take on disk; 0 without a limit.")
STORAGE_FULL_IN: Final = Gauge("handoff.storage.full_in", "s", "Time until the limit is reached at the present growth.")
RECOMMENDATIONS: Final = Gauge("handoff.recommendations", "{recommendation}", "Open ones, by kind.", RECOMMENDATION)
QUARANTINED: Final = Gauge(
    "handoff.quarantine", "{session}", "Sessions set aside because something in them does not fit, by reason.", DAMAGE
)
ENTRIES_CHECKED: Final = Counter(
    "handoff.integrity.entries", "{entry}", "Entries compared with their hash, their sequence and their receipt."
)
SERIES: Final = Gauge("handoff.series", "{series}", "Series that the detector watches.")
SERIES_REFUSED: Final = Gauge(
    "handoff.series.refused", "{series}", "Series that are not watched because there are as many as there may be."
)
SERIES_VALUE: Final = Gauge(
    "handoff.series.value", "", "Value of a series in the newest minute that was judged, in its own unit.", SERIES_NAME
)
SERIES_EXPECTED: Final = Gauge("handoff.series.expected", "", "What the detector expected of that minute.", SERIES_NAME)
SERIES_LOWER: Final = Gauge("handoff.series.lower", "", "Below it, that minute would have been unusual.", SERIES_NAME)
SERIES_UPPER: Final = Gauge("handoff.series.upper", "", "Above it, that minute would have been unusual.", SERIES_NAME)
SERIES_LEFT_OUT: Final = Gauge(
    "handoff.series.left_out", "{series}", "Series whose value and band are not exported because there are too many."
)
PROMQL_FAILED: Final = Gauge("handoff.promql.failed", "{expression}", "Expressions that Prometheus did not answer last.")
PROMQL_EMPTY: Final = Gauge("handoff.promql.empty", "{expression}", "Expressions that have never had a value.")
ALERT_BUDGET: Final = Gauge("handoff.alert_budget", "", "Anomalies per series and week that may be told.")
ALERT_BUDGET_USED: Final = Gauge("handoff.alert_budget.used", "", "Share of the alert budget used in the last 7 days.")
DETECTOR_LAG: Final = Gauge("handoff.detector.lag", "s", "Age of the newest minute that the detector has judged.")
ANOMALIES: Final = Counter(
    "handoff.anomalies", "{anomaly}", "Anomalies found in series that are no longer being learnt.", SERIES_KIND, SEVERITY
)
INCIDENTS_OPEN: Final = Gauge(
    "handoff.incidents.open",
    "{incident}",
    "Open incidents of the detector, by where their likeliest cause is.",
    SEVERITY,
    PART,
)
WEBHOOK_DELIVERIES: Final = Counter(
    "handoff.webhook.deliveries",
    "{attempt}",
    "Attempts to deliver a webhook; dead is the last one, after which it is given up.",
    DELIVERY,
)
WEBHOOKS_PENDING: Final = Gauge("handoff.webhook.pending", "{delivery}", "Webhooks that are yet to be delivered.")
WEBHOOKS_DEAD: Final = Gauge("handoff.webhook.dead", "{delivery}", "Webhooks that were given up in the last 30 days.")
WEBHOOK_OLDEST: Final = Gauge("handoff.webhook.oldest", "s", "Age of the oldest webhook that is yet to be delivered.")
JOB_INTERVAL: Final = Gauge("handoff.job.interval", "s", "Interval between the runs of the job.", JOB)
JOBS_PAUSED: Final = Gauge("handoff.jobs.paused", "{job}", "Jobs that an operator has paused.")
LEADER: Final = Gauge("handoff.worker.leader", "", "1 in the process that runs the jobs.")

# Alerting, and what is watched outside the process
ALERT_NOTIFICATIONS: Final = Counter(
    "handoff.alert.notifications", "{alert}", "Alerts from notifications that were stored and committed.", ALERT_STATUS
)
WATCHDOG_AGE: Final = Gauge("handoff.watchdog.age", "s", "Age of the rule evaluation behind the last heartbeat received.")
CERTIFICATE_EXPIRY: Final = Gauge(
    "handoff.certificate.expiry.timestamp", "s", "Unix time at which the first certificate expires."
)
AUDIT_BROKEN: Final = Gauge("handoff.audit.broken", "", "1 if the audit's hash chain is broken, otherwise 0.")
CERTIFICATES_UNREADABLE: Final = Gauge(
    "handoff.certificate.unreadable", "{certificate}", "Addresses whose certificate can't be read."
)

# Telemetry about telemetry
CALLS_TRACED: Final = Counter("handoff.traces", "{trace}", "Calls, by whether and why their trace was kept.", KEPT)
SIGNAL_QUEUE: Final = Gauge("handoff.telemetry.queue", "{record}", "Records waiting to be exported.", SIGNAL)
SIGNAL_SENT: Final = Counter("handoff.telemetry.sent", "{record}", "Records exported since the process started.", SIGNAL)
SIGNAL_DROPPED: Final = Counter(
    "handoff.telemetry.dropped", "{record}", "Records dropped since the process started.", SIGNAL
)
MINUTES_DROPPED: Final = Counter(
    "handoff.minutes.dropped", "{minute}", "Minutes of this process's history that the database did not take in time."
)
SIGNAL_AWAY: Final = Gauge("handoff.telemetry.away", "s", "How long the receiver has not answered.", SIGNAL)

# What only the leader knows. A process that stops leading no longer exports these, and queries take them from the leader.
LEADERS: Final[tuple[Instrument, ...]] = (
    SESSIONS,
    HANDOFFS_OPEN,
    INBOX_DEPTH,
    OLDEST_OFFER,
    DEEPEST_INBOX,
    PING_PONG,
    MEASURED_AT,
    WATCHDOG_AGE,
    CERTIFICATE_EXPIRY,
    CERTIFICATES_UNREADABLE,
    AUDIT_BROKEN,
    JOB_INTERVAL,
    JOBS_PAUSED,
    QUARANTINED,
    RECOMMENDATIONS,
    STORAGE_SIZE,
    STORAGE_GROWTH,
    STORAGE_LIMIT,
    STORAGE_FULL_IN,
    SERIES,
    SERIES_REFUSED,
    SERIES_VALUE,
    SERIES_EXPECTED,
    SERIES_LOWER,
    SERIES_UPPER,
    SERIES_LEFT_OUT,
    PROMQL_FAILED,
    PROMQL_EMPTY,
    ALERT_BUDGET,
    ALERT_BUDGET_USED,
    DETECTOR_LAG,
    INCIDENTS_OPEN,
    WEBHOOKS_PENDING,
    WEBHOOKS_DEAD,
    WEBHOOK_OLDEST,
)
INSTRUMENTS: Final[tuple[Instrument, ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Instrument)
)

SLOW_STATEMENT_S: Final = 1.0
LARGE_ENTRY_BYTES: Final = 100_000
LARGE_VALUE_BYTES: Final = 1_000_000

BUILD_INFO.set(1, __version__)


class Row(Protocol):
    """A row by column name, as the database's driver returns it."""

    def __getitem__(self, column: str, /) -> Any: ...


def call_ended(duration_s: float, trace: tuple[int, int] | None, *labels: str) -> None:
    """Record a call that has ended. `trace` is (trace id, span id) if its trace is kept; `labels` are the metric's."""
    OPERATION_DURATION.record(duration_s, *labels)
    if trace is not None:
        OPERATION_DURATION.exemplify(duration_s, *trace, *labels)


def handoff_changed(action: str, before: Row, after: Row) -> None:
    """Count a change of a handoff that has been committed. `before` and `after` are its rows."""
    kind = after["request_type"]
    TRANSITIONS.add(1, action, kind)
    if action == "accept":
        TIME_TO_ACCEPT.record((after["updated_at"] - before["updated_at"]).total_seconds(), kind)
    elif action == "complete" and before["accepted_at"] is not None:
        TIME_TO_COMPLETE.record((after["updated_at"] - before["accepted_at"]).total_seconds(), kind)


def entries_appended(entries: Sequence[tuple[EntryType, int]]) -> None:
    """Count entries that have been committed, each given as its type and its size in bytes."""
    for kind, size in entries:
        ENTRIES.add(1, kind)
        ENTRY_SIZE.record(size, kind)
        if size > LARGE_ENTRY_BYTES:
            LARGE_ENTRIES.add(1, kind)


def value_cached(cache: str, size_bytes: int) -> None:
    """Count a value that was put into the cache, if it is large."""
    if size_bytes > LARGE_VALUE_BYTES:
        CACHE_LARGE.add(1, cache)


def brief_returned(brief: Mapping[str, Any]) -> None:
    """Record a brief that was returned to a caller."""
    BRIEF_SIZE.record(brief["tokens"])
    BRIEF_OMITTED.add(brief["omitted"]["entries"])


def statement_ended(name: str, elapsed_s: float, error: str, sqlstate: str) -> None:
    """Record a statement. `error` is the exception's class and `sqlstate` Postgres's code; empty if it succeeded."""
    STATEMENT_DURATION.record(elapsed_s, name, error, sqlstate)
    if elapsed_s > SLOW_STATEMENT_S:
        SLOW_STATEMENTS.add(1, name)
