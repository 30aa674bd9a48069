"""A simulated agent's connection to the service, reopened whenever it breaks."""

import asyncio
import json
import random
from collections.abc import Callable, Generator
from http import HTTPStatus
from time import monotonic, time
from typing import Final

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from handoff.simulation.steps import UNKNOWN_CALLER_REQUEST, Answer, Step, error_code

CALL_TIMEOUT_S: Final = 40.0  # longer than get_inbox may wait
RETRY_S: Final = (0.5, 5.0)  # the first pause and the longest
TOKEN_GRACE_S: Final = 15.0  # within this time a running service has read a new token
RETRYABLE: Final = frozenset({"unavailable", "overloaded", "share_used_up"})
_NOT_MCP: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


class NoAnswer(Exception):
    """The service did not answer. Whether the call took effect is unknown."""


_CONNECTION_ERRORS: Final = (NoAnswer, ExceptionGroup, httpx2.HTTPError, MCPError, OSError, TimeoutError)


class ServiceUnusable(Exception):
    """The agents can't work with this service, and waiting does not help. The message says what to do."""


class AgentClient:
    """One agent's connection. `run` keeps it open until `close`; `call` uses it."""

    def __init__(self, url: str, agent: str, token: str | None, on_disconnect: Callable[[], None]) -> None:
        self.agent = agent
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._on_disconnect = on_disconnect
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._was_connected = False
        self._created_at = monotonic()
        self._closing = False
        self._running: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keep the connection open until `close`. Raises ServiceUnusable if it can't be opened at all."""
        self._running = asyncio.current_task()
        pauses = backoff()
        while not self._closing:
            try:
                async with httpx2.AsyncClient(headers=self._headers, timeout=CALL_TIMEOUT_S) as http:
                    await self._check_service(http)
                    async with Client(streamable_http_client(self._url, http_client=http), cache=None) as client:
                        self._client, self._was_connected, pauses = client, True, backoff()
                        self._connected.set()
                        await asyncio.Event().wait()  # the client cancels this when its connection breaks
            except _CONNECTION_ERRORS:
                pass
            finally:
                self._connected.clear()
                self._client = None
            if not self._closing:
                self._on_disconnect()
                await asyncio.sleep(next(pauses))

    def close(self) -> None:
        """Let `run` close the connection and end.

        It is cancelled only once, because a second time would interrupt the closing. A connection that breaks just then may
        swallow the cancellation, so `run` also looks at whether it is to end.
        """
        self._closing = True
        if self._running is not None:
            self._running.cancel()

    async def _check_service(self, http: httpx2.AsyncClient) -> None:
        status = (await http.post(self._url, json={})).status_code
        if self._was_connected:  # so the problem may be temporary
            return
        if status == HTTPStatus.UNAUTHORIZED:
            if not self._headers or monotonic() > self._created_at + TOKEN_GRACE_S:
                raise ServiceUnusable(
                    f"{self._url} requires a valid token for {self.agent}."
                    " Give each agent its token: --tokens-file or --token"
                )
            raise NoAnswer
        if status in _NOT_MCP:
            raise ServiceUnusable(f"The server at {self._url} is not a Handoff service. Start one with: make run")

    async def call(self, step: Step, traceparent: str) -> Answer:
        """Make a step's call once the connection is open. A refusal is an answer with `error`. Raises NoAnswer."""
        await self._connected.wait()
        client = self._client
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if step.operation == UNKNOWN_CALLER_REQUEST:
                    answer = await self._post_with_unknown_token()
                elif client is None:
                    raise NoAnswer
                elif "://" in step.operation:
                    answer = await _read_resource(client, step.operation, traceparent)
                else:
                    answer = await _call_tool(client, step, traceparent)
        except _CONNECTION_ERRORS as error:
            raise NoAnswer from error
        if error_code(answer) in RETRYABLE:
            raise NoAnswer
        return {**answer, "answered_at": time()}

    async def _post_with_unknown_token(self) -> Answer:
        headers = {"Authorization": "Bearer of-nobody"}
        async with httpx2.AsyncClient(headers=headers, timeout=CALL_TIMEOUT_S) as http:
            response = await http.post(self._url, json={})
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            return {"error": {"code": "unauthorized"}}
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise NoAnswer
        return {}


def backoff() -> Generator[float]:
    """Yield pauses in seconds, each about twice as long as the one before, up to a limit."""
    pause_s, pause_s_max = RETRY_S
    while True:
        yield pause_s * random.uniform(0.75, 1.0)  # noqa: S311 - so that the agents don't all reconnect at once
        pause_s = min(pause_s_max, pause_s * 2)


async def _call_tool(client: Client, step: Step, traceparent: str) -> Answer:
    result = await client.call_tool(step.operation, step.arguments, meta={"traceparent": traceparent})
    if result.is_error:
        return json.loads(getattr(result.content[0], "text", "{}"))
    return result.structured_content or {}


async def _read_resource(client: Client, uri: str, traceparent: str) -> Answer:
    try:
        result = await client.read_resource(uri, meta={"traceparent": traceparent})
    except MCPError as error:
        data = error.error.data
        if isinstance(data, dict) and "code" in data:
            return {"error": data}
        raise
    return json.loads(getattr(result.contents[0], "text", "{}"))
