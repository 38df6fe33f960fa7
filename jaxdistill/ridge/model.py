"""A trained ridge model, and its predictions in batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.linalg import check_finite, matmul
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.pace import late
from jaxdistill.numerics.placement import device_scope, moving_arrays, over
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.ridge.crossing import Crossing
from jaxdistill.ridge.moments import Moments
from jaxdistill.ridge.residual import ModelResidual, model_residual
from jaxdistill.ridge.selection import LamSelection
from jaxdistill.ridge.source import chunk_rows, input_rows, padded, row_chunks, unprepared
from jaxdistill.ridge.targets import TargetKind


@final
@register_pytree
@dataclass(frozen=True)
class RidgeModel:
    """A trained model ``f(x) = phi(x) B``, or ``phi(x) B + b``, with the moments that constructions need.

    Args:
        features: Feature map phi.
        weights: B, shape (p, k), float64 on the host.
        lam: Penalty it was trained with; None of a head without data.
        moments: G, C, T and n of the training data, float64 on the host: about zero, or with an intercept
            about the means, of which the weights then are the ridge solution. None of a head without data.
        rank: Numerical rank of the features; None of a head without data.
        resolution: Size below which an eigenvalue of G is rounding.
        selection: How lam was chosen, or None where it was given.
        target_kind: What the targets were.
        dropped: Largest share of its squared norm that a feature lost to the rank.
        product_dtype: Precision in which the products of the moments were formed.
        data_dtype: The coarsest type that holds the inputs: what rounding they come with.
        intercept: b, shape (k,), float64 on the host; None of a model without.
        factorisation: What the weights were solved by; None of a head without data.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.linspace(-1.0, 1.0, 20).reshape(10, 2)
        >>> model = jd.fit_ridge(jd.features.Linear(2), x, x @ np.ones((2, 1)), lam=0.0)
        >>> model.weights.round(6).ravel().tolist(), model.rank
        ([1.0, 1.0], 2)
        >>> jax.grad(lambda z: model(z).sum())(jax.numpy.ones(2)).shape
        (2,)
    """

    features: AbstractFeatureMap
    weights: Float[np.ndarray, "p k"] | Any
    lam: float | None
    moments: Moments | None
    rank: int | None
    resolution: float
    selection: LamSelection | None
    target_kind: TargetKind = field(metadata={"static": True})
    dropped: float = 0.0
    product_dtype: str = field(default="float64", metadata={"static": True})
    data_dtype: str = field(default="float64", metadata={"static": True})
    intercept: Float[np.ndarray, " k"] | Any | None = None
    factorisation: str | None = field(default=None, metadata={"static": True})

    @property
    def residual(self) -> float | None:
        """Residual of the normal equations, relative to features and targets, the worst of all features.

        None of a head without data.
        """
        solution = self.solution
        return None if solution is None else solution.value

    @property
    def solution(self) -> ModelResidual | None:
        """How well the weights solve the normal equations of the model's own moments, measured now.

        None of a head without data.
        """
        if self.moments is None or self.lam is None or self.rank is None:
            return None
        return model_residual(
            self.moments,
            self.weights,
            self.lam,
            product_dtype=self.product_dtype,
            resolution=self.resolution,
            rank=self.rank,
            dropped=self.dropped,
        )

    @classmethod
    def from_weights(
        cls,
        features: AbstractFeatureMap,
        weights: Any,
        *,
        intercept: Any | None = None,
        targets: Literal["classes", "real"] | None = None,
    ) -> Self:
        """Make a model of any linear head, whatever trained it: no data are needed to distil it.

        ``f(x) = phi(x) B + b`` with B and b given: the last layer of a network, a logistic regression, a
        linear support vector machine. *Ridge* regression on its distilled set returns it. What needs
        moments of data (reduced rank, projection, weighted labels, KIP on moments) says so.

        Args:
            features: Feature map phi, d -> p.
            weights: B, shape (p, k); of scikit-learn's linear models ``coef_.T``.
            intercept: b, shape (k,); of scikit-learn's linear models ``intercept_``. Default: none.
            targets: "classes" for heads whose largest output is the class: sets may have hard labels; "real"
                for others. Default: classes where there are several outputs.

        Raises:
            InputError: another shape, or values that are not finite.

        Example:
            >>> import jax, numpy as np
            >>> import jaxdistill as jd
            >>> head = np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]])
            >>> model = RidgeModel.from_weights(jd.features.Linear(3), head)
            >>> small = jd.distill(model, ipc=1, key=jax.random.key(0))
            >>> jd.certify(model, small).exact
            True

        Source: CHW, Theorem 4.1, uses B alone.
        """
        if not isinstance(features, AbstractFeatureMap):
            raise InputError(f"features is a {type(features).__name__}; pass a feature map")
        head, p = np.asarray(weights), features.num_features
        if head.dtype.kind not in "iuf":
            raise InputError(f"weights have type {head.dtype}; pass numbers, such as coef_.T of scikit-learn")
        if head.ndim != 2 or len(head) != p or head.size == 0:
            turned = head.ndim == 2 and head.shape[1] == p
            cure = "pass weights.T" if turned else "one row a feature and one column an output"
            raise InputError(f"weights have shape {head.shape}, expected ({p}, k); {cure}")
        check_finite("weights", head)
        several = head.shape[1] > 1
        if targets is None:
            targets = "classes" if several else "real"
        check_choice("targets", targets, ("classes", "real"))
        if targets == "classes" and not several:
            raise InputError("a single output names no classes; leave targets out")
        kind = TargetKind.ONE_HOT if targets == "classes" else TargetKind.REAL
        head, level = head.astype(np.float64), None
        if intercept is not None:
            level = as_floats("intercept", np.asarray(intercept, np.float64))
            if level.shape != head.shape[1:]:
                raise InputError(f"intercept has shape {level.shape}, expected ({head.shape[1]},)")
            # Outputs that sum to zero, as those of a softmax regression, are those of centred class rows.
            sums = np.vstack([head, level]).sum(axis=1)
            size = np.linalg.norm(head) + np.linalg.norm(level)
            if (
                kind is TargetKind.ONE_HOT
                and np.max(np.abs(sums)) <= np.sqrt(np.finfo(np.float64).eps) * size
            ):
                kind = TargetKind.CENTRED
        return cls(features, head, None, None, None, 0.0, None, kind, intercept=level)

    @property
    def has_intercept(self) -> bool:
        """Whether the model has an intercept: a set for it then takes one example more than the rank."""
        return self.intercept is not None

    def distance(self, weights: Any, intercept: Any | None = None) -> float | None:
        """How far another model is in what ridge regression minimises on the training data; from moments.

        ``|A (B' - B)| / |A B|`` with ``A^T A = G + lam I``: the root mean square difference of the
        predictions on the training data, and what the penalty sees. With intercepts their difference counts
        in the first. A column of large size, or a direction that all features share, moves predictions by
        what no norm of weights shows.

        Args:
            weights: B', shape (p, k).
            intercept: b', shape (k,), where this model has one.

        Returns:
            The distance; None of a head without data.

        Example:
            >>> import jaxdistill as jd
            >>> x = np.linspace(-1.0, 1.0, 20).reshape(10, 2)
            >>> model = jd.fit_ridge(jd.features.Linear(2), x, x @ np.ones((2, 1)), lam=0.1)
            >>> round(model.distance(2 * model.weights), 6)
            1.0
        """
        moments, lam = self.moments, self.lam
        if moments is None or lam is None:
            return None
        own, gram = np.asarray(self.weights, np.float64), np.asarray(moments.gram)

        def squared(b: np.ndarray) -> float:
            return max(float(np.sum(b * (gram @ b))), 0.0) + lam * float(np.sum(b**2))

        change = np.asarray(weights, np.float64) - own
        apart = squared(change)
        if self.intercept is not None and intercept is not None:
            level = np.asarray(intercept, np.float64) - self.intercept + moments.feature_shift @ change
            apart += float(moments.count * np.sum(level**2))
        size = squared(own)
        return float(np.sqrt(apart / size)) if size > 0 else float(apart > 0)

    def moments_for(self, what: str) -> Moments:
        """The moments, for what needs them.

        Raises:
            InputError: the model is a head without data; names what is asked for.
        """
        if self.moments is None:
            raise InputError(
                f"{what} needs moments of data, and this model was made from weights alone; train one "
                "with jaxdistill.fit_ridge"
            )
        return self.moments

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch k"]:
        """Prediction as a pure function of arrays: use it inside jit, vmap and grad."""
        outputs = matmul(self.features(x), jnp.asarray(self.weights, x.dtype))
        return outputs if self.intercept is None else outputs + jnp.asarray(self.intercept, x.dtype)

    def predict(self, x: Any, *, mesh: Mesh | None = None, progress: bool = False) -> np.ndarray:
        """Predictions for any number of inputs, in batches, in the precision of the inputs.

        Args:
            x: Inputs, shape (n, d).
            mesh: Devices that share the rows, as for :func:`~jaxdistill.fit_ridge`.
            progress: Whether to show a bar.

        Returns:
            Predictions, shape (n, k).

        Raises:
            InputError: the inputs have another shape, are not floating point, or not finite.
        """
        return predict(self.features, self.weights, x, intercept=self.intercept, mesh=mesh, progress=progress)


@jax.jit
def _predict_chunk(features: AbstractFeatureMap, weights: Array, level: Array, x: Array) -> Array:
    return matmul(features(x), weights.astype(x.dtype)) + level[None]


@moving_arrays()
def predict(
    features: AbstractFeatureMap,
    weights: Any,
    x: Any,
    *,
    intercept: Any | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Evaluate ``phi(x) B``, with an intercept ``phi(x) B + b``, in batches, in the precision of ``x``."""
    x = input_rows("x", x, cure=f"expected (n, {features.num_inputs}) in float32 or float64")
    if x.ndim != 2 or x.shape[1] != features.num_inputs:
        raise InputError(f"x has shape {x.shape}, expected (n, {features.num_inputs})")
    parts: Iterable[np.ndarray]
    with over(mesh), device_scope(x.dtype) as side:
        size = side.whole_rows(chunk_rows(features.breadth, max(len(x), 1)))
        rows, preprocess = unprepared(x) if side.far else (x, None)
        chunks = padded(row_chunks(rows, size), size, total=len(x), progress="predict" if progress else None)
        across = Crossing(side, x.dtype, preprocess)
        weights = np.asarray(weights, x.dtype)
        level = np.zeros(weights.shape[1]) if intercept is None else intercept
        level = np.asarray(level, x.dtype)
        fixed = side.everywhere((features, weights, level))
        sent = (side.by_row(across(chunk[0])) for chunk, _ in chunks)
        outputs = (_predict_chunk(*fixed, block) for block in late(sent, side.ahead))
        parts = [np.asarray(part) for part in late(outputs)]
    return np.concatenate([*parts, np.zeros((0, weights.shape[1]), x.dtype)])[: len(x)]
