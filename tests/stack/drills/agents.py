"""Agents that work on a stack, as plain threads: normal work and misbehaviour."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Event, Thread
from typing import Any, Final, Self

import httpx2

from tests.requests import body, headers
from tests.stack.bundle import Failed, Stack

EVERY_S: Final = 0.2
Work = Callable[[], object]


class Caller:
    """Calls tools with a token, from any thread, until the end of the block."""

    def __init__(self, stack: Stack, token: str) -> None:
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=50)
        whose = {"Authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=stack.url("HANDOFF_PORT"), headers=whose, timeout=40, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return its structured content.

        Raises Failed if it is refused, httpx2.HTTPError if nobody answers.
        """
        request = body("tools/call", name=tool, arguments=arguments)
        answer = self._http.post("/mcp", json=request, headers=headers("tools/call", tool)).json()
        result = answer.get("result", {"isError": True})
        if result.get("isError"):
            raise Failed(str(answer))
        return result["structuredContent"]

    def session(self) -> str:
        """Register a session and return its key."""
        return self("register_session")["session_key"]

    def says(self, session: str) -> None:
        """Append one message."""
        self("update_context", session_key=session, entries=[{"type": "message", "content": "On we go."}])

    def offer(self, to: str, **arguments: Any) -> int:
        """Offer a new session and return the id of the handoff."""
        asked = {"session_key": self.session(), "target_agent": to, "instructions": "Go on.", **arguments}
        return self("request_handoff", **asked)["handoff_id"]


@contextmanager
def again_and_again(make: Callable[[], Work], threads: int = 1, every_s: float = EVERY_S) -> Generator[None]:
    """Run threads that each call `make()` once and then its result every `every_s` seconds; failures are ignored."""
    over = Event()

    def work() -> None:
        do: Work | None = None
        while not over.wait(every_s):
            with suppress(Failed, httpx2.HTTPError, ValueError):
                do = do or make()
                do()

    working = [Thread(target=work, daemon=True) for _ in range(threads)]
    for it in working:
        it.start()
    try:
        yield
    finally:
        over.set()
        for it in working:
            it.join(timeout=45)


def work_of(caller: Caller) -> Callable[[], Work]:
    """Normal work: write, read twice (so that the cache can hit), and register another session."""

    def make() -> Callable[[], None]:
        session = caller.session()

        def work() -> None:
            caller.says(session)
            caller("get_context", session_key=session)
            caller("get_context", session_key=session)
            caller.session()

        return work

    return make


def rejects(ada: Caller, operator: Caller) -> None:
    """Make an offer that its receiver rejects."""
    operator("resolve_handoff", handoff_id=ada.offer("operator"), action="reject", note="Not mine.")


def mistakes(ada: Caller) -> None:
    """Make a call with a session that does not exist."""
    ada("get_context", session_key="nobody-knows")


def registers(caller: Caller) -> Callable[[], Work]:
    """Register one session after another."""
    return lambda: caller.session


def speaks_and_reads(caller: Caller) -> Callable[[], Work]:
    """Append a message and read the brief, which has to be rebuilt, over and over."""

    def make() -> Work:
        session = caller.session()

        def work() -> None:
            caller.says(session)
            caller("get_context", session_key=session)

        return work

    return make


def speaks(caller: Caller) -> Callable[[], Work]:
    """Append one message after another to an own session."""

    def make() -> Work:
        session = caller.session()
        return lambda: caller.says(session)

    return make


def registers_among_reads(ada: Caller, operator: Caller, reads: int) -> Callable[[], Work]:
    """Make `reads` reads and register one session, over and over.

    This fixes the share of registrations among the calls, whatever the machine's speed; among statements it is far lower.
    """

    def make() -> Work:
        session = ada.session()

        def work() -> None:
            _reads(ada, session, reads)
            operator.session()

        return work

    return make


def _reads(caller: Caller, session: str, times: int) -> None:
    for _ in range(times):
        caller("get_context", session_key=session)


def takes_late_and_forgets(stack: Stack, ada: Caller, operator: Caller) -> None:
    """Make offers that wait for 2 hours, are accepted, lapse, and are withdrawn, so that the sender's share suffices."""
    offered = [ada.offer("operator") for _ in range(5)]
    among = f"id IN ({', '.join(map(str, offered))})"
    stack.sql(f"UPDATE handoff SET updated_at = now() - interval '2 hours' WHERE {among} AND state = 'offered'")
    for it in offered:
        operator("accept_handoff", handoff_id=it)
    stack.sql(f"UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE {among} AND state = 'accepted'")
    for it in offered:
        ada("resolve_handoff", handoff_id=it, action="cancel")


def seldom_ill(stack: Stack, ada: Caller, operator: Caller) -> Callable[[], Work]:
    """Make 25 reads and an offer that is accepted. 1 offer in 5 has waited for 2 hours; every 6th time, register a session.

    So at most 1 call in 29 is an offer and 1 in 174 a registration, whatever the speed of the machine.
    """

    def make() -> Work:
        session, counted = ada.session(), count(1)

        def work() -> None:
            _reads(ada, session, 25)
            handoff, number = ada.offer("operator"), next(counted)
            if number % 5 == 0:
                stack.sql(f"UPDATE handoff SET updated_at = now() - interval '2 hours' WHERE id = {handoff}")
            token = operator("accept_handoff", handoff_id=handoff)["handoff"]["token"]
            operator("resolve_handoff", handoff_id=handoff, token=token, action="complete")
            if number % 6 == 0:
                operator.session()

        return work

    return make


def hands_to_and_fro(ada: Caller, operator: Caller) -> None:
    """Let two agents hand a session to each other and back, three times."""
    session = ada.session()
    for _ in range(3):
        for giver, taker, name in ((ada, operator, "operator"), (operator, ada, "ada")):
            offer = {"session_key": session, "target_agent": name, "instructions": "Yours.", "request_type": "full_handoff"}
            handoff = giver("request_handoff", **offer)["handoff_id"]
            token = taker("accept_handoff", handoff_id=handoff)["handoff"]["token"]
            taker("resolve_handoff", handoff_id=handoff, token=token, action="complete")
