"""`handoff wait`: blocks on an agent's inbox, and passes each offer on once: it prints it, or runs a command for it."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from time import monotonic, sleep
from typing import Any, Final

import platformdirs

from handoff.cli.start import fail
from handoff.cli.tool_call import Away, Refused, Service

NOTHING_CAME: Final = 3  # the exit status when --timeout has passed
_WAIT_S_MAX: Final = 30  # as get_inbox allows
_ANSWER_S_MAX: Final = _WAIT_S_MAX + 15.0
_AWAY_PAUSE_S: Final = (0.5, 10.0)  # the first and the longest
_FAILED_PAUSE_S: Final = (5.0, 300.0)
_PASSED_ON_MAX: Final = 10_000  # offers that the state file remembers; more are not on offer to one agent
_ENVIRONMENT_BYTES_MAX: Final = 100_000  # of one variable; Linux takes 131,072


def wait_command(arguments: argparse.Namespace) -> int:
    """Wait until a signal, --once or --timeout ends it; return the exit status."""
    token = os.environ.get(arguments.token_env) if arguments.token_env else None
    if arguments.token_env and not token:
        return fail(f"The environment variable {arguments.token_env} is not set. Put the agent's token into it.")
    if arguments.agent is None and token is None:
        return fail("Name the agent whose inbox is waited for: --agent NAME, or --token-env NAME for that of a token.")
    if arguments.exec is not None and not arguments.exec:
        return fail("--exec needs a command.")
    service = Service(arguments.url, arguments.agent, token, _ANSWER_S_MAX)
    waiting = _Waiting(
        service, arguments.url, arguments.exec, _PassedOn(arguments.url, arguments.agent or _digest(token or ""))
    )
    try:
        return waiting.run(once=arguments.once, timeout_s=arguments.timeout)
    except Refused as error:
        fail(str(error))
        return 1


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


class _PassedOn:
    """Which offers have been passed on, in a file of the platform's folder for state, so that a restart repeats none.

    An offer that lapsed and is on offer again is another one.
    """

    def __init__(self, url: str, agent: str) -> None:
        self._file = platformdirs.user_state_path("handoff", appauthor=False) / "wait" / f"{_digest(f'{url} {agent}')}.json"
        try:
            self._keys: dict[str, None] = dict.fromkeys(json.loads(self._file.read_bytes()))
        except (OSError, ValueError, TypeError):
            self._keys = {}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        """Remember an offer. The file is replaced at once."""
        self._keys[key] = None
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self._file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(list(self._keys)[-_PASSED_ON_MAX:]))
        beside.replace(self._file)


@dataclass(slots=True)
class _Failed:
    """An offer whose command has failed: when it is run again, in monotonic seconds."""

    pauses: Iterator[float]
    again_at: float = 0.0


@dataclass(slots=True)
class _Waiting:
    """One `handoff wait`: what it waits for, and how it passes offers on."""

    service: Service
    url: str
    command: list[str] | None
    passed_on: _PassedOn
    failed: dict[str, _Failed] = field(default_factory=dict[str, _Failed])

    def run(self, *, once: bool, timeout_s: float | None) -> int:
        """Pass offers on until the end. Raises Refused if the service refuses what no later call would get."""
        last, pauses, was_away = monotonic(), _doubling(*_AWAY_PAUSE_S), False
        while True:
            left_s = None if timeout_s is None else timeout_s - (monotonic() - last)
            if left_s is not None and left_s <= 0:
                return NOTHING_CAME
            try:
                offers, mark = self._offers()
                if was_away:
                    _say(f"{self.url} answers again.")
                    pauses, was_away = _doubling(*_AWAY_PAUSE_S), False
                for key, offer in offers.items():
                    if key not in self.passed_on and self._is_due(key) and self._pass_on(key, offer):
                        last = monotonic()
                        if once:
                            return 0
                self.failed = {key: it for key, it in self.failed.items() if key in offers}
                self._wait(mark, left_s)
            except (Away, Refused) as error:
                if isinstance(error, Refused) and not error.is_retryable:
                    raise
                if not was_away:
                    _say(f"{self.url} does not answer. It is called again until it does.")
                was_away = True
                sleep(next(pauses) if left_s is None else min(left_s, next(pauses)))

    def _offers(self) -> tuple[dict[str, dict[str, Any]], str]:
        """All offers in the inbox by their keys, most urgent first, and the mark of the inbox."""
        page = self.service.call("get_inbox")
        mark: str = page["mark"]
        found: list[dict[str, Any]] = page["handoffs"]
        while "next_cursor" in page:
            page = self.service.call("get_inbox", cursor=page["next_cursor"])
            found += page["handoffs"]
        return {f"{it['handoff_id']}.{it['lapses']}": it for it in found if it["state"] == "offered"}, mark

    def _wait(self, mark: str, left_s: float | None) -> None:
        """Return when something new is on offer, when a command is to be run again, or after half a minute."""
        again_s = min((it.again_at for it in self.failed.values()), default=monotonic() + _WAIT_S_MAX) - monotonic()
        seconds = min(_WAIT_S_MAX, again_s, *([] if left_s is None else [left_s]))
        if seconds >= 1:
            self.service.call("get_inbox", mark=mark, wait_seconds=int(seconds))
        elif seconds > 0:
            sleep(seconds)

    def _is_due(self, key: str) -> bool:
        return key not in self.failed or self.failed[key].again_at <= monotonic()

    def _pass_on(self, key: str, offer: dict[str, Any]) -> bool:
        """Print the offer, or run the command for it; return whether that succeeded, which is remembered."""
        line = json.dumps({"handoff": offer, "brief": self._brief(offer["session_key"])})
        if self.command is None:
            print(line, flush=True)
        elif (problem := self._ran(line, offer)) is not None:
            failed = self.failed.setdefault(key, _Failed(_doubling(*_FAILED_PAUSE_S)))
            pause_s = next(failed.pauses)
            failed.again_at = monotonic() + pause_s
            _say(
                f"handoff {offer['handoff_id']}: {problem}. It stays on offer; the command is run again in {pause_s:.0f} s."
            )
            return False
        self.passed_on.add(key)
        self.failed.pop(key, None)
        return True

    def _ran(self, line: str, offer: dict[str, Any]) -> str | None:
        """Run the command for an offer; return what went wrong, None if nothing did."""
        about = {"ID": str(offer["handoff_id"]), "SESSION": offer["session_key"], "SENDER": offer["sender"]}
        brief = json.dumps(json.loads(line)["brief"])
        if len(brief) <= _ENVIRONMENT_BYTES_MAX:
            about["BRIEF"] = brief
        environment = os.environ | {f"HANDOFF_OFFER_{name}": value for name, value in about.items()}
        try:
            done = subprocess.run(  # noqa: S603 - the user's own command; what an agent wrote is only in its input
                self.command or [], input=f"{line}\n", env=environment, text=True, check=False
            )
        except OSError as error:
            return f"{(self.command or [''])[0]} can't be run ({error.strerror})"
        return None if done.returncode == 0 else f"the command ended with {done.returncode}"

    def _brief(self, session_key: str) -> dict[str, Any]:
        """The session's brief; empty if the receiver may read it only once it has accepted the offer."""
        try:
            return self.service.call("get_context", session_key=session_key)["brief"]
        except Refused as error:
            if error.is_retryable:
                raise
            return {}


def _doubling(first: float, longest: float) -> Iterator[float]:
    return chain((first * 2**power for power in range(20) if first * 2**power < longest), iter(lambda: longest, None))


def _say(sentence: str) -> None:
    print(f"handoff: {sentence}", file=sys.stderr, flush=True)
