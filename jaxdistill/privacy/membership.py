"""Who was in the training data? Scores of examples, higher for those that look like members.

Refits of ridge regression are closed forms, so shadow models are cheap: one factorisation gives, for every
example, the prediction of the model with it and of the model without it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import trange

from jaxdistill.errors import InputError
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.numerics.memory import require_memory


def loss_scores(outputs: Float[np.ndarray, "n k"], y: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Minus the squared error: a model errs less on what it was trained on.

    Args:
        outputs: Predictions, shape (n, k).
        y: Targets, shape (n, k).

    Example:
        >>> loss_scores(np.array([[1.0], [3.0]]), np.ones((2, 1))).tolist()
        [-0.0, -4.0]

    Source: Yeom et al. 2018.
    """
    return -np.sum((outputs - y) ** 2, axis=1)


class Influence(NamedTuple):
    """How far the model moves when an example is left out, exactly.

    Args:
        prediction: Change of the prediction at the example itself, ``h |r| / (1 - h)``, shape (n,).
        weights: Change of the weights, ``|A^-1 phi| |r| / (1 - h)``, shape (n,).
    """

    prediction: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


def influence(features: Any, y: Any, lam: float) -> Influence:
    """Exact leave-one-out influence of every training example, from one factorisation.

    With ``A = Phi^T Phi + lam I``, leverage ``h = phi^T A^-1 phi`` and residual r: what somebody who knows
    all other examples sees of this one, where no noise was added.

    Args:
        features: Phi, shape (n, p).
        y: Targets, shape (n, k).
        lam: Penalty, positive.

    Example:
        >>> import numpy as np
        >>> moved = influence(np.array([[1.0], [1.0], [4.0]]), np.array([[1.0], [1.0], [0.0]]), 1.0)
        >>> int(moved.weights.argmax())
        2

    Source: Allen 1974; Cook 1977.
    """
    return Influence(*in_float64(_influence, *_checked(features, y, lam), float(lam)))


def likelihood_ratios(
    features: Any,
    y: Any,
    outputs: Any,
    *,
    lam: float,
    num_train: int,
    shadows: int = 16,
    key: Array,
    progress: bool = False,
) -> Float[np.ndarray, " n"]:
    """The likelihood-ratio attack with shadow models in closed form.

    Each shadow model is ridge on random ``num_train`` of the candidates. By the formulas for adding and for
    leaving out one row it answers both for the example in and out: every shadow serves every example twice.
    The score is the log ratio of two Gaussians, fitted over the shadows to each output, at what the attacked
    model answers.

    Args:
        features: Phi of all candidates, shape (n, p), members and others.
        y: Their targets, shape (n, k).
        outputs: Predictions of the attacked model for them, shape (n, k).
        lam: Penalty of the full model.
        num_train: Number of training examples.
        shadows: Shadow models, at least two.
        key: Random key.
        progress: Whether to show a bar.

    Returns:
        Scores, shape (n,).

    Raises:
        InputError: shapes or numbers that make no sense.

    Example:
        >>> import jax, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> phi, y = rng.standard_normal((80, 30)), rng.standard_normal((80, 1))
        >>> member = np.arange(80) < 40
        >>> weights = np.linalg.solve(phi[:40].T @ phi[:40] + np.eye(30), phi[:40].T @ y[:40])
        >>> scores = likelihood_ratios(phi, y, phi @ weights, lam=1.0, num_train=40, key=jax.random.key(0))
        >>> bool(scores[member].mean() > scores[~member].mean() + 1)
        True

    Source: Carlini et al. 2022; rank-one updates, Sherman and Morrison 1950.
    """
    phi, y = _checked(features, y, lam)
    n, k = y.shape
    outputs = np.asarray(outputs, np.float64)
    if outputs.shape != (n, k):
        raise InputError(f"outputs have shape {outputs.shape}, expected ({n}, {k})")
    if not (isinstance(shadows, int) and shadows >= 2):
        raise InputError(f"shadows is {shadows!r}; a variance needs at least 2")
    if not 0 < num_train <= n:
        raise InputError(f"num_train is {num_train}; shadow models are trained on at most the {n} candidates")
    require_memory(
        8 * (3 * phi.size + 4 * phi.shape[1] ** 2 + 6 * y.size),
        f"{shadows} shadow models of {n} candidates with {phi.shape[1]} features",
        "give fewer candidates",
    )
    generator = host_generator(key)
    sums = np.zeros((2, 2, n, k))  # of answers and of their squares, for the example in and out
    for _ in trange(shadows, desc="shadows", disable=not progress, leave=False):
        chosen = np.zeros(n)
        chosen[generator.permutation(n)[:num_train]] = 1
        answers = np.stack(in_float64(_shadow, phi, y, chosen, float(lam)))
        # About what the attacked model answers: differences are small beside the answers.
        sums += np.stack([answers - outputs, (answers - outputs) ** 2], axis=1)
    mean = sums[:, 0] / shadows
    variance = (sums[:, 1] / shadows - mean**2) * shadows / (shadows - 1)
    # Two equal answers have no spread: nothing finer than rounding can be told apart.
    variance = np.maximum(variance, np.finfo(np.float64).eps * (1 + outputs**2))
    log_likelihood = -0.5 * np.sum(np.log(variance) + mean**2 / variance, axis=2)
    return log_likelihood[0] - log_likelihood[1]


def _checked(features: Any, y: Any, lam: float) -> tuple[np.ndarray, np.ndarray]:
    phi, y = np.asarray(features), np.asarray(y, np.float64)
    if phi.ndim != 2 or y.ndim != 2 or len(phi) != len(y) or len(phi) == 0:
        raise InputError(f"features have shape {phi.shape} and targets {y.shape}; expected (n, p) and (n, k)")
    if not (np.isfinite(lam) and lam > 0):
        raise InputError(f"lam is {lam:g}; attacks by refitting need a positive penalty")
    return phi, y


def _factor(phi: Array, y: Array, weight: Array, lam: Array) -> tuple[Array, Array, Array]:
    """``Phi A^-1``, leverages and predictions of ridge on weighted rows."""
    weighted = phi * weight[:, None]
    gram = matmul(weighted.T, phi) + lam * jnp.eye(phi.shape[1], dtype=phi.dtype)
    factor = (jnp.linalg.cholesky(gram), True)
    solved = jax.scipy.linalg.cho_solve(factor, phi.T).T
    weights = jax.scipy.linalg.cho_solve(factor, matmul(weighted.T, y))
    return solved, jnp.sum(solved * phi, axis=1), matmul(phi, weights)


@jax.jit
def _influence(phi: Array, y: Array, lam: Array) -> tuple[Array, Array]:
    solved, leverage, outputs = _factor(phi, y, jnp.ones(len(phi), phi.dtype), lam)
    error = jnp.linalg.norm(y - outputs, axis=1) / (1 - leverage)
    return leverage * error, jnp.linalg.norm(solved, axis=1) * error


@jax.jit
def _shadow(phi: Array, y: Array, chosen: Array, lam: Array) -> tuple[Array, Array]:
    """Predictions with the example and without it, for every example."""
    _, leverage, outputs = _factor(phi, y, chosen, lam)
    h, member = leverage[:, None], chosen[:, None] > 0
    inside = jnp.where(member, outputs, (outputs + h * y) / (1 + h))
    outside = jnp.where(member, (outputs - h * y) / (1 - jnp.where(member, h, 0.0)), outputs)
    return inside, outside
