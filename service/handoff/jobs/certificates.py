"""When the certificates expire that others show: of each address in the settings, looked at over TLS."""

import asyncio
import ssl
from time import time
from typing import Final

import structlog
from cryptography import x509

from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 5.0
SOON_S: Final = 14 * 86_400


async def expiry(address: str) -> float:
    """Unix time at which the certificate expires that host:port shows, whoever signed it.

    Raises OSError (TimeoutError and ssl.SSLError are) or ValueError when there is none to be read.
    """
    host, _, port = address.rpartition(":")
    anyone = ssl.create_default_context()
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE  # an expired one is to be read too; nothing is sent
    async with asyncio.timeout(TIMEOUT_S):
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=anyone, server_hostname=host.strip("[]"))
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown).not_valid_after_utc.timestamp()
    finally:
        writer.transport.abort()


async def look(addresses: tuple[str, ...]) -> None:
    """Set the gauges, and log what expires soon or can't be read."""
    found = await asyncio.gather(*(expiry(it) for it in addresses), return_exceptions=True)
    unreadable = 0
    for address, it in zip(addresses, found, strict=True):
        if isinstance(it, OSError | ValueError):
            unreadable += 1
            log.warning("certificate.unreadable", address=address, error=type(it).__name__)
        elif isinstance(it, BaseException):
            raise it
        elif it - time() < SOON_S:
            log.warning("certificate.expires", address=address, days=round((it - time()) / 86_400, 1))
    metrics.CERTIFICATES_UNREADABLE.set(unreadable)
    readable = [it for it in found if isinstance(it, float)]
    if readable:
        metrics.CERTIFICATE_EXPIRY.set(min(readable))
    else:
        metrics.CERTIFICATE_EXPIRY.reset()
