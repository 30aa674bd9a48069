"""The fast kernels say what their slow twins say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handoff.analytics import codebook
from handoff.analytics.calibration import Histograms, rarity, refit
from handoff.analytics.echoes import Echoes, follow
from handoff.analytics.features import FEATURES, RAW, RELATIVE
from handoff.analytics.lasting import Lasting, points_of
from handoff.analytics.lasting import follow as follow_lasting
from handoff.analytics.profile import Profile, Visit, expect, learn, leave
from handoff.analytics.sampling import fold
from tests.analytics import twins

seeds = st.integers(0, 10_000)


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 300))
def test_the_nearest_triple_is_the_one_that_a_loop_finds(seed: int, series: int) -> None:
    rng = np.random.default_rng(seed)
    book = codebook.Codebook.empty(series)
    used = int(rng.integers(1, codebook.TRIPLES + 1))
    book.triples[:, :used] = rng.normal(0, 5, (3, used, series))
    book.ordinary[:] = min(used, codebook.ORDINARY)
    book.rare[:] = max(0, used - codebook.ORDINARY)
    point = rng.normal(0, 5, (3, series)).astype(np.float32)
    three, two = codebook.nearest(book, point[0], point[1], point[2], np.full(series, 10))
    for number in {0, series - 1}:
        wanted = twins.nearest(
            list(zip(*book.triples[:, :used, number].tolist(), strict=True)), tuple(point[:, number].tolist())
        )
        assert np.allclose((three[number], two[number]), wanted, rtol=1e-5)


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_rarity_is_what_all_past_values_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    past = rng.lognormal(-1, 1.5, (480, len(FEATURES), 2)).astype(np.float32)
    histograms = Histograms.empty(2)
    histograms.base[:] = 1
    counted = np.ones(past.shape[1:], np.bool_)
    for number, point in enumerate(past):
        rarity(histograms, point.copy(), counted)
        refit(histograms, np.full(2, number + 1, np.int32))
    for size in (0.01, 0.3, 3.0, 30.0, 300.0):
        point = np.full(past.shape[1:], size, np.float32)
        found = rarity(histograms, point.copy(), counted)
        for feature in (RAW.start, RELATIVE.start):
            wanted = twins.rarity(past[:, feature, 1].tolist(), size, is_raw=feature < RAW.stop)
            assert abs(found[feature, 1] - wanted) < 0.02


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.one_of(st.just(float("nan")), st.floats(-100, 100))), max_size=40),
    st.sampled_from([15, 60, 90]),
)
def test_finer_points_are_folded_as_a_loop_folds_them(steps: list[tuple[int, float]], step_s: int) -> None:
    t = np.cumsum([it for it, _ in steps], dtype=np.int64) if steps else np.zeros(0, np.int64)
    x = np.array([it for _, it in steps], np.float64)
    starts, means, closes = fold(t, x, step_s, 300)
    wanted = twins.fold(list(zip(t.tolist(), x.tolist(), strict=True)), step_s, 300)
    assert starts.tolist() == [it[0] for it in wanted]
    assert closes.tolist() == [it[2] for it in wanted]
    assert np.allclose(means, [it[1] for it in wanted], equal_nan=True)


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.6]))
def test_an_echo_is_what_a_loop_over_the_whole_past_says(seed: int, lasting: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.choice([0.0, 1.0, 1.4, 1.7, 4.0], (220, 2), p=[0.5, 0.35, 0.02, 0.1, 0.03]).astype(np.float32)
    at, series = np.nonzero(points[:-1] >= 1.6)
    points[at + 1, series] = np.where(rng.random(len(at)) < lasting, 2.0, 0.0)
    counted = rng.random(points.shape) < 0.9
    echoes = Echoes.empty(2)
    found = np.array([follow(echoes, *it) for it in zip(points, counted, strict=True)])
    for series in (0, 1):
        past = [float(it) if known else None for it, known in zip(points[:, series], counted[:, series], strict=True)]
        assert found[:, series].tolist() == twins.echoes(past)
    assert not (found.any() and lasting)


def test_counts_of_odd_points_are_halved_before_they_overflow() -> None:
    echoes = Echoes.empty(1)
    rarities = np.tile(np.array([[2.0], [0.0]], np.float32), (2_000, 1))
    found = np.array([follow(echoes, it, np.ones(1, np.bool_)) for it in rarities])
    assert found[100::2].sum() == 0
    assert found[101::2].all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(7, 14, width=16)), max_size=40), st.sampled_from([60, 120, 150]))
def test_what_lasts_is_what_a_loop_over_the_whole_past_says(unusual: list[float | None], step_s: int) -> None:
    step = np.array([float(step_s)])
    lasting, found = Lasting.empty(1), []
    for it in unusual:
        point = np.array([it or 20], np.float32)  # what a point that was not measured is called does not count
        found.append(float(follow_lasting(lasting, point, points_of(step), np.array([it is not None]))[0]))
    assert found == pytest.approx(twins.lasting(unusual, *{60: (5, 10), 120: (3, 5), 150: (2, 4)}[step_s]))


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from([3, 8]))
def test_the_profile_is_what_a_loop_over_all_visits_says(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    points = 400
    values = rng.normal(0, 3, points).astype(np.float32)
    at, gaps = np.arange(points) // rng.integers(1, 6) % bins, rng.random(points) < 0.05
    book, visit = Profile.empty(1), Visit.empty(1)
    everywhere = np.ones(1, np.bool_)
    for bin_, value, gap in zip(at, values, gaps, strict=True):
        here, x = np.array([bin_]), np.array([value])
        leave(book, visit, here, np.array([gap]))
        expected = expect(book, visit, here)
        residual = np.where(expected.known, x - expected.usual, np.float32(0))
        learn(book, visit, expected, here, x, residual, everywhere, everywhere)
    wanted = twins.profile(list(zip(at.tolist(), values.tolist(), gaps.tolist(), strict=True)))
    found = {
        it: (book.usual[it, 0], book.lowest[it, 0], book.highest[it, 0]) for it in np.flatnonzero(book.visits[:, 0]).tolist()
    }
    assert found.keys() == wanted.keys()
    for it, figures in found.items():
        assert figures == pytest.approx(wanted[it], abs=0.05)
