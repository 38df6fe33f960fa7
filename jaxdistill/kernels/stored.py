"""Kernels by the name of their kind, and back from what a file keeps of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdistill.kernels.base import AbstractComposite, AbstractKernel, Normalised, Product, Scaled, Sum
from jaxdistill.kernels.empirical import EmpiricalNTK
from jaxdistill.kernels.feature import FeatureKernel
from jaxdistill.kernels.infinite import NNGP, NTK
from jaxdistill.kernels.products import Linear, Polynomial
from jaxdistill.kernels.stationary import RBF, Laplace, Matern32, Matern52, RationalQuadratic

KINDS: dict[str, type[AbstractKernel]] = {
    kind.kind: kind
    for kind in (
        *(Linear, Polynomial, RBF, Laplace, Matern32, Matern52, RationalQuadratic, NNGP, NTK),
        *(EmpiricalNTK, FeatureKernel, Sum, Product, Scaled, Normalised),
    )
}


def rebuild(parts: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> AbstractKernel:
    """The kernel of :func:`~jaxdistill.kernels.base.parts_of` and its arrays, parts of it first.

    Args:
        parts: Kind and settings.
        arrays: Arrays by name.
        code: ``module`` and ``variables`` of flax, for a kernel that has a module inside.

    Example:
        >>> from jaxdistill.kernels.base import parts_of
        >>> kernel = 2.0 * Linear() + RBF(3.0)
        >>> parts_of(rebuild(parts_of(kernel), kernel.arrays())) == parts_of(kernel)
        True
    """
    kind, settings = KINDS[parts["kind"]], dict(parts["settings"])
    for name in kind.parts if issubclass(kind, AbstractComposite) else ():
        below = {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}
        settings[name] = rebuild(settings[name], below, **code)
    return kind.from_parts(settings, arrays, **code)
