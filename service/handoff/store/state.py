"""What the database holds, in one bounded statement: a figure that stands at its bound means at least as many."""

from asyncpg import Record

from handoff.store.connect import Connection

SESSIONS_MAX = 100_000  # counted of each status
HANDOFFS_MAX = 10_000  # read on offer, and as many held

MEASURE = """
    WITH offered AS MATERIALIZED (
        SELECT state, request_type, coalesce(target_agent, target_capability) AS target,
               CASE WHEN target_agent IS NULL THEN 'capability' ELSE 'agent' END AS kind, updated_at
          FROM handoff WHERE state = 'offered' ORDER BY updated_at LIMIT $2
    ), held AS MATERIALIZED (
        SELECT state, request_type FROM handoff
         WHERE state IN ('accepted', 'blocked') ORDER BY lease_expires_at LIMIT $2
    )
    SELECT 'sessions' AS figure, s.status AS a, '' AS b,
           (SELECT count(*) FROM (SELECT FROM session WHERE status = s.status LIMIT $1) t)::float8 AS value
      FROM unnest($3::text[]) AS s (status)
    UNION ALL
    SELECT 'open', state, request_type, count(*)::float8
      FROM (SELECT state, request_type FROM offered UNION ALL SELECT state, request_type FROM held) o
     GROUP BY state, request_type
    UNION ALL
    SELECT 'depth', kind, '', count(*)::float8 FROM offered GROUP BY kind
    UNION ALL
    SELECT 'oldest', kind, '', extract(epoch FROM now() - min(updated_at))::float8 FROM offered GROUP BY kind
    UNION ALL
    SELECT 'deepest', kind, '', max(n)::float8 FROM (SELECT kind, count(*) AS n FROM offered GROUP BY kind, target) d
     GROUP BY kind
"""


async def measure(conn: Connection, statuses: tuple[str, ...]) -> list[Record]:
    """Rows of (figure, a, b, value): sessions by status, open handoffs by state and type, inboxes by kind of target."""
    return await conn.fetch(MEASURE, SESSIONS_MAX, HANDOFFS_MAX, list(statuses))
