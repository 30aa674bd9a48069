"""Bearer tokens, from a file with one token per line: its SHA-256, the agent's name, its scopes, and its capabilities.

The file is read again when it has changed and then stayed as it is from one look to the next, so that a file which is being
rewritten in place is not read half-way. While it can't be used, the tokens read before stay valid, and health says so.
"""

import asyncio
import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar, get_args

import structlog

from handoff.errors import token_revoked
from handoff.model import AGENT_CHARS_MAX, CAPABILITIES_MAX, NAME_PATTERN, Caller, Scope

T = TypeVar("T")
log = structlog.get_logger(__name__)

_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_TOKENS_MAX = 10_000
_CAPABILITIES = "capabilities="
_ANY = "*"
_READS_MAX = 3  # at the start: of a file that changes while it is read
_EMPTY: Final = hashlib.sha256(b"").hexdigest()
_FORM: Final = "sha256-of-token agent-name scope,scope [capabilities=name,name]"

Stamp = tuple[int, int, int]  # time of the last change, size, and which file it is
_BUCKET_BYTES = 2  # of the digest: selects the few tokens to compare, and reveals nothing about the token itself


class TokensFileError(ValueError):
    """The tokens file can't be used. The message gives the path and, if possible, the line."""


class Tokens:
    """Maps tokens to callers. The file holds digests only, no tokens."""

    def __init__(self, path: Path) -> None:
        """Raises TokensFileError."""
        self._path = path
        self._stamp: Stamp | None = None  # of the tokens in use
        self._seen: Stamp | None = None  # at the last look
        self._refused_at: float | None = None
        self.problem = ""  # why the file can't be used, empty if it can
        self.version = 0  # counts how often the tokens changed
        self._buckets: dict[bytes, list[tuple[bytes, Caller]]] = {}
        self._watchers: dict[object, tuple[Caller, Callable[[], None]]] = {}
        self._read()

    @property
    def count(self) -> int:
        """The number of tokens that are valid."""
        return sum(map(len, self._buckets.values()))

    @property
    def refused_s(self) -> float:
        """For how long the file has not been usable, in seconds; 0 if it is."""
        return monotonic() - self._refused_at if self._refused_at is not None else 0.0

    def capabilities(self) -> dict[str, frozenset[str]]:
        """What each agent may declare, by its name. Agents that may declare anything are left out."""
        callers = [caller for bucket in self._buckets.values() for _, caller in bucket if caller.agent is not None]
        limited: dict[str, frozenset[str]] = {}
        for it in callers:
            limited[it.agent or ""] = limited.get(it.agent or "", frozenset()) | (it.capabilities or frozenset())
        for it in callers:
            if it.capabilities is None:
                limited.pop(it.agent or "", None)
        return limited

    def _look(self) -> Stamp:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise _unreadable(self._path, error) from error
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _read(self) -> None:
        """Read the file. Raises TokensFileError; the tokens read before then stay valid."""
        for _ in range(_READS_MAX):
            stamp = self._look()
            try:
                text = self._path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise _unreadable(self._path, error) from error
            if self._look() == stamp:
                break
        else:
            raise TokensFileError(f"{self._path}: it changed whenever it was read")
        parsed = _parse(self._path, text)
        known = dict(entry for bucket in self._buckets.values() for entry in bucket)
        for bucket in parsed.values():  # a line that is as it was keeps its Caller, which is how watchers recognise it
            bucket[:] = [(digest, known[digest] if known.get(digest) == caller else caller) for digest, caller in bucket]
        self._buckets = parsed
        self._stamp = stamp
        self.version += 1
        for caller, on_revoked in list(self._watchers.values()):
            if not self._is_current(caller):
                on_revoked()

    def refresh(self) -> None:
        """Look at the file, and read it if it has changed before the last look but not since.

        If it can't be used, `problem` says why, that is logged once, and the tokens read before stay valid.
        """
        problem = ""
        try:
            stamp = self._look()
            is_changing, self._seen = stamp != self._seen, stamp
            if stamp != self._stamp:
                if is_changing:
                    return
                self._read()
        except TokensFileError as error:
            problem = str(error)
        if problem and problem != self.problem:
            log.error("auth.tokens_file_refused", error=problem)
        if not problem:
            self._refused_at = None
        elif self._refused_at is None:
            self._refused_at = monotonic()
        self.problem = problem

    async def unless_revoked(self, caller: Caller, running: Awaitable[T]) -> T:
        """Run something that may wait for long, and end it when the caller's token is removed or changed in the file.

        `caller` must be the object that `caller` returned. Raises Forbidden.
        """
        task = asyncio.ensure_future(running)
        is_revoked = False

        def end() -> None:
            nonlocal is_revoked
            is_revoked = task.cancel() or is_revoked

        watcher = object()
        self._watchers[watcher] = (caller, end)
        if not self._is_current(caller):  # revoked since the request was admitted
            end()
        try:
            return await task
        except asyncio.CancelledError:
            if is_revoked:
                raise token_revoked() from None
            raise
        finally:
            task.cancel()
            del self._watchers[watcher]

    def _is_current(self, caller: Caller) -> bool:
        return any(known is caller for bucket in self._buckets.values() for _, known in bucket)

    def caller(self, token: bytes) -> Caller | None:
        """The caller whose token this is, or None. Digests are compared in constant time."""
        digest = hashlib.sha256(token).digest()
        for known, caller in self._buckets.get(digest[:_BUCKET_BYTES], ()):
            if hmac.compare_digest(known, digest):
                return caller
        return None


