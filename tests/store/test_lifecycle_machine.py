"""Random calls, jumps of the clock, and jobs, some of them killed, against the real database, compared with a model."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.jobs import archive, delete, dormant, expire
from handoff.model import OPEN_STATUSES, SESSION_TRANSITIONS, SessionAction, SessionStatus
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import Agent
from tests.clock import jump

# In hours: active_for, dormant_after, archived_for, as the migrations have them.
POLICIES = {"standard": (24.0, 2.0, 720.0), "short": (4.0, 1.0, 168.0)}
ARCHIVE_AFTER_H = 24.0
LOOK_AGAIN_H = 1.0  # a session that became idle when its handoff ended may be looked at as late as that
LEASE_H = 3.0
JUMPS_H = (0.13, 0.71, 1.37, 2.53, 5.19, 26.3, 191.7)  # no sum of a few of them is a period of a policy
JOBS: dict[str, Callable[[App], Awaitable[None]]] = {
    "dormant": dormant.run,
    "expire": expire.run,
    "archive": archive.run,
    "delete": delete.run,
}
DOES = (
    *("append", "append", "append", "offer", "accept", "complete", "close", "hold", "release", "erase"),
    *("jump", "jump", "jump", "jump", "job", "job", "job", "killed job", "killed job", "nap", "nap", "age", "almost"),
)
AGE = ((26.3, "expire"), (26.3, "archive"))
WAYS = {"nap": ((3.31, "dormant"),), "age": AGE, "almost": (*AGE, (95.9, "delete"))}  # which is too early by any policy
SEEN = """
    SELECT s.key, s.status, extract(epoch FROM now() - s.last_activity_at)::float8 / 3600 AS idle_h,
           (SELECT array_agg(kind ORDER BY id) FROM event e WHERE e.session_id = s.id AND kind LIKE 'session.%') AS events
      FROM session s
"""


@dataclass
class Expected:
    """What the model says of one session. Times are hours on the model's clock."""

    policy: str
    now: float
    status: SessionStatus = "active"
    contents: list[str] = field(default_factory=list[str])
    events: list[str] = field(default_factory=lambda: ["session.created", "session.expiration_scheduled"])
    handoff: tuple[int, str] | None = None  # its id, and whether it is offered or held
    token: int = 0
    lease_until: float = 0.0
    held: bool = False

    def __post_init__(self) -> None:
        self.since = self.active_at = self.now
        self.expires_at = self.now + POLICIES[self.policy][0]

    def shown(self, now: float) -> SessionStatus:
        return "expired" if self.status in OPEN_STATUSES and self.expires_at <= now else self.status

    def apply(self, action: SessionAction, now: float) -> None:
        then = SESSION_TRANSITIONS[self.status, action]
        assert then.status is not None
        assert then.open_handoffs != "none" or self.handoff is None
        if then.open_handoffs == "ended":
            self.handoff = None
        self.status, self.since = then.status, now
        self.events.append(then.event)

    def act(self, now: float, lease_until: float = 0.0) -> None:
        """An agent does something with the session."""
        if self.status == "dormant":
            self.apply("wake", now)
        self.active_at = now
        self.expires_at = max(self.expires_at, now + POLICIES[self.policy][0], lease_until)

    def run(self, job: str, now: float, seen: str | None) -> bool:
        """Apply what a job must do; where it may also do it later, what was `seen`. Returns whether the session is gone."""
        _, dormant_after, archived_for = POLICIES[self.policy]
        match job:
            case "dormant" if self.shown(now) == "active" and self.handoff is None:
                idle = now - self.active_at
                if idle >= dormant_after + LOOK_AGAIN_H or (idle >= dormant_after and seen == "dormant"):
                    self.apply("sleep", now)
            case "expire" if self.status in OPEN_STATUSES and self.expires_at <= now:
                self.apply("expire", now)
            case "archive" if self.status in ("completed", "cancelled", "expired") and self.since + ARCHIVE_AFTER_H <= now:
                self.apply("archive", now)
            case "delete" if self.status == "archived" and self.since + archived_for <= now:
                return not self.held
            case _:
                pass
        return False


