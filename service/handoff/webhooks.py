"""Webhook endpoints: their file, what each wants to be told, which addresses it may have, and how messages are signed.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md has the form of messages, secrets
and signatures.
"""

import base64
import hmac
import tomllib
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN

Event = Literal["offered", "accepted", "rejected", "blocked", "completed", "lapsed", "expired"]
ENDPOINTS_MAX: Final = 20
AGENTS_MAX: Final = 20  # per endpoint
_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = (24, 64)  # as the specification has it
_NAT64: Final = IPv6Network("64:ff9b::/96")

AgentName = Annotated[str, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]


class WebhooksFileError(Exception):
    """The file of endpoints, or one of their secrets, can't be used. The message says where and why."""


class Endpoint(BaseModel):
    """An endpoint as its file declares it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: AgentName
    url: Annotated[str, Field(max_length=2_000)]
    secret_files: Annotated[tuple[Path, ...], Field(min_length=1, max_length=2)]
    agents: Annotated[tuple[AgentName, ...], Field(max_length=AGENTS_MAX)] = ()  # parties to the handoff; without them, all
    events: tuple[Event, ...] = ()  # without them, all
    networks: Annotated[tuple[IPv4Network | IPv6Network, ...], Field(max_length=20)] = ()  # without them, all public ones

    @model_validator(mode="after")
    def _has_a_usable_url(self) -> "Endpoint":
        try:
            parts = urlsplit(self.url)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            parts, usable = None, False
        if parts is None or not usable or parts.username is not None or parts.scheme not in ("http", "https"):
            raise ValueError("url must be an address with http or https, without a user")
        if parts.scheme == "http" and not self.networks:
            raise ValueError("url must use https, unless networks says in which networks the endpoint may be")
        return self

    def wants(self, kind: str, agents: Sequence[str]) -> bool:
        """Whether it receives events of this kind about a handoff between these agents."""
        is_wanted = not self.events or kind.removeprefix("handoff.") in self.events
        return is_wanted and (not self.agents or not set(self.agents).isdisjoint(agents))

    def may_be_at(self, address: str) -> bool:
        """Whether the endpoint may be at an IP address: in one of its networks or, without any, at a public one."""
        ip = _embedded(ip_address(address.partition("%")[0]))
        if self.networks:
            return any(ip in network for network in self.networks if network.version == ip.version)
        return ip.is_global and not ip.is_multicast

    def secrets(self) -> list[bytes]:
        """Its secrets, the first of which is the newest. Raises WebhooksFileError."""
        return [_secret(file) for file in self.secret_files]


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address leads to, if it does; otherwise the address."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip


def read_endpoints(file: Path) -> list[Endpoint]:
    """The endpoints in a file. Raises WebhooksFileError."""
    try:
        given: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        endpoints = [Endpoint.model_validate(it) for it in given.pop("endpoint", [])]
    except OSError as error:
        raise WebhooksFileError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "endpoint"
        raise WebhooksFileError(f"{file}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    except (ValueError, TypeError) as error:
        raise WebhooksFileError(f"{file}: {error}") from error
    if given:
        raise WebhooksFileError(f"{file}: unknown name {next(iter(given))!r}; endpoints begin with [[endpoint]]")
    names = [it.name for it in endpoints]
    if len(endpoints) > ENDPOINTS_MAX or len(set(names)) < len(names):
        raise WebhooksFileError(f"{file}: at most {ENDPOINTS_MAX} endpoints, each with a name of its own")
    return endpoints


def _secret(file: Path) -> bytes:
    try:
        text = file.read_text(encoding="utf-8").strip()
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except OSError as error:
        raise WebhooksFileError(f"{file}: {error.strerror}") from error
    except ValueError:  # no text, or no base64
        secret = b""
    if not _SECRET_BYTES[0] <= len(secret) <= _SECRET_BYTES[1]:
        raise WebhooksFileError(f"{file}: a secret is {_PREFIX} and 24 to 64 bytes in base64")
    return secret


def signatures(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header webhook-signature: a signature by each secret that is valid."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(it, signed, sha256)).decode()}" for it in secrets)
