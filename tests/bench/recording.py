"""Records what the service's series look like before, during and after each fault of the simulated agents.

`python -m tests.bench.recording quiet FOLDER` records a quiet day, `... faults FOLDER` the faults.
"""

import argparse
import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from handoff.errors import Unavailable
from handoff.jobs import rollup
from handoff.store import series
from handoff.store.series import Spec
from tests.bench.cast import CAST, HELD_OUT, Cast, Conditions
from tests.bench.virtual_world import World, virtual_world

BEFORE, DURING, AFTER, GAP = 5, 40, 5, 12  # minutes of a fault's recording, and between two
ATTEMPTS: Final = 10


@dataclass(slots=True)
class Recording:
    """Points of series in successive minutes. `values` and `of` have the shape (minutes, series); NaN: no point."""

    specs: list[Spec]
    values: NDArray[np.float64]
    of: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write it."""
        specs = json.dumps([[it.name, it.kind, it.absence, dict(it.labels)] for it in self.specs])
        np.savez_compressed(path, specs=specs, values=self.values.astype(np.float32), of=self.of.astype(np.float32))

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read it."""
        with np.load(path) as read:
            specs = [Spec(*it) for it in json.loads(str(read["specs"]))]
            return cls(specs, read["values"].astype(np.float64), read["of"].astype(np.float64))


def by_chance(recording: Recording, draw: np.random.Generator) -> Recording:
    """The recording with a number of all calls that varies from minute to minute, as many agents make it vary.

    Virtual time makes exactly as many calls in each minute, so that one more or less would be unusual.
    """
    values = recording.values.copy()
    (all_calls,) = [number for number, it in enumerate(recording.specs) if it.key == ("calls", "{}")]
    values[:, all_calls] = draw.poisson(values[:, all_calls])
    return Recording(recording.specs, values, recording.of)


async def recorded(world: World, since: datetime, until: datetime) -> Recording:
    """The points of all series between two times."""
    rows = await world.db.fetch("SELECT id, name, kind, absence, labels FROM series ORDER BY id")
    place = {row["id"]: number for number, row in enumerate(rows)}
    specs = [Spec(row["name"], row["kind"], row["absence"], json.loads(row["labels"])) for row in rows]
    shape = int((until - since) / series.MINUTE), len(rows)
    values, of = np.full(shape, np.nan), np.full(shape, np.nan)
    for row in await series.points(world.db, list(place), since, until):
        where = row["minutes"], place[row["series_id"]]
        values[where] = row["values"]
        if row["of"] is not None:
            of[where] = np.array(row["of"], np.float64)
    return Recording(specs, values, of)


async def _roll_up(world: World) -> None:
    """Turn what happened into points; again where a busy machine was so slow that Postgres has cut the transaction."""
    for _ in range(ATTEMPTS):
        try:
            return await rollup.run(world.app)
        except Unavailable:
            continue
    raise TimeoutError


async def record_quiet(cast_: Cast, path: Path, count: int, pace: float) -> None:
    """Record so many minutes in which nothing is wrong, after half an hour in which the agents begin."""
    async with virtual_world(cast_, pace, 0) as world:
        await world.go_on(30)
        began = world.machine.minute
        for done in range(60, count + 1, 60):
            await world.go_on(60)
            await _roll_up(world)
            (await recorded(world, began, began + done * series.MINUTE)).save(path)
            print(f"{done} of {count} minutes", world.totals, flush=True)


async def record_faults(cast_: Cast, folder: Path, numbers: Sequence[int], pace: float) -> None:
    """Record each of these faults, with minutes in which nothing is wrong before and after it."""
    async with virtual_world(cast_, pace, 1 + numbers[0]) as world:
        for number in numbers:
            fault = cast_.faults[number]
            await world.go_on(GAP)
            began = world.machine.minute
            await world.go_on(BEFORE)
            await world.change(fault.conditions)
            await world.go_on(DURING)
            await world.change(Conditions())
            await world.go_on(AFTER)
            await _roll_up(world)
            (await recorded(world, began, world.machine.minute)).save(folder / f"fault-{number}.npz")
            print(fault.name, world.totals, flush=True)


def main() -> None:
    """Record what the bench replays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["quiet", "faults"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=int, default=1_440)
    parser.add_argument("--numbers", type=int, nargs="+", default=list(range(len(CAST.faults))))
    parser.add_argument("--pace", type=float, default=1.0)
    parser.add_argument("--held-out", action="store_true", help="of other agents, and weaker")
    options = parser.parse_args()
    cast_ = HELD_OUT if options.held_out else CAST
    options.folder.mkdir(parents=True, exist_ok=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if options.what == "quiet":
        asyncio.run(record_quiet(cast_, options.folder / "quiet.npz", options.minutes, options.pace))
    else:
        asyncio.run(record_faults(cast_, options.folder, options.numbers, options.pace))


if __name__ == "__main__":
    main()
