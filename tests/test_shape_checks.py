"""The hook that checks shapes is at work where functions name shapes, and nowhere else."""

import jaxtyping
import numpy as np
import pytest
import shape_checks

from jaxdistill.distill.exact import inverse_features
from jaxdistill.features import Linear
from jaxdistill.numerics.linalg import in_float64


def test_shapes_that_do_not_fit_are_found_where_they_are_named():
    weights, labels = np.ones((5, 3)), np.eye(3)
    assert in_float64(inverse_features, weights, labels).shape == (3, 5)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'labels'"):
        in_float64(inverse_features, weights, np.eye(4))


def test_what_names_no_shape_is_left_as_it_is():
    assert not hasattr(Linear.settings, "__wrapped__")
    assert hasattr(inverse_features, "__wrapped__")
    assert shape_checks.names_shapes(inverse_features) and not shape_checks.names_shapes(Linear.settings)
