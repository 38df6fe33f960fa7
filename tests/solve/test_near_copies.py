"""Near copies of a few images span the weights, down to the rounding in which they are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.distill.exact import retrain, retrain_with_intercept
from jaxdistill.features import RandomNetwork
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.solve.covering import covering_rows, slope_sizes
from jaxdistill.solve.near_copies import near_copies

RANK, INPUTS = 2, 40
CHANGES = (1e-4, 1e-3, 1e-2)


@pytest.fixture(params=["tanh", "relu"], scope="module")
def problem(request):
    """A model of three classes, and images that move its features: one for tanh, four for ReLU."""
    phi = RandomNetwork.create(INPUTS, widths=(30,), activation=request.param, key=jax.random.key(0))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, INPUTS)).astype(np.float32)
    named = (x @ rng.standard_normal((INPUTS, 3))).argmax(axis=1)
    model = jd.fit_ridge(phi, x, jd.one_hot(named, 3), lam=1.0, intercept=True)
    rows = covering_rows(slope_sizes(phi, x), named, 1 if request.param == "tanh" else 4)
    basis = np.linalg.svd(model.weights, full_matrices=False)[0][:, :RANK]
    return model, basis, x[rows].astype(np.float64)


def weight_error(model, x):
    """Of ridge regression in float64, from labels that the model itself gives."""
    x = x.reshape(-1, INPUTS).astype(np.float64)
    features = in_float64(jax.jit(model.features.__call__), x)
    labels = features @ model.weights + model.intercept
    weights, _ = in_float64(retrain_with_intercept, features, labels, 0.0)
    return np.linalg.norm(weights - model.weights) / np.linalg.norm(model.weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_images_and_copies_train_to_the_model(problem, dtype):
    model, basis, images = problem
    found = near_copies(model.features, basis, images, CHANGES, intercept=True, dtype=dtype)
    assert found.images.dtype == found.copies.dtype == dtype
    assert found.copies.shape == (RANK, *images.shape)
    np.testing.assert_array_equal(found.images, images.astype(dtype))
    change = np.sqrt(np.mean((found.copies - images) ** 2))
    assert found.report.change == pytest.approx(change, rel=1e-3)
    assert change < 2e-2
    assert found.report.reached and found.report.outside < (1e-4 if dtype == np.float32 else 1e-9)
    small = np.concatenate([found.images[None], found.copies])
    assert weight_error(model, small) < 10 * found.report.outside
    # Copies as near that nobody solved for train to something else.
    noise = np.random.default_rng(3).normal(scale=change, size=found.copies.shape)
    assert weight_error(model, np.concatenate([images[None], images + noise])) > 0.1


def test_without_an_intercept_they_span_as_well(problem):
    model, basis, images = problem
    found = near_copies(model.features, basis, images, CHANGES, dtype=np.float64)
    x = np.concatenate([found.images[None], found.copies]).reshape(-1, INPUTS)
    features = in_float64(jax.jit(model.features.__call__), x)
    weights = in_float64(retrain, features, features @ basis, 0.0)
    assert np.linalg.norm(weights - basis) < 1e-8


def test_in_a_box_images_make_room_for_their_copies(problem):
    model, basis, images = problem
    low, high = -0.5, 0.5
    assert np.any(images < low)
    found = near_copies(model.features, basis, np.clip(images, low, high), CHANGES, box=(low, high))
    for x in (found.images, found.copies):
        assert x.min() >= low and x.max() <= high
    assert found.report.outside < 1e-2
    inside = np.abs(images) < 0.4
    np.testing.assert_array_equal(found.images[inside], images.astype(np.float32)[inside])
    with pytest.raises(errors.InputError, match="no near copies fit the box"):
        near_copies(model.features, basis, 1e-8 * images, CHANGES, box=(-1e-7, 1e-7))


def test_changes_are_not_so_small_that_rounding_hides_them(problem):
    model, basis, images = problem
    told = {"basis": basis, "images": images, "intercept": True}
    tiny = near_copies(model.features, changes=[1e-6], **told).report
    chosen = near_copies(model.features, changes=[1e-6, 1e-3], **told).report
    assert chosen.outside < 1e-2 * tiny.outside
    assert chosen.change == pytest.approx(1e-3, rel=0.1)
    assert near_copies(model.features, changes=[1e-6], dtype=np.float64, **told).report.outside < 1e-6


def test_images_in_which_nothing_moves_are_refused():
    phi = RandomNetwork((jnp.eye(2),), 0.0, "relu")
    with pytest.raises(errors.InverseError, match="is zero"):
        near_copies(phi, np.eye(2), np.array([[-1.0, -1.0]]), CHANGES)


def test_what_no_image_moves_is_reported():
    phi = RandomNetwork((jnp.eye(2),), 0.0, "relu")
    found = near_copies(phi, np.eye(2), np.array([[1.0, -1.0]]), [1e-3])  # the second unit sleeps
    assert not found.report.reached and found.report.outside > 0.9
    told = found.report.to_dict()
    assert told["images"] == 1 and told["copies"] == 2 and "seconds" not in told


def test_shapes_that_make_no_sense_are_refused(problem):
    model, basis, images = problem
    with pytest.raises(errors.InputError, match=r"expected \(g, 40\) and \(30, r\)"):
        near_copies(model.features, basis[1:], images, CHANGES)


@pytest.mark.parametrize("changes", [(), (0.0,), (1e-3, np.nan)])
def test_changes_that_make_no_sense_are_refused(problem, changes):
    model, basis, images = problem
    with pytest.raises(errors.InputError, match="positive and finite"):
        near_copies(model.features, basis, images, changes)


def test_jacobians_that_would_not_fit_are_refused(problem, monkeypatch):
    model, basis, images = problem
    monkeypatch.setenv("JAXDISTILL_MEMORY_LIMIT", "1K")
    with pytest.raises(errors.MemoryBudgetError, match="use fewer images"):
        near_copies(model.features, basis, images, CHANGES)
