"""Totals over the whole database, computed by one statement with bounded cost.

A value that equals its bound means "at least this many".
"""

from asyncpg import Record

from handoff.store.connect import Connection

SESSIONS_MAX = 100_000  # counted per status
HANDOFFS_MAX = 10_000  # read of each: offered, held, and accepted within the last hour
PING_PONG_MIN = 4  # acceptances of one session per hour, in both directions between two agents

MEASURE = """
    WITH offered AS MATERIALIZED (
        SELECT state, request_type, coalesce(target_agent, target_capability) AS target,
               CASE WHEN target_agent IS NULL THEN 'capability' ELSE 'agent' END AS kind, updated_at
          FROM handoff WHERE state = 'offered' ORDER BY updated_at LIMIT $2
    ), held AS MATERIALIZED (
        SELECT state, request_type FROM handoff
         WHERE state IN ('accepted', 'blocked') ORDER BY lease_expires_at LIMIT $2
    ), taken AS MATERIALIZED (
        SELECT session_id, sender, holder FROM handoff
         WHERE accepted_at > now() - interval '1 hour' AND holder IS NOT NULL ORDER BY accepted_at DESC LIMIT $2
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
    UNION ALL
    SELECT 'ping_pong', '', '', count(*)::float8
      FROM (SELECT FROM taken GROUP BY session_id, least(sender, holder), greatest(sender, holder)
            HAVING count(*) >= $4 AND count(DISTINCT sender) = 2) p
"""


async def totals(conn: Connection, statuses: tuple[str, ...]) -> list[Record]:
    """Return rows of (figure, a, b, value).

    The figures are sessions by status, open handoffs by state and type, inbox depth and age by kind of target, and the
    number of sessions that two agents hand back and forth.
    """
    return await conn.fetch(MEASURE, SESSIONS_MAX, HANDOFFS_MAX, list(statuses), PING_PONG_MIN)
