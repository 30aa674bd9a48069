"""The admin tool for the jobs: running one at once, pausing it, and letting it run again."""

from functools import partial
from typing import Annotated, Any, Final, Literal

import structlog
from pydantic import AfterValidator, Field

from handoff.context import Call
from handoff.errors import Invalid
from handoff.store import audit, jobs
from handoff.store.connect import Connection, after_commit, transact
from handoff.tools.contract import AgentArg, Arguments, Tool, acting_agent, no_nul, result_with
from handoff.views import job_view, known_job

log = structlog.get_logger(__name__)

REASON_CHARS_MAX: Final = 500
JOB_CHARS_MAX: Final = 50


class ControlJob(Arguments):
    """Run a job of the worker once, soon, even while paused; or pause it until resumed.

    handoff://jobs lists the jobs.
    """

    agent: AgentArg = None
    job: Annotated[str, Field(min_length=1, max_length=JOB_CHARS_MAX)]
    action: Literal["run", "pause", "resume"]
    reason: Annotated[str, Field(min_length=1, max_length=REASON_CHARS_MAX), AfterValidator(no_nul)]


async def control_job(call: Call, args: ControlJob) -> dict[str, Any]:
    """Do what `action` says, and return the job. Raises NotFound when there is no such job, Invalid without a reason."""
    name, actor, reason = known_job(args.job), acting_agent(call.caller, args.agent), args.reason.strip()
    if not reason:
        raise Invalid(
            "invalid_arguments",
            "The reason is empty.",
            "Repeat the call with the reason, which the audit keeps. Nothing was changed.",
        )

    async def work(conn: Connection) -> dict[str, Any]:
        if args.action == "pause":
            row = await jobs.pause(conn, name, actor)
        elif args.action == "resume":
            row = await jobs.resume(conn, name)
        else:
            row = await jobs.ask(conn, name)
        await audit.append(conn, actor=actor, action=f"job.{args.action}", target=name, details={"reason": reason})
        after_commit(partial(log.info, "job.controlled", job=name, action=args.action, agent=actor))
        return job_view(row)

    return await transact(call.app.pool, work)


JOB = Tool("job", ControlJob, control_job, result_with("name", "string"), "admin", destructive=True)
