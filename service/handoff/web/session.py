"""Who looks at the pages: the token is kept in a cookie; and whether a form was sent from one of our own pages."""

import base64
import binascii
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlsplit

from handoff.model import Caller
from handoff.server.auth import Tokens

COOKIE: Final = "handoff_token"
_TOKEN_BYTES_MAX: Final = 1_024
_ANYONE: Final = Caller()


def caller_of(tokens: Tokens | None, headers: dict[str, str]) -> Caller | None:
    """Whose token the cookie holds; None if it holds none that is known. Without tokens, everyone may do everything."""
    if tokens is None:
        return _ANYONE
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        token = base64.urlsafe_b64decode(cookie.value) if cookie is not None else b""
    except (CookieError, ValueError, binascii.Error):
        return None
    return tokens.caller(token)


def signed_in(tokens: Tokens, token: str) -> Caller | None:
    """Whose token this is, None if nobody's."""
    encoded = token.strip().encode()
    return tokens.caller(encoded) if len(encoded) <= _TOKEN_BYTES_MAX else None


def cookie_with(token: str, headers: dict[str, str]) -> bytes:
    """The Set-Cookie header that keeps a token until the browser ends. No script can read it, and no other site send it."""
    value = base64.urlsafe_b64encode(token.strip().encode()).decode()
    is_secure = headers.get("origin", "").startswith("https://")  # also behind a proxy that ends TLS
    return f"{COOKIE}={value}; Path=/ui; HttpOnly; SameSite=Strict{'; Secure' if is_secure else ''}".encode()


def cookie_gone() -> bytes:
    """The Set-Cookie header that forgets the token."""
    return f"{COOKIE}=; Path=/ui; HttpOnly; SameSite=Strict; Max-Age=0".encode()


def is_ours(headers: dict[str, str]) -> bool:
    """Whether a form was sent by one of our own pages: every browser names the page's origin with a POST.

    The service may answer pages of other origins (HANDOFF_ALLOWED_ORIGINS), but they must not send forms.
    """
    origin = urlsplit(headers.get("origin", ""))
    return (
        origin.netloc != ""
        and origin.netloc == headers.get("host")
        and headers.get("sec-fetch-site") in (None, "same-origin")
    )
