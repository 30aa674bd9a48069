"""Every setting, with its unit, default and bounds. The only reader of our environment variables (`HANDOFF_*`)."""

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
    database_password_file: Path | None = None  # instead of a password in the address
    redis_url: SecretStr | None = None
    redis_password_file: Path | None = None
    data_dir: Path = Path(".data")

    # HTTP
    host: str = "127.0.0.1"
    port: int = Field(default=8642, ge=0, le=65_535)
    tokens_file: Path | None = None
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()  # further Host header values, comma-separated, no scheme
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()  # further Origin header values, comma-separated
    body_bytes_max: int = Field(default=8 << 20, ge=1 << 16, le=64 << 20)
    admin: bool = False
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    logging_file: Path | None = None  # levels by event; read again when it changes

    # Bounds of the model
    content_bytes_max: int = Field(default=1 << 20, ge=1 << 10, le=16 << 20)
    session_entries_max: int = Field(default=100_000, ge=100, le=10_000_000)
    page_bytes_max: int = Field(default=256 << 10, ge=1 << 14, le=16 << 20)
    lease_s_default: int = Field(default=900, ge=5, le=86_400)
    blocked_lease_s: int = Field(default=86_400, ge=60, le=604_800)
    lapses_max: int = Field(default=3, ge=0, le=100)

    # Postgres
    pool_size: int = Field(default=8, ge=2, le=100)
    connect_timeout_s: float = Field(default=3.0, gt=0, le=60)
    statement_timeout_s: float = Field(default=5.0, gt=0, le=60)
    startup_timeout_s: float = Field(default=30.0, gt=0, le=600)
    append_batch_max: int = Field(default=64, ge=1, le=256)
    append_batch_bytes_max: int = Field(default=4 << 20, ge=1 << 20, le=64 << 20)
    append_queue_max: int = Field(default=4_096, ge=1, le=1_000_000)
    append_wait_s_max: float = Field(default=5.0, gt=0, le=60)

    # Waiting and sweeping
    waiters_max: int = Field(default=1_000, ge=1, le=100_000)
    settle_interval_s: float = Field(default=5.0, gt=0, le=3_600)

    jobs: bool = True  # do the worker's jobs in this process too, unless another does them

    # Signals: OTLP as the OTEL_* variables say, and the operations port
    telemetry: bool = False
    ops_host: str = "127.0.0.1"
    ops_port: int = Field(default=9464, ge=0, le=65_535)
    traces_per_s_max: float = Field(default=50.0, ge=0, le=10_000)  # ordinary calls traced, and as many noteworthy ones
    slow_call_s: float = Field(default=0.5, gt=0, le=60)
    health_interval_s: float = Field(default=30.0, ge=0.1, le=3_600)
    measure_interval_s: float = Field(default=15.0, ge=0.1, le=3_600)
    heartbeat_interval_s: float = Field(default=10.0, ge=0.1, le=600)

    # Alerts: the Watchdog's heartbeat, whom to tell of its silence, and certificates to look at
    watchdog_timeout_s: float = Field(default=0.0, ge=0, le=86_400)  # 0: none is expected
    watchdog_webhook_file: Path | None = None  # holds an address; a file that is not there is as none
    certificates: Annotated[tuple[str, ...], NoDecode] = ()  # host:port, comma-separated
    certificates_interval_s: float = Field(default=3_600.0, ge=1, le=86_400)

    # Cache
    cache_timeout_s: float = Field(default=0.25, gt=0, le=10)
    cache_retry_s: float = Field(default=2.0, gt=0, le=300)
    cache_local_entries_max: int = Field(default=512, ge=1, le=1_000_000)

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
