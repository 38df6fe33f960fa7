"""Transforms by name: fitted on data, and rebuilt from what a file keeps of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxdistill.data.preprocess import AbstractPreprocess, Identity, Standardize
from jaxdistill.data.zca import ZCA
from jaxdistill.errors import InputError
from jaxdistill.numerics.names import check_choice

KINDS: dict[str, type[Identity] | type[Standardize] | type[ZCA]] = {
    cls.kind: cls for cls in (Identity, Standardize, ZCA)
}


def fit_preprocess(kind: str, x: np.ndarray, *, reg: float | None = None) -> AbstractPreprocess:
    """Fit a transform by name.

    Args:
        kind: ``"standardize"``, ``"zca"`` or ``"none"``.
        x: Training images (n,H,W,C) or a table (n,d).
        reg: Regulariser of ZCA, see ``ZCA.fit``; None for its default.

    Raises:
        InputError: The name is unknown, or ``reg`` is given to a transform that has none.

    Example:
        >>> fit_preprocess("standardize", np.eye(3)).kind
        'standardize'
    """
    check_choice("preprocessing", kind, KINDS)
    if reg is None:
        return KINDS[kind].fit(x)
    if KINDS[kind] is not ZCA:
        raise InputError(f"preprocessing {kind!r} takes no reg; leave it out, or use 'zca'")
    return ZCA.fit(x, reg=reg)


def rebuild_preprocess(
    kind: str, settings: Mapping[str, Any], arrays: Mapping[str, ArrayLike]
) -> AbstractPreprocess:
    """Rebuild a transform from its kind, settings and arrays, as they were saved.

    Args:
        kind: The transform's ``kind``.
        settings: What ``settings()`` gave.
        arrays: What ``arrays()`` gave.

    Raises:
        InputError: A part is missing, or does not fit.

    Example:
        >>> pre = Standardize.fit(np.array([[1.0], [3.0]]))
        >>> rebuild_preprocess(pre.kind, pre.settings(), pre.arrays()).forward(np.array([[5.0]]))
        array([[3.]])
    """
    check_choice("preprocessing", kind, KINDS)
    try:
        return KINDS[kind].from_parts(settings, arrays)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the parts of preprocessing {kind!r} are damaged ({type(error).__name__}: {error}); "
            "save the transform again"
        ) from error
