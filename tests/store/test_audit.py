"""The audit can only be appended to, and a row that is changed, inserted or removed behind its triggers is found out."""

import asyncio
from itertools import chain
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from handoff.cli.doctor import examine
from handoff.context import App
from handoff.jobs import audit as job
from handoff.settings import Settings
from handoff.store import audit
from handoff.store.connect import Connection, transact
from handoff.telemetry import metrics


async def append(app: App, count: int) -> list[int]:
    async def work(conn: Connection) -> list[int]:
        acted = {"actor": "ops", "action": "configuration.set", "target": "health"}
        return [await audit.append(conn, **acted, details={"n": n, "what": 'ä\\u0001 \u2028 "'}) for n in range(count)]

    return await transact(app.pool, work)


async def behind_its_back(db: asyncpg.Connection, *statements: str) -> None:
    """Run statements as somebody who can turn triggers off."""
    async with db.transaction():
        await db.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            await db.execute(statement)


async def checked(app: App) -> list[int | None]:
    """The first broken row, as a check in small steps finds it and then one of the whole chain."""
    steps = [await transact(app.pool, lambda conn: audit.check_next(conn, 3)) for _ in range(8)]
    return [step.broken_id for step in (*steps, await transact(app.pool, audit.check_whole))]


async def test_rows_are_numbered_and_chained_whoever_appends_them(app: App) -> None:
    results = await asyncio.gather(*(append(app, 3) for _ in range(5)))
    assert sorted(chain.from_iterable(results)) == list(range(1, 16))
    assert set(await checked(app)) == {None}


async def test_a_row_is_appended_only_if_its_transaction_commits(app: App) -> None:
    async def work(conn: Connection) -> None:
        await audit.append(conn, actor=None, action="session.deleted", target="s1")
        raise LookupError

    with pytest.raises(LookupError):
        await transact(app.pool, work)
    assert await append(app, 1) == [1]
    assert set(await checked(app)) == {None}


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET actor = 'eve'", "DELETE FROM audit", "TRUNCATE audit", "DELETE FROM audit WHERE false"]
)
async def test_a_change_of_the_table_is_refused(app: App, db: asyncpg.Connection, statement: str) -> None:
    await append(app, 1)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await db.execute(statement)
    assert await db.fetchval("SELECT actor FROM audit") == "ops"


async def test_even_the_owner_of_the_table_has_no_right_to_change_it(db: asyncpg.Connection) -> None:
    rights = await db.fetch(
        "SELECT privilege_type FROM pg_class, aclexplode(relacl) WHERE oid = 'audit'::regclass AND grantee = relowner"
    )
    assert {row[0] for row in rights} & {"UPDATE", "DELETE", "TRUNCATE"} == set()
    assert "INSERT" in {row[0] for row in rights}


async def test_number_and_hash_of_a_row_cannot_be_chosen(app: App, db: asyncpg.Connection) -> None:
    await append(app, 1)
    await db.execute("INSERT INTO audit VALUES (77, now(), 'eve', 'a.b', '', '{}', sha256('x'))")
    assert await db.fetchval("SELECT array_agg(id ORDER BY id) FROM audit") == [1, 2]
    assert set(await checked(app)) == {None}


@pytest.mark.parametrize(
    ("broken", "statements"),
    [
        (4, ["UPDATE audit SET actor = 'eve' WHERE id = 4"]),
        (4, ["""UPDATE audit SET details = '{"n": 0}' WHERE id = 4"""]),
        (4, ["UPDATE audit SET at = at + interval '1 microsecond' WHERE id = 4"]),
        (5, ["DELETE FROM audit WHERE id = 4"]),
        (2, ["DELETE FROM audit WHERE id = 1"]),
        (7, ["DELETE FROM audit WHERE id = 7"]),  # the last one: the chain alone would not show it
        (7, ["DELETE FROM audit"]),
        (4, ["UPDATE audit SET actor = 'eve', hash = sha256('x') WHERE id = 4"]),
    ],
)
async def test_a_change_behind_the_triggers_is_found_and_stays_found(
    app: App, db: asyncpg.Connection, broken: int, statements: list[str]
) -> None:
    await append(app, 7)
    assert set(await checked(app)) == {None}
    await behind_its_back(db, *statements)
    found = await checked(app)
    assert set(found[3:]) == {broken}  # by the third step at the latest
    assert set(await checked(app)) == {broken}


async def test_a_broken_chain_is_a_metric_a_log_line_and_a_finding_of_the_doctor(
    app: App, db: asyncpg.Connection, database_url: str, logged: list[dict[str, Any]]
) -> None:
    await append(app, 3)
    await job.run(app)
    assert metrics.AUDIT_BROKEN.value() == 0
    await behind_its_back(db, "UPDATE audit SET target = 'x' WHERE id = 2")
    await job.run(app)
    assert metrics.AUDIT_BROKEN.value() == 1
    assert [line["row"] for line in logged if line["event"] == "audit.broken"] == [2]
    findings = [it async for it in examine(Settings(database_url=SecretStr(database_url))) if it.check == "database"]
    assert "broken at row 2" in findings[0].found
    assert findings[0].todo is not None


async def test_a_break_that_an_operator_has_accepted_is_no_longer_reported(app: App, db: asyncpg.Connection) -> None:
    await append(app, 7)
    await checked(app)
    await behind_its_back(db, "DELETE FROM audit WHERE id >= 3")
    assert set(await checked(app)) == {7}
    await db.execute(
        "UPDATE audit_check SET head_id = 0, (accepted_id, checked_id) = "
        "(SELECT coalesce(max(id), 0), coalesce(max(id), 0) FROM audit)"
    )  # as the runbook says
    await append(app, 5)
    assert set(await checked(app)) == {None}
    await behind_its_back(db, "UPDATE audit SET actor = 'eve' WHERE id = 5")
    assert set((await checked(app))[4:]) == {5}
