"""Means and centred moments: no digits lost to a large mean, exact merging, whatever order rows come in."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers import EPS, compiled, relative, source_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import jaxdistill as jd
from jaxdistill.numerics.placement import Side
from jaxdistill.ridge.moments import Moments, _add_chunk, accumulate_moments

seeds = st.integers(0, 2**31)
block_64 = compiled(lambda x, y, about: Moments.from_features(x, y, about=about))
weighted_64 = compiled(lambda x, y, w, about: Moments.from_features(x, y, w, about=about))
merged_64 = compiled(Moments.merge)


def rows(seed, offset, n=200, p=5, k=2):
    rng = np.random.default_rng(seed)
    return offset + rng.standard_normal((n, p)), rng.standard_normal((n, k)) - offset


def centred_sums(x, y):
    """Sums about the means in extended precision, from exact differences."""
    x, y = (a.astype(np.longdouble) - a[0].astype(np.longdouble) for a in (x, y))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return [np.asarray(a, np.float64) for a in (x.T @ x, x.T @ y, y.T @ y)]


def errors_of(moments, x, y):
    """Relative errors of the centred sums, and of the means."""
    c = moments.centred()
    sums = [relative(a, b) for a, b in zip((c.gram, c.cross, c.target_gram), centred_sums(x, y), strict=True)]
    means = [relative(c.feature_mean, x.mean(axis=0)), relative(c.target_mean, y.mean(axis=0))]
    return max(sums), max(means)


def test_a_mean_a_million_times_the_spread_costs_nothing_about_the_first_chunk_and_all_about_zero():
    x, y = rows(0, 1e6)
    source = source_of(x, y, 64)
    about, plain = (
        accumulate_moments(jd.features.Linear(5), source, dtype=np.float64, shifted=shifted)
        for shifted in (True, False)
    )
    sums, means = errors_of(about, x, y)
    assert sums < 1e-14 and means < 1e-15
    assert errors_of(plain, x, y)[0] > 1e-6  # (mean / spread)^2 eps
    back = about.about(0.0, 0.0)
    assert relative(back.gram, plain.gram) < 1e-14 and relative(back.cross, plain.cross) < 1e-14


def test_float32_products_keep_float32_digits_of_the_spread():
    x, y = rows(1, 1e3)
    x = x.astype(np.float32)
    moments = accumulate_moments(jd.features.Linear(5), source_of(x, y, 64), shifted=True)
    sums, means = errors_of(moments, x.astype(np.float64), y)
    assert sums < 50 * EPS[np.float32] and means < 1e-8


def test_centred_moments_train_to_what_scikit_learn_does_with_an_intercept():
    x, y = rows(2, 1e4)
    moments = accumulate_moments(jd.features.Linear(5), source_of(x, y, 64), dtype=np.float64, shifted=True)
    c = moments.centred()
    weights = np.linalg.solve(c.gram + 0.7 * np.eye(5), c.cross)
    oracle = Ridge(alpha=0.7, solver="svd").fit(x, y)
    assert relative(weights, oracle.coef_.T) < 1e-10  # scikit-learn's own share: eps times mean over spread
    intercept = c.target_mean - c.feature_mean @ weights
    assert relative(intercept, oracle.intercept_) < 1e-10


@given(seeds, st.sampled_from([0.0, 1e6]), st.integers(1, 199))
def test_parts_about_different_points_merge_to_the_whole_in_either_order(seed, offset, cut):
    x, y = rows(seed, offset)
    points = [(a[0], b[0]) for a, b in ((x[:cut], y[:cut]), (x[cut:], y[cut:]))]
    left, right = block_64(x[:cut], y[:cut], points[0]), block_64(x[cut:], y[cut:], points[1])
    for one in (merged_64(left, right), merged_64(right, left), left.merge(right)):
        assert one.count == 200
        # A point within the data is some five spreads away at most: 25 eps.
        sums, means = errors_of(one, x, y)
        assert sums < 1e-13 and means < 1e-14
    bigger = left if cut >= 100 else right
    np.testing.assert_array_equal(merged_64(left, right).feature_shift, bigger.feature_shift)


def test_nothing_merged_with_something_is_about_its_point():
    x, y = rows(3, 1e6)
    some = block_64(x, y, (x[0], y[0]))
    nothing = jax.tree.map(np.zeros_like, some)
    for one in (merged_64(nothing, some), merged_64(some, nothing)):
        jax.tree.map(np.testing.assert_array_equal, one, some)


@given(seeds)
def test_rows_of_weight_zero_and_weights_count_as_they_should(seed):
    x, y = rows(seed, 1e6, n=20)
    weight = np.random.default_rng(seed).integers(0, 3, 20).astype(np.float64)
    weight[0] = 1
    found = weighted_64(x, y, weight, (x[0], y[0]))
    x, y = (np.repeat(a, weight.astype(int), axis=0) for a in (x, y))
    assert found.count == len(x)
    sums, means = errors_of(found, x, y)
    assert sums < 1e-13 and means < 1e-14


def test_blocks_are_added_about_the_point_of_the_sums():
    x, y = rows(4, 1e6)

    def streamed(x, y):
        first = Moments.from_features(x[:7], y[:7], about=(x[0], y[0]))
        return first.update(x[7:90], y[7:90]).update(x[90:], y[90:])

    found = compiled(streamed)(x, y)
    # The point is moved to the larger part once: the first row of it is not there, its own point is.
    assert errors_of(found, x, y)[0] < 1e-13
    np.testing.assert_array_equal(found.feature_shift, x[0])


def test_a_first_chunk_far_from_all_others_costs_the_square_of_its_distance_in_eps():
    x, y = rows(5, 0.0, n=2000)
    x[:20] += 1e9  # one chunk of a hundred: some ten spreads from the mean
    moments = accumulate_moments(jd.features.Linear(5), source_of(x, y, 20), dtype=np.float64, shifted=True)
    distance = np.abs(moments.feature_shift - x.mean(axis=0)) / x.std(axis=0)
    assert np.all(distance**2 <= 2000 / 20) and np.all(distance > 9)
    c = moments.centred()
    assert relative(c.gram, centred_sums(x, y)[0]) < 100 * 4 * EPS[np.float64]


def test_sorted_time_stamps_keep_their_digits():
    x = (1.7e9 + np.arange(1000.0) / 10)[:, None]
    y = np.sin(np.arange(1000.0))[:, None]
    moments = accumulate_moments(jd.features.Linear(1), source_of(x, y, 100), dtype=np.float64, shifted=True)
    assert errors_of(moments, x, y)[0] < 1e-14


def test_a_column_that_is_constant_has_no_spread_at_all():
    x, y = rows(6, 0.0)
    x[:, 1] = 1e6 / 3
    moments = accumulate_moments(jd.features.Linear(5), source_of(x, y, 64), dtype=np.float64, shifted=True)
    c = moments.centred()
    assert not c.gram[1].any() and not c.cross[1].any()
    assert c.feature_mean[1] == 1e6 / 3


def test_one_compilation_and_no_chunk_matters():
    x, y = rows(7, 1e6)
    _add_chunk.clear_cache()
    for chunk in (33, 200, 512):
        moments = accumulate_moments(
            jd.features.Linear(5), source_of(x, y, chunk), dtype=np.float64, shifted=True
        )
        assert errors_of(moments, x, y)[0] < 1e-13
    assert _add_chunk._cache_size() == 3


@pytest.mark.parametrize("n", [1, 127, 128, 129, 1000])
def test_sums_of_any_number_of_rows(n):
    x, y = rows(8, 1.0, n=n)
    found = compiled(lambda x, y: Moments.from_features(x, y))(x, y)
    assert relative(found.feature_sum, x.sum(axis=0)) < 1e-14
    assert relative(found.target_sum, y.sum(axis=0)) < 1e-14
    assert not found.feature_shift.any() and not found.target_shift.any()


def test_chunks_that_are_sent_ahead_are_added_in_their_turn(monkeypatch):
    x, y = rows(3, 0.5)
    source, counts, sent = source_of(x.astype(np.float32), y, 16), [], []
    accumulate = partial(
        accumulate_moments,
        jd.features.Linear(5),
        source,
        shifted=True,
        each=lambda so_far: counts.append(so_far()),
    )
    plain, before = accumulate(), counts.copy()
    counts.clear()
    by_row = Side.by_row
    monkeypatch.setattr(Side, "ahead", 2)
    monkeypatch.setattr(Side, "by_row", lambda self, tree: sent.append(len(counts)) or by_row(self, tree))
    ahead = accumulate()
    assert sent[1:6] == [0, 0, 0, 1, 2]  # the first is read for its mean, too
    for a, b in zip([plain, *before], [ahead, *counts], strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