def _parse(path: Path, text: str) -> dict[bytes, list[tuple[bytes, Caller]]]:
    buckets: defaultdict[bytes, list[tuple[bytes, Caller]]] = defaultdict(list)
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        count += 1
        try:
            key, caller = _token(line.split())
            if any(known_key == key for known_key, _ in buckets[key[:_BUCKET_BYTES]]):
                raise ValueError("this token is already on an earlier line")
        except ValueError as error:
            raise TokensFileError(f"{path}:{number}: {error}") from error
        buckets[key[:_BUCKET_BYTES]].append((key, caller))
    if count > _TOKENS_MAX:
        raise TokensFileError(f"{path}: there are more than {_TOKENS_MAX} tokens")
    return dict(buckets)


def _token(words: list[str]) -> tuple[bytes, Caller]:
    """The digest and the caller in the words of a line. Raises ValueError."""
    if not 3 <= len(words) <= 4:
        raise ValueError(f"a line must have the form: {_FORM}")
    digest, agent, scopes = words[:3]
    if not _DIGEST.match(digest):
        raise ValueError("the first word must be the token's SHA-256 as 64 lowercase hexadecimal digits")
    if digest == _EMPTY:
        raise ValueError("this is the SHA-256 of an empty token, as of a variable that was not set; make the line again")
    if not _is_name(agent):
        raise ValueError(f"the agent's name must match {NAME_PATTERN} and have at most {AGENT_CHARS_MAX} characters")
    known: dict[str, Scope] = {scope: scope for scope in get_args(Scope)}
    asked = scopes.split(",")
    if not set(asked) <= set(known):
        raise ValueError(f"scopes must be some of {', '.join(known)}, separated by commas without spaces")
    may_declare = _capabilities(words[3]) if len(words) > 3 else frozenset[str]()
    return bytes.fromhex(digest), Caller(
        agent, frozenset(known[scope] for scope in asked), None if "admin" in asked else may_declare
    )


def _capabilities(word: str) -> frozenset[str] | None:
    """The names in the word `capabilities=name,name`, or None for `capabilities=*`. Raises ValueError."""
    if word == f"{_CAPABILITIES}{_ANY}":
        return None
    names = word.removeprefix(_CAPABILITIES).split(",")
    if not word.startswith(_CAPABILITIES) or len(names) > CAPABILITIES_MAX or not all(map(_is_name, names)):
        raise ValueError(
            f"the last word must be {_CAPABILITIES}{_ANY}, or {_CAPABILITIES} and at most {CAPABILITIES_MAX} names, "
            "separated by commas without spaces"
        )
    return frozenset(names)


def _is_name(name: str) -> bool:
    return _NAME.match(name) is not None and len(name) <= AGENT_CHARS_MAX


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> TokensFileError:
    return TokensFileError(f"{path}: {error.strerror if isinstance(error, OSError) else error}")
