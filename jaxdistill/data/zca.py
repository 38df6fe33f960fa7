"""Whitening, as one more invertible transform."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from jaxdistill.data.preprocess import (
    PRODUCT_ELEMENTS,
    AbstractPreprocess,
    Array,
    blocks,
    checked_constant,
    checked_shape,
    example_blocks,
    flat_rows,
    matched,
    training_data,
)
from jaxdistill.data.rows import AbstractRows
from jaxdistill.errors import InputError, RankError
from jaxdistill.numerics.linalg import check_finite, matmul
from jaxdistill.numerics.pytrees import register_pytree


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class ZCA(AbstractPreprocess):
    """Whitening that stays as close to the data as whitening can, with a regulariser.

    With the covariance ``C = (x - mean)^T (x - mean) / n = V diag(e) V^T`` and
    ``lam = reg * trace(C) / d``, which is ``reg`` times the mean eigenvalue,

    ``forward(x) = (x - mean) V diag(1/scale) V^T``, ``scale = sqrt(e + lam)``,

    so that the covariance of the rows has the eigenvalues ``e / (e + lam)``. The inverse multiplies
    by ``scale``, from the same decomposition. The data are centred, and not standardised first.

    Attributes:
        mean: Mean of the training rows (d,), in the data's units.
        scale: Square roots of the regularised eigenvalues (d,), ascending.
        eigenvectors: V (d,d), one a column.
        reg: The regulariser, as a multiple of the mean eigenvalue.

    Example:
        >>> x = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> pre = ZCA.fit(x, reg=0.0)
        >>> np.round(np.abs(pre.forward(x)), 6)
        array([[1.414214, 0.      ],
               [1.414214, 0.      ],
               [0.      , 1.414214],
               [0.      , 1.414214]])

    Source:
        Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", 2018. The regulariser is
        that of Nguyen, Novak, Xiao and Lee, "Dataset distillation with infinitely wide
        convolutional networks", 2021, without their layer normalisation.
    """

    kind: ClassVar[str] = "zca"
    mean: Float64[np.ndarray, " d"] | Any
    scale: Float64[np.ndarray, " d"] | Any
    eigenvectors: Float64[np.ndarray, "d d"] | Any
    reg: float = field(metadata={"static": True})

    @classmethod
    def fit(cls, x: Any, *, reg: float = 0.1) -> Self:
        """Decompose the covariance of training data, summed in one pass over them, in float64.

        Args:
            x: Images (n,H,W,C) or a table (n,d), floats in whatever NumPy reads; or rows of such, read piece
                by piece, with the same result bit for bit.
            reg: Regulariser as a multiple of the mean eigenvalue, at least 0.

        Raises:
            InputError: ``x`` has another shape or type, or values that are not finite; or ``reg``
                is negative.
            RankError: The examples are all the same, or their covariance is singular and ``reg``
                too small to mend it.
        """
        if not (math.isfinite(reg) and reg >= 0):
            raise InputError(f"reg is {reg}; give a finite number of at least 0")
        if not isinstance(x, AbstractRows):  # whose pieces are looked at as they are read
            check_finite("x", training_data(x))
        shape, count, mean, covariance = _covariance(x)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        smallest_sound = mean.size * np.finfo(np.float64).eps * eigenvalues[-1]
        regularised = eigenvalues + reg * np.trace(covariance) / mean.size
        if not regularised[0] > smallest_sound:
            rank = int(np.sum(eigenvalues > smallest_sound))
            raise RankError(
                f"the covariance of {count} examples has rank {rank} of {mean.size}, "
                f"which reg={reg} does not make invertible; give a larger reg, such as 0.1"
            )
        scale = np.sqrt(regularised)
        return cls(shape, mean, scale, eigenvectors, reg=float(reg))

    @classmethod
    def from_parts(cls, settings: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> Self:  # noqa: D102
        shape = checked_shape(settings["shape"])
        size = math.prod(shape)
        scale = checked_constant("scale", arrays["scale"], (size,))
        if not (scale > 0).all():
            raise InputError("scale must be positive; save the transform again")
        return cls(
            mean=checked_constant("mean", arrays["mean"], (size,)),
            scale=scale,
            eigenvectors=checked_constant("eigenvectors", arrays["eigenvectors"], (size, size)),
            shape=shape,
            reg=float(settings["reg"]),
        )

    def forward(self, x: Array) -> Array:  # noqa: D102
        batch, rows = flat_rows("x", x, self.shape)
        rows, mean = matched(rows, self.mean)
        if isinstance(rows, np.ndarray):
            inputs: Any = self.forward_many()(rows.reshape(batch + self.shape))
            return inputs
        return self._scaled(rows - mean, 1 / self.scale).reshape((*batch, self.num_inputs))

    def forward_many(self) -> Callable[[np.ndarray], np.ndarray]:  # noqa: D102
        matrices: dict[Any, np.ndarray] = {}

        def forward(x: np.ndarray) -> np.ndarray:
            batch, rows = flat_rows("x", x, self.shape)
            if rows.dtype not in matrices:
                matrices[rows.dtype] = self._matrix(1 / self.scale, rows.dtype)
            mean, inputs = np.asarray(self.mean, rows.dtype), np.empty(rows.shape, rows.dtype)
            for block in blocks(rows, PRODUCT_ELEMENTS):
                np.matmul(rows[block] - mean, matrices[rows.dtype], out=inputs[block])
            return inputs.reshape((*batch, self.num_inputs))

        return forward

    def inverse(self, inputs: Array) -> Array:  # noqa: D102
        batch, rows = flat_rows("inputs", inputs, (self.num_inputs,))
        rows, mean = matched(rows, self.mean)
        if isinstance(rows, np.ndarray):
            x = np.matmul(rows, self._matrix(self.scale, rows.dtype))
            x += mean
            return x.reshape(batch + self.shape)
        return (self._scaled(rows, self.scale) + mean).reshape(batch + self.shape)

    def _matrix(self, scale: np.ndarray, dtype: Any) -> np.ndarray:
        """V diag(scale) V^T, computed in float64."""
        return ((self.eigenvectors * scale) @ self.eigenvectors.T).astype(dtype)

    def _scaled(self, rows: Any, scale: Any) -> Any:
        """``rows V diag(scale) V^T``, from the left: no d x d product for a few rows."""
        vectors = jnp.asarray(self.eigenvectors, dtype=rows.dtype)
        return matmul(matmul(rows, vectors) * jnp.asarray(scale, dtype=rows.dtype), vectors.T)


def _covariance(x: Any) -> tuple[tuple[int, ...], int, Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
    """Shape of an example, their number, mean and covariance; blocks merge as in ``moments_by_channel``."""
    count, varied = 0, False
    shape: tuple[int, ...] = ()
    first: Any = None
    mean, products = first, first
    for examples in example_blocks(x, PRODUCT_ELEMENTS):
        rows = examples.reshape(len(examples), -1)
        if count == 0:
            shape, first, mean = examples.shape[1:], rows[0].copy(), np.zeros(rows.shape[1])
            products = np.zeros((mean.size, mean.size))
        varied = varied or any((rows[block] != first).any() for block in blocks(rows))
        number = len(rows)
        # One more row: what the mean of this block is apart from that of those before.
        centred = np.empty((number + 1, mean.size))
        centred[:-1] = rows
        own = np.ones(number) @ centred[:-1] / number
        centred[:-1] -= own
        apart, total = own - mean, count + number
        centred[-1] = apart * math.sqrt(count * number / total)
        products += centred.T @ centred
        mean += apart * (number / total)
        count = total
    if not varied:
        raise RankError(f"the {count} examples are all the same; whitening needs variation")
    products /= count
    return shape, count, mean, products
