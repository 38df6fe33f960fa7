"""Exact sets of a few images and near copies of them, for any differentiable feature map.

Around an image b features are linear, ``phi(b + dx) = phi(b) + J dx``, and where J has rank p a change of the
image moves them in any direction at all. Ridge regression sees what rows of features span: r copies of b with
``phi(b + dx_c) - phi(b) = tau q_c``, q_c an orthonormal basis of the weights, span them together with b,
however small tau is. Where J lacks rank, since rectified features are flat in b, several images share the
work, each with copies of its own:

    sum over g of phi(b_g + dx_gc) - phi(b_g) = tau q_c,    dx_gc = J_g^T (sum over g of J_g J_g^T)^-1 tau q_c

to first order, and chord steps with the same Jacobians take up the rest. Columns are independent of each
other: one p x p factorisation serves all. What bounds tau from below is the rounding of the stored images,
from above how far features are linear; what lies between widens with the number of images, which makes the
matrix better conditioned.

Source: this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, final

import jax
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.linalg import in_float32, in_float64
from jaxdistill.numerics.memory import require_memory
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.ridge.model import predict
from jaxdistill.solve.box import checked_box
from jaxdistill.solve.derivative import check_derivative
from jaxdistill.solve.spanning import least_squares_mix
from jaxdistill.solve.tangent import jacobians

# Passes of a Jacobian that run side by side.
PASSES = 16
# Shift of the p x p matrix, relative to its largest eigenvalue: features that are flat in every image.
SHIFT = 1e-12
# Chord steps at most; what a step has to leave at most, relative to what it found.
STEPS, HARDLY = 12, 0.7
# In a box images keep so many times the largest first-order change from its ends, for what is not linear.
ROOM = 1.25


@final
@dataclass(frozen=True)
class CopiesReport:
    """What was found.

    Args:
        images: g, images that have copies.
        copies: r, copies of each.
        change: Root mean square change of a copy, in the units of the inputs.
        residual: Of the equations for the differences, relative to tau, before inputs are rounded.
        outside: Of the rounded inputs: the largest part of a direction of the weights that they do not span.
        tolerance: What may lie outside of a set that counts as solved.
        steps: Chord steps at the change that was chosen.
        seconds: Time taken until it was found, compilation included.
    """

    images: int
    copies: int
    change: float
    residual: float
    outside: float
    tolerance: float
    steps: int
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether the rounded inputs span the weights to the tolerance."""
        return self.outside <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps; the time is left out, so that equal runs report equally."""
        fields = asdict(self)
        del fields["seconds"]
        return fields | {"reached": self.reached}


class NearCopies(NamedTuple):
    """Images, their copies, and the report.

    Args:
        images: Shape (g, d), in the type that inputs are stored in.
        copies: Shape (r, g, d).
        report: What was found.
    """

    images: np.ndarray
    copies: np.ndarray
    report: CopiesReport


# From gaps (p, r) between features to the changes (r, g, d) that close them.
_Moves = Callable[[np.ndarray], np.ndarray]


@moving_arrays()
def near_copies(
    phi: AbstractFeatureMap,
    basis: Float[np.ndarray, "p r"],
    images: Float[np.ndarray, "g d"],
    changes: Sequence[float],
    *,
    intercept: bool = False,
    box: tuple[Any, Any] | None = None,
    dtype: Any = np.float32,
    progress: bool = False,
) -> NearCopies:
    """Make r near copies of every image, whose features together with those of the images span the basis.

    Args:
        phi: Feature map, differentiable.
        basis: Q, orthonormal columns, shape (p, r).
        images: Images b_g that together move every feature, shape (g, d).
        changes: Root mean square changes of a copy, in the images' units and to first order, to choose from:
            small ones drown in the rounding of the stored images, large ones leave what is linear.
        intercept: Whether features are centred before they have to span.
        box: Ends (low, high) between which inputs must stay, numbers or arrays (d,): images are brought so
            far into it that their copies stay there.
        dtype: Type in which inputs are stored.
        progress: Whether to show bars.

    Returns:
        Images and copies, of the change that leaves least outside their span once they are rounded.

    Raises:
        InputError: a box that no copies fit, a shape or changes that make no sense.
        InverseError: a map without a derivative, or none at these images.
        MemoryBudgetError: the Jacobians would not fit.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.features import RandomNetwork
        >>> phi = RandomNetwork.create(20, widths=(30, 15), activation="tanh", key=jax.random.key(0))
        >>> rng = np.random.default_rng(0)
        >>> basis = np.linalg.qr(rng.standard_normal((15, 3)))[0]
        >>> found = near_copies(phi, basis, rng.standard_normal((1, 20)), [1e-3, 1e-2])
        >>> found.copies.shape, found.report.reached
        ((3, 1, 20), True)

    Source: this package.
    """
    start, stored = perf_counter(), np.dtype(dtype)
    expected = phi.num_inputs, phi.num_features
    if images.ndim != 2 or basis.ndim != 2 or (images.shape[1], len(basis)) != expected:
        raise InputError(
            f"images and basis have shapes {images.shape} and {basis.shape}, expected (g, {phi.num_inputs}) "
            f"and ({phi.num_features}, r)"
        )
    if not (len(changes) and np.all(np.isfinite(changes)) and np.min(changes) > 0):
        raise InputError(f"changes are {list(changes)}; they must be positive and finite, and one at least")
    (count, d), (p, rank) = images.shape, basis.shape
    require_memory(
        4 * count * p * d + 32 * p * p + 48 * rank * count * d,
        f"the Jacobians of {count} images with {p} features",
        "use fewer images",
    )
    low, high = checked_box(box, d)
    check_derivative(phi, images)
    bar = partial(tqdm, disable=not progress, leave=False)
    tolerance = float(np.sqrt(np.finfo(stored).eps))
    moves = _directions(phi, bar(images, desc="Jacobians"))
    first = moves(basis)
    best: NearCopies | None = None
    for tau in bar(np.asarray(changes) / np.sqrt(np.mean(first**2)), desc="sizes of the change"):
        room = ROOM * tau * np.abs(first).max(axis=(0, 1))
        if np.any(low + room > high - room):
            continue
        # Kept beside their copies as they are stored.
        still = np.clip(images, low + room, high - room).astype(stored).astype(np.float64)
        moved, residual, steps = _chord(phi, basis, still, tau, tau * first, moves, enough=tolerance**2)
        copies = (still + moved).astype(stored)
        if np.any((copies < low) | (copies > high)):
            continue
        rows = np.concatenate([still, copies.reshape(-1, d)])
        outside = _outside(_features(phi, rows), basis, intercept)
        if best is None or outside < best.report.outside:
            report = CopiesReport(
                images=count,
                copies=rank,
                change=float(np.sqrt(np.mean((copies - still) ** 2))),
                residual=residual,
                outside=outside,
                tolerance=tolerance,
                steps=steps,
                seconds=perf_counter() - start,
            )
            best = NearCopies(still.astype(stored), copies, report)
    if best is None:
        raise InputError("no near copies fit the box; widen it, or use other images")
    return best


def _directions(phi: AbstractFeatureMap, images: Iterable[Float[np.ndarray, " d"]]) -> _Moves:
    """Least changes to first order, from the Jacobians at the images."""
    # Float32 serves: steps need a direction, and their residuals are measured in float64.
    slopes = [in_float32(_jacobian, phi, x[None])[0] for x in images]
    gram = np.sum([np.asarray(slope, np.float64) @ slope.T for slope in slopes], axis=0)
    p = len(gram)
    largest = scipy.linalg.eigvalsh(gram, subset_by_index=[p - 1, p - 1])[0]
    factor = scipy.linalg.cho_factor(gram + SHIFT * largest * np.eye(p), lower=True)

    def moves(gap: Float[np.ndarray, "p r"]) -> Float[np.ndarray, "r g d"]:
        push = scipy.linalg.cho_solve(factor, gap).T
        return np.stack([push @ slope for slope in slopes], axis=1)

    return moves


def _chord(
    phi: AbstractFeatureMap,
    basis: Float[np.ndarray, "p r"],
    images: Float[np.ndarray, "g d"],
    tau: float,
    moved: Float[np.ndarray, "r g d"],
    moves: _Moves,
    enough: float,
) -> tuple[Float[np.ndarray, "r g d"], float, int]:
    """Chord steps as long as they help and the residual is above ``enough``: changes, residual and steps."""
    (count, d), (p, rank) = images.shape, basis.shape
    still = _features(phi, images)
    best, least, steps = moved, np.inf, 0
    for step in range(STEPS):
        there = _features(phi, (images + moved).reshape(-1, d)).reshape(rank, count, p)
        gap = basis - (there - still).sum(axis=1).T / tau
        residual = float(np.linalg.norm(gap, axis=0).max())
        if not residual < HARDLY * least:
            break
        best, least, steps = moved, residual, step
        if residual <= enough:
            break
        moved = moved + tau * moves(gap)
    return best, least, steps


def _features(phi: AbstractFeatureMap, x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m p"]:
    return predict(phi, np.eye(phi.num_features), x)


@jax.jit
def _jacobian(phi: AbstractFeatureMap, x: Float[Array, "m d"]) -> Float[Array, "m p d"]:
    return jacobians(phi, x, PASSES)


def _outside(features: Float[np.ndarray, "m p"], basis: Float[np.ndarray, "p r"], intercept: bool) -> float:
    """The largest part of a column that the rows, centred with an intercept, do not hold."""
    mix = in_float64(partial(least_squares_mix, intercept=intercept), features, basis)
    return float(np.linalg.norm(basis - features.T @ mix, axis=0).max())
