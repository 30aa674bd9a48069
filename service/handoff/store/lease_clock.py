"""The clock by which leases lapse. It runs only while a process serves agents, because only then can they renew.

Each serving process moves the end of the clock, `until`, a little ahead of the present, at intervals. When none has done so,
because the machine was asleep, the database or the service was down, or the system's clock was set forward, the clock stands
still at `until`, and no lease lapses. The first process that is back gives each lease the time that it had left then.
"""

from datetime import timedelta
from typing import Final

from asyncpg import Record

from handoff.store.connect import Connection

LEASE_TIME: Final = "(SELECT least(now(), until) FROM lease_clock)"  # a lease that expires at or before this has passed
AHEAD_MAX: Final = timedelta(minutes=30)  # what is further ahead was written before the system's clock was set back

# A lease that was given or renewed after the clock stopped keeps its expiry. The row is locked, so that of several processes
# that are back at once only one moves the leases.
KEEP_RUNNING: Final = """
    WITH clock AS MATERIALIZED (
        SELECT until FROM lease_clock FOR NO KEY UPDATE
    ), moved AS (
        UPDATE handoff h SET lease_expires_at = h.lease_expires_at + (now() - clock.until)
          FROM clock
         WHERE clock.until < now() AND h.state IN ('accepted', 'blocked')
           AND h.lease_expires_at > clock.until AND h.updated_at <= clock.until
        RETURNING h.id
    )
    UPDATE lease_clock
       SET until = greatest(now() + $1::interval, CASE WHEN clock.until <= now() + $2::interval THEN clock.until END)
      FROM clock
    RETURNING coalesce(extract(epoch FROM now() - clock.until), 0)::float8 AS stood_still_s,
              (SELECT count(*) FROM moved) AS moved
"""


async def keep_running(conn: Connection, ahead_s: float) -> Record | None:
    """Let leases run for another `ahead_s` seconds.

    Returns how long the clock stood still in seconds, negative if it did not, and how many leases have moved by that.
    """
    return await conn.fetchrow(KEEP_RUNNING, timedelta(seconds=ahead_s), AHEAD_MAX)
