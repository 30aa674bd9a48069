"""Webhooks: what happens to handoffs reaches a receiver that verifies, fails, hangs and comes back, in order."""

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncGenerator
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from mcp import Client

from handoff.app import open_app
from handoff.cli.doctor import Finding, examine
from handoff.context import App
from handoff.jobs import measure, webhooks
from handoff.jobs.settle import settle_overdue
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.telemetry import metrics
from handoff.webhooks import Endpoint, WebhooksFileError, read_endpoints, signatures
from tests.agents import PAST, Agent

OLD, NEW = b"o" * 24, b"n" * 32


class Receiver:
    """A receiver of webhooks that verifies them. `answers` decides the status by the handoff's id; None hangs."""

    def __init__(self) -> None:
        self.got: list[tuple[int, str]] = []
        self.ids: list[str] = []
        self.attempts = 0
        self.status: int | None = 204
        self.status_of: dict[int, int] = {}
        self.port = 0

    async def receive(self, request: web.Request) -> web.Response:
        self.attempts += 1
        body, head = await request.read(), request.headers
        signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
        expected = [f"v1,{base64.b64encode(hmac.new(it, signed, sha256).digest()).decode()}" for it in (NEW, OLD)]
        assert head["webhook-signature"].split() == expected
        assert b"secret plan" not in body
        message = json.loads(body)
        number = message["data"]["handoff_id"]
        status = self.status_of.get(number, self.status)
        if status is None:
            await asyncio.Event().wait()
        if status is not None and status < 300:
            self.got.append((number, message["type"].removeprefix("handoff.")))
            self.ids.append(head["webhook-id"])
        return web.Response(status=status or 500, headers={"location": "/hook"})


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    running = Receiver()
    served = web.Application()
    served.router.add_post("/hook", running.receive)
    runner = web.AppRunner(served, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.port = runner.addresses[0][1]
    yield running
    await runner.cleanup()


@pytest.fixture
def settings(settings: Settings, tmp_path: Path, receiver: Receiver) -> Settings:
    for name, secret in (("old", OLD), ("new", NEW)):
        (tmp_path / name).write_text(f"whsec_{base64.b64encode(secret).decode()}\n")
    write(tmp_path, receiver.port, "")
    return settings.model_copy(update={"webhooks_file": tmp_path / "webhooks.toml", "admin": True})


def write(folder: Path, port: int, more: str, networks: str = '["127.0.0.0/8"]', host: str = "127.0.0.1") -> None:
    (folder / "webhooks.toml").write_text(
        f'[[endpoint]]\nname = "ops"\nurl = "http://{host}:{port}/hook"\nnetworks = {networks}\n'
        f'secret_files = ["{folder}/new", "{folder}/old"]\n{more}'
    )


async def due_now(db: asyncpg.Connection) -> None:
    await db.execute("UPDATE webhook_delivery SET next_at = now() WHERE NOT is_dead")


async def waiting(db: asyncpg.Connection) -> list[tuple[str, int, str | None]]:
    rows = await db.fetch("SELECT kind, attempts, problem FROM webhook_delivery WHERE NOT is_dead ORDER BY event_id")
    return [(row["kind"].removeprefix("handoff."), row["attempts"], row["problem"]) for row in rows]


async def test_what_happens_to_a_handoff_is_told_once_in_order_and_verified(
    app: App, agent: Agent, db: asyncpg.Connection, receiver: Receiver
) -> None:
    key = await agent.session()
    first = await agent.offer(key, instructions="The secret plan.")
    token = await agent.accept(first)
    held = {"agent": "bob", "handoff_id": first}
    await agent.ok("resolve_handoff", **held, token=token, action="block", note="the secret plan")
    await agent.ok("renew_handoff", **held, token=token)
    await db.execute(PAST)
    await settle_overdue(app)
    token = await agent.accept(first)
    await agent.ok("resolve_handoff", **held, token=token, action="complete", note="the secret plan")
    second = await agent.offer(key)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=second, action="reject", note="no")
    await webhooks.run(app)
    await webhooks.run(app)

    told = ["offered", "accepted", "blocked", "lapsed", "accepted", "completed"]
    assert [kind for number, kind in receiver.got if number == first] == told
    assert [kind for number, kind in receiver.got if number == second] == ["offered", "rejected"]
    assert len(set(receiver.ids)) == receiver.attempts == len(told) + 2
    assert await waiting(db) == []
    assert await db.fetchval("SELECT count(*) FROM webhook_outbox") == 0


