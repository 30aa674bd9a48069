"""The jobs of the worker as resources: how often each ran, how that went, and when it runs next."""

from typing import Any

from handoff.context import Call
from handoff.resources.contract import NoQuery, Resource
from handoff.store import jobs
from handoff.store.connect import snapshot
from handoff.telemetry import metrics
from handoff.views import job_view, known_job


async def list_jobs(call: Call, _: dict[str, str], _query: NoQuery) -> dict[str, Any]:
    """All jobs, by name."""
    async with snapshot(call.app.pool) as conn:
        rows = {row["name"]: row for row in await jobs.page(conn)}
    return {"jobs": [job_view(rows.get(name, {"name": name})) for name in sorted(metrics.JOB.values)]}


async def read_job(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """One job. Raises NotFound when there is no such job."""
    name = known_job(path["name"])
    async with snapshot(call.app.pool) as conn:
        row = await jobs.find(conn, name)
    return job_view({"name": name} if row is None else row)


JOBS = Resource(
    "handoff://jobs",
    "jobs",
    "The worker's jobs: runs, failures, durations in seconds, last error, and when each runs next. Needs the scope admin.",
    NoQuery,
    list_jobs,
    scope="admin",
)
JOB = Resource(
    "handoff://jobs/{name}", "job", "One job of the worker. Needs the scope admin.", NoQuery, read_job, scope="admin"
)
