"""`handoff connect`: writes this service into MCP clients' configuration, and hooks if asked to; and removes it again."""

import argparse
import difflib
import os
import re
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from handoff.cli.start import fail, mcp_address, read_settings
from handoff.clients.hooks import HOOKS
from handoff.clients.table import CLIENTS, Client, NotPossible, Service, Unreadable
from handoff.model import NAME_PATTERN
from handoff.settings import Settings

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SOCKET_LINE = 4  # of postmaster.pid: https://www.postgresql.org/docs/current/storage-file-layout.html


def connect_command(arguments: argparse.Namespace) -> int:
    """Connect or disconnect the clients; return 1 if one could not be, 2 if the arguments are wrong."""
    if unknown := [it for it in arguments.client if it not in CLIENTS]:
        return fail(f"There is no client {unknown[0]!r}. Choose from {', '.join(CLIENTS)}.")
    if arguments.token_env and not _VARIABLE.fullmatch(arguments.token_env):
        return fail("--token-env takes the name of an environment variable, not a token.")
    if arguments.agent and not re.fullmatch(NAME_PATTERN, arguments.agent):
        return fail(f"--agent must match {NAME_PATTERN}.")
    here = [it for it in CLIENTS.values() if it.is_there]
    if not arguments.client and not arguments.all:
        print(f"Found here: {', '.join(it.name for it in here) or 'none'}.")
        print("Connect one with `handoff connect NAME`, or all of them with `handoff connect --all`.")
        return 0
    chosen = [CLIENTS[it] for it in dict.fromkeys(arguments.client)] or here
    settings = read_settings(argparse.Namespace())
    failed = 0
    for client in chosen:
        try:
            if arguments.hooks and not arguments.remove and client.name not in HOOKS:
                raise NotPossible(f"Only {', '.join(HOOKS)} have hooks. Repeat the command without --hooks.")
            for file, parts in _files(client, arguments).items():
                _change(_Parts(client.title, parts), file, arguments, settings)
        except (NotPossible, Unreadable, OSError, UnicodeDecodeError) as error:
            failed += 1
            print(f"{client.title}: not changed. {error}", file=sys.stderr)
    return 1 if failed else 0


class _Part(Protocol):
    """What we write into a client's file: the entry of the service, or the hooks."""

    def connected(self, text: str, service: Service) -> str: ...
    def disconnected(self, text: str) -> str: ...


@dataclass(frozen=True, slots=True)
class _Parts:
    """All that we write into one file."""

    title: str
    parts: list[_Part]

    def connected(self, text: str, service: Service) -> str:
        for part in self.parts:
            text = part.connected(text, service)
        return text

    def disconnected(self, text: str) -> str:
        for part in reversed(self.parts):
            text = part.disconnected(text)
        return text


def _files(client: Client, arguments: argparse.Namespace) -> dict[Path, list[_Part]]:
    """What belongs into which file: the entry and, if asked for, the hooks. Hooks are removed wherever they are."""
    project = Path.cwd()
    file = client.file(arguments.scope, project).resolve()  # a link, as dotfiles are kept, stays one
    files: dict[Path, list[_Part]] = {file: [client]}
    hooks = HOOKS.get(client.name)
    if hooks is not None:
        place = hooks.file(arguments.scope, project).resolve()
        if arguments.hooks or (arguments.remove and place.exists()):
            files.setdefault(place, []).append(hooks)
    return files


def _change(client: _Parts, file: Path, arguments: argparse.Namespace, settings: Settings) -> None:
    """Connect or disconnect one file of a client. Raises NotPossible, Unreadable, OSError or UnicodeDecodeError."""
    before = _read(file)
    backup = file.with_name(f"{file.name}.before-handoff")
    try:
        if arguments.remove:
            after = _restored(client, before, backup)
        else:
            after = client.connected(before, _service(arguments, settings))
    except Unreadable as error:
        raise Unreadable(f"{file} can't be read ({error}). Correct it, then repeat the command.") from error
    if after == before:
        print(f"{client.title}: nothing to change in {file}")
        return
    name = str(file)
    for line in difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), name, name):
        print(line, end="" if line.endswith("\n") else "\n")
    if arguments.dry_run:
        return
    if not arguments.remove:
        _connect(client, file, before, after, backup)
        return
    if after.strip() in ("", "{}") and not backup.exists():  # the file was created for our entry
        file.unlink()
    else:
        _write(file, after, like=file)
    backup.unlink(missing_ok=True)
    print(f"{client.title}: disconnected. Restart it.")


def _connect(client: _Parts, file: Path, before: str, after: str, backup: Path) -> None:
    if before and client.disconnected(before) == before:  # what was there before us, not an older entry of ours
        _write(backup, before, like=file)
    _write(file, after, like=file)
    kept = f" What was there before is in {backup.name}." if backup.exists() else ""
    print(f"{client.title}: connected in {file}. Restart it.{kept}")


def _restored(client: _Parts, now: str, backup: Path) -> str:
    """The text without our entry: that of the backup, if nothing else has changed since. Raises Unreadable."""
    without = client.disconnected(now)
    saved = _read(backup)
    with suppress(Unreadable):
        if client.disconnected(client.connected(saved, Service(url="", command=("",)))) == without:
            return saved
    return without


def _service(arguments: argparse.Namespace, settings: Settings) -> Service:
    """How clients reach the service. Raises NotPossible if that would write a secret into their files."""
    url = arguments.url or mcp_address(settings.host, settings.port)
    if urlsplit(url).password:
        raise NotPossible("The address contains a password. Name a variable that has the token with --token-env instead.")
    program = str(Path(sys.executable).with_name("handoff"))
    command = (program, "serve", "--stdio", "--agent", "claude-desktop")
    if settings.database_url is None:
        env = [("HANDOFF_DATABASE_URL", _own_database(settings))]
        return Service(url, arguments.token_env, command, tuple(env), program, arguments.agent)
    database = settings.database_url.get_secret_value()
    env = [("HANDOFF_DATABASE_URL", database)]
    if settings.database_password_file is not None:
        env.append(("HANDOFF_DATABASE_PASSWORD_FILE", str(settings.database_password_file.resolve())))
    if urlsplit(database).password:
        raise NotPossible(
            "HANDOFF_DATABASE_URL contains a password. Put it into a file, and name that in HANDOFF_DATABASE_PASSWORD_FILE."
        )
    return Service(url, arguments.token_env, command, tuple(env), program, arguments.agent)


def _own_database(settings: Settings) -> str:
    """The address of the Postgres that `handoff run` starts."""
    folder = (settings.data_dir / "postgres").resolve()
    sockets = str(folder)
    with suppress(OSError, IndexError):
        sockets = (folder / "postmaster.pid").read_text().splitlines()[_SOCKET_LINE] or sockets
    return f"postgresql://postgres@/handoff?host={sockets}"


def _read(file: Path) -> str:
    return file.read_bytes().decode() if file.exists() else ""  # as it is: line ends too


def _write(file: Path, text: str, like: Path) -> None:
    """Replace a file at once, with the mode of another. New ones are closed to other users."""
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = like.stat().st_mode & 0o777 if like.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as written:
            written.write(text.encode())
        Path(name).chmod(mode)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