async def test_a_receiver_that_fails_hangs_and_comes_back_misses_nothing(
    app: App, agent: Agent, db: asyncpg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.3)
    key = await agent.session()
    first, other = await agent.offer(key), await agent.offer(key, to="carol")
    await agent.accept(first)
    receiver.status_of[first] = 503
    await webhooks.run(app)
    assert receiver.got == [(other, "offered")]
    assert await waiting(db) == [("offered", 1, "503"), ("accepted", 0, None)]

    receiver.status_of[first] = 302  # followed, it would be accepted
    await due_now(db)
    await webhooks.run(app)
    assert await waiting(db) == [("offered", 2, "302"), ("accepted", 0, None)]

    receiver.status_of, receiver.status = {}, None
    await agent.accept(other, "carol")
    await due_now(db)
    await webhooks.run(app)
    assert {it[2] for it in await waiting(db) if it[1]} == {"timeout"}
    assert await db.fetchval("SELECT bool_and(next_at > now()) FROM webhook_delivery"), "it is left alone for a while"
    [shown] = (await agent.read("handoff://webhooks"))["endpoints"]
    assert (shown["name"], shown["pending"], shown["dead"], shown["problem"]) == ("ops", 3, 0, "timeout")

    receiver.status = 200
    await due_now(db)
    await webhooks.run(app)
    assert receiver.got[1:] in (
        [(first, "offered"), (other, "accepted"), (first, "accepted")],
        [(other, "accepted"), (first, "offered"), (first, "accepted")],
    )
    assert await waiting(db) == []


async def test_what_was_tried_often_enough_or_is_gone_is_given_up_and_the_next_is_delivered(
    app: App, agent: Agent, db: asyncpg.Connection, receiver: Receiver, tmp_path: Path
) -> None:
    key = await agent.session()
    first, second = await agent.offer(key), await agent.offer(key, to="carol")
    receiver.status_of = {first: 500, second: 410}
    await webhooks.run(app)
    assert await waiting(db) == [("offered", 1, "500")], "410 is the end at once"
    await db.execute("UPDATE webhook_delivery SET attempts = $1", webhooks.ATTEMPTS_MAX - 1)
    await due_now(db)
    await agent.accept(first)
    await webhooks.run(app)
    receiver.status_of = {}
    await due_now(db)
    await webhooks.run(app)
    assert receiver.got == [(first, "accepted")]
    await measure.run(app)
    assert metrics.WEBHOOKS_DEAD.value() == 2
    assert metrics.WEBHOOKS_PENDING.value() == 0
    assert (await agent.read("handoff://webhooks"))["endpoints"][0]["dead"] == 2

    (tmp_path / "webhooks.toml").write_text("")
    await measure.run(app)
    assert metrics.WEBHOOKS_DEAD.value() == 0, "nothing is wrong at an endpoint that is gone"


async def test_an_endpoint_whose_secret_is_gone_waits_for_it_and_holds_up_no_other(
    app: App, agent: Agent, db: asyncpg.Connection, receiver: Receiver, tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    url = f"http://127.0.0.1:{receiver.port}/hook"
    more = f'networks = ["127.0.0.0/8"]\nsecret_files = ["{tmp_path}/new", "{tmp_path}/gone"]'
    second = f'[[endpoint]]\nname = "second"\nurl = "{url}"\n{more}'
    write(tmp_path, receiver.port, second)
    offered = await agent.offer(await agent.session())
    await webhooks.run(app)
    assert receiver.got == [(offered, "offered")]
    assert await waiting(db) == [("offered", 1, "secret_unusable")]
    assert [it["error"] for it in logged if it["event"] == "webhook.secret_unusable"] == [
        f"{tmp_path}/gone: No such file or directory"
    ]

    (tmp_path / "gone").write_text((tmp_path / "old").read_text())
    await due_now(db)
    await webhooks.run(app)
    assert receiver.got == [(offered, "offered")] * 2
    assert await waiting(db) == []


async def test_what_was_given_up_is_delivered_after_an_operator_asks_for_it(
    app: App, agent: Agent, db: asyncpg.Connection, receiver: Receiver
) -> None:
    offered = await agent.offer(await agent.session())
    receiver.status_of = {offered: 410}
    await webhooks.run(app)
    receiver.status_of = {}
    token = await agent.accept(offered)
    await webhooks.run(app)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=offered, action="complete", token=token)
    asked = {"agent": "alice", "endpoint": "ops"}
    again = await agent.ok("retry_webhooks", **asked)
    await webhooks.run(app)
    nothing = await agent.refused("retry_webhooks", **asked)

    assert again == {"endpoint": "ops", "retried": 1, "pending": 1, "dead": 0}
    assert receiver.got == [(offered, "accepted"), (offered, "offered"), (offered, "completed")]
    numbers = [int(it.removeprefix("evt_")) for it in receiver.ids]
    assert numbers[1] < numbers[0] < numbers[2], "a receiver can order them, as docs/webhooks.md says"
    assert nothing["code"] == "webhook_not_found"
    [row] = await db.fetch("SELECT actor, action, target, details FROM audit")
    assert tuple(row) == ("alice", "webhooks.retry", "ops", '{"messages": 1}')


