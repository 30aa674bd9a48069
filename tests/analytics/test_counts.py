"""How rare sparse counts are said to be is never more than their probability allows."""

import numpy as np

from handoff.analytics import counts


def test_one_event_after_a_long_silence_is_no_rarer_than_one_event_in_a_point() -> None:
    seen = 40_000  # points, with one event in them
    one = np.ones(1, np.float32)
    rarity = counts._rarity(one, np.ones((2, 1), np.float32), np.array([seen]), one, one)
    assert rarity[0] <= -np.log10(1.5 / (seen + 10)) + 0.01
    three = counts._rarity(one, np.full((2, 1), 2.9, np.float32), np.array([seen]), one, one)
    assert three[0] > 2 * rarity[0]
