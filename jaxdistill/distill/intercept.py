"""Whether a set can return an intercept at all: the one condition that labels of one's own may fail."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdistill.errors import RankError


def check_label_mean(weights: Any, intercept: Any, labels: Any) -> None:
    """Check that some mean feature vector c gives the labels their mean: ``c B = mean(Ys) - b``.

    It does where ``mean(Ys) - b`` lies in the row space of B. One-hot rows pass wherever the targets were
    one-hot: all sum to one, and the rows of B to zero. The singular values of B that
    :func:`~jaxdistill.distill.exact.mean_features` leaves out do not count here either.

    Args:
        weights: B, shape (p, k).
        intercept: b, shape (k,).
        labels: Ys, shape (m, k).

    Raises:
        RankError: it does not; names the share that is out of reach.

    Example:
        >>> import numpy as np
        >>> b = np.array([[1.0, -1.0]])
        >>> check_label_mean(b, np.array([0.5, 0.5]), np.eye(2))
        >>> check_label_mean(b, np.array([0.5, 0.5]), 2 * np.eye(2))
        Traceback (most recent call last):
        ...
        jaxdistill.errors.RankError: the mean of the labels differs from the intercept by what no \
features can give: 100 % of the difference lie outside the row space of the weights; give \
rows with the mean of the training targets, or use labels='soft'
    """
    weights, intercept, labels = (np.asarray(a, np.float64) for a in (weights, intercept, labels))
    offset = labels.mean(axis=0) - intercept
    _, values, right = np.linalg.svd(weights, full_matrices=False)
    rows = right[values > np.sqrt(np.finfo(np.float64).eps) * values.max(initial=0.0)]
    outside = np.linalg.norm(offset - offset @ rows.T @ rows)
    if outside > 1e-8 * (np.linalg.norm(labels.mean(axis=0)) + np.linalg.norm(intercept)):
        share = 100 * outside / np.linalg.norm(offset)
        raise RankError(
            "the mean of the labels differs from the intercept by what no features can give: "
            f"{share:.3g} % of the difference lie outside the row space of the weights; give rows with "
            "the mean of the training targets, or use labels='soft'"
        )
