"""Real examples drawn from a stream: the same ones however it is cut, those of the smallest numbers."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.distill.reference import pick_reference
from jaxdistill.errors import InputError
from jaxdistill.numerics.keys import host_generator

N, D, K, KEY = 400, 5, 3, jax.random.key(7)
X = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
Y = jd.one_hot(np.arange(N) % K, K)


@pytest.fixture(scope="module")
def model():
    return jd.fit_ridge(jd.features.Linear(D), X, Y, lam=1.0)


def cut(ends, x=X, y=Y):
    return list(zip(np.split(x, sorted(ends)), np.split(y, sorted(ends)), strict=True))


@settings(deadline=None, max_examples=25)
@given(ends=st.lists(st.integers(0, N), max_size=5), size=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_examples_of_the_smallest_numbers_are_picked_however_the_stream_is_cut(model, ends, size, seed):
    key = jax.random.key(seed)
    x, y = pick_reference(model, cut(ends), size, key)
    drawn = host_generator(key).random(N)
    for c in range(K):
        members = np.arange(c, N, K)
        expected = members[np.argsort(drawn[members])][: len(range(c, size, K))]
        np.testing.assert_array_equal(x[c::K], X[expected])
        np.testing.assert_array_equal(y[c::K], Y[expected])
    assert x.dtype == np.float32


def test_of_real_values_any_are_picked(model):
    real = jd.RidgeModel.from_weights(model.features, model.weights, targets="real")
    x, _ = pick_reference(real, lambda: cut([9]), 6, KEY)
    np.testing.assert_array_equal(x, X[np.argsort(host_generator(KEY).random(N))[:6]])


def test_a_set_near_real_examples_of_a_stream_is_exact(model):
    request = {"ipc": 2, "realistic": "closest", "key": KEY}
    found = jd.distill(model, reference=lambda: iter(cut([100])), **request)
    again = jd.distill(model, reference=cut([17, 300]), **request)
    assert jd.certify(model, found).exact
    np.testing.assert_array_equal(found.x, again.x)


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (cut([], X[:30], jd.one_hot(np.full(30, 2), K)), "0 real examples of class 0, 2 are asked for"),
        (cut([9], X, Y[:, :2]), "targets of 2 columns, expected 3"),
        (cut([9], X[:, :4]), r"chunk 0 has inputs of shape \(9, 4\)"),
        (iter([]), "an iterator may be used up"),
        (X, "must be a pair"),
        ([X, Y], "chunk 0 is a ndarray; give pairs"),
    ],
)
def test_a_stream_that_does_not_serve_is_refused(model, stream, told):
    with pytest.raises(InputError, match=told):
        pick_reference(model, stream, 5, KEY)
