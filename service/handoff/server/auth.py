"""Bearer tokens, from a file with one token per line: its SHA-256, the agent's name, its scopes.

The file is read again when it changes.
"""

import asyncio
import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, get_args

import structlog

from handoff.errors import token_revoked
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, Caller, Scope

T = TypeVar("T")
log = structlog.get_logger(__name__)

_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_TOKENS_MAX = 10_000
_BUCKET_BYTES = 2  # of the digest: selects the few tokens to compare, and reveals nothing about the token itself


class TokensFileError(ValueError):
    """The tokens file can't be used. The message gives the path and, if possible, the line."""


class Tokens:
    """Maps tokens to callers. The file holds digests only, no tokens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._buckets: dict[bytes, list[tuple[bytes, Caller]]] = {}
        self._watchers: dict[object, tuple[Caller, Callable[[], None]]] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file if it has changed. Raises TokensFileError; the tokens read before then stay valid."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokensFileError(f"{self._path}: {error}") from error
        parsed = _parse(self._path, text)
        known = dict(entry for bucket in self._buckets.values() for entry in bucket)
        for bucket in parsed.values():  # a line that is as it was keeps its Caller, which is how watchers recognise it
            bucket[:] = [(digest, known[digest] if known.get(digest) == caller else caller) for digest, caller in bucket]
        self._buckets = parsed
        self._stamp = stamp
        for caller, on_revoked in list(self._watchers.values()):
            if not self._is_current(caller):
                on_revoked()

    def refresh(self) -> None:
        """Read the file if it has changed. If it can't be used, that is logged, and the tokens read before stay valid."""
        try:
            self.reload()
        except TokensFileError as error:
            log.error("auth.tokens_file_refused", error=str(error))  # noqa: TRY400 - a stack would add nothing

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
            digest, agent, scopes = line.split()
        except ValueError as error:
            raise TokensFileError(
                f"{path}:{number}: a line must have the form: sha256-of-token agent-name scope,scope"
            ) from error
        if not _DIGEST.match(digest):
            raise TokensFileError(
                f"{path}:{number}: the first word must be the token's SHA-256 as 64 lowercase hexadecimal digits"
            )
        if not _NAME.match(agent) or len(agent) > AGENT_CHARS_MAX:
            raise TokensFileError(
                f"{path}:{number}: the agent's name must match {NAME_PATTERN} and have at most {AGENT_CHARS_MAX} characters"
            )
        known: dict[str, Scope] = {scope: scope for scope in get_args(Scope)}
        asked = scopes.split(",")
        if not set(asked) <= set(known):
            raise TokensFileError(
                f"{path}:{number}: scopes must be some of {', '.join(known)}, separated by commas without spaces"
            )
        key = bytes.fromhex(digest)
        if any(known_key == key for known_key, _ in buckets[key[:_BUCKET_BYTES]]):
            raise TokensFileError(f"{path}:{number}: this token is already on an earlier line")
        buckets[key[:_BUCKET_BYTES]].append((key, Caller(agent, frozenset(known[scope] for scope in asked))))
    if count > _TOKENS_MAX:
        raise TokensFileError(f"{path}: there are more than {_TOKENS_MAX} tokens")
    return dict(buckets)
