"""Random calls and time steps against the real database, compared with the transition table."""

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import asyncpg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.jobs.settle import settle_overdue
from handoff.model import EVENT_OF_ACTION, HELD_STATES, TRANSITIONS, HandoffAction, HandoffState
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import Agent

LAPSES_MAX = 2
RECEIVERS = ("bob", "carol")  # both can accept an offer to the capability
AGENTS = ("alice", *RECEIVERS)
REQUEST_TYPES = ("context_transfer", "full_handoff", "collaboration")
ACTS: tuple[HandoffAction, ...] = ("accept", "renew", "block", "complete", "cancel", "reject", "amend")
BY_ITS_HOLDER = ("holder renew", "holder renew", "holder block", "holder block", "holder complete")
DOES = (*ACTS, "accept", "accept", *BY_ITS_HOLDER, "lease runs out", "lease runs out", "deadline passes", "clock", "clock")
ENDS = ("complete", "holder complete", "cancel", "reject", "deadline passes")
TOOLS: dict[HandoffAction, str] = {
    "accept": "accept_handoff",
    "renew": "renew_handoff",
    "amend": "request_handoff",
}  # all others: resolve_handoff
NEVER_GIVEN = 1_000
REFUSALS = ("wrong_state", "stale_token", "not_addressed", "not_sender", "handoff_not_found")
OVERDUE = "UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE id = $1 AND lease_expires_at IS NOT NULL"
LATE = "UPDATE handoff SET deadline = now() - interval '1 second' WHERE id = $1"


@dataclass
class World:
    """An open service, and a portal through which the test's thread calls it."""

    portal: BlockingPortal
    app: App
    agent: Agent
    database_url: str


@contextmanager
def world(settings: Settings, database_url: str) -> Generator[World]:
    bounded = settings.model_copy(update={"lapses_max": LAPSES_MAX, "offers_per_target_max": 10_000})
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(open_app(bounded)) as app,
        portal.wrap_async_context_manager(Client(build_server(app))) as client,
    ):
        yield World(portal, app, Agent(client), database_url)


@dataclass
class Expected:
    """The expected state of one handoff and of its session, by the transition table and the clock."""

    request_type: str
    state: HandoffState = "offered"
    holder: str | None = None
    token: int = 0
    lapses: int = 0
    lease_is_over: bool = False
    is_late: bool = False
    owner: str = "alice"
    writers: frozenset[str] = frozenset({"alice"})
    events: list[str] = field(default_factory=lambda: ["handoff.offered"])
    steps: list[tuple[HandoffState, HandoffAction]] = field(default_factory=list)

    def apply(self, action: HandoffAction, agent: str | None = None) -> None:
        self.steps.append((self.state, action))
        self.state = TRANSITIONS[self.state, action]
        self.events.append(EVENT_OF_ACTION[action])
        is_full = self.request_type == "full_handoff"
        if action == "accept":
            assert agent is not None
            self.holder, self.token, self.lease_is_over = agent, self.token + 1, False
            self.writers = (self.writers - {self.owner} if is_full else self.writers) | {agent}
            self.owner = agent if is_full else self.owner
        elif action == "lapse" or (action == "complete" and self.request_type == "context_transfer"):
            self.owner = "alice"
            self.writers = self.writers - {self.holder or ""} | {"alice"}
        if action == "lapse":
            self.holder, self.lapses = None, self.lapses + 1

    def settle(self) -> None:
        """Apply the transitions that are due because time has passed."""
        if self.state in HELD_STATES and self.lease_is_over:
            if self.state == "blocked":
                self.apply("renew")
            self.apply("lapse")
            if self.lapses > LAPSES_MAX:
                self.apply("expire")
        if self.state == "offered" and self.is_late:
            self.apply("expire")


