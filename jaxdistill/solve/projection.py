"""The best set in prediction, from moments: what is left to do below the count of the spanning equations.

Fixed examples predict the training data best with the coefficients ``a = (Phis G Phis^T)^-1 Phis G B``. What
is lost then, relative to the predictions of the full model, is minimised over the examples:

    loss(Xs) = 1 - tr(T^T T) / tr(B^T G B),      T = chol(Phis G Phis^T)^-1 Phis G B

This is the full-data objective of KIP with solved labels, without the data: a step costs O(m p^2 + m^2 p),
whatever n is. With an intercept it holds for centred moments and for the contrasts of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.errors import DivergenceError, InputError
from jaxdistill.features.base import check_num_features
from jaxdistill.numerics.contrasts import contrasts
from jaxdistill.numerics.linalg import check_finite, in_float64, matmul, rank_tolerance, reciprocal
from jaxdistill.numerics.memory import require_memory
from jaxdistill.numerics.placement import device_scope, moving_arrays
from jaxdistill.solve.box import checked_box

# Added to Phis G Phis^T while descending, relative to the mean of its diagonal: float32's share of rounding.
STABLE = 1e-6
# Steps of one compiled block, between two looks at the clock and the bar.
BLOCK = 25


@final
@dataclass(frozen=True)
class ProjectionReport:
    """What the descent did.

    Args:
        loss: Share of the squared predictions that the set loses, of the best step, in float64.
        start: The same of the start.
        steps: Steps of Adam.
        best: Step whose set is returned; 0 is the start.
        seconds: Time taken, compilation included.
    """

    loss: float
    start: float
    steps: int
    best: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All fields but the time, in types that JSON keeps."""
        fields = asdict(self)
        del fields["seconds"]
        return fields


class Projection(NamedTuple):
    """A set and its report.

    Args:
        x: Inputs, shape (m, d), float64.
        report: What the descent did.
    """

    x: np.ndarray
    report: ProjectionReport


def projection_loss(
    features: Float[Array, "m p"], weights: Float[Array, "p k"], gram: Float[Array, "p p"]
) -> Float[Array, ""]:
    """Share of the squared predictions on the training data that a set loses with its best labels.

    Args:
        features: Phis, shape (m, p), of full row rank.
        weights: B, shape (p, k).
        gram: G = Phi^T Phi of the training data, shape (p, p).

    Returns:
        A number in [0, 1], 0 where the set is exact on the data. Differentiable; where rounding makes
        ``Phis G Phis^T`` indefinite, NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> b = jnp.ones((4, 1))
        >>> float(projection_loss(b.T, b, jnp.eye(4))) < 1e-6
        True
    """
    weighted = matmul(features, gram)
    system = matmul(weighted, features.T)
    m = len(features)
    shift = STABLE * jnp.trace(system) / m if features.dtype == jnp.float32 else 0.0
    factor = jnp.linalg.cholesky(system + shift * jnp.eye(m, dtype=system.dtype))
    right = matmul(weighted, weights)
    half = jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    return 1 - jnp.sum(half**2) / jnp.sum(weights * matmul(gram, weights))


def share_lost(
    features: Float[Array, "m p"], weights: Float[Array, "p k"], gram: Float[Array, "p p"]
) -> Float[Array, ""]:
    """The same as :func:`projection_loss` for features of any rank, to report and not to descend."""
    weighted = matmul(features, gram)
    system = matmul(weighted, features.T)
    values, vectors = jnp.linalg.eigh((system + system.T) / 2)
    inverse = reciprocal(values, values > rank_tolerance(values, system.shape))
    right = matmul(vectors.T, matmul(weighted, weights))
    return 1 - jnp.sum(inverse[:, None] * right**2) / jnp.sum(weights * matmul(gram, weights))


