"""The admin tool for what is configured while the service runs: reading, changing, its versions, and its backup."""

from functools import partial
from typing import Annotated, Any, Final, Literal, cast

import orjson
import structlog
from asyncpg import Record
from pydantic import AfterValidator, Field

from handoff.configuration import differences, document_of, patched
from handoff.context import Call
from handoff.encoding import that_fit, to_json
from handoff.errors import Invalid, NotFound
from handoff.model import SEQUENCE_MAX
from handoff.store import audit, configuration
from handoff.store.connect import Connection, after_commit, snapshot, transact
from handoff.tools.contract import AgentArg, Arguments, Tool, acting_agent, no_nul, result_with
from handoff.views import configuration_view

log = structlog.get_logger(__name__)

_JSON_CHARS_MAX: Final = 64 << 10
REASON_CHARS_MAX: Final = 500
FORMAT: Final = 1  # of an export
_PAGE_MAX: Final = 20

VersionArg = Annotated[int, Field(ge=0, le=SEQUENCE_MAX)]  # 0 counts as left out


# As text, because clients of some models can't send an object whose names the schema does not list.
JsonArg = Annotated[str, Field(max_length=_JSON_CHARS_MAX)]


class ChangeConfiguration(Arguments):
    """Retention policies, thresholds, job intervals, log levels and how series are watched.

    set: changes is the text of a JSON merge patch; null restores a default. rollback: to version. import: document, as
    exported. These three need expected_version (from get) and reason.
    """

    agent: AgentArg = None
    action: Literal["get", "set", "history", "rollback", "export", "import"] = "get"
    changes: JsonArg | None = None
    document: JsonArg | None = None
    version: VersionArg | None = None
    expected_version: VersionArg | None = None
    reason: Annotated[str, Field(max_length=REASON_CHARS_MAX), AfterValidator(no_nul)] | None = None


async def change_configuration(call: Call, args: ChangeConfiguration) -> dict[str, Any]:
    """Do what `action` says. Raises Invalid, Conflict when the version in force is not the expected one, and NotFound."""
    if args.action == "get":
        return await configuration_view(call.app)
    if args.action == "history":
        return await _history(call, args.version or SEQUENCE_MAX)
    if args.action == "export":
        async with snapshot(call.app.pool) as conn:
            row = await _version(conn, args.version)
        document = to_json({"format": FORMAT, "configuration": row["document"]}).decode()
        return {"version": row["version"], "document": document}
    return await _change(call, args)


async def _history(call: Call, before: int) -> dict[str, Any]:
    async with snapshot(call.app.pool) as conn:
        rows, has_more = await configuration.page(conn, before=before, limit=_PAGE_MAX)
    versions = [dict(row) for row in rows]
    shown = that_fit(versions, call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"version": versions[0]["version"] if versions else None, "versions": shown}
    if has_more or len(shown) < len(versions):
        page["next_version"] = shown[-1]["version"]
    return page


async def _change(call: Call, args: ChangeConfiguration) -> dict[str, Any]:
    author = acting_agent(call.caller, args.agent)
    expected, reason = args.expected_version, (args.reason or "").strip()
    wanted = {"set": args.changes, "rollback": args.version, "import": args.document}[args.action]
    name = {"set": "changes", "rollback": "version", "import": "document"}[args.action]
    if not wanted or expected is None or not reason:
        raise Invalid(
            "invalid_arguments",
            f"action={args.action} needs {name}, expected_version and reason.",
            "Call configuration action=get for the version in force, and repeat the call with all three. Nothing was "
            "changed.",
        )

    async def work(conn: Connection) -> dict[str, Any]:
        row = await configuration.newest(conn)
        if row["version"] != expected:
            raise configuration.changed_meanwhile(expected)
        found = call.app.policies.check(await _wanted(conn, args, row["document"]))
        document = document_of(found)
        changes = differences(row["document"], document)
        if not changes:
            return {"version": expected, "changes": []}
        version = expected + 1
        at = (await configuration.put(conn, version, author, reason, document, changes))["at"]
        details = {"reason": reason, "changes": changes}
        await audit.append(
            conn, actor=author, action=f"configuration.{args.action}", target=f"version {version}", details=details
        )
        after_commit(partial(log.info, "configuration.changed", configuration=version, author=author, fields=len(changes)))
        after_commit(call.app.policies.wake)
        return {"version": version, "at": at, "author": author, "reason": reason, "changes": changes}

    return await transact(call.app.pool, work)


async def _wanted(conn: Connection, args: ChangeConfiguration, document: dict[str, Any]) -> dict[str, Any]:
    """The document that the call asks for, not yet validated."""
    if args.action == "set":
        return patched(document, _object("changes", args.changes))
    if args.action == "rollback":
        return (await _version(conn, args.version))["document"]
    given = _object("document", args.document)
    if given.get("format") != FORMAT or not isinstance(given.get("configuration"), dict):
        raise Invalid(
            "invalid_configuration",
            f"This document is not an export: it must have format {FORMAT} and the object configuration.",
            "Repeat the call with the whole document that action=export returned. Nothing was changed.",
        )
    return given["configuration"]


def _object(name: str, text: str | None) -> dict[str, Any]:
    """What the text of an argument says. Raises Invalid unless that is an object."""
    try:
        found = orjson.loads(text or "")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Invalid(
            "invalid_arguments",
            f"{name} must be the text of a JSON object.",
            'Repeat the call with such a text, for instance {"monitoring": {"log_level": "debug"}}. Nothing was changed.',
        )
    return cast("dict[str, Any]", found)


async def _version(conn: Connection, version: int | None) -> Record:
    row = await configuration.newest(conn) if version is None else await configuration.find(conn, version)
    if row is None:
        raise NotFound(
            "version_not_found",
            f"The configuration has no version {version}.",
            "Call configuration action=history, which lists the versions.",
        )
    return row


CONFIGURATION = Tool(
    "configuration",
    ChangeConfiguration,
    change_configuration,
    result_with("version", "integer"),
    "admin",
    destructive=True,
)
