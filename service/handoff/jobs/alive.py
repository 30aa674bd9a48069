"""Records when the jobs last ran. The health check `worker` reads that, and so notices a worker that hangs."""

from handoff.context import App
from handoff.store import instances
from handoff.store.connect import connection


async def run(app: App) -> None:
    """Record the time at which this process last ran the jobs."""
    async with connection(app.pool) as conn:
        await instances.jobs_done(conn, app.health.identity.id)
