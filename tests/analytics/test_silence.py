"""A count that is often 0 alerts when it stays 0 for longer than it does, and not before."""

from typing import Final

import numpy as np
import pytest

from handoff.analytics.findings import explain
from handoff.analytics.silence import RARITY_OF_ALERT, Silences, follow
from tests.analytics.series import DAY, strengths, watch

GONE: Final = 4 * DAY
RATES: Final = (0.7, 1.5, 3.0, 0.05)  # of all points, 50, 22, 5 and 95 % are 0


def counts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).poisson(RATES, (8 * DAY, len(RATES))).astype(float)


def test_who_is_gone_is_found_when_a_silence_as_long_is_improbable() -> None:
    values = counts(1)
    values[GONE:, :3] = 0
    verdicts, _ = watch(values)
    for number in range(3):
        found = np.flatnonzero(strengths(verdicts)[:, number] >= 1)
        longest = max(len(it) for it in "".join("x" if it else "0" for it in values[:GONE, number]).split("x"))
        assert found[0] in range(GONE + longest, GONE + 4 * longest + 3), (number, found[0] - GONE, longest)
    assert not (strengths(verdicts)[:, 3] >= 1).any()
    finding = explain(verdicts[GONE + 40], 0, 0.0, "calls")
    assert "it has been 0 for 41 points in a row, and never before for more than" in finding.sentence
    assert finding.spoke[0][0] == "silence"  # by this name store/incidents.py knows when it is over


@pytest.mark.parametrize(
    ("silences", "usual", "rare"),
    [
        ([1] * 100, 1, 12),
        ([1] * 1_000 + [30] * 10, 45, 50),  # a job that runs now and then
        ([1] * 500 + [100] * 20, 160, 230),  # weekends, and a long one
    ],
)
def test_what_is_rare_depends_on_how_long_silences_were(silences: list[int], usual: int, rare: int) -> None:
    known, true = Silences.empty(1), np.ones(1, np.bool_)
    for length in np.random.default_rng(1).permutation(silences):
        for value in [1.0, *[0.0] * length]:
            assert follow(known, np.array([value]), true, true).rarity[0] < RARITY_OF_ALERT
    follow(known, np.ones(1), true, true)
    rarity = [float(follow(known, np.zeros(1), true, true).rarity[0]) for _ in range(rare)]
    assert max(rarity[:usual]) < RARITY_OF_ALERT <= rarity[-1]


def test_a_silence_goes_on_over_points_that_were_not_measured_and_ends_with_the_first_count() -> None:
    values = counts(1)[: GONE + 200]
    values[GONE:, :3] = 0
    values[GONE + 3 : GONE + 40] = np.nan
    values[GONE + 60, 0] = 1
    verdicts, _ = watch(values)
    assert [int(verdicts[GONE + after].silence.points[0]) for after in (2, 39, 40, 59, 60, 61)] == [3, 3, 4, 23, 0, 1]
