"""All settings, with their defaults, bounds and units. Nothing else reads the environment variables HANDOFF_*."""

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CERTIFICATES_MAX = 16
_PORT_MAX = 65_535
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class Misconfigured(Exception):
    """A variable of the environment can't be used. The message is a sentence that names it."""


def default_data_dir() -> Path:
    """The platform's folder for a user's data; for root, whose home is closed to the user that runs Postgres, another."""
    is_root = os.geteuid() == 0
    return Path("/var/lib/handoff") if is_root else platformdirs.user_data_path("handoff", appauthor=False)


class Settings(BaseSettings):
    """The configuration of one process, built once at startup and passed down."""

    model_config = SettingsConfigDict(env_prefix="HANDOFF_", frozen=True, extra="ignore")

    # Storage. Both addresses may contain a password, so they are never shown.
    database_url: SecretStr | None = Field(
        default=None,
        description="Address of the Postgres 18 database, as postgresql://user:password@host/database. "
        "`handoff run` starts its own Postgres if this is not set.",
    )
    database_password_file: Path | None = Field(
        default=None,
        description="File that contains the database password, as an alternative to a password in HANDOFF_DATABASE_URL.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Address of the Redis cache, beginning with redis://, rediss:// or unix://. "
        "If not set, each process caches in its own memory.",
    )
    redis_password_file: Path | None = Field(
        default=None,
        description="File that contains the Redis password, as an alternative to a password in HANDOFF_REDIS_URL.",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder in which `handoff run` stores its data: `~/.local/share/handoff` or that of XDG_DATA_HOME; on "
        "macOS `~/Library/Application Support/handoff`; for root `/var/lib/handoff`. `make run` uses `.data`.",
    )

    # HTTP
    host: str = Field(
        default="127.0.0.1", description="Address to bind. Any address other than loopback requires HANDOFF_TOKENS_FILE."
    )
    port: int = Field(default=8642, ge=0, le=65_535, description="HTTP port; 0 picks a free one.")
    tokens_file: Path | None = Field(
        default=None,
        description="File that lists the tokens of callers. If not set, anyone who can reach the port may call.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Additional values accepted in the Host header, comma-separated, without a scheme. The operations "
        "port accepts their names with any port.",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Additional values accepted in the Origin header, comma-separated."
    )
    body_bytes_max: int = Field(
        default=8 << 20, ge=1 << 16, le=64 << 20, description="Maximum size of a request body, in bytes."
    )
    bodies_bytes_max: int = Field(
        default=64 << 20,  # measured: the process then has at most 240 MiB of the 512 that compose.yaml gives it
        ge=1 << 20,
        le=4 << 30,
        description="Maximum size of all request bodies in progress together, in bytes; further requests are refused. At "
        "least HANDOFF_BODY_BYTES_MAX. An agent whose token names it has its share (HANDOFF_AGENT_SHARE), or one body.",
    )
    connections_max: int = Field(
        default=2_000,
        ge=16,
        le=100_000,
        description="Maximum number of HTTP connections at the same time. Above it, the longest idle ones are closed. "
        "It is lowered to what the limit on open files allows.",
    )
    receive_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="How long a client may take to send the head of a request, and again for its body, in seconds; "
        "each KiB received adds a second.",
    )
    send_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="How long a client may read nothing of an answer, in seconds."
    )
    keep_alive_s: float = Field(
        default=75.0, gt=0, le=3_600, description="How long a connection may stay open without a request, in seconds."
    )
    admin: bool = Field(default=False, description="Whether to serve the admin tools as well.")
    log_level: str = Field(
        default="info",
        pattern="^(debug|info|warning|error)$",
        description="Lowest level of log events that are written: debug, info, warning or error.",
    )
    logging_file: Path | None = Field(
        default=None, description="File with log levels per event, tool, agent and session, read again whenever it changes."
    )

    config_file: Path | None = Field(
        default=None,
        description="TOML file with defaults of what can be configured while the service runs; read again whenever it "
        "changes.",
    )

    # Limits and leases
    content_bytes_max: int = Field(
        default=1 << 20, ge=1 << 10, le=16 << 20, description="Maximum size of the content of one entry, in bytes."
    )
    session_entries_max: int = Field(
        default=100_000, ge=100, le=10_000_000, description="Maximum number of entries per session."
    )
    redaction: bool = Field(
        default=True,
        description="Whether secrets (tokens, keys, passwords) in what agents write are replaced by a marker before they "
        "are stored, unless the session's retention policy keeps them.",
    )
    page_bytes_max: int = Field(
        default=64 << 10,  # 16,000 tokens: clients cut what a model reads at 25,000 or so
        ge=1 << 14,
        le=16 << 20,
        description="Maximum size of a page of any list, in bytes of JSON; a page always holds at least one item.",
    )
    lease_s_default: int = Field(
        default=900, ge=5, le=86_400, description="Length of a lease, in seconds, if the call does not ask for another."
    )
    blocked_lease_s: int = Field(
        default=86_400, ge=60, le=604_800, description="Length of the lease of a blocked handoff, in seconds."
    )
    lapses_max: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Number of lapsed leases after which a handoff is still offered again; the next lapse expires it.",
    )

    agent_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Largest share that one agent may use at a time of what is bounded per process: calls that wait, "
        "subscriptions, appends in the queue, and searches and briefs; 1 lets one agent use all of it.",
    )
    read_wait_s_max: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="How long a search, a brief or a summary may wait for its turn, in seconds, before it is refused. A "
        "quarter of the pool's connections serve them.",
    )
    offers_per_target_max: int = Field(
        default=20,
        ge=1,
        le=10_000,
        description="Maximum number of open offers from one sender to the same agent or capability, so that no sender fills "
        "an inbox alone; further ones are refused.",
    )

    # Postgres
    pool_size: int = Field(
        default=8,
        ge=2,
        le=100,
        description="Maximum number of pooled connections to Postgres per process. Dedicated connections come on top: "
        "three in a service, one more if it runs the jobs, and four in a worker.",
    )
    connect_timeout_s: float = Field(
        default=3.0, gt=0, le=60, description="Timeout for opening a connection to Postgres, in seconds."
    )
    statement_timeout_s: float = Field(default=5.0, gt=0, le=60, description="Timeout for one SQL statement, in seconds.")
    startup_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="How long to wait for Postgres at startup, in seconds."
    )
    append_batch_max: int = Field(
        default=64, ge=1, le=256, description="Maximum number of appends that are committed with one statement."
    )
    append_batch_bytes_max: int = Field(
        default=4 << 20,
        ge=1 << 20,
        le=64 << 20,
        description="Maximum size of the content that is committed with one statement, in bytes.",
    )
    append_queue_max: int = Field(
        default=4_096,
        ge=1,
        le=1_000_000,
        description="Maximum number of appends that wait to be written; further ones are refused.",
    )
    append_wait_s_max: float = Field(
        default=5.0, gt=0, le=60, description="How long an append may wait to be written, in seconds, before it is refused."
    )

    # Waiting calls and jobs
    waiters_max: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Maximum number of calls that wait for a handoff at the same time; further ones are refused.",
    )
    settle_interval_s: float = Field(
        default=5.0,
        gt=0,
        le=3_600,
        description="Interval between checks for lapsed leases and passed deadlines, in seconds.",
    )
    expire_interval_s: float = Field(
        default=10.0,
        gt=0,
        le=3_600,
        description="Interval between checks for sessions whose time is over, in seconds. Calls treat them as expired from "
        "that time on.",
    )
    dormant_interval_s: float = Field(
        default=60.0, gt=0, le=3_600, description="Interval between checks for idle sessions, in seconds."
    )
    archive_interval_s: float = Field(
        default=60.0, gt=0, le=3_600, description="Interval between searches for sessions to archive, in seconds."
    )
    archive_after_s: float = Field(
        default=86_400.0,
        ge=60,
        le=31_536_000,
        description="How long a session stays completed, cancelled or expired before its entries move to the archive, in "
        "seconds. They can be read there as before.",
    )
    idempotency_kept_s: float = Field(
        default=604_800.0,
        ge=86_400,
        le=31_536_000,
        description="How long the result of a call with an idempotency_key is kept at least, in seconds. It is kept longer "
        "while its session takes writes, and where a retention policy lets sessions stay active for longer. Afterwards a "
        "repeated call is a new one.",
    )
    delete_interval_s: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="Interval between searches for archived sessions whose policy's time has passed, in seconds.",
    )
    storage_bytes_max: int = Field(
        default=0,
        ge=0,
        le=1 << 50,
        description="What all tables may take on disk, in bytes, for the forecast in handoff://storage and the alert "
        "HandoffStorageFilling; 0 for no limit. Nothing is refused when it is reached.",
    )
    series_max: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="How many series the detector watches, for a tenth as many agents; more are refused, and the alert "
        "HandoffSeriesRefused says so. Each takes 4 KB of its state.",
    )
    series_warm_up_s: float = Field(
        default=172_800,
        ge=0,
        le=7_776_000,
        description="For how long a new series is only learnt, in seconds: what is found meanwhile is kept and shown, and "
        "nobody is notified.",
    )
    jobs: bool = Field(
        default=True,
        description="Whether this process runs the background jobs when no other process does. "
        "The default of `handoff serve --stdio` is false.",
    )

    # Telemetry. Exporters also read the standard OTEL_* variables.
    telemetry: bool = Field(
        default=False, description="Whether to export traces, metrics and logs over OTLP and to open the operations port."
    )
    ops_host: str = Field(
        default="127.0.0.1", description="Address to which the operations port is bound. The port does not check tokens."
    )
    ops_port: int = Field(default=9464, ge=0, le=65_535, description="Operations port; 0 picks a free one.")
    traces_per_s_max: float = Field(
        default=50.0,
        ge=0,
        le=10_000,
        description="Maximum number of traces kept per second of ordinary calls, and as many again of noteworthy calls: "
        "calls that fail, are slow or change a handoff.",
    )
    slow_call_s: float = Field(
        default=0.5, gt=0, le=60, description="Duration from which a call counts as slow and so as noteworthy, in seconds."
    )
    health_interval_s: float = Field(
        default=30.0, ge=0.1, le=3_600, description="Interval between health checks, in seconds."
    )
    measure_interval_s: float = Field(
        default=15.0, ge=0.1, le=3_600, description="Interval between measurements of what the database holds, in seconds."
    )
    heartbeat_interval_s: float = Field(
        default=10.0,
        ge=0.1,
        le=600,
        description="Interval at which each process records that it is alive, in seconds. After three intervals without a "
        "serving process, leases stand still.",
    )

    prometheus_url: SecretStr | None = Field(
        default=None,
        description="Address of a Prometheus, beginning with http:// or https://, from which the worker reads the series "
        "that `monitoring.promql` of the configuration names. If not set, none is read.",
    )

    trace_url: str | None = Field(
        default=None,
        description="Address to which a trace's id is appended, beginning with http:// or https://, for links from the "
        "pages at /ui: Jaeger's ends with `/trace/`. If not set, there are none.",
    )

    # Alerts
    watchdog_timeout_s: float = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description="How long the heartbeat of Prometheus's Watchdog alert may be missing, in seconds, before the worker "
        "raises an alert itself; 0 if no heartbeat is expected.",
    )
    watchdog_webhook_file: Path | None = Field(
        default=None,
        description="File that contains the address to which the worker posts when the Watchdog's heartbeat goes missing or "
        "returns. If the file does not exist, nothing is posted.",
    )
    webhooks_file: Path | None = Field(
        default=None,
        description="TOML file of the webhook endpoints that are told what happens to handoffs, read again whenever it "
        "is needed. Every process needs it. Without it, nothing is recorded for webhooks.",
    )
    certificates: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Addresses whose TLS certificates are checked for expiry, as host:port, comma-separated."
    )
    certificates_interval_s: float = Field(
        default=3_600.0, ge=1, le=86_400, description="Interval between checks of the certificates, in seconds."
    )

    # Cache
    cache_timeout_s: float = Field(
        default=0.25, gt=0, le=10, description="Timeout for one operation of the Redis cache, in seconds."
    )
    cache_retry_s: float = Field(
        default=2.0, gt=0, le=300, description="How long Redis is skipped after it has failed, in seconds."
    )
    cache_local_entries_max: int = Field(
        default=512, ge=1, le=1_000_000, description="Maximum number of entries in the in-memory cache of a process."
    )

    @field_validator("allowed_hosts", "allowed_origins", "certificates", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("bodies_bytes_max")
    @classmethod
    def _one_body_fits(cls, value: int, others: ValidationInfo) -> int:
        if value < others.data.get("body_bytes_max", 0):
            raise ValueError("must be at least HANDOFF_BODY_BYTES_MAX")
        return value

    @field_validator("certificates")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            host, _, port = address.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
                raise ValueError("each address must be host:port, with a port from 1 to 65535")
        if len(value) > CERTIFICATES_MAX:
            raise ValueError(f"at most {CERTIFICATES_MAX} addresses are allowed")
        return value

    @field_validator("database_url", "redis_url")
    @classmethod
    def _readable(cls, value: SecretStr | None) -> SecretStr | None:
        # Checked here, because the errors of urlsplit and of the drivers would show a part of the password.
        try:
            hosts = urlsplit(value.get_secret_value()).netloc.rpartition("@")[2].split(",") if value is not None else []
        except ValueError:
            raise ValueError("must be a valid URL") from None
        ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
        if any(port.isascii() and port.isdigit() and int(port[:6]) > _PORT_MAX for port in ports):
            raise ValueError(f"the port must be at most {_PORT_MAX}")
        if not all(port.isascii() and port.isdigit() for port in ports if port):
            raise ValueError("the port must be a number; in a user name or password, write / ? # @ : as %2F %3F %23 %40 %3A")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        if value is not None and "," in urlsplit(value.get_secret_value()).netloc:
            raise ValueError("must name one host; clusters and sentinels are not supported")
        return value

    @field_validator("webhooks_file", "prometheus_url", "trace_url", mode="before")
    @classmethod
    def _may_be_empty(cls, value: object) -> object:
        return value or None  # Compose can't leave a variable out

    @field_validator("prometheus_url", "trace_url")
    @classmethod
    def _is_http(cls, value: SecretStr | str | None) -> SecretStr | str | None:
        address = value.get_secret_value() if isinstance(value, SecretStr) else value
        if address is not None and not address.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value

    def database_password(self) -> str | None:
        """Return the password in `database_password_file`, or None if that is not set."""
        return _read_secret(self.database_password_file)

    def redis_password(self) -> str | None:
        """Return the password in `redis_password_file`, or None if that is not set."""
        return _read_secret(self.redis_password_file)

    def watchdog_webhook(self) -> str | None:
        """Return the address in `watchdog_webhook_file`, or None if that is not set, does not exist or is empty."""
        file = self.watchdog_webhook_file
        return _read_secret(file) or None if file is not None and file.exists() else None

    def changed(self) -> dict[str, str]:
        """The settings that differ from their defaults, as text. Of secrets it is only said that they are set."""
        different = {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }
        return {name: "(set)" if isinstance(value, SecretStr) else str(value) for name, value in different.items()}

    @property
    def is_loopback(self) -> bool:
        """Whether the service binds an address that only this machine can reach."""
        return self.host in LOOPBACK_HOSTS


def _read_secret(file: Path | None) -> str | None:
    return None if file is None else file.read_text(encoding="utf-8").strip()
