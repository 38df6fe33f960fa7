"""Real images and near copies of them: which images have copies, and what the set is made of."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxdistill.distill.found import Found
from jaxdistill.distill.options import SolverOptions
from jaxdistill.distill.plan import Plan
from jaxdistill.distill.reference import check_enough, pick_reference
from jaxdistill.errors import ConvergenceError, InputError
from jaxdistill.numerics.linalg import check_finite, in_float64
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.targets import TargetKind
from jaxdistill.solve.box import checked_box
from jaxdistill.solve.covering import covering_rows, slope_sizes
from jaxdistill.solve.near_copies import near_copies
from jaxdistill.solve.spanning import orthonormal_basis

# Real images among which to look for those that move every feature, and how many times more where some is
# flat in all of them: rectified units may wake in one image of a thousand.
_POOL, _MORE = 1000, 4
# Root mean square changes of a copy to choose from, relative to the spread of real images: down to where the
# rounding of what is stored, the square root of its eps, becomes larger than what it leaves.
_CHANGES = 10.0 ** np.arange(-6, -1.875, 0.25)


def find_copies(
    model: RidgeModel,
    plan: Plan,
    reference: Any,
    options: SolverOptions,
    *,
    box: tuple[Any, Any] | None,
    exact: bool,
    stored: np.dtype,
    progress: bool,
    key: Array,
) -> Found:
    """As many real images as there is room for copies of, a copy of each for every direction of the weights.

    The first ``m - r g`` of the set are real ones, ``g = m // (r + 1)`` of them with copies, which follow:
    one of each, then the next.

    Raises:
        InputError: options of other constructions, a start that does not fit, or too few real examples.
        InverseError: a map without a derivative.
        ConvergenceError: exactness was demanded, and the images do not move every feature.
    """
    if vars(options) | {"start": None} != vars(SolverOptions()):
        raise InputError("near copies take no settings of a solver but start; leave the others out")
    rank, phi = plan.rank, model.features
    count = plan.size // (rank + 1)
    size = plan.size - rank * count
    originals, classes = _originals(model, reference, options.start, size, count, progress, key)
    basis = in_float64(partial(orthonormal_basis, rank=rank), model.weights)
    least = 0.1 * float(np.sqrt(np.finfo(stored).eps))
    spread = float(originals.std()) or 1.0  # of images that are all of one value there is no other scale
    changes = [change * spread for change in _CHANGES if change > least]
    low, high = checked_box(box, phi.num_inputs)
    told: dict[str, Any] = {"box": box, "dtype": stored, "progress": progress}
    images, copies, report = near_copies(
        phi, basis, originals[:count], changes, intercept=model.has_intercept, **told
    )
    images = np.concatenate([images, np.clip(originals[count:], low, high)])
    order = np.lexsort((classes, np.arange(size) // model.weights.shape[1]))  # by class, turn by turn
    copies = copies[:, order[order < count]].reshape(-1, phi.num_inputs)
    x = np.concatenate([images[order], copies]).astype(np.float64)
    found = Found(x, 0.0, report.to_dict())
    if exact and not report.reached:
        raise ConvergenceError(
            f"no exact set was found: {count} images and their copies leave {report.outside:.2g} of a "
            f"direction of the weights out (residual {report.residual:.2g}); use more examples, or images "
            "that together wake every feature",
            found,
        )
    return found


def _originals(
    model: RidgeModel, reference: Any, start: Any, size: int, count: int, progress: bool, key: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Real images, float64, and their classes; those that have copies, and wake every feature, first."""
    d = model.features.num_inputs
    if start is not None and not isinstance(start, str):
        given = np.asarray(start, np.float64)
        if given.shape != (size, d):
            raise InputError(
                f"start has shape {given.shape}, expected ({size}, {d}): {count} images to have copies"
                + (f" and {size - count} more" if size > count else "")
            )
        check_finite("start", given)
        return given, np.zeros(size, int)
    if start not in (None, "real"):
        raise InputError(
            f"near copies are of real images, not of start={start!r}; pass images, or leave it out"
        )
    if reference is None:
        raise InputError(
            "realistic='copies' needs real examples; pass reference=(x, y), or images as the start"
        )
    pick = partial(pick_reference, model, reference, key=key, fewer=True)
    measure = partial(slope_sizes, model.features, progress=progress)
    used, wanted = np.any(model.weights != 0, axis=1), max(_POOL, size)
    x, y = pick(wanted)
    check_enough(len(x), size, None)
    slopes = measure(x)
    while not np.all(slopes[:, used].max(axis=0) > 0):
        seen, wanted = len(x), _MORE * wanted
        x, y = pick(wanted)
        if len(x) == seen:  # there are no more
            break
        slopes = measure(x)
    classes = np.zeros(len(y), int) if model.target_kind is TargetKind.REAL else y.argmax(axis=1)
    rows = covering_rows(slopes, classes, size)
    return x[rows].astype(np.float64), classes[rows]
