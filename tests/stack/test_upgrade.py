"""Existing data stays readable: after an upgrade from an earlier version, and after a restore into new volumes."""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.stack.bundle import ROOT, Failed, Stack, run
from tests.stack.conftest import ADA_TOKEN
from tests.stack.turns import eventually

BEFORE = "0c3814f"  # the last version that shipped without this stack
PAGE = (ROOT / "docs" / "backup.md").read_text()

# What agents do on the earlier version: inside its container, over loopback, where no token is needed.
WORK_BEFORE = """
import asyncio, json, mcp
async def main():
    async with mcp.Client("http://127.0.0.1:8642/mcp") as client:
        async def call(tool, **arguments):
            return (await client.call_tool(tool, arguments)).structured_content
        key = (await call("register_session", agent="ada"))["session_key"]
        entries = [{"type": "decision", "content": f"old decision {number}"} for number in range(20)]
        await call("update_context", agent="ada", session_key=key, entries=entries)
        offer = await call("request_handoff", agent="ada", session_key=key, target_agent="operator", instructions="Go on.")
        held = await call("request_handoff", agent="ada", session_key=key, target_agent="operator", instructions="Later.")
        taken = await call("accept_handoff", agent="operator", handoff_id=held["handoff_id"], lease_seconds=86400)
        print(json.dumps({"key": key, "offer": offer, "held": taken["handoff"]}))
asyncio.run(main())
"""


def block(name: str) -> list[str]:
    """The commands of a block of the page."""
    return PAGE.split(f"<!-- {name} -->\n```sh\n", 1)[1].split("```", 1)[0].strip().splitlines()


@pytest.fixture
def second(stack: Stack, left_out: set[str]) -> Generator[Stack]:
    """A second stack, with nothing started."""
    overlays = [f"without-{name}.yaml" for name in left_out]
    with TemporaryDirectory(prefix="handoff-stack-") as folder:
        settings = {name: stack.settings[name] for name in ("POSTGRES_UID", "HANDOFF_IMAGE")}
        other = Stack(Path(folder), "handoff-second", overlays, settings)
        (other.given / "tokens").write_text((stack.given / "tokens").read_text())
        other.down("--volumes")
        try:
            yield other
        finally:
            other.down("--volumes")


def image_of(version: str, tag: str) -> None:
    """Build an image of an earlier version with the current Dockerfile."""
    try:
        archive = subprocess.run(["git", "archive", version], cwd=ROOT, capture_output=True, check=True).stdout
    except subprocess.CalledProcessError:
        pytest.skip(f"this checkout has no history: {version} can't be built, so the upgrade is not tested")
    with TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        shutil.copy(ROOT / "LICENSE", folder)  # which the Dockerfile copies, and that version did not have
        run("docker", "build", "-q", "-t", tag, "-f", "service/Dockerfile", folder)


async def test_the_new_version_continues_where_the_earlier_one_stopped(second: Stack) -> None:
    image_of(BEFORE, "handoff-before:tests")
    second.compose("up", "--detach", "--wait", "postgres")
    second.compose("run", "--rm", "--no-deps", "-T", "roles")
    password = second.secret("database-handoff")
    name, network = f"{second.project}-before", f"--network={second.project}_internal"
    url = f"HANDOFF_DATABASE_URL=postgresql://handoff:{password}@postgres:5432/handoff"
    run("docker", "run", "--detach", "--rm", "--name", name, network, "-e", url, "handoff-before:tests", "handoff", "serve")
    try:
        work = ("docker", "exec", name, "python", "-c", WORK_BEFORE)
        left = json.loads(eventually(lambda: run(*work), retried=(Failed,), show=lambda: run("docker", "logs", name)))
    finally:
        run("docker", "stop", name)

    second.up("service", "worker")

    async with second.agent(second.secret("operator-token")) as operator:
        page = await operator.ok("get_context", session_key=left["key"], view="entries", limit=100)
        assert [it["content"] for it in page["entries"]][-20:] == [f"old decision {number}" for number in range(20)]
        held = {"handoff_id": left["held"]["handoff_id"], "token": left["held"]["token"]}
        assert (await operator.ok("resolve_handoff", **held, action="complete"))["state"] == "completed"
        taken = await operator.ok("accept_handoff", handoff_id=left["offer"]["handoff_id"])
        assert taken["handoff"]["context_digest"] == left["offer"]["context_digest"]


async def test_a_backup_is_restored_into_a_new_volume_as_the_page_says(second: Stack, tmp_path: Path) -> None:
    second.up("service", "worker")
    async with second.agent(ADA_TOKEN) as ada:
        key = await ada.session("ada")
        await ada.says(key, "This must survive.", "ada")
        written = await ada.ok("get_context", session_key=key, view="entries")
        compose = " ".join(f"'{word}'" for word in second._compose.docker_compose_command())

        def by_the_page(name: str) -> None:
            for line in block(name):
                here = line.replace("docker compose", compose).replace("handoff.dump", str(tmp_path / "handoff.dump"))
                here = here.replace("handoff_postgres", f"{second.project}_postgres").replace("--wait\n", "--wait")
                if here.endswith("up' '-d --wait") or here.rstrip().endswith("up -d --wait"):
                    here += " service worker"  # the other services are not tested here
                run("bash", "-euo", "pipefail", "-c", here)

        by_the_page("backup")
        later = await ada.session("ada")
        by_the_page("restore")

    async with second.agent(ADA_TOKEN) as ada:
        assert await ada.ok("get_context", session_key=key, view="entries") == written
        assert await ada.says(key, "And on we go.", "ada")
        assert (await ada.refused("get_context", session_key=later))["code"] == "session_not_found"
    assert second.psql("grafana", second.secret("database-grafana"), "SELECT count(*) > 0 FROM reporting.session") == "t"
