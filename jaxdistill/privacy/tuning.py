"""The penalty chosen by private data, and paid for: the exponential mechanism on how many are right."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.privacy.budget import Neighbours, Spent
from jaxdistill.privacy.noise import secure_uniform
from jaxdistill.ridge.model import predict

# Share of epsilon that the choice costs. On digits (1438 examples, p = 64, 20 runs) it changes the accuracy
# by -2.4, +0.4, +1.3 and +1.5 points at epsilon 0.5, 1, 3 and 8; on MNIST, where the penalty is right without
# it, by -0.1 to -0.4.
SHARE = 0.1
# Candidates, as multiples of the penalty that is chosen without the data.
FACTORS = 2.0 ** np.arange(-2, 5)


def choice_price(epsilon: float) -> Spent:
    """What choosing lam costs out of a budget: a tenth of epsilon, and no delta.

    Example:
        >>> choice_price(2.0).epsilon
        0.2
    """
    return Spent("lam", epsilon=SHARE * epsilon)


def exponential_choice(scores: Float[np.ndarray, " c"] | Any, epsilon: float, neighbours: Neighbours) -> int:
    """Draw candidate i with probability proportional to ``exp(r scores_i)``: (epsilon, 0)-private.

    Scores are sums over examples of numbers in [0, 1]. An example that is added raises all of them, so that
    ``r = epsilon`` keeps the promise; one that is replaced may raise some and lower others, and r is half.

    Args:
        scores: One a candidate, shape (c,).
        epsilon: What the choice may tell.
        neighbours: Which data sets must look alike.

    Returns:
        Its place.

    Example:
        >>> exponential_choice([0.0, 900.0, 0.0], 1.0, Neighbours.REPLACE_ONE)
        1

    Source: McSherry and Talwar 2007; the largest score with Gumbel noise has just this law.
    """
    rate = epsilon if neighbours is Neighbours.ADD_OR_REMOVE else epsilon / 2
    scores = np.asarray(scores, np.float64)
    gumbel = -np.log(-np.log(secure_uniform(*scores.shape)))
    return int(np.argmax(rate * scores + gumbel))


def score_weights(
    features: AbstractFeatureMap,
    x: np.ndarray,
    y: Float[np.ndarray, "n k"],
    weights: Float[np.ndarray, "c p k"],
    *,
    classes: bool,
) -> Float[np.ndarray, " c"]:
    """How well candidates answer, an example counting between 0 and 1: the scores of the choice.

    Right answers for classes, else ``sum_i max(0, 1 - |y_i - f(x_i)|^2)``.

    Args:
        features: Feature map phi.
        x: Inputs, shape (n, d).
        y: Targets in the unit ball, shape (n, k).
        weights: Candidates, made without x and y but for what was paid for, shape (c, p, k).
        classes: Whether targets are classes.

    Example:
        >>> from jaxdistill.features import Linear
        >>> x, weights = np.eye(2), np.stack([np.eye(2), -np.eye(2)])
        >>> score_weights(Linear(2), x, x, weights, classes=True).tolist()
        [2.0, 0.0]
    """
    c, p, k = weights.shape
    outputs = predict(features, weights.transpose(1, 0, 2).reshape(p, c * k), x).reshape(-1, c, k)
    if classes:
        right = outputs.argmax(axis=2) == y.argmax(axis=1)[:, None]
    else:
        right = np.maximum(0.0, 1 - np.sum((outputs - y[:, None]) ** 2, axis=2))
    return np.float64(right).sum(axis=0)
