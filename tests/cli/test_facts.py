"""`handoff facts` says what is true of a work tree, and the brief says which claims that covers."""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mcp import Client

from handoff.cli.facts import facts_command
from handoff.cli.parser import parser
from handoff.cli.worktree import LastTest, read_work_tree, run_test
from tests.agents import Agent
from tests.processes import Service, environment

AWAY = "No Handoff service answers at http://127.0.0.1:9/mcp (ConnectError). Start one, or name another with --url."
NAMED = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "remote", "add", "origin", "https://me:secret@example.org/a/work.git")
    (folder / "a.py").write_text("one\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "commit.gpgsign=false", "-C", folder, *arguments]
    done = subprocess.run(command, env=environment() | NAMED, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Facts:
    """The command, run in this process in a folder: a start of the program takes seconds."""

    capfd: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    async def __call__(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.monkeypatch.chdir(folder)
        status = await asyncio.to_thread(facts_command, parser().parse_args(["facts", *arguments]))
        return subprocess.CompletedProcess([], status, *self.capfd.readouterr())


@pytest.fixture
def facts(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Facts:
    return Facts(capfd, monkeypatch)


def test_equal_files_have_equal_ids_and_the_repository_is_left_as_it_was(tree: Path, tmp_path: Path) -> None:
    clean = read_work_tree(tree)
    assert clean.tree == git(tree, "rev-parse", "HEAD^{tree}")
    assert (clean.repository, clean.branch, clean.changed) == ("https://example.org/a/work.git", "main", 0)
    before = sorted(str(it) for it in (tree / ".git").rglob("*"))

    (tree / "a.py").write_text("one\ntwo\n")
    (tree / "new").write_text("x")
    changed = read_work_tree(tree)
    assert (changed.changed_paths, changed.added, changed.removed) == (["a.py", "new"], 1, 0)
    assert changed.commit == clean.commit
    assert changed.tree != clean.tree
    assert sorted(str(it) for it in (tree / ".git").rglob("*")) == before
    assert git(tree, "status", "--porcelain").split() == ["M", "a.py", "??", "new"]

    other = tmp_path / "other"
    subprocess.run(["git", "clone", "--quiet", tree, other], check=True)
    (other / "a.py").write_text("one\ntwo\n")
    (other / "new").write_text("x")
    assert read_work_tree(other).tree == changed.tree


def test_the_end_of_a_test_command_is_remembered_with_the_files_that_it_ran_on(tree: Path) -> None:
    assert run_test(tree, [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    found = read_work_tree(tree)
    assert isinstance(found.test, LastTest)
    assert (found.test.exit_status, found.test.tree) == (3, found.tree)
    assert run_test(tree, ["/nowhere/at/all"]) == 127
    (tree / "a.py").write_text("changed\n")
    found = read_work_tree(tree)
    assert found.test is not None
    assert (found.test.exit_status, found.test.tree != found.tree) == (127, True)
    assert found.changed == 1  # what is remembered is no file of the work tree


async def test_the_brief_says_of_each_claim_whether_it_was_checked(tree: Path, service: Service, facts: Facts) -> None:
    async with Client(service.url) as client:
        agent = Agent(client)
        key = await agent.session()

        async def claims() -> list[tuple[str, str]]:
            brief = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]
            return sorted((it["text"], it["claim"]) for it in brief["parts"] if "claim" in it)

        async def says(text: str) -> None:
            entry = {"type": "summary", "content": text}
            await agent.ok("update_context", agent="alice", session_key=key, entries=[entry])

        async def check(*command: str) -> subprocess.CompletedProcess[str]:
            return await facts(tree, "--url", service.url, "--agent", "alice", "--session", key, *command)

        await says("A. Done, tests pass.")
        assert await claims() == []  # nothing was checked, so the brief says nothing of it
        done = await check("--", sys.executable, "-c", "")
        assert (done.returncode, done.stderr) == (0, "")
        assert "exit status 0" in done.stdout
        assert "on these very files" in done.stdout
        await says("B. Polished.")
        assert await claims() == [("A. Done, tests pass.", "checked"), ("B. Polished.", "claimed")]

        assert (await check()).returncode == 0  # the files are as before: A stays checked
        assert await claims() == [("A. Done, tests pass.", "checked"), ("B. Polished.", "checked")]
        handoff_id = await agent.offer(key)

        (tree / "a.py").write_text("moved on\n")
        compared = await facts(tree, "--url", service.url, "--agent", "bob", "--compare", str(handoff_id))
        assert (compared.returncode, compared.stderr) == (1, "")
        assert "files" in compared.stdout
        assert "'a.py'" in compared.stdout
        await says("C. Moved.")
        assert (await check("--", sys.executable, "-c", "raise SystemExit(5)")).returncode == 5
        assert await claims() == [
            ("A. Done, tests pass.", "stale"),
            ("B. Polished.", "stale"),
            ("C. Moved.", "checked"),
        ]
        same = await facts(tree, "--url", service.url, "--agent", "bob", "--compare", str(handoff_id))
        assert (same.returncode, same.stdout.splitlines()[-1][:15]) == (0, "Nothing differs")
        brief = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]
        pinned = [it["text"] for it in brief["parts"] if it["kind"] == "pinned"]
        assert len(pinned) == 1  # each check replaces the one before
        assert "exit status 5" in pinned[0]
        assert "moved on" not in json.dumps(await agent.read(f"handoff://context/{key}?limit=100"))  # no content left


async def test_what_can_not_be_checked_or_attached_is_said_in_one_sentence(
    tree: Path, tmp_path: Path, service: Service, facts: Facts
) -> None:
    outside = await facts(tmp_path, "--", sys.executable, "-c", "raise SystemExit(4)")
    assert (outside.returncode, outside.stdout) == (4, "")
    assert outside.stderr.startswith("handoff: Nothing can be checked in ")
    assert len(outside.stderr.splitlines()) == 1

    refused = await facts(tree, "--url", service.url, "--agent", "alice", "--session", "s-0000000000000000")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    away = await facts(tree, "--url", "http://127.0.0.1:9/mcp", "--session", "s-0000000000000000")
    assert (away.returncode, away.stderr.splitlines()[-1]) == (1, f"handoff: {AWAY}")
    async with Client(service.url) as client:
        agent = Agent(client)
        handoff_id = await agent.offer(await agent.session())
    none = await facts(tree, "--url", service.url, "--agent", "bob", "--compare", str(handoff_id))
    assert none.returncode == 1
    assert "Nothing was checked in " in none.stderr
    assert json.loads((await facts(tree)).stdout)["branch"] == "main"
