"""An agent's line to the service: opened, and opened again whenever it breaks."""

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

from handoff.simulation.steps import STRANGE_REQUEST, Answer, Step

CALL_S_MAX: Final = 40.0  # longer than get_inbox may wait
RETRY_S: Final = (0.5, 5.0)  # the first pause, and the longest
TOKEN_S: Final = 15.0  # within which a service that runs has read a new token
RETRYABLE: Final = frozenset({"unavailable", "overloaded"})
_NO_SERVICE: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


class Away(Exception):
    """The service did not answer; whether the call took effect is not known."""


_BROKEN: Final = (Away, ExceptionGroup, httpx2.HTTPError, MCPError, OSError, TimeoutError)


class Unwelcome(Exception):
    """These agents can't work there, and waiting does not help. The message says what to do."""


class Line:
    """One agent's connection. `run` keeps it; `call` uses it."""

    def __init__(self, url: str, agent: str, token: str | None, on_away: Callable[[], None]) -> None:
        self.agent = agent
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._on_away = on_away
        self._client: Client | None = None
        self._open = asyncio.Event()
        self._was_open = False
        self._began = monotonic()

    async def run(self) -> None:
        """Keep the line open until cancelled. Raises Unwelcome if it never can be."""
        pauses = backoff()
        while True:
            try:
                async with httpx2.AsyncClient(headers=self._headers, timeout=CALL_S_MAX) as http:
                    await self._look(http)
                    async with Client(streamable_http_client(self._url, http_client=http), cache=None) as client:
                        self._client, self._was_open, pauses = client, True, backoff()
                        self._open.set()
                        await asyncio.Event().wait()  # the client cancels this when its connection breaks
            except _BROKEN:
                pass
            finally:
                self._open.clear()
                self._client = None
            self._on_away()
            await asyncio.sleep(next(pauses))

    async def _look(self, http: httpx2.AsyncClient) -> None:
        status = (await http.post(self._url, json={})).status_code
        if self._was_open:  # then what is wrong now may pass
            return
        if status == HTTPStatus.UNAUTHORIZED and (not self._headers or monotonic() > self._began + TOKEN_S):
            raise Unwelcome(f"{self._url} does not know {self.agent}. Give each agent its token: --tokens-file, or --token")
        if status == HTTPStatus.UNAUTHORIZED:
            raise Away
        if status in _NO_SERVICE:
            raise Unwelcome(f"What answers at {self._url} is no Handoff service. Start one with: make run")

    async def call(self, step: Step, traceparent: str) -> Answer:
        """Make a step's call, once the line is open. A refusal is an answer with `error`. Raises Away."""
        await self._open.wait()
        client = self._client
        try:
            async with asyncio.timeout(CALL_S_MAX):
                if step.call == STRANGE_REQUEST:
                    answer = await self._request_as_nobody()
                elif client is None:
                    raise Away
                elif "://" in step.call:
                    answer = await _read(client, step.call, traceparent)
                else:
                    answer = await _use(client, step, traceparent)
        except _BROKEN as error:
            raise Away from error
        if answer.get("error", {}).get("code") in RETRYABLE:
            raise Away
        return {**answer, "answered_at": time()}

    async def _request_as_nobody(self) -> Answer:
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer of-nobody"}, timeout=CALL_S_MAX) as http:
            response = await http.post(self._url, json={})
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            return {"error": {"code": "unauthorized"}}
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Away
        return {}


def backoff() -> Generator[float]:
    """Pauses in seconds, each about twice as long as the one before, up to a bound."""
    pause_s, longest_s = RETRY_S
    while True:
        yield pause_s * random.uniform(0.75, 1.0)  # noqa: S311 - so that not all come back at once
        pause_s = min(longest_s, pause_s * 2)


async def _use(client: Client, step: Step, traceparent: str) -> Answer:
    result = await client.call_tool(step.call, step.arguments, meta={"traceparent": traceparent})
    if result.is_error:
        return json.loads(getattr(result.content[0], "text", "{}"))
    return result.structured_content or {}


async def _read(client: Client, uri: str, traceparent: str) -> Answer:
    try:
        result = await client.read_resource(uri, meta={"traceparent": traceparent})
    except MCPError as error:
        data = error.error.data
        if isinstance(data, dict) and "code" in data:
            return {"error": data}
        raise
    return json.loads(getattr(result.contents[0], "text", "{}"))
