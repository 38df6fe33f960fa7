"""Kernel inducing points: a small set trained by gradient descent, the method to compare with.

Knows models, kernels and sets. Begin with :func:`jaxdistill.kip.train.train`. ``objective`` holds the
losses as pure functions of matrices, ``problem`` binds them to features, a kernel, moments or targets,
``prepare`` and ``start`` put data on the device, ``train`` runs, and ``checkpoint`` makes a run survive its
process.
"""

from jaxdistill.data.augment import Augmentation
from jaxdistill.kip.config import KipConfig, optimisers, recommended
from jaxdistill.kip.objective import Quadratic, moments_loss, ridge_coefficients, solved_coefficients
from jaxdistill.kip.result import History, KipResult
from jaxdistill.kip.train import train

__all__ = [
    "Augmentation",
    "History",
    "KipConfig",
    "KipResult",
    "Quadratic",
    "moments_loss",
    "optimisers",
    "recommended",
    "ridge_coefficients",
    "solved_coefficients",
    "train",
]