async def test_an_endpoint_is_told_only_what_it_wants(app: App, agent: Agent, receiver: Receiver, tmp_path: Path) -> None:
    write(tmp_path, receiver.port, 'agents = ["carol"]\nevents = ["offered", "expired"]\n')
    key = await agent.session()
    await agent.offer(key)
    to_carol = await agent.offer(key, to="carol")
    await agent.accept(to_carol, "carol")
    await webhooks.run(app)
    assert receiver.got == [(to_carol, "offered")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "127.1"])
async def test_an_endpoint_that_leads_to_a_private_address_is_not_called(
    app: App, agent: Agent, db: asyncpg.Connection, receiver: Receiver, tmp_path: Path, host: str
) -> None:
    write(tmp_path, receiver.port, "", '["192.0.2.0/24"]', host)
    await agent.offer(await agent.session())
    await webhooks.run(app)
    [(_, attempts, problem)] = await waiting(db)
    assert (attempts, problem) in ((1, "address_not_allowed"), (1, "InvalidUrlClientError"))
    assert receiver.attempts == 0


async def test_without_a_file_nothing_is_recorded(app: App, database_url: str, db: asyncpg.Connection) -> None:
    without = app.settings.model_copy(update={"webhooks_file": None})
    async with open_app(without) as other, Client(build_server(other)) as client:
        agent = Agent(client)
        await agent.offer(await agent.session())
        await webhooks.run(other)
        assert (await agent.read("handoff://webhooks")) == {"endpoints": []}
    assert await db.fetchval("SELECT count(*) FROM webhook_outbox") == 0


def endpoint(**more: Any) -> Endpoint:
    return Endpoint.model_validate({"name": "a", "url": "https://example.com/", "secret_files": ["/s"], **more})


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *((it, False) for it in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1")),
        *(
            (it, False)
            for it in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1")
        ),
        *((it, False) for it in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:0:0:0:0:f5ff:fffe")),
    ],
)
def test_only_public_addresses_are_called_unless_networks_are_named(address: str, *, is_public: bool) -> None:
    assert endpoint().may_be_at(address) is is_public
    assert not endpoint(networks=["203.0.113.0/24"]).may_be_at(address)
    assert endpoint(networks=["10.0.0.0/8"]).may_be_at(address) is (
        address in ("10.1.2.3", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:0:0:0:0:f5ff:fffe")
    )


def test_the_signature_is_that_of_the_specification() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signatures([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[endpoint", "array declaration"),
        ("colour = 1", "unknown name 'colour'"),
        ('[[endpoint]]\nname = "a"\nurl = "https://e.com"', "secret_files: Field required"),
        ('[[endpoint]]\nname = "a"\nurl = "http://e.com"\nsecret_files = ["s"]', "must use https"),
        ('[[endpoint]]\nname = "a"\nurl = "https://me:pw@e.com"\nsecret_files = ["s"]', "without a user"),
        ('[[endpoint]]\nname = "a"\nurl = "file:///etc"\nsecret_files = ["s"]', "with http or https"),
        ('[[endpoint]]\nname = "a"\nurl = "https://e.com"\nsecret_files = ["s"]\nevents = ["sold"]', "events.0"),
        ('[[endpoint]]\nname = "a"\nurl = "https://e.com"\nsecret_files = ["s"]\n' * 2, "a name of its own"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "webhooks.toml"
    file.write_text(text)
    with pytest.raises(WebhooksFileError, match=r"webhooks\.toml") as raised:
        read_endpoints(file)
    assert words in str(raised.value)
    assert "pw" not in str(raised.value)


def test_a_secret_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for written in (b"whsec_c2hvcnQ=", b"not base64!", "whsec_süß".encode(), bytes(range(128, 192))):
        file.write_bytes(written)
        with pytest.raises(WebhooksFileError, match="24 to 64 bytes in base64"):
            endpoint(secret_files=[file]).secrets()


async def test_the_doctor_reads_the_file_and_each_secret(settings: Settings, tmp_path: Path, receiver: Receiver) -> None:
    async def finding() -> Finding:
        (found,) = [it async for it in examine(settings) if it.check == "webhooks"]
        return found

    assert (await finding()).todo is None
    (tmp_path / "old").unlink()
    assert f"{tmp_path}/old: No such file" in (await finding()).found
    write(tmp_path, receiver.port, "unknown = 1")
    unknown = await finding()
    assert "unknown: Extra inputs" in unknown.found
    assert unknown.todo == "Correct the file that HANDOFF_WEBHOOKS_FILE names, or unset the variable."
