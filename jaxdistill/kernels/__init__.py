"""Kernels k(x, x'), each a frozen pytree that writes the formula for one pair of points.

Knows pairs of inputs; nothing of targets. A new kernel is one file here: a subclass of
:class:`AbstractKernel` and a line in ``stored.KINDS``. Begin with :mod:`jaxdistill.kernels.products`;
matrices of many points, in tiles and under a memory budget, are in :mod:`jaxdistill.kernels.tiles`.
"""

from jaxdistill.kernels.base import AbstractKernel, Normalised, Product, Scaled, Sum
from jaxdistill.kernels.empirical import EmpiricalNTK
from jaxdistill.kernels.feature import FeatureKernel
from jaxdistill.kernels.infinite import NNGP, NTK
from jaxdistill.kernels.neural_tangents import (
    NeuralTangentsKernel,
    from_neural_tangents,
    import_neural_tangents,
)
from jaxdistill.kernels.products import Linear, Polynomial
from jaxdistill.kernels.stationary import RBF, Laplace, Matern32, Matern52, RationalQuadratic
from jaxdistill.kernels.stored import KINDS

__all__ = [
    "KINDS",
    "NNGP",
    "NTK",
    "RBF",
    "AbstractKernel",
    "EmpiricalNTK",
    "FeatureKernel",
    "Laplace",
    "Linear",
    "Matern32",
    "Matern52",
    "NeuralTangentsKernel",
    "Normalised",
    "Polynomial",
    "Product",
    "RationalQuadratic",
    "Scaled",
    "Sum",
    "from_neural_tangents",
    "import_neural_tangents",
]