@moving_arrays()
def project(
    phi: Callable[[Array], Array],
    weights: Any,
    gram: Any,
    start: Any,
    *,
    intercept: bool = False,
    box: tuple[Any, Any] | None = None,
    steps: int = 500,
    learning_rate: float = 0.1,
    seconds: float | None = None,
    progress: bool = False,
) -> Projection:
    """Descend :func:`projection_loss` over inputs by Adam, in float32, and keep the best.

    Args:
        phi: Feature map, (..., d) to (..., p), differentiable.
        weights: B, shape (p, k).
        gram: G = Phi^T Phi of the training data, shape (p, p); with an intercept, of its centred features.
        start: Inputs to start from, shape (m, d).
        intercept: Whether the model has an unpenalised intercept; what is lost is then relative to the
            predictions about their mean.
        box: Ends (low, high) between which inputs must stay, numbers or arrays (d,).
        steps: Steps.
        learning_rate: Of the first step; it falls to zero along a cosine.
        seconds: Time after which to stop with the best so far; default no limit.
        progress: Whether to show a bar.

    Returns:
        Inputs and report.

    Raises:
        InputError: a shape or a number that makes no sense.
        DivergenceError: the loss of the start is not finite.
        MemoryBudgetError: it would not fit.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.features import Linear
        >>> rng = np.random.default_rng(0)
        >>> x, b = rng.standard_normal((50, 6)), rng.standard_normal((6, 3))
        >>> found = project(Linear(6), b, x.T @ x, x[:2], steps=100)
        >>> found.report.loss < found.report.start
        True

    Source: KIP (Nguyen, Chen and Lee 2021) with solved labels, written with G; Adam, Kingma and Ba 2015.
    """
    began = perf_counter()
    weights, gram, x = (np.asarray(a, np.float64) for a in (weights, gram, start))
    if x.ndim != 2 or weights.ndim != 2 or gram.shape != (len(weights),) * 2:
        raise InputError(
            f"start, weights and gram have shapes {x.shape}, {weights.shape} and {gram.shape}, "
            "expected (m, d), (p, k) and (p, p)"
        )
    for name, value in (("learning_rate", learning_rate), ("seconds", seconds)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; it must be positive and finite")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps is {steps!r}; it must be a whole number >= 0")
    for name, array in (("weights", weights), ("gram", gram), ("start", x)):
        check_finite(name, array)
    check_num_features(phi, x.shape[1], len(weights), "the weights")
    low, high = checked_box(box, x.shape[1])
    m, p = len(x), len(weights)
    if intercept:
        if m < 2:
            raise InputError("one example cannot hold weights and an intercept; start from at least 2")
        phi = jax.tree_util.Partial(_contrasts_of, phi)
    require_memory(
        24 * p * p + 40 * m * (p + x.shape[1]),
        f"projecting {m} examples with {p} features",
        "use fewer examples or features",
    )
    x = np.clip(x, low, high)
    # The scale of the moments is of no matter to the loss, but to the range of float32.
    energy = np.trace(gram) / p
    first = float(in_float64(_report, phi, x, weights, gram))
    if not np.isfinite(first):
        raise DivergenceError("the loss of the start is not finite; start from other examples")
    with device_scope(np.float32):
        narrow = [jnp.asarray(a, jnp.float32) for a in (x, weights, gram / energy, low, high)]
        carry = _begin(narrow[0])
        with tqdm(total=steps, desc="projection", disable=not progress, leave=False) as bar:
            for done in range(0, steps, BLOCK):
                if seconds is not None and perf_counter() - began > seconds:
                    break
                carry = _descend(phi, *narrow[1:], carry, min(BLOCK, steps - done), steps, learning_rate)
                bar.update(min(BLOCK, steps - done))
                bar.set_postfix_str(f"loss {float(carry.least):.2e}", refresh=False)
        best, taken, at = (np.asarray(a) for a in (carry.best, carry.step, carry.at))
    # Rounding to float32 may cross an end of the box by its last digit.
    best = np.clip(best.astype(np.float64), low, high)
    last = float(in_float64(_report, phi, best, weights, gram))
    better = last < first
    report = ProjectionReport(
        loss=min(first, last),
        start=first,
        steps=int(taken),
        best=int(at) if better else 0,
        seconds=perf_counter() - began,
    )
    return Projection(best if better else x, report)


def _contrasts_of(phi: Callable[[Array], Array], x: Float[Array, "m d"]) -> Float[Array, "m-1 p"]:
    """Features as a model with an intercept sees them."""
    return contrasts(phi(x))


class _Carry(NamedTuple):
    """What a block of steps hands to the next."""

    x: Array
    memory: Any
    step: Array
    best: Array
    least: Array
    at: Array


def _begin(x: Array) -> _Carry:
    import optax

    zero = jnp.zeros((), jnp.int32)
    return _Carry(x, optax.scale_by_adam().init(x), zero, x, jnp.asarray(jnp.inf, x.dtype), zero)


@jax.jit
def _report(phi: Any, x: Array, weights: Array, gram: Array) -> Array:
    return share_lost(phi(x), weights, gram)


@partial(jax.jit, static_argnums=(6, 7))
def _descend(
    phi: Any,
    weights: Array,
    gram: Array,
    low: Array,
    high: Array,
    carry: _Carry,
    block: int,
    steps: int,
    learning_rate: Array,
) -> _Carry:
    """A block of steps; the set with the smallest loss is kept, one that is not finite never."""
    import optax

    adam = optax.scale_by_adam()

    def loss_of(x: Array) -> Array:
        return projection_loss(phi(x), weights, gram)

    def step(carry: _Carry, _: None) -> tuple[_Carry, None]:
        loss, gradient = jax.value_and_grad(loss_of)(carry.x)
        better = loss < carry.least
        # optax mixes types of numbers, which is its own business.
        with jax.numpy_dtype_promotion("standard"):
            update: Any
            update, memory = adam.update(gradient, carry.memory)
        share = 0.5 * (1 + jnp.cos(jnp.pi * carry.step.astype(carry.x.dtype) / steps))
        x = jnp.clip(carry.x - (learning_rate * share).astype(carry.x.dtype) * update, low[None], high[None])
        return _Carry(
            x=x,
            memory=memory,
            step=carry.step + 1,
            best=jnp.where(better, carry.x, carry.best),
            least=jnp.where(better, loss, carry.least),
            at=jnp.where(better, carry.step, carry.at),
        ), None

    return jax.lax.scan(step, carry, None, length=block)[0]
