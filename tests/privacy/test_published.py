"""The published calibration: its formula, every assumption by name, and what it does not cover."""

import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.distill.exact import retrain
from jaxdistill.errors import AssumptionError, BudgetError, InputError, PenaltyError
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.privacy.published import distill_published, published_noise

TOLD = {"epsilon": 0.5, "delta": 1e-5, "radius": 3.0, "smallest": 2.0}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (80, 6))
    return x, jd.one_hot(np.arange(80) % 3, 3), rng.standard_normal((7, 3))


def test_the_noise_is_that_of_the_theorem(data):
    x, y, labels = data
    found = published_noise(x, y, labels, lam=0.0, **TOLD)
    # In the paper's notation: examples are columns, row i of Y_S^+ Y over the norm of row i of I - Y_S^+ Y_S.
    y_s, y_columns = labels.T, y.T
    inverse = np.linalg.pinv(y_s)
    expected = 0.0
    for i in range(7):
        row, projector = (inverse @ y_columns)[i], (np.eye(7) - inverse @ y_s)[i]
        ratio = np.sqrt(row @ row) / np.sqrt(projector @ projector)
        expected = max(expected, 2 * np.sqrt(np.log(1.25 / 1e-5)) * 3.0 * ratio / (2.0**2 * 0.5))
    assert found.sigma == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lam": 0.1}, "needs lam = 0, and the model has lam = 0.1"),
        ({"labels": np.eye(3)}, "needs m > k, and m = 3, k = 3"),
        ({"radius": 0.5}, "needs .x. <= R, and an input has norm"),
        ({"radius": np.inf}, "needs .x. <= R"),
        ({"smallest": 50.0}, "smallest singular value of the inputs above s0 = 50"),
        ({"smallest": 0.0}, "smallest singular value of the inputs above s0 = 0"),
        ({"labels": np.eye(4, 3)}, "P_i = 0 for row 0 of labels"),
    ],
)
def test_an_assumption_that_fails_is_named(data, changes, told):
    x, y, labels = data
    with pytest.raises(AssumptionError, match=told):
        published_noise(x, y, **({"labels": labels, "lam": 0.0} | TOLD | changes))


def test_constant_pixels_and_few_examples_have_no_smallest_singular_value(data):
    x, y, labels = data
    for inputs, targets in ((np.c_[x, np.zeros(80)], y), (x[:5], y[:5])):
        with pytest.raises(AssumptionError, match="smallest singular value"):
            published_noise(inputs, targets, labels, lam=0.0, **(TOLD | {"smallest": 1e-9}))


@pytest.mark.parametrize(("name", "value"), [("epsilon", 1.0), ("epsilon", 0.0), ("delta", 0.0)])
def test_a_budget_out_of_range_is_refused(data, name, value):
    x, y, labels = data
    with pytest.raises(BudgetError, match=name):
        published_noise(x, y, labels, lam=0.0, **(TOLD | {name: value}))


def test_labels_of_another_shape_are_refused(data):
    with pytest.raises(InputError, match=r"labels have shape \(7, 2\), expected \(m, 3\)"):
        published_noise(*data[:2], data[2][:, :2], lam=0.0, **TOLD)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"labels": np.full((7, 3), np.nan)}, InputError, "labels"),
        ({"radius": "3"}, InputError, "radius is '3'; give a number"),
        ({"smallest": None}, InputError, "smallest is None; give a number"),
        ({"lam": "auto"}, PenaltyError, "lam is 'auto'"),
        ({"lam": np.nan}, PenaltyError, "lam is nan"),
    ],
)
def test_what_is_no_number_is_refused(data, changes, error, told):
    x, y, labels = data
    with pytest.raises(error, match=told):
        published_noise(x, y, **({"labels": labels, "lam": 0.0} | TOLD | changes))


@pytest.mark.parametrize(
    ("size", "columns", "told"),
    [(-3, 6, "size is -3"), (7.0, 6, "size is 7.0"), (7, 5, r"\(80, 5\), expected \(n, 6\)")],
)
def test_sets_that_make_no_sense_are_refused(data, size, columns, told):
    x, y, _ = data
    model = jd.fit_ridge(jd.features.Linear(6), x, y, lam=0.0)
    with pytest.raises(InputError, match=told):
        distill_published(model, x[:, :columns], y, size=size, **TOLD)


def test_the_released_pair_gives_the_weights_away(data):
    """What the recipe says in words: whoever retrains has B, whatever the noise was."""
    x, y, _ = data
    model = jd.fit_ridge(jd.features.Linear(6), x, y, lam=0.0)
    small = distill_published(model, x, y, size=8, **TOLD)
    again = in_float64(jax.jit(retrain), small.x, small.y, small.lam)
    np.testing.assert_allclose(again, model.weights, rtol=1e-6, atol=1e-9)
    told = small.recipe["privacy"]
    assert told["not_covered"].startswith("the released pair") and told["sigma"] > 0
    assert {"covers", "epsilon", "delta", "radius", "smallest", "size"} <= set(told)


def test_only_linear_models_have_it(problem, maps):
    model = jd.fit_ridge(maps["network"], problem["x"], problem["y"], lam=0.0)
    with pytest.raises(AssumptionError, match="for linear models, and the features are network"):
        distill_published(model, problem["x"], problem["y"], size=8, **TOLD)
