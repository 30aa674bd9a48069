"""What runs beside calls ends with the process, even where its cancellation is lost once."""

import asyncio
from contextlib import suppress

from handoff.app import CANCELS, end_tasks


async def test_a_task_that_loses_its_cancellation_is_cancelled_again_and_one_that_loses_all_is_left() -> None:
    lost: list[int] = []

    async def loses(times: int) -> None:
        while True:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:  # as where a time limit ends at the same moment
                lost.append(times)
                if lost.count(times) > times:
                    raise

    tasks = [asyncio.create_task(loses(times)) for times in (0, 1, CANCELS)]
    await asyncio.sleep(0)
    await end_tasks(tasks)
    assert [task.cancelled() for task in tasks] == [True, True, False]
    tasks[-1].cancel()
    with suppress(asyncio.CancelledError):
        await tasks[-1]
