"""A machine that does anything to handoffs, at any time, to the real database; the table says what must come of it."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from mcp import Client

from handoff.app import App, open_app, settle_overdue
from handoff.model import EVENT_OF_ACTION, HELD_STATES, TRANSITIONS, HandoffAction, HandoffState
from handoff.server import build_server
from handoff.settings import Settings
from tests.agents import Agent

LAPSES_MAX = 2
RECEIVERS = ("bob", "carol")  # both can take what is offered to the capability
AGENTS = ("alice", *RECEIVERS)
OVERDUE = "UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE id = $1 AND lease_expires_at IS NOT NULL"
LATE = "UPDATE handoff SET deadline = now() - interval '1 second' WHERE id = $1"


@dataclass
class World:
    """The service, and a way into it from a thread."""

    portal: BlockingPortal
    app: App
    agent: Agent
    database_url: str


@contextmanager
def world(settings: Settings, database_url: str) -> Generator[World]:
    bounded = settings.model_copy(update={"lapses_max": LAPSES_MAX})
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(open_app(bounded)) as app,
        portal.wrap_async_context_manager(Client(build_server(app))) as client,
    ):
        yield World(portal, app, Agent(client), database_url)


class Machine(RuleBasedStateMachine):
    """One handoff to a capability, and what the table says of it."""

    world: World

    @initialize(request_type=st.sampled_from(["context_transfer", "full_handoff", "collaboration"]))
    def offer(self, request_type: str) -> None:
        self.key = self._do(self.world.agent.session())
        for name in RECEIVERS:
            self._do(self.world.agent.ok("get_inbox", agent=name, capabilities=["work"]))
        target: dict[str, Any] = {"target_agent": None, "target_capability": "work", "request_type": request_type}
        self.id = self._do(self.world.agent.offer(self.key, deadline_minutes=60, **target))
        self.state: HandoffState = "offered"
        self.holder: str | None = None
        self.token = 0
        self.lapses = 0
        self.events = ["handoff.offered"]

    def _do(self, call: Any) -> Any:
        async def awaited() -> Any:
            return await call

        return self.world.portal.call(awaited)

    def _sql(self, statement: str) -> None:
        async def execute() -> None:
            conn = await asyncpg.connect(self.world.database_url)
            await conn.execute(statement, self.id)
            await conn.close()

        self._do(execute())

    def _apply(self, action: HandoffAction) -> None:
        self.state = TRANSITIONS[self.state, action]
        self.events.append(EVENT_OF_ACTION[action])

    def _attempt(self, tool: str, step: HandoffAction, *, right: bool, **arguments: Any) -> bool:
        """Call; it must succeed exactly when the table has the transition and the caller is the right one."""
        legal = right and (self.state, step) in TRANSITIONS
        call = self.world.agent.ok if legal else self.world.agent.refused
        answer = self._do(call(tool, handoff_id=self.id, **arguments))
        if legal:
            self._apply(step)
        else:
            assert answer["code"] in ("wrong_state", "stale_token", "not_addressed", "not_sender"), answer
        return legal

    @rule(agent=st.sampled_from(AGENTS))
    def accept(self, agent: str) -> None:
        if self._attempt("accept_handoff", "accept", right=agent in RECEIVERS, agent=agent):
            self.holder, self.token = agent, self.token + 1

    @rule(agent=st.sampled_from(AGENTS), behind=st.integers(0, 2))
    def renew(self, agent: str, behind: int) -> None:
        token = max(1, self.token - behind)
        right = agent == self.holder and token == self.token
        self._attempt("renew_handoff", "renew", right=right, agent=agent, token=token)

    @rule(agent=st.sampled_from(AGENTS), behind=st.integers(0, 1), action=st.sampled_from(["block", "complete"]))
    def block_or_complete(self, agent: str, behind: int, action: HandoffAction) -> None:
        token = max(1, self.token - behind)
        right = agent == self.holder and token == self.token
        arguments = {"agent": agent, "token": token, "action": action, "note": "because"}
        self._attempt("resolve_handoff", action, right=right, **arguments)

    @rule(agent=st.sampled_from(AGENTS))
    def cancel(self, agent: str) -> None:
        self._attempt("resolve_handoff", "cancel", right=agent == "alice", agent=agent, action="cancel")

    @rule(agent=st.sampled_from(AGENTS))
    def reject(self, agent: str) -> None:
        # An offer to a capability is nobody's to reject: another may want it.
        self._attempt("resolve_handoff", "reject", right=False, agent=agent, action="reject", note="no")

    @precondition(lambda self: self.state in HELD_STATES)
    @rule()
    def the_lease_runs_out(self) -> None:
        self._sql(OVERDUE)
        self._do(settle_overdue(self.world.app))
        if self.state == "blocked":
            self._apply("renew")
        self._apply("lapse")
        self.holder, self.lapses = None, self.lapses + 1
        if self.lapses > LAPSES_MAX:
            self._apply("expire")

    @precondition(lambda self: self.state == "offered")
    @rule()
    def the_deadline_passes(self) -> None:
        self._sql(LATE)
        self._do(settle_overdue(self.world.app))
        self._apply("expire")

    @invariant()
    def the_database_says_what_the_table_says(self) -> None:
        if not hasattr(self, "id"):
            return
        seen = self._do(self.world.agent.read(f"handoff://handoffs/{self.id}"))
        assert seen["state"] == self.state
        assert seen["token"] == self.token
        assert seen["lapses"] == self.lapses
        assert ("lease_expires_at" in seen) == (self.state in HELD_STATES)
        assert seen.get("holder") == self.holder
        lifecycle = self._do(self.world.agent.read(f"handoff://sessions/{self.key}/lifecycle?limit=100"))
        kinds = [event["kind"] for event in lifecycle["events"]]
        assert [kind for kind in kinds if kind.startswith("handoff.")] == self.events


def test_no_sequence_of_calls_and_times_leads_off_the_table(settings: Settings, database_url: str) -> None:
    with world(settings, database_url) as opened:
        Machine.world = opened
        run_state_machine_as_test(
            Machine,
            settings=hypothesis_settings(
                max_examples=40,
                stateful_step_count=20,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )


def test_the_table_is_the_one_that_was_agreed() -> None:
    agreed = {
        "offered": {"accepted", "rejected", "cancelled", "expired"},
        "accepted": {"accepted", "completed", "blocked", "offered"},
        "blocked": {"accepted"},
    }
    found: dict[str, set[str]] = {}
    for (origin, _), target in TRANSITIONS.items():
        found.setdefault(origin, set()).add(target)
    assert found == agreed
