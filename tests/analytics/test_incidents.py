"""The life of an incident."""

import numpy as np

from handoff.analytics.incidents import Life, Pace, advance, sensitivity
from handoff.analytics.levels import SLOW, Levels

STEP_S = np.array([300.0])


def test_a_level_that_left_its_band_is_told_again_only_if_it_gets_half_as_bad_again_or_after_three_days() -> None:
    levels, life = Levels.empty(2), Life.empty(2)
    levels.slow_lowest[:], levels.slow_highest[:], levels.means[SLOW] = 0, 1, 0.5

    def tell(unusual: float, points: int = 1) -> list[bool]:
        pace, measured = Pace.of(STEP_S.repeat(2)), np.ones(2, np.bool_)
        found = [advance(life, levels, np.full(2, unusual, np.float32), pace, measured) > 0 for _ in range(points)]
        return np.any(found, axis=0).tolist()

    assert tell(12) == [True, True]
    levels.means[SLOW, 0] = 5  # the first has a new level, the second does not
    levels.slow_highest[0] = 5
    assert tell(0.1, 250) == [False, False]
    assert tell(13) == [False, True]
    assert tell(19.6) == [True, True]
    assert tell(0.1, 3 * 288) == [False, False]
    assert tell(13) == [True, True]


def test_finer_steps_have_to_be_clearer() -> None:
    assert sensitivity(np.array([15.0, 60.0, 300.0, 3_600.0])).tolist() == np.array([0.67, 0.67, 1, 1], np.float32).tolist()
