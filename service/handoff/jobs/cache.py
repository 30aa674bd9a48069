"""Keeps in the cache what is about to be read, the briefs of sessions on offer that go on changing; drops what has expired.

When a session is offered, its brief is composed for the sender. Each later change makes that one useless, and the receiver
who looks before accepting would wait for the next one.
"""

from datetime import timedelta
from typing import Final

import structlog

from handoff import cache
from handoff.brief import TOKENS_DEFAULT
from handoff.context import App
from handoff.errors import NotFound
from handoff.store import offers
from handoff.store.connect import connection
from handoff.views import prepare_brief

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 30.0
PREPARED_MAX: Final = 50  # briefs per run, of the sessions that changed last
_HOT: Final = timedelta(hours=1)  # since their last change

_prepared: set[str] = set()  # the keys of those that are prepared already


async def run(app: App) -> None:
    """Compose the briefs that are missing, then drop what has expired; log both."""
    async with connection(app.pool) as conn:
        hot = await offers.changed_since(conn, _HOT, PREPARED_MAX)
    keys = {cache.brief_key(dict(session), TOKENS_DEFAULT): session["key"] for session in hot}
    _prepared.intersection_update(keys)
    prepared = 0
    for key, session_key in keys.items():
        if key not in _prepared:
            try:
                await prepare_brief(app, session_key)
            except NotFound:  # deleted meanwhile
                continue
            _prepared.add(key)
            prepared += 1
    dropped = app.cache.drop_expired()
    if prepared or dropped:
        log.info("cache.kept", briefs_prepared=prepared, values_dropped=dropped)
