"""`handoff hook EVENT`: what a client's session hook runs.

When a session starts, it prints what the agent should know: its inbox, and the brief of what it holds. When a turn ends, or
before a client compacts its context, it saves the lines that the agent has marked as decided or open.

It runs at each turn, and its client waits for it. So it needs nothing but the standard library, loads what it may not need
only when it does, and gives up soon and silently when the service is away.
"""

# ruff: noqa: PTH111, PTH123 - pathlib takes longer to load than a hook that has nothing to do may run

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from handoff.cli.tool_call import Away, Refused, Service

if TYPE_CHECKING:
    import argparse

_URL: Final = "http://127.0.0.1:8642/mcp"
_TIMEOUT_S: Final = 2.0  # for each step of a call; clients wait for 5 seconds in all
_BRIEF_TOKENS: Final = 1_500  # of a session start, beside whatever else the client shows its model
_OFFERS_SHOWN: Final = 5
_HELD_SHOWN: Final = 2  # each with its brief
_INSTRUCTIONS_CHARS: Final = 300
_LINE_CHARS_MAX: Final = 2_000
_ENTRIES_PER_CALL: Final = 50  # as update_context takes
_SAVED_MAX: Final = 500  # lines that a state file remembers
_FILE_NAME_CHARS_MAX: Final = 200  # file systems allow 255
_STATE_KEPT_S: Final = 30 * 86_400
_REREAD_BYTES_MAX: Final = 100_000  # of a transcript, without anything marked, before the state is written
_TRANSCRIPT_BYTES_MAX: Final = 20_000_000  # read at once; more has not been said since the last turn
_STARTS: Final = frozenset({"SessionStart", "sessionStart"})
_SAVES: Final = frozenset({"PreCompact", "Stop", "AfterAgent", "afterAgentResponse"})
# The agent's last words, as Claude Code and Codex, Gemini CLI, and Cursor call them in the hook's input.
_LAST_WORDS: Final = ("last_assistant_message", "prompt_response", "text")
_MARKED: Final = re.compile(
    r"^[ \t]*(?:[-*+][ \t]+)?[*_]{0,2}(decision|open question|open|to-?do)[*_]{0,2}:[*_]{0,2}[ \t]+(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_FENCED: Final = re.compile(
    r"^[ \t]*```.*?(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE
)  # code that shows such a line says nothing
_HOW: Final = (
    'Lines of your answers that begin with "Decision: ", "Open question: " or "Todo: " are saved to {where}, so that they '
    "survive this session."
)


def from_words(words: list[str]) -> int | None:
    """Run it with the words of a command line; None if they need the parser, which says what is wrong or helps."""
    event, pairs = (words[0] if words else "-"), words[1:]
    options = dict(zip(pairs[::2], pairs[1::2], strict=False))
    if event.startswith("-") or len(pairs) % 2 or not options.keys() <= {"--url", "--agent", "--token-env"}:
        return None
    return _run(event, options.get("--url", _URL), options.get("--agent"), options.get("--token-env"))


def hook_command(arguments: "argparse.Namespace") -> int:
    """Run it with parsed arguments."""
    return _run(arguments.event, arguments.url, arguments.agent, arguments.token_env)


def _run(event: str, url: str, agent: str | None, token_env: str | None) -> int:
    """Always 0: no client may stop because of us. A refusal is said on standard error, which clients show on request."""
    service = Service(url, agent, os.environ.get(token_env) if token_env is not None else None, _TIMEOUT_S)
    try:
        given = _input()
        if event in _STARTS:
            _print_start(service, given, event)
        elif event in _SAVES:
            _save(service, given)
    except Away:
        pass
    except Refused as error:
        print(f"handoff hook: {error}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001 - a client must go on whatever its hook meets
        print(f"handoff hook: {type(error).__name__}: {error}", file=sys.stderr)
    return 0


def _input() -> dict[str, Any]:
    if sys.stdin is None or sys.stdin.isatty():
        return {}
    try:
        given = json.loads(sys.stdin.buffer.read() or b"{}")
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}


def _print_start(service: Service, given: dict[str, Any], event: str) -> None:
    found = service.call("get_inbox")["handoffs"]
    own = _own_session(service, given)
    offers = [it for it in found if it["state"] == "offered"]
    held = [it for it in found if it["state"] != "offered"]
    said = [
        f"Handoff {it['handoff_id']} is offered to you by {it['sender']} (priority {it['priority']}): "
        f"{_cut(it['instructions'])} To take it, call accept_handoff with handoff_id {it['handoff_id']}, for its brief."
        for it in offers[:_OFFERS_SHOWN]
    ]
    if len(offers) > _OFFERS_SHOWN:
        said.append(f"{len(offers) - _OFFERS_SHOWN} more are offered to you: call get_inbox.")
    said += [
        f"You hold handoff {it['handoff_id']} of session {it['session_key']} (token {it['token']}, {it['state']}, lease "
        f"until {it['lease_expires_at']}). Its brief: {_brief(service, it['session_key'])}"
        for it in held[:_HELD_SHOWN]
    ]
    if len(held) > _HELD_SHOWN:
        said.append(f"You hold {len(held) - _HELD_SHOWN} more: call get_inbox.")
    if given.get("source") in ("compact", "resume") and (brief := _brief(service, own)) != "{}":
        said.append(f"What you saved in session {own} so far: {brief}")
    where = f"session {held[0]['session_key']}" if len(held) == 1 else f"session {own}"
    said.append(_HOW.format(where=where))
    text = "Handoff service: " + ("" if found else "nothing is offered to you. ") + "\n".join(said)
    if event == "sessionStart":  # Cursor: https://cursor.com/docs/hooks
        print(json.dumps({"additional_context": text}))
    else:
        print(json.dumps({"hookSpecificOutput": {"hookEventName": event, "additionalContext": text}}))


