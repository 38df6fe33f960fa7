"""Few images, of different classes, in which every feature moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.features import RandomNetwork
from jaxdistill.solve.covering import BATCH, covering_rows, slope_sizes
from jaxdistill.solve.tangent import jacobians


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_slopes_are_those_of_jacobians_up_to_chance_and_zero_where_these_are(activation):
    phi = RandomNetwork.create(24, widths=(10,), activation=activation, key=jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((BATCH + 3, 24)).astype(np.float32)
    explicit = np.asarray(jax.jit(lambda phi, x: jacobians(phi, x))(phi, jnp.asarray(x)))
    exact = np.linalg.norm(explicit, axis=2)
    found = slope_sizes(phi, x)
    assert found.shape == exact.shape
    np.testing.assert_array_equal(found == 0, exact == 0)
    assert (activation == "relu") == bool((exact == 0).any())
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.5
    np.testing.assert_array_equal(slope_sizes(phi, x[BATCH:]), found[BATCH:])  # each image by itself


def test_passes_of_a_jacobian_side_by_side_or_not_are_the_same():
    x = np.random.default_rng(0).standard_normal((2, 7)).astype(np.float32)
    for widths in ((5,), (11,)):  # more inputs than features, and fewer
        phi = RandomNetwork.create(7, widths=widths, activation="tanh", key=jax.random.key(0))
        whole, parts = (
            jax.jit(lambda phi, x, passes=passes: jacobians(phi, x, passes))(phi, jnp.asarray(x))
            for passes in (None, 3)
        )
        np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_rows_leave_no_feature_asleep_and_take_classes_in_turn():
    sizes = np.zeros((8, 4))
    sizes[0, :3], sizes[5, 3], sizes[2, 3] = 1.0, 1.0, 1.0
    classes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    rows = covering_rows(sizes, classes, 4)
    assert rows[:2].tolist() == [0, 5]
    assert sorted(classes[rows]) == [0, 0, 1, 1] and len(set(rows)) == 4


def test_a_class_that_has_run_out_leaves_its_turn_to_others():
    rows = covering_rows(np.eye(5), np.array([0, 1, 1, 1, 1]), 5)
    assert sorted(rows) == [0, 1, 2, 3, 4]