@dataclass
class World:
    """An open service, its database, and a portal through which the test's thread calls them."""

    portal: BlockingPortal
    app: App
    agent: Agent
    db: asyncpg.Connection

    def do(self, call: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await call

        return self.portal.call(awaited)


@contextmanager
def world(settings: Settings, database_url: str) -> Generator[World]:
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(open_app(settings.model_copy(update={"admin": True}))) as app,
        portal.wrap_async_context_manager(Client(build_server(app))) as client,
    ):
        db = portal.call(asyncpg.connect, database_url)
        yield World(portal, app, Agent(client), db)
        portal.call(db.close)


class Machine(RuleBasedStateMachine):
    """Three sessions, to which random steps are applied."""

    world: World

    @initialize(policies=st.tuples(*[st.sampled_from(sorted(POLICIES))] * 3))
    def register(self, policies: tuple[str, ...]) -> None:
        self.now = 0.0
        self.sessions: dict[str, Expected] = {}
        self.world.do(self.world.db.execute("TRUNCATE session CASCADE"))  # of the run before, which jobs would go on with
        for policy in policies:
            key = self.world.do(self.world.agent.session(retention_policy=policy))
            self.sessions[key] = Expected(policy, self.now)
            self.sessions[key].contents.append(f"Session {key} registered by alice.")
        self.read: dict[str, list[dict[str, Any]]] = {}
        self.audited = self.actions()

    # One rule instead of many: of many, hypothesis would disable most in most runs.
    @rule(
        does=st.sampled_from(DOES),
        place=st.integers(0, 2),
        hours=st.sampled_from(JUMPS_H),
        job=st.sampled_from(sorted(JOBS)),
    )
    def something_happens(self, does: str, place: int, hours: float, job: str) -> None:
        if does == "jump":
            self.jump(hours)
        elif does in WAYS:  # rarely found by chance
            for jump_h, name in WAYS[does]:
                self.jump(jump_h)
                self.run(name, killed=False)
        elif does.endswith("job"):
            self.run(job, killed=does == "killed job")
        elif self.sessions:
            key = sorted(self.sessions)[place % len(self.sessions)]
            self.act(does, key, self.sessions[key])

    @invariant()
    def the_database_matches_the_model(self) -> None:
        seen = self.seen()
        for key, session in self.sessions.items():
            row = seen[key]
            assert (row["status"], row["events"]) == (session.status, session.events)
            assert row["idle_h"] == pytest.approx(self.now - session.active_at, abs=0.02)
            page = self.world.do(self.world.agent.read(f"handoff://context/{key}?limit=100"))
            assert [entry["content"] for entry in page["entries"]] == session.contents
            before = self.read.get(key, [])  # perhaps before it was archived
            assert page["entries"][: len(before)] == before
            self.read[key] = page["entries"]
            shown = self.world.do(self.world.agent.read(f"handoff://sessions/{key}"))
            assert shown["status"] == session.shown(self.now)
        assert self.actions() == self.audited

    def actions(self) -> list[str]:
        return self.world.do(self.world.db.fetchval("SELECT coalesce(array_agg(action ORDER BY id), '{}') FROM audit"))

    def jump(self, hours: float) -> None:
        self.world.do(jump(self.world.db, hours=hours))
        self.now += hours

    def seen(self) -> dict[str, Any]:
        return {row["key"]: row for row in self.world.do(self.world.db.fetch(SEEN))}

    def run(self, job: str, *, killed: bool) -> None:
        """Run a job to its end; perhaps after one that was killed, and the minute after which an expiry is resumed."""
        if killed:
            self.world.do(self.cut_short(JOBS[job]))
            self.jump(1 / 59)
        self.world.do(JOBS[job](self.world.app))
        seen = self.seen()
        self.gone(
            [
                key
                for key, session in self.sessions.items()
                if session.run(job, self.now, seen[key]["status"] if key in seen else None)
            ],
            seen,
        )
        if job == "expire":
            states = self.world.do(self.world.db.fetch("SELECT id, state FROM handoff"))
            state = {row["id"]: row["state"] for row in states}
            assert all(state[it.handoff[0]] in ("offered", "accepted") for it in self.sessions.values() if it.handoff)

    async def cut_short(self, run: Callable[[App], Awaitable[None]]) -> None:
        statements = 0
        running = asyncio.ensure_future(run(self.world.app))
        while not running.done() and statements < 20:  # wherever that is
            await asyncio.sleep(0)
            statements += 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def gone(self, keys: list[str], seen: dict[str, Any]) -> None:
        for key in keys:
            assert key not in seen
            del self.sessions[key]
        self.audited += ["session.deleted"] * len(keys)

    def act(self, does: str, key: str, session: Expected) -> None:  # noqa: C901, PLR0912 - one case per step
        is_open = session.shown(self.now) in OPEN_STATUSES
        asked = {"agent": "alice", "session_key": key}
        match does:
            case "append":
                entry = {"type": "message", "content": f"entry {len(session.contents)}"}
                if self.call(is_open, "session_closed", "update_context", **asked, entries=[entry]):
                    session.act(self.now)
                    session.contents.append(entry["content"])
            case "offer" if session.handoff is None:
                offer = {"target_agent": "bob", "instructions": "Go on."}
                if answer := self.call(is_open, "session_closed", "request_handoff", **asked, **offer):
                    session.act(self.now)
                    session.handoff = (answer["handoff_id"], "offered")
            case "accept" if session.handoff is not None and session.handoff[1] == "offered":
                taken = {"agent": "bob", "handoff_id": session.handoff[0], "lease_seconds": int(LEASE_H * 3600)}
                if answer := self.call(is_open, "wrong_state", "accept_handoff", **taken):
                    session.lease_until = self.now + LEASE_H
                    session.act(self.now, session.lease_until)
                    session.handoff, session.token = (session.handoff[0], "held"), answer["handoff"]["token"]
            case "complete" if session.handoff is not None and session.handoff[1] == "held" and is_open:
                if self.now < session.lease_until:
                    done = {"agent": "bob", "handoff_id": session.handoff[0], "action": "complete", "token": session.token}
                    self.call(True, "", "resolve_handoff", **done)
                    session.act(self.now)
                    session.handoff = None
            case "close":
                code = "open_handoffs" if is_open else "session_closed"
                if self.call(is_open and session.handoff is None, code, "close_session", **asked):
                    session.apply("complete", self.now)
            case "hold" | "release" if session.held != (does == "hold"):
                self.call(True, "", "session_data", agent="ops", action=does, of="session", name=key, reason="case 7")
                session.held = does == "hold"
                self.audited.append("data.held" if session.held else "data.released")
            case "erase" if session.held or len(session.events) > 3:  # not as the first thing
                if self.call(
                    not session.held,
                    "held",
                    "session_data",
                    agent="ops",
                    action="delete",
                    of="session",
                    name=key,
                    reason="x",
                ):
                    self.gone([key], self.seen())
                else:
                    self.audited.append("data.deletion_refused")
            case _:
                pass

    def call(self, allowed: object, code: str, tool: str, **arguments: Any) -> dict[str, Any] | None:
        """Make a call; it must succeed exactly if it is allowed. Returns its answer, None if it was refused as it should."""
        if allowed:
            return self.world.do(self.world.agent.ok(tool, **arguments))
        assert self.world.do(self.world.agent.refused(tool, **arguments))["code"] == code
        return None


SETTINGS = hypothesis_settings(
    max_examples=8,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would outlast the time limit of a test
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_no_sequence_of_calls_jumps_and_jobs_leaves_the_table_and_nothing_held_or_young_is_ever_gone(
    settings: Settings, database_url: str
) -> None:
    with world(settings, database_url) as opened:
        Machine.world = opened
        run_state_machine_as_test(Machine, settings=SETTINGS)
