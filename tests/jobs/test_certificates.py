"""Expiry times of other servers' certificates, read over TLS, whoever signed them."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from handoff.jobs import certificates
from handoff.settings import CERTIFICATES_MAX, Settings
from handoff.telemetry import metrics
from tests.processes import free_port

NOW = datetime.now(UTC).replace(microsecond=0)


@asynccontextmanager
async def showing(folder: Path, until: datetime) -> AsyncGenerator[str]:
    """Run a TLS server with a self-signed certificate; yield its address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(until - timedelta(days=90)).not_valid_after(until).sign(key, hashes.SHA256())
    file = folder / f"{until:%s}.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + made.public_bytes(Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    yield
    metrics.CERTIFICATE_EXPIRY.reset()
    metrics.CERTIFICATES_UNREADABLE.reset()


async def test_the_metric_is_the_earliest_expiry_and_the_log_names_its_address(
    tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    soon, later, over = NOW + timedelta(days=2), NOW + timedelta(days=60), NOW - timedelta(days=1)
    async with showing(tmp_path, soon) as first, showing(tmp_path, later) as second, showing(tmp_path, over) as third:
        await certificates.check((first, second))
        assert metrics.CERTIFICATE_EXPIRY.value() == soon.timestamp()
        assert metrics.CERTIFICATES_UNREADABLE.value() == 0
        assert [line["address"] for line in logged if line["event"] == "certificate.expires"] == [first]
        await certificates.check((second, third))
        assert metrics.CERTIFICATE_EXPIRY.value() == over.timestamp(), "an expired certificate is read too"


async def test_an_unreadable_certificate_is_counted_and_logged_and_does_not_hide_others(
    tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    until = NOW + timedelta(days=60)
    nobody = f"127.0.0.1:{free_port()}"
    async with showing(tmp_path, until) as address:
        await certificates.check((nobody, address))
    assert metrics.CERTIFICATES_UNREADABLE.value() == 1
    assert metrics.CERTIFICATE_EXPIRY.value() == until.timestamp()
    assert [line["address"] for line in logged if line["event"] == "certificate.unreadable"] == [nobody]
    await certificates.check((nobody,))
    assert metrics.CERTIFICATE_EXPIRY.metric() is None, "without a readable certificate there is no value"


@pytest.mark.parametrize(
    "value", ["host", "host:", ":443", "host:0", "host:70000", ",".join(["host:1"] * (CERTIFICATES_MAX + 1))]
)
def test_an_invalid_address_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="certificates"):
        Settings(certificates=value)  # pyright: ignore[reportArgumentType] - a string, as in the environment
