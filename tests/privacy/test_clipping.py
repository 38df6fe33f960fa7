"""What one example can add: sensitivity on adversarial neighbours, and rows that stay in the unit ball."""

import jax
import numpy as np
import pytest
from helpers import source_of
from hypothesis import given
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.errors import InputError, InverseError
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.privacy.budget import Neighbours
from jaxdistill.privacy.clipping import ClippedFeatures, clipped_targets, feature_clip, joint_sensitivity
from jaxdistill.ridge.moments import accumulate_moments
from jaxdistill.ridge.targets import TargetKind

seeds, sides = st.integers(0, 2**32 - 1), st.integers(1, 6)


def moved(first, second):
    """Frobenius norm of the change of (G, C) when one example becomes the other; None is no example."""

    def part(example):
        phi, y = example
        return np.concatenate([np.outer(phi, phi).ravel(), np.outer(phi, y).ravel()])

    return float(np.linalg.norm(part(first) - (0 if second is None else part(second))))


def in_ball(rng, size):
    row = rng.standard_normal(size)
    return row / np.linalg.norm(row) * rng.choice((1.0, rng.random()))


@given(seeds, sides, sides)
def test_no_two_neighbours_are_further_apart_than_the_sensitivity(seed, p, k):
    rng = np.random.default_rng(seed)
    a, b = ((in_ball(rng, p), in_ball(rng, k)) for _ in range(2))
    assert moved(a, None) <= joint_sensitivity(Neighbours.ADD_OR_REMOVE) * (1 + 1e-12)
    for twist in (b, (-a[0], a[1]), (a[0], -a[1]), (b[0], -a[1])):
        assert moved(a, twist) <= joint_sensitivity(Neighbours.REPLACE_ONE) * (1 + 1e-12)


@given(seeds, st.floats(0, np.pi))
def test_nor_are_those_an_adversary_climbs_to(seed, angle):
    """Coordinate search over angle and lengths, from random starts: the largest distance in a plane."""
    rng = np.random.default_rng(seed)

    def distance(v):
        angle, la, lb, s = v[0], *np.clip(v[1:3], 0, 1), np.clip(v[3], -1, 1)
        y = np.array([1.0, 0.0]), np.array([s, np.sqrt(1 - s * s)])
        return moved((la * np.array([1.0, 0.0]), y[0]), (lb * np.array([np.cos(angle), np.sin(angle)]), y[1]))

    best, step = np.array([angle, *rng.random(2), rng.uniform(-1, 1)]), 0.5
    for _ in range(60):
        tries = [best, *(best + step * rng.standard_normal(4) for _ in range(12))]
        best = max(tries, key=distance)
        step *= 0.93
    assert distance(best) <= joint_sensitivity(Neighbours.REPLACE_ONE) * (1 + 1e-12)


def test_the_sensitivity_is_reached():
    a, y = np.array([1.0, 0.0]), np.array([1.0])
    assert moved((a, y), None) == pytest.approx(joint_sensitivity(Neighbours.ADD_OR_REMOVE))
    b = np.array([0.5, np.sqrt(0.75)])
    assert moved((a, y), (b, -y)) == pytest.approx(joint_sensitivity(Neighbours.REPLACE_ONE))


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", ("linear", "fourier", "network"))
def test_rows_stay_in_the_ball_after_rounding(maps, name, dtype):
    x = (10 * np.random.default_rng(0).standard_normal((500, 12))).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        clipped = np.asarray(ClippedFeatures(maps[name], 0.3)(jax.numpy.asarray(x)))
        full = np.asarray(maps[name](jax.numpy.asarray(x)))
    norms = np.linalg.norm(clipped.astype(np.float64), axis=1)
    assert norms.max() <= 1 < norms.max() * (1 + 50 * np.finfo(dtype).eps)
    expected = full / np.maximum(np.linalg.norm(full, axis=1, keepdims=True), 0.3)
    np.testing.assert_allclose(clipped, expected, rtol=40 * np.finfo(dtype).eps, atol=1e-9)


def test_a_row_of_zeros_and_padding_stay_zero(maps):
    x = np.zeros((3, 12), np.float32)
    moments = accumulate_moments(ClippedFeatures(maps["linear"], 1.0), source_of(x, np.ones((3, 2)), chunk=2))
    assert np.all(moments.gram == 0) and np.all(moments.cross == 0) and moments.count == 3


def test_clipped_features_are_inverted_inside_the_ball(maps):
    phi = ClippedFeatures(maps["network"], 50.0)
    x = np.random.default_rng(1).standard_normal((4, 12))
    features = in_float64(jax.jit(phi.__call__), x)
    back = phi.inverse(features, x)
    np.testing.assert_allclose(in_float64(jax.jit(phi.__call__), back), features, atol=1e-12)
    with pytest.raises(InverseError, match="norm 2, and clipped ones at most 1"):
        phi.inverse(np.eye(1, 9) * 2)
    again = ClippedFeatures.from_parts(phi.settings(), phi.arrays())
    np.testing.assert_array_equal(in_float64(jax.jit(again.__call__), x), features)


def test_the_norm_comes_from_the_map_or_from_the_user(maps):
    assert feature_clip(maps["fourier"], None) == pytest.approx(np.sqrt(2))
    assert feature_clip(maps["linear"], 2) == 2.0
    with pytest.raises(InputError, match=r"linear features have no bound.*give clip="):
        feature_clip(maps["linear"], None)
    for bad in (0, -1, np.nan, np.inf, "wide"):
        with pytest.raises(InputError, match=r"clip is .*; give a positive, finite number"):
            feature_clip(maps["linear"], bad)


def test_targets_are_classes_or_clipped():
    rows = np.array([[3.0, 4.0], [0.3, 0.4]])
    scaled, most = clipped_targets(rows, TargetKind.REAL, 2.0)
    assert most == 2.0
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0.15, 0.2]])
    with pytest.raises(InputError, match="real-valued targets have no bound; give target_clip"):
        clipped_targets(rows, TargetKind.REAL, None)
    with pytest.raises(InputError, match="one-hot targets have norm at most 1; leave target_clip out"):
        clipped_targets(jd.one_hot(np.arange(2), 2), TargetKind.ONE_HOT, 1.0)
    with pytest.raises(InputError, match="target_clip is 0"):
        clipped_targets(rows, TargetKind.REAL, 0.0)
