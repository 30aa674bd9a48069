"""Every setting, with its unit, default and bounds. The only reader of our environment variables (`HANDOFF_*`).

The string below a field describes it; `make docs` puts it into docs/settings.md.
"""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CERTIFICATES_MAX = 16
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(BaseSettings):
    """The configuration of one process. Built once, in `__main__`, and passed down."""

    model_config = SettingsConfigDict(env_prefix="HANDOFF_", frozen=True, extra="ignore")

    # Where the truth and the cache are. Both addresses may hold a password, so they are never shown.
    database_url: SecretStr | None = None
    """Address of Postgres 18: `postgresql://user:password@host/database`. `handoff run` sets its own."""
    database_password_file: Path | None = None
    """File with the password of the database, instead of one in the address."""
    redis_url: SecretStr | None = None
    """Address of Redis 8. Unset: each process has a small cache of its own."""
    redis_password_file: Path | None = None
    """File with the password of Redis."""
    data_dir: Path = Path(".data")
    """Folder in which `handoff run` keeps its data."""

    # HTTP
    host: str = "127.0.0.1"
    """Address to bind. One that other machines reach needs a tokens file."""
    port: int = Field(default=8642, ge=0, le=65_535)
    """HTTP port. 0 picks a free one."""
    tokens_file: Path | None = None
    """File that says who may call, and with which scopes."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further values of the Host header that are answered, separated by commas."""
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Further values of the Origin header that are answered, separated by commas."""
    body_bytes_max: int = Field(default=8 << 20, ge=1 << 16, le=64 << 20)
    """Size of a request in bytes."""
    admin: bool = False
    """Whether to serve the admin tools too."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """Lowest level that is logged: debug, info, warning or error. `handoff run`: warning by default."""
    logging_file: Path | None = None
    """File with log levels by event; read again when it changes."""

    # Bounds of the model
    content_bytes_max: int = Field(default=1 << 20, ge=1 << 10, le=16 << 20)
    """Size of an entry's content in bytes."""
    session_entries_max: int = Field(default=100_000, ge=100, le=10_000_000)
    """Entries per session."""
    page_bytes_max: int = Field(default=256 << 10, ge=1 << 14, le=16 << 20)
    """Content per page of entries in bytes. A page has at least one entry."""
    lease_s_default: int = Field(default=900, ge=5, le=86_400)
    """Seconds that a lease lasts unless the call asks for another time."""
    blocked_lease_s: int = Field(default=86_400, ge=60, le=604_800)
    """Seconds for which a handoff may stay blocked."""
    lapses_max: int = Field(default=3, ge=0, le=100)
    """Lapsed leases that a handoff survives; with the next one it expires."""

    # Postgres
    pool_size: int = Field(default=8, ge=2, le=100)
    """Connections to Postgres in the pool of a process. A few more are opened outside it."""
    connect_timeout_s: float = Field(default=3.0, gt=0, le=60)
    """Seconds to wait for a connection to Postgres."""
    statement_timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds that an SQL statement may take."""
    startup_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """Seconds to wait for Postgres at the start."""
    append_batch_max: int = Field(default=64, ge=1, le=256)
    """Appends that one statement may write."""
    append_batch_bytes_max: int = Field(default=4 << 20, ge=1 << 20, le=64 << 20)
    """Content that one statement may write, in bytes."""
    append_queue_max: int = Field(default=4_096, ge=1, le=1_000_000)
    """Appends that may wait to be written; further ones are refused as `overloaded`."""
    append_wait_s_max: float = Field(default=5.0, gt=0, le=60)
    """Seconds that an append may wait to be written before it is refused as `overloaded`."""

    # Waiting and sweeping
    waiters_max: int = Field(default=1_000, ge=1, le=100_000)
    """Calls per process that may wait for an inbox."""
    settle_interval_s: float = Field(default=5.0, gt=0, le=3_600)
    """Seconds between searches for lapsed leases and passed deadlines."""

    jobs: bool = True
    """Whether this process runs the worker's jobs when no other does."""

    # Signals: OTLP as the OTEL_* variables say, and the operations port
    telemetry: bool = False
    """Whether to export traces, metrics and logs by OTLP, and to open the operations port."""
    ops_host: str = "127.0.0.1"
    """Address of the operations port. It has no tokens, so bind it where only operators reach it."""
    ops_port: int = Field(default=9464, ge=0, le=65_535)
    """The operations port. 0 picks a free one."""
    traces_per_s_max: float = Field(default=50.0, ge=0, le=10_000)
    """Ordinary calls per second whose trace is kept, and as many noteworthy ones."""
    slow_call_s: float = Field(default=0.5, gt=0, le=60)
    """Seconds from which on a call is slow, and so noteworthy."""
    health_interval_s: float = Field(default=30.0, ge=0.1, le=3_600)
    """Seconds between health checks."""
    measure_interval_s: float = Field(default=15.0, ge=0.1, le=3_600)
    """Seconds between measurements of what the database holds."""
    heartbeat_interval_s: float = Field(default=10.0, ge=0.1, le=600)
    """Seconds between a process's signs of life."""

    # Alerts: the Watchdog's heartbeat, whom to tell of its silence, and certificates to look at
    watchdog_timeout_s: float = Field(default=0.0, ge=0, le=86_400)
    """Seconds without a heartbeat from Prometheus's Watchdog after which the worker raises the alarm. 0: no heartbeat
    is expected.
    """
    watchdog_webhook_file: Path | None = None
    """File with the address that the worker then notifies. It need not exist."""
    certificates: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses (`host:port`) whose certificates are watched, separated by commas."""
    certificates_interval_s: float = Field(default=3_600.0, ge=1, le=86_400)
    """Seconds between looks at the certificates."""

    # Cache
    cache_timeout_s: float = Field(default=0.25, gt=0, le=10)
    """Seconds to wait for Redis."""
    cache_retry_s: float = Field(default=2.0, gt=0, le=300)
    """Seconds for which Redis is left alone after it failed."""
    cache_local_entries_max: int = Field(default=512, ge=1, le=1_000_000)
    """Entries of the cache in a process, where there is no Redis."""

    @field_validator("allowed_hosts", "allowed_origins", "certificates", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("certificates")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for it in value:
            host, _, port = it.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
                raise ValueError("each must be host:port")
        if len(value) > CERTIFICATES_MAX:
            raise ValueError(f"no more than {CERTIFICATES_MAX}")
        return value

    @field_validator("database_url", "redis_url")
    @classmethod
    def _readable(cls, value: SecretStr | None) -> SecretStr | None:
        # Refused here, because what the drivers and urlsplit itself say of it would show a part of the password.
        try:
            hosts = urlsplit(value.get_secret_value()).netloc.rpartition("@")[2].split(",") if value is not None else []
        except ValueError:
            raise ValueError("is no URL") from None
        ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
        if not all(port.isascii() and port.isdigit() for port in ports if port):
            raise ValueError("the port is no number; in a name or password, write / ? # @ : as %2F %3F %23 %40 %3A")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return value

    def database_password(self) -> str | None:
        """The password in `database_password_file`; None where the address holds it, or none is needed."""
        return _read_secret(self.database_password_file)

    def redis_password(self) -> str | None:
        """The password in `redis_password_file`, or None."""
        return _read_secret(self.redis_password_file)

    def watchdog_webhook(self) -> str | None:
        """Whom to tell of the Watchdog's silence: the address in `watchdog_webhook_file`, or None."""
        file = self.watchdog_webhook_file
        return _read_secret(file) or None if file is not None and file.exists() else None

    @property
    def is_loopback(self) -> bool:
        """Whether the service binds an address that only this machine reaches."""
        return self.host in LOOPBACK_HOSTS


def _read_secret(file: Path | None) -> str | None:
    return None if file is None else file.read_text(encoding="utf-8").strip()