def _brief(service: Service, session_key: str) -> str:
    """The session's brief as JSON, empty if there is no such session."""
    try:
        return json.dumps(service.call("get_context", session_key=session_key, token_budget=_BRIEF_TOKENS)["brief"])
    except Refused:
        return "{}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _INSTRUCTIONS_CHARS else text[:_INSTRUCTIONS_CHARS] + "…"


def _own_session(service: Service, given: dict[str, Any]) -> str:
    """The key of the session to which a client's own session is saved."""
    own = str(given.get("session_id") or given.get("conversation_id") or "unknown")
    return re.sub(r"[^A-Za-z0-9_.:@+=~-]", "-", f"{service.agent or 'chat'}-{own}")[:255]


def _save(service: Service, given: dict[str, Any]) -> None:
    own = _own_session(service, given)
    state_file = _state_file(own)
    state = _state(state_file)
    said, offset = _said_since(given.get("transcript_path"), state["offset"])
    said += [given[it] for it in _LAST_WORDS if isinstance(given.get(it), str)]  # a transcript may be written later
    marked = {_digest(line): (kind, line) for kind, line in _marked("\n".join(said))}
    new = [it for it in marked if it not in state["saved"]]
    if new:
        held = [it for it in service.call("get_inbox")["handoffs"] if it["state"] != "offered"]
        for first in range(0, len(new), _ENTRIES_PER_CALL):
            entries = [_entry(*marked[it]) for it in new[first : first + _ENTRIES_PER_CALL]]
            _append(service, held[0] if len(held) == 1 else None, own, entries)
    if new or offset - state["offset"] > _REREAD_BYTES_MAX:
        _keep(state_file, {"offset": offset, "saved": [*state["saved"], *new][-_SAVED_MAX:]})


def _append(service: Service, held: dict[str, Any] | None, own: str, entries: list[dict[str, Any]]) -> None:
    """Append to the session of the one handoff that the agent holds, or to its own, which is registered on first use."""
    key = f"hook-{_digest(own + json.dumps(entries))}"
    if held is not None:
        service.call(
            "update_context", session_key=held["session_key"], entries=entries, token=held["token"], idempotency_key=key
        )
        return
    try:
        service.call("update_context", session_key=own, entries=entries, idempotency_key=key)
    except Refused as error:
        if error.code != "session_not_found":
            raise
        service.call("register_session", session_key=own, idempotency_key=f"hook-{_digest(own)}")
        service.call("update_context", session_key=own, entries=entries, idempotency_key=key)


def _marked(text: str) -> list[tuple[str, str]]:
    """The marked lines of a text: what they are marked as, and what they say."""
    return [(kind.lower(), line.strip()[:_LINE_CHARS_MAX]) for kind, line in _MARKED.findall(_FENCED.sub("", text))]


def _entry(kind: str, line: str) -> dict[str, Any]:
    if kind == "decision":
        return {"type": "decision", "content": line}
    return {"type": "message", "content": line, "metadata": {"question" if kind.startswith("open") else "todo": True}}


def _said_since(transcript: object, offset: int) -> tuple[list[str], int]:
    """What the agent has said in a transcript since an offset in bytes, and the offset of its end.

    A line of JSON per message, as Claude Code and Codex write them. Neither documents the file as an interface, so a line of
    another form is skipped.
    """
    if not isinstance(transcript, str):
        return [], offset
    try:
        with open(transcript, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = file.seek(max(offset if offset <= size else 0, size - _TRANSCRIPT_BYTES_MAX))
            read = file.read(_TRANSCRIPT_BYTES_MAX)
    except OSError:
        return [], offset
    whole = read[: read.rfind(b"\n") + 1]  # the last line may still be written
    said: list[str] = []
    for line in whole.splitlines():
        if b'"assistant"' not in line:
            continue
        try:
            record = json.loads(line)
            message = record.get("message") or record["payload"]
            if message["role"] == "assistant":
                said += [part["text"] for part in message["content"] if isinstance(part.get("text"), str)]
        except (ValueError, AttributeError, KeyError, TypeError):
            continue
    return said, begin + len(whole)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _state_file(session_key: str) -> str:
    """In the platform's folder for state, as platformdirs has it, which takes longer to load than all of the rest."""
    home = os.path.expanduser("~")
    state = f"{home}/Library/Application Support" if sys.platform == "darwin" else f"{home}/.local/state"
    folder = state if sys.platform == "darwin" else os.environ.get("XDG_STATE_HOME") or state
    return f"{folder}/handoff/hooks/{session_key[:_FILE_NAME_CHARS_MAX]}.json"


def _state(file: str) -> dict[str, Any]:
    """Up to where the transcript has been read, and which lines are saved."""
    try:
        with open(file, "rb") as opened:
            state = json.load(opened)
        return {"offset": int(state["offset"]), "saved": [str(it) for it in state["saved"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"offset": 0, "saved": []}


def _keep(file: str, state: dict[str, Any]) -> None:
    """Write the state file at once, and remove those of sessions that ended long ago."""
    from pathlib import Path
    from time import time

    path = Path(file)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in path.parent.glob("*.json"):
            if other.stat().st_mtime < time() - _STATE_KEPT_S:
                other.unlink(missing_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(state))
    beside.replace(path)
