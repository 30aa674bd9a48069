"""Answers requests for /ui: finds the page, checks who asks, and renders. Loaded when the first page is asked for."""

import re
import secrets
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.types import Scope, Send

from handoff import __version__
from handoff.context import App
from handoff.encoding import printable
from handoff.model import NAME_PATTERN, Caller
from handoff.telemetry import metrics
from handoff.web import pages
from handoff.web.pages import CHANGED, SHOWN, Problem, Visit
from handoff.web.session import caller_of, cookie_gone, cookie_with, is_ours, signed_in

log = structlog.get_logger(__name__)

_HERE: Final = Path(__file__).parent
_NAME: Final = re.compile(NAME_PATTERN)
_FIELDS_MAX: Final = 20
# No script, nothing from elsewhere, and no page of others around ours. `no-referrer` would hide the Origin of our own forms.
_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class Site:
    """The pages of a service."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._style = (_HERE / "style.css").read_bytes()
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_finalized,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            {it.__name__: it for it in (pages.ago, pages.lateness, pages.receiver, pages.target, pages.when)}
        )

    async def answer(self, scope: Scope, send: Send, headers: dict[str, str], body: bytes) -> int:
        """Answer a request for /ui or a path below it; return the status."""
        path, method = scope["path"], scope["method"]
        scope["handoff.route"] = path if path in ROUTES else "/ui"
        if path == "/ui/style.css" and method == "GET":
            further = (b"cache-control", b"max-age=3600")
            return await _send(send, 200, self._style, b"text/css; charset=utf-8", further)
        caller = caller_of(self._app.tokens, headers)
        try:
            if method == "POST" and not is_ours(headers):
                raise Problem(403, "This form was not sent by one of these pages.", "Open the page here, and send its form.")
            given = _fields(body.decode() if method == "POST" else scope.get("query_string", b"").decode("latin-1"))
            if path in ("/ui/sign-in", "/ui/sign-out") and method == "POST":
                return await self._sign(scope, send, headers, given, is_out=path == "/ui/sign-out")
            if caller is None:
                return await self._page(send, 401, "sign_in.html", None, {"problem": ""})
            if path == "/ui":
                return await _redirect(send, "/ui/inbox")
            return await self._for(Visit(self._app, caller, headers, given=given), scope, send)
        except UnicodeDecodeError:
            problem = Problem(400, "The form is not UTF-8.", "Send it with a browser.")
        except Problem as raised:
            problem = raised
        return await self._page(send, problem.status, "problem.html", caller, {"problem": problem})

    async def _for(self, visit: Visit, scope: Scope, send: Send) -> int:
        route, visit.path = _route(scope["path"])
        scope["handoff.route"] = route if route in ROUTES else "/ui"
        try:
            if scope["method"] == "POST" and route in CHANGED:
                target = await CHANGED[route](visit)
                log.info("ui.changed", page=route, agent=visit.caller.agent)
                return await _redirect(send, target)
            if scope["method"] != "GET" or route not in SHOWN:
                raise Problem(404, "There is no such page.", "Choose one of the pages above.")
            template, show = SHOWN[route]
            shown = await show(visit)
            log.info("ui.shown", page=route, agent=visit.caller.agent)
        finally:
            scope["handoff.arrival"] = visit.arrival
        return await self._page(send, 200, template, visit.caller, shown | {"may_write": visit.may_write})

    async def _sign(self, scope: Scope, send: Send, headers: dict[str, str], given: dict[str, str], *, is_out: bool) -> int:
        if is_out or self._app.tokens is None:
            return await _redirect(send, "/ui/inbox", (b"set-cookie", cookie_gone()))
        caller = signed_in(self._app.tokens, given.get("token", ""))
        if caller is None:
            client = scope.get("client")
            log.warning("ui.sign_in_refused", client=client[0] if client is not None else None)
            problem = "The service does not know this token. Its operator has one for you."
            return await self._page(send, 401, "sign_in.html", None, {"problem": problem})
        log.info("ui.signed_in", agent=caller.agent)
        return await _redirect(send, "/ui/inbox", (b"set-cookie", cookie_with(given["token"], headers)))

    async def _page(self, send: Send, status: int, template: str, caller: Caller | None, shown: dict[str, Any]) -> int:
        about = {
            "version": __version__,
            "caller": caller,
            "has_tokens": self._app.tokens is not None,
            "once": secrets.token_hex(16),
        }
        text = self._templates.get_template(template).render(about | shown)
        return await _send(send, status, text.encode(), b"text/html; charset=utf-8", (b"cache-control", b"no-store"))


ROUTES: Final = frozenset({*SHOWN, *CHANGED, "/ui", "/ui/sign-in", "/ui/sign-out", "/ui/style.css"})
metrics.HTTP_ROUTE.admit(*ROUTES)


def _finalized(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # Markup is a subclass: it has been through here


def _route(path: str) -> tuple[str, tuple[str, ...]]:
    """The path with {} in the place of a session's key or a handoff's number, and what stands there. Raises Problem."""
    parts = path.split("/")  # "", "ui", noun, name, …
    if len(parts) <= 3:
        return path, ()
    name = unquote(parts[3])
    if not _NAME.fullmatch(name):
        raise Problem(404, "There is no such page.", "Choose one of the pages above.")
    return "/".join([*parts[:3], "{}", *parts[4:]]), (name,)


def _fields(text: str) -> dict[str, str]:
    """The fields of a form or of a query. Raises Problem."""
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=_FIELDS_MAX)
    except ValueError:
        raise Problem(400, "The form has too many fields.", "Send it with a browser.") from None
    return dict(fields)


async def _redirect(send: Send, target: str, *further: tuple[bytes, bytes]) -> int:
    return await _send(send, 303, b"", b"text/plain", (b"location", target.encode()), *further)


async def _send(send: Send, status: int, body: bytes, type_: bytes, *further: tuple[bytes, bytes]) -> int:
    headers = [(b"content-type", type_), (b"content-length", b"%d" % len(body)), *_HEADERS, *further]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return status
