"""Exact dataset distillation for kernel ridge regression, in closed form.

A model ``f(x) = phi(x) B`` is trained once; a handful of examples is constructed from which ridge
regression returns the same B; a certificate proves it by retraining from what was saved.
"""

import jaxdistill.numerics.clock  # noqa: F401 - first, so that it starts

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

from jaxdistill import errors, features, kernels
from jaxdistill.data.datasets import Dataset, load_dataset, one_hot
from jaxdistill.data.preprocess import Identity, Standardize
from jaxdistill.data.transforms import fit_preprocess
from jaxdistill.data.zca import ZCA
from jaxdistill.distill import distill, plan_distillation
from jaxdistill.distill.baselines import baseline
from jaxdistill.distill.support import distill_kernel
from jaxdistill.errors import JaxDistillError
from jaxdistill.evaluate.certify import Certificate, certify
from jaxdistill.evaluate.certify_kernel import KernelCertificate
from jaxdistill.evaluate.transfer import TransferScores, transfer
from jaxdistill.numerics.mesh import make_mesh
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.kernel_fit import KernelModel, fit_kernel_ridge
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.moments import Moments
from jaxdistill.ridge.path import RidgePath
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.kernel_set import KernelSet, load_set

if TYPE_CHECKING:
    from jaxdistill import kip

__version__ = "0.1.0"

__all__ = [
    "ZCA",
    "Certificate",
    "Dataset",
    "DistilledSet",
    "Identity",
    "JaxDistillError",
    "KernelCertificate",
    "KernelModel",
    "KernelSet",
    "Moments",
    "RidgeModel",
    "RidgePath",
    "Standardize",
    "TransferScores",
    "baseline",
    "certify",
    "distill",
    "distill_kernel",
    "errors",
    "features",
    "fit_kernel_ridge",
    "fit_preprocess",
    "fit_ridge",
    "kernels",
    "kip",
    "load_dataset",
    "load_set",
    "make_mesh",
    "one_hot",
    "plan_distillation",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Import ``kip`` when it is first asked for: it alone needs optax and orbax."""
    if name == "kip":
        return importlib.import_module("jaxdistill.kip")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
