"""Faults of the demo, recorded by tests/bench/recording.py, are found and explained: from points to causes."""

from datetime import timedelta
from typing import Final

import asyncpg
import numpy as np
import pytest

from handoff.context import App
from handoff.settings import Settings
from handoff.store.series import MINUTE
from tests.bench.cast import CAST
from tests.bench.faults import RECORDED, outcome, pass_by
from tests.bench.recording import BEFORE, Recording, by_chance

PAST: Final = 480  # minutes
FAULT: Final = 10  # minutes of it
NUMBERS: Final = {fault.name: number for number, fault in enumerate(CAST.faults)}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": 23_400.0})


def cut(name: str, minutes: int) -> Recording:
    """The first minutes of a recording, without what is about agents and routes: `make bench-faults` has it all."""
    it = by_chance(Recording.load(RECORDED / f"{name}.npz"), np.random.default_rng(1))
    kept = np.array([not {"agent", "from"} & spec.labels.keys() for spec in it.specs])
    specs = [spec for spec, is_kept in zip(it.specs, kept, strict=True) if is_kept]
    return Recording(specs, it.values[:minutes, kept], it.of[:minutes, kept])


@pytest.mark.parametrize("name", ["a drop in traffic", "errors of one tool", "Postgres is slow"])
async def test_a_fault_is_one_incident_whose_first_cause_is_where_it_is(app: App, db: asyncpg.Connection, name: str) -> None:
    begins_at = await db.fetchval("SELECT date_trunc('hour', now())") - timedelta(hours=1)
    await pass_by(app, cut("quiet", PAST), begins_at - PAST * MINUTE)
    assert await db.fetchval("SELECT count(*) FROM incident") == 0
    number = NUMBERS[name]
    found = await outcome(app, db, CAST.faults[number], cut(f"fault-{number}", BEFORE + FAULT), begins_at, step=5)
    assert (found.incidents, found.rank) == (1, 1), found
