"""Answers Alertmanager's notifications at the HTTP edge, once they are stored."""

import structlog
from starlette.types import Receive, Scope, Send

from handoff.encoding import to_json
from handoff.errors import HandoffError, Unavailable
from handoff.model import Caller
from handoff.operations.alerts import BODY_BYTES_MAX, VALUES_MAX, Alerts
from handoff.server.asgi import JSON_DEPTH_MAX, RETRY_LATER, Refusals, excess, respond
from handoff.server.bodies import Bodies, BodyRefused, RequestCutOff

log = structlog.get_logger(__name__)


class Notifications:
    """The paths that Alertmanager sends to: its alerts, and the heartbeat that it passes on."""

    def __init__(self, alerts: Alerts | None, bodies: Bodies, refusals: Refusals) -> None:
        self.paths = {} if alerts is None else {"/alerts": alerts.store, "/watchdog": alerts.store_heartbeat}
        self._bodies = bodies
        self._refusals = refusals

    async def answer(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller) -> int:
        """Store a notification and answer it; return the status, or 0 if the client has gone."""
        if "alerts" not in caller.scopes:
            return await self._refusals.refuse(
                scope,
                send,
                403,
                "scope_missing",
                "This token lacks the scope alerts. Add it to the token in the tokens file.",
            )
        try:
            body = await self._bodies.read(receive, headers, caller.agent, BODY_BYTES_MAX)
        except RequestCutOff:
            return 0
        except BodyRefused as refused:
            return await self._bodies.refuse_body(
                self._refusals,
                scope,
                send,
                refused,
                f"The notification has more than {BODY_BYTES_MAX} bytes. Lower max_alerts in Alertmanager's configuration.",
            )
        try:
            return await self._store(scope, send, body)
        finally:
            self._bodies.give_back(len(body), caller.agent)

    async def _store(self, scope: Scope, send: Send, body: bytes) -> int:
        too_much = excess(body, values_max=VALUES_MAX, levels_max=JSON_DEPTH_MAX)
        if too_much == "levels":
            return await self._refusals.refuse(
                scope,
                send,
                400,
                "invalid_notification",
                f"The notification nests JSON deeper than {JSON_DEPTH_MAX} levels. "
                "Send notifications in the format of Alertmanager's webhook, version 4.",
            )
        if too_much == "values":
            return await self._refusals.refuse(
                scope,
                send,
                413,
                "too_many_values",
                f"The notification has more than {VALUES_MAX} JSON values. "
                "Lower max_alerts in Alertmanager's configuration.",
            )
        try:
            stored = await self.paths[scope["path"]](body)
        except Unavailable as error:
            return await respond(send, 503, to_json({"error": error.as_dict()}), RETRY_LATER)
        except HandoffError as error:
            return await self._refusals.refuse(scope, send, 400, error.code, f"{error.message} {error.hint}")
        except Exception:
            log.exception("alert.failed", path=scope["path"])
            return await respond(
                send,
                500,
                to_json(
                    {
                        "error": {
                            "code": "internal",
                            "message": "The notification was not stored because of a bug. See alert.failed in the log.",
                        }
                    }
                ),
            )
        return await respond(send, 200, to_json({"stored": stored}))
