"""What was backed up can be restored into a new volume, as the README says."""

from pathlib import Path

from tests.stack.bundle import Stack, run
from tests.stack.conftest import ADA_TOKEN


async def test_a_backup_restored_into_a_new_volume_brings_back_all_that_was_written(stack: Stack, tmp_path: Path) -> None:
    async with stack.agent(ADA_TOKEN) as ada:
        session = await ada.session("ada")
        await ada.says(session, "before the backup", "ada")
        written = await ada.ok("get_context", session_key=session, view="entries")
        backup = tmp_path / "handoff.dump"
        stack.through(["exec", "-T", "postgres", "pg_dump", "-U", "postgres", "-Fc", "handoff"], kept=backup)
        later = await ada.session("ada")

    stack.down()
    run("docker", "volume", "rm", f"{stack.project}_postgres")
    try:
        stack.compose("up", "--detach", "--wait", "postgres")
        stack.compose("run", "--rm", "roles")
        restore = ["pg_restore", "-U", "postgres", "-d", "handoff", "--clean", "--if-exists", "--exit-on-error"]
        stack.through(["exec", "-T", "postgres", *restore], given=backup)
    finally:
        stack.up()

    async with stack.agent(ADA_TOKEN) as ada:
        assert await ada.ok("get_context", session_key=session, view="entries") == written
        assert (await ada.refused("get_context", session_key=later))["code"] == "session_not_found"
        await ada.says(session, "after the restore", "ada")
    assert stack.psql("grafana", stack.secret("database-grafana"), "SELECT count(*) > 0 FROM reporting.session") == "t"