class Story:
    """One handoff in the database, and its expected state."""

    def __init__(self, world: World, request_type: str, *, to_capability: bool) -> None:
        self._world = world
        self.key = self._do(world.agent.session())
        for name in RECEIVERS:
            self._do(world.agent.ok("get_inbox", agent=name, capabilities=["work"]))
        self.receivers = RECEIVERS if to_capability else ("bob",)
        target: dict[str, Any] = {"target_agent": None, "target_capability": "work"} if to_capability else {}
        self.id = self._do(world.agent.offer(self.key, deadline_minutes=60, request_type=request_type, **target))
        self.expected = Expected(request_type)

    def act(self, does: str, agent: str = "bob", *, behind: int = 0) -> bool:
        """Perform a step, with a token that is `behind` by so many; return whether it took effect, as it should."""
        match does:
            case "lease runs out":
                self._do(self._sql(OVERDUE))
                self.expected.lease_is_over = self.expected.state in HELD_STATES
            case "deadline passes":
                self._do(self._sql(LATE))
                self.expected.is_late = True
            case "clock":
                self._do(settle_overdue(self._world.app))
                self.expected.settle()
            case "accept" | "cancel" | "reject" | "renew" | "block" | "complete" | "amend":
                # 0 would be read as no token at all, so what would be older than the first is one that was never given.
                return self._attempt(does, agent, max(0, self.expected.token - behind) or NEVER_GIVEN)
            case _:
                raise ValueError(does)
        return True

    def check(self) -> None:
        """Fail unless the database matches the expected state."""
        seen = self._do(self._world.agent.read(f"handoff://handoffs/{self.id}"))
        assert seen["state"] == self.expected.state
        assert seen["token"] == self.expected.token
        assert seen["lapses"] == self.expected.lapses
        assert ("lease_expires_at" in seen) == (self.expected.state in HELD_STATES)
        assert seen.get("holder") == self.expected.holder
        session = self._do(self._world.agent.read(f"handoff://sessions/{self.key}"))
        assert (session["owner"], set(session["writers"])) == (self.expected.owner, self.expected.writers)
        lifecycle = self._do(self._world.agent.read(f"handoff://sessions/{self.key}/lifecycle?limit=100"))
        kinds = [event["kind"] for event in lifecycle["events"]]
        assert [kind for kind in kinds if kind.startswith("handoff.")] == self.expected.events

    def _attempt(self, action: HandoffAction, agent: str, token: int) -> bool:
        """Call the tool; it must succeed exactly if the table and the caller's role allow the action by now."""
        arguments: dict[str, Any] = {"agent": agent, "handoff_id": self.id}
        if action == "amend":
            arguments |= {"session_key": self.key, "instructions": "Go on, but slowly."}
        elif action not in ("accept", "renew"):
            arguments |= {"action": action, "note": "because"}
        if action in ("renew", "block", "complete"):
            arguments |= {"token": token}
        then = deepcopy(self.expected)
        then.settle()
        legal = self._may(action, agent, token, then) and (then.state, action) in TRANSITIONS
        call = self._world.agent.ok if legal else self._world.agent.refused
        answer = self._do(call(TOOLS.get(action, "resolve_handoff"), **arguments))
        if legal:
            then.apply(action, agent)
            self.expected = then
        else:  # a refused call changes nothing, not even the transitions that are due
            assert answer["code"] in REFUSALS, answer
        return legal

    def _may(self, action: HandoffAction, agent: str, token: int, expected: Expected) -> bool:
        match action:
            case "accept":
                return agent in self.receivers
            case "cancel" | "amend":
                return agent == "alice"
            case "reject":  # nobody can reject an offer to a capability: another agent may accept it
                return self.receivers == (agent,)
            case _:
                return (agent, token) == (expected.holder, expected.token)

    def _do(self, call: Any) -> Any:
        async def awaited() -> Any:
            return await call

        return self._world.portal.call(awaited)

    async def _sql(self, statement: str) -> None:
        conn = await asyncpg.connect(self._world.database_url)
        await conn.execute(statement, self.id)
        await conn.close()


class Machine(RuleBasedStateMachine):
    """One handoff, offered to an agent or a capability, to which random steps are applied."""

    world: World
    story: Story

    @initialize(request_type=st.sampled_from(REQUEST_TYPES), to_capability=st.booleans())
    def offer(self, request_type: str, *, to_capability: bool) -> None:
        self.story = Story(self.world, request_type, to_capability=to_capability)

    # One rule instead of ten: of ten, hypothesis would disable most in most runs.
    @rule(does=st.sampled_from(DOES), agent=st.sampled_from(AGENTS), behind=st.sampled_from((0, 0, 0, 0, 1, 2)))
    def something_happens(self, does: str, agent: str, behind: int) -> None:
        if does.startswith("holder"):
            does, agent = does.removeprefix("holder "), self.story.expected.holder or "bob"
        if does not in ENDS or len(self.story.expected.events) > 2:  # do not let the handoff end at once
            self.story.act(does, agent, behind=behind)

    @invariant()
    def the_database_matches_the_expected_state(self) -> None:
        self.story.check()


@pytest.mark.timeout(1_200)  # a thousand steps, however long each takes
def test_no_sequence_of_calls_and_time_steps_leaves_the_transition_table(settings: Settings, database_url: str) -> None:
    with world(settings, database_url) as opened:
        Machine.world = opened
        run_state_machine_as_test(
            Machine,
            settings=hypothesis_settings(
                max_examples=40,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )


@pytest.mark.parametrize("to_capability", [False, True])
def test_every_action_by_every_agent_in_every_state_follows_the_transition_table(
    settings: Settings, database_url: str, *, to_capability: bool
) -> None:
    ways: dict[HandoffState, tuple[tuple[str, str], ...]] = {
        "offered": (),
        "accepted": (("accept", "bob"),),
        "blocked": (("accept", "bob"), ("block", "bob")),
        "completed": (("accept", "bob"), ("complete", "bob")),
        "rejected": (("reject", "bob"),),
        "cancelled": (("cancel", "alice"),),
        "expired": (("deadline passes", ""), ("clock", "")),
    }
    if to_capability:
        del ways["rejected"]
    taken: set[tuple[HandoffState, HandoffAction]] = set()
    with world(settings, database_url) as opened:

        def story_in(state: HandoffState) -> Story:
            story = Story(opened, "context_transfer", to_capability=to_capability)
            for does, agent in ways[state]:
                assert story.act(does, agent)
            assert story.expected.state == state
            return story

        for state in ways:
            story = story_in(state)
            for does, agent, behind in product(ACTS, AGENTS, (0, 1)):
                if story.act(does, agent, behind=behind):
                    story.check()
                    taken.update(story.expected.steps)
                    story = story_in(state)
            story.check()
            for _ in range(LAPSES_MAX + 1):
                story.act("lease runs out")
                story.act("clock")
                story.act("accept")
            story.check()
            taken.update(story.expected.steps)

    assert taken == {step for step in TRANSITIONS if not to_capability or step != ("offered", "reject")}


def test_the_transition_table_allows_exactly_the_specified_transitions() -> None:
    specified = {
        "offered": {"offered", "accepted", "rejected", "cancelled", "expired"},
        "accepted": {"accepted", "completed", "blocked", "offered"},
        "blocked": {"blocked", "accepted"},
    }
    found: dict[str, set[str]] = {}
    for (origin, _), target in TRANSITIONS.items():
        found.setdefault(origin, set()).add(target)
    assert found == specified
