"""Finds out when certificates expire, by connecting over TLS to each address in the settings."""

import asyncio
import ssl
from time import time
from typing import Final

import structlog

from handoff.context import App
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 5.0
SOON_S: Final = 14 * 86_400  # before its expiry, a certificate is logged


async def run(app: App) -> None:
    """Check the certificates that the settings name, if any."""
    if app.settings.certificates:
        await check(app.settings.certificates)


async def check(addresses: tuple[str, ...]) -> None:
    """Set the gauges, and log the certificates that expire soon or can't be read. Each address is host:port."""
    found = await asyncio.gather(*(expiry(address) for address in addresses), return_exceptions=True)
    unreadable = 0
    for address, expires_at in zip(addresses, found, strict=True):
        if isinstance(expires_at, OSError | ValueError):
            unreadable += 1
            log.warning("certificate.unreadable", address=address, error=type(expires_at).__name__)
        elif isinstance(expires_at, BaseException):
            raise expires_at
        elif expires_at - time() < SOON_S:
            log.warning("certificate.expires", address=address, days=round((expires_at - time()) / 86_400, 1))
    metrics.CERTIFICATES_UNREADABLE.set(unreadable)
    readable = [expires_at for expires_at in found if isinstance(expires_at, float)]
    if readable:
        metrics.CERTIFICATE_EXPIRY.set(min(readable))
    else:
        metrics.CERTIFICATE_EXPIRY.reset()


async def expiry(address: str) -> float:
    """The Unix time at which the certificate at host:port expires, whoever signed it.

    Raises OSError (of which TimeoutError and ssl.SSLError are subclasses) or ValueError when it can't be read.
    """
    from cryptography import x509  # a large package, for what most processes never do

    host, _, port = address.rpartition(":")
    anyone = ssl.create_default_context()
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE  # an expired certificate must be readable too, and nothing is sent
    async with asyncio.timeout(TIMEOUT_S):
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=anyone, server_hostname=host.strip("[]"))
    try:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()
    finally:
        writer.transport.abort()
