"""Near copies of a few images span the weights, down to the rounding in which they are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from near_copies import covering_rows, near_copies

import jaxdistill as jd

RANK, INPUTS = 2, 40


@pytest.fixture(params=["tanh", "relu"])
def problem(request):
    """A model of three classes, and images that wake its features: one for tanh, four for ReLU."""
    phi = jd.features.RandomNetwork.create(
        INPUTS, widths=(30,), activation=request.param, key=jax.random.key(0)
    )
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, INPUTS)).astype(np.float32)
    named = (x @ rng.standard_normal((INPUTS, 3))).argmax(axis=1)
    model = jd.fit_ridge(phi, x, jd.one_hot(named, 3), lam=1.0, intercept=True)
    features = np.asarray(phi(jnp.asarray(x)))
    count = 1 if request.param == "tanh" else 4
    rows = covering_rows(np.abs(features), named, count, 0.1)
    assert np.all(np.abs(features[rows]).max(axis=0) > 0)
    return model, x[rows]


def test_copies_and_their_images_return_the_model(problem):
    model, images = problem
    basis = np.linalg.svd(model.weights, full_matrices=False)[0][:, :RANK]
    copies, lost = near_copies(model.features, basis, images, [1e-4, 1e-3])
    m = len(images) * (RANK + 1)
    assert copies.shape == (m, INPUTS) and copies.dtype == np.float32
    np.testing.assert_array_equal(copies[: len(images)], images)
    change = np.sqrt(np.mean((copies[len(images) :] - np.tile(images, (RANK, 1))) ** 2))
    assert change < 2e-3
    assert lost < 1e-3

    def weight_error(rows):
        order = np.eye(3)[np.arange(m) % 3]
        told = {"size": m, "realistic": "fixed", "dtype": np.float32, "key": jax.random.key(2)}
        return jd.certify(model, jd.distill(model, reference=(rows, order), **told)).relative_weight_error

    assert weight_error(copies) < 1e-3
    noise = np.random.default_rng(3).normal(scale=1e-3, size=copies.shape)  # copies that nobody solved for
    assert weight_error((np.tile(images, (RANK + 1, 1)) + noise).astype(np.float32)) > 0.1


def test_rows_that_cover_leave_no_feature_asleep_and_take_classes_in_turn():
    features = np.zeros((8, 4))
    features[0, :3], features[5, 3], features[2, 3] = 1.0, 1.0, 1.0
    classes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    rows = covering_rows(features, classes, 4, 0.05)
    assert rows[:2].tolist() == [0, 5]
    assert sorted(classes[rows]) == [0, 0, 1, 1] and len(set(rows)) == 4
