"""What can be checked of a git work tree: its commit, its files, and how the last test command ended.

Git answers all of it. Nothing in the repository changes: the id of its files is computed with an index and an object store
of its own. No file's content leaves this module.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

PATHS_MAX: Final = 20  # of changed files that are named
_COMMAND_CHARS_MAX: Final = 200
_GIT_S_MAX: Final = 60.0
_REMEMBERED: Final = "handoff-last-test.json"  # in the repository's git folder, which is never committed


class NoWorkTree(Exception):
    """There is no git here, or the folder is in no work tree; the message says which."""


@dataclass(frozen=True, slots=True)
class LastTest:
    """A test command, its exit status, when it ended (ISO 8601, UTC), and the id of the files that it ran on."""

    command: str
    exit_status: int
    ended_at: str
    tree: str


@dataclass(frozen=True, slots=True)
class WorkTree:
    """A work tree as it is now.

    `repository` is the remote's address without credentials, None without a remote. `branch` is None where HEAD is
    detached, `commit` before the first one. `tree` is git's id of all files that it does not ignore: equal files have equal
    ids, on every machine. `changed_paths` are the first PATHS_MAX files that differ from the commit; `added` and `removed`
    are lines.
    """

    folder: str
    repository: str | None
    branch: str | None
    commit: str | None
    tree: str
    changed: int
    changed_paths: list[str]
    added: int
    removed: int
    test: LastTest | None

    def as_facts(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def read_work_tree(folder: Path) -> WorkTree:
    """Read the work tree that `folder` is in. Raises NoWorkTree."""
    root = Path(_git(folder, "rev-parse", "--show-toplevel") or folder)
    paths = [line[3:] for line in _git(root, "status", "--porcelain", "-z", "--no-renames").split("\0") if line]
    commit = _maybe(root, "rev-parse", "--verify", "--quiet", "HEAD")
    lines = [it.split("\t") for it in _git(root, "diff", "--numstat", "HEAD").splitlines()] if commit else []
    return WorkTree(
        folder=root.name,
        repository=_without_credentials(_maybe(root, "remote", "get-url", "origin")),
        branch=_maybe(root, "symbolic-ref", "--quiet", "--short", "HEAD"),
        commit=commit,
        tree=_tree(root),
        changed=len(paths),
        changed_paths=sorted(paths)[:PATHS_MAX],
        added=sum(int(it[0]) for it in lines if it[0] != "-"),  # "-": not a text file
        removed=sum(int(it[1]) for it in lines if it[1] != "-"),
        test=_remembered(root),
    )


def run_test(folder: Path, command: Sequence[str]) -> int:
    """Run a test command in `folder`, remember in the work tree how it ended, and return its exit status.

    A command that can't be started has the exit status 127, and one that a signal ended 128 and its number, as in a shell.
    """
    try:
        status = subprocess.run(command, cwd=folder, check=False).returncode  # noqa: S603 - the caller's own command
    except OSError:
        status = 127
    status = status if status >= 0 else 128 - status
    with suppress(NoWorkTree):
        ended_at = datetime.now(UTC).isoformat(timespec="seconds")
        run = LastTest(" ".join(command)[:_COMMAND_CHARS_MAX], status, ended_at, _tree(folder))
        _memory(folder).write_text(json.dumps(asdict(run)))
    return status


def _memory(folder: Path) -> Path:
    return folder / _git(folder, "rev-parse", "--git-path", _REMEMBERED)


def _remembered(folder: Path) -> LastTest | None:
    try:
        return LastTest(**json.loads(_memory(folder).read_text()))
    except (OSError, ValueError, TypeError):  # none was run, or another release wrote it
        return None


def _tree(folder: Path) -> str:
    """Git's id of all files of the work tree that it does not ignore."""
    objects, index = (folder / _git(folder, "rev-parse", "--git-path", name) for name in ("objects", "index"))
    with TemporaryDirectory() as own:
        if index.exists():
            shutil.copyfile(index, f"{own}/index")  # what git knows of the files already makes this quick
        Path(own, "objects").mkdir()
        environment = {
            "GIT_INDEX_FILE": f"{own}/index",
            "GIT_OBJECT_DIRECTORY": f"{own}/objects",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects.resolve()),
        }
        root = Path(_git(folder, "rev-parse", "--show-toplevel"))
        _git(root, "add", "--all", **environment)
        return _git(root, "write-tree", **environment)


def _without_credentials(address: str | None) -> str | None:
    if address is None or "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _maybe(folder: Path, *arguments: str) -> str | None:
    """Git's answer, None where it has none."""
    try:
        return _git(folder, *arguments) or None
    except NoWorkTree:
        return None


def _git(folder: Path, *arguments: str, **environment: str) -> str:
    """Git's answer. Raises NoWorkTree if there is no git, or if it refuses."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's would mislead it
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            ["git", "-C", folder, *arguments],  # noqa: S607 - the user's git
            env=own | environment | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_S_MAX,
            check=False,
        )
    except FileNotFoundError:
        raise NoWorkTree("git is not installed here") from None
    except subprocess.TimeoutExpired:
        raise NoWorkTree(f"git needs more than {_GIT_S_MAX:.0f} s here") from None
    if done.returncode:
        raise NoWorkTree((done.stderr.strip().splitlines() or ["git refused"])[-1].removeprefix("fatal: "))
    return done.stdout.rstrip("\n")
