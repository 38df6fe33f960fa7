"""From a model (or features, or a kernel) and data to a problem on the device."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.fit import detect_targets
from jaxdistill.kernel_ridge import KernelModel
from jaxdistill.kernels import AbstractKernel, NeuralTangentsKernel
from jaxdistill.kernels.compose import parts_of
from jaxdistill.keys import host_generator
from jaxdistill.kip.config import KipConfig
from jaxdistill.kip.objective import Quadratic
from jaxdistill.kip.problem import Context, Kernel, Problem
from jaxdistill.kip.targets import TargetRows, batch_order
from jaxdistill.linalg import check_finite
from jaxdistill.memory import available_bytes
from jaxdistill.moments import Moments, accumulate_moments, chunk_rows, padded_chunks
from jaxdistill.preprocess import AbstractPreprocess
from jaxdistill.ridge import RidgeModel, TargetKind

Model = RidgeModel | AbstractFeatureMap | KernelModel | AbstractKernel | Kernel


@dataclass(frozen=True, eq=False)
class Prepared:
    """A problem with its data.

    Args:
        problem: The pure functions.
        context: What they read, on the device.
        held_out: Rows and targets of the validation data, or None.
        x: Inputs that are trained on, shape (n, d).
        y: Targets that are trained on, shape (n, k).
        classes: Whether the given targets are classes.
        identity: Fingerprints of model and data, in types that JSON keeps.
    """

    problem: Problem
    context: Context
    held_out: tuple[Array, np.ndarray] | None
    x: np.ndarray
    y: np.ndarray
    classes: bool
    identity: dict[str, Any]


def prepare(
    model: Model,
    x: Any,
    y: Any,
    config: KipConfig,
    validation: float | tuple[Any, Any] | None,
    preprocess: AbstractPreprocess | None,
    key: Array,
    progress: bool,
) -> Prepared:
    """Check the data, choose the form, and put on the device what the steps read; inside x64."""
    phi = model.features if isinstance(model, RidgeModel) else model
    phi = phi if isinstance(phi, AbstractFeatureMap) else None
    x, y = _checked("", x, y, phi)
    key_split, key_order = jax.random.split(key)
    identity = {"data": _digest(x, y), "model": _name(model), "key": np.asarray(key).tolist()}
    kind = detect_targets(y)
    train, held = _split(validation, x, y, phi, key_split)
    identity["validation"] = None if held is None else _digest(*held)
    if len(train) < len(x):
        x, y = x[train], y[train]
    if config.patience is not None and held is None:
        raise InputError("patience needs data to judge by; pass validation=0.05 or (x, y), never test data")

    form = _form(config, phi)
    classes = kind is not TargetKind.REAL
    _check_augmentation(config, preprocess, x)
    source: Quadratic | TargetRows
    if form == "moments":
        assert phi is not None
        source, embedded = _quadratic(model, phi, x, y, config, progress), True
    else:
        values = y
        if config.targets == "model":
            values = _trained(model, "targets='model'").predict(x.astype(config.dtype))
        named = y.argmax(axis=1) if classes else np.zeros(len(y), int)
        order = batch_order(named, config.batch, key_order)
        embedded = phi is not None and config.augment is None and _fits(phi, len(order.rows), config)
        rows = _rows(phi if embedded else None, x, order.rows, config, progress)
        dtype = np.dtype(config.dtype)
        source = TargetRows(
            jax.numpy.asarray(rows),
            jax.numpy.asarray(values[order.rows].astype(dtype)),
            jax.numpy.asarray(order.weight),
            order.starts,
            order.sizes,
            order.counts,
        )
    problem = Problem(
        kernel=None if phi is not None else _hashable(model),
        solved=config.labels == "solved",
        reg=config.penalty,
        ridge=config.ridge,
        embedded=embedded,
        augment=config.augment,
    )
    held_rows = None
    if held is not None:
        rows = _rows(phi if embedded else None, held[0], np.arange(len(held[0])), config, False)
        held_rows = (jax.numpy.asarray(rows), held[1])
    context = Context(jax.device_put(phi), source, preprocess)
    return Prepared(problem, context, held_rows, x, y, classes, identity)


def _hashable(kernel: Any) -> Kernel:
    """The kernel matrix as something that compiled functions can be kept by."""
    if isinstance(kernel, KernelModel):
        kernel = kernel.kernel
    if isinstance(kernel, AbstractKernel):
        return kernel.matrix
    try:
        hash(kernel)
    except TypeError:
        return lambda a, b: kernel(a, b)
    return kernel


def _form(config: KipConfig, phi: AbstractFeatureMap | None) -> str:
    """Moments wherever they serve: every target, unchanged, and finitely many features."""
    if config.form == "moments" and phi is None:
        raise InputError("form='moments' needs a feature map; a kernel alone has form='plain'")
    if config.form != "auto":
        return config.form
    whole = config.batch == "all" and config.augment is None
    return "moments" if whole and phi is not None else "plain"


def _quadratic(
    model: Model, phi: AbstractFeatureMap, x: np.ndarray, y: np.ndarray, config: KipConfig, progress: bool
) -> Quadratic:
    """Moments divided by n: those of the model where it was trained on these targets, or one pass."""
    moments = model.moments if isinstance(model, RidgeModel) else None
    if moments is None or not _same_targets(moments, y):
        moments = accumulate_moments(phi, x, y, dtype=np.dtype(config.dtype), progress=progress)
    gram, n = moments.gram / moments.count, moments.count
    if config.targets == "data":
        parts = gram, moments.cross / n, np.trace(moments.target_gram) / n
    else:
        trained = _trained(model, "targets='model'")
        assert isinstance(trained, RidgeModel)  # a kernel has no moments
        weights = trained.weights
        cross = gram @ weights
        parts = gram, cross, np.sum(weights * cross)
    return Quadratic(*(jax.numpy.asarray(part) for part in parts))


def _same_targets(moments: Moments, y: np.ndarray) -> bool:
    own = y.astype(np.float64)
    same = np.allclose(own.T @ own, np.asarray(moments.target_gram), rtol=1e-12)
    return float(moments.count) == len(y) and bool(same)


def _trained(model: Model, what: str) -> RidgeModel | KernelModel:
    if not isinstance(model, (RidgeModel, KernelModel)):
        raise InputError(f"{what} needs a trained model; pass one of jaxdistill.fit_ridge")
    return model


def _fits(phi: AbstractFeatureMap, number: int, config: KipConfig) -> bool:
    """Whether the features of all targets may be kept; they are on the host and on the device."""
    return 2 * number * phi.num_features * np.dtype(config.dtype).itemsize < available_bytes() / 2


@jax.jit
def _embed(phi: AbstractFeatureMap, x: Array) -> Array:
    return phi(x)


def _rows(
    phi: AbstractFeatureMap | None, x: np.ndarray, order: np.ndarray, config: KipConfig, progress: bool
) -> np.ndarray:
    """Inputs in order, or their features."""
    dtype = np.dtype(config.dtype)
    if phi is None:
        return x[order].astype(dtype, copy=False)
    features = np.empty((len(order), phi.num_features), dtype)
    size = chunk_rows(phi.num_features, len(order))
    done = 0
    for (chunk,), mask in padded_chunks((x,), size, order, "features" if progress else None):
        number = int(mask.sum())
        features[done : done + number] = _embed(phi, chunk.astype(dtype, copy=False))[:number]
        done += number
    return features


def _check_augmentation(config: KipConfig, preprocess: AbstractPreprocess | None, x: np.ndarray) -> None:
    if config.augment is None:
        return
    if preprocess is None or len(preprocess.shape) != 3 or preprocess.num_inputs != x.shape[1]:
        raise InputError(
            "augmentation changes images; pass the preprocess that made the inputs from images (H, W, C)"
        )


def _checked(which: str, x: Any, y: Any, phi: AbstractFeatureMap | None) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    dim = x.shape[1] if phi is None and x.ndim == 2 else getattr(phi, "num_inputs", "d")
    if x.ndim != 2 or x.shape[1] != dim or not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"{which}x has shape {x.shape} and type {x.dtype}, expected floats (n, {dim})")
    if y.ndim != 2 or len(y) != len(x) or not len(y) or not np.issubdtype(y.dtype, np.floating):
        raise InputError(
            f"{which}y has shape {y.shape} and type {y.dtype}, expected floats ({len(x)}, k); turn class "
            "numbers into rows with jaxdistill.one_hot"
        )
    check_finite(f"{which}x", x)
    check_finite(f"{which}y", y)
    return x, y


def _split(
    validation: float | tuple[Any, Any] | None,
    x: np.ndarray,
    y: np.ndarray,
    phi: AbstractFeatureMap | None,
    key: Array,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Rows to train on, and data to judge by."""
    n = len(x)
    if validation is None:
        return np.arange(n), None
    if isinstance(validation, tuple):
        held = _checked("validation ", *validation, phi)
        if held[0].shape[1] != x.shape[1] or held[1].shape[1] != y.shape[1]:
            raise InputError("the validation data have other shapes than the training data")
        return np.arange(n), held
    size = round(validation * n) if isinstance(validation, float) and 0 < validation < 1 else 0
    if not 0 < size < n:
        raise InputError(f"validation is {validation!r}; give a fraction of the {n} examples, or (x, y)")
    order = host_generator(key).permutation(n)
    held_rows = np.sort(order[:size])
    return np.sort(order[size:]), (x[held_rows], y[held_rows])


def _digest(*arrays: np.ndarray) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def _name(model: Model) -> str:
    """A fingerprint of features and weights; of a kernel, its name."""
    if isinstance(model, RidgeModel):
        return f"ridge {_name(model.features)} {_digest(model.weights)}"
    if isinstance(model, KernelModel):
        return f"ridge {_name(model.kernel)} {_digest(model.alpha)}"
    if isinstance(model, AbstractKernel) and not isinstance(model, NeuralTangentsKernel):
        return f"{parts_of(model)} {_digest(*model.arrays().values())}"
    if isinstance(model, AbstractFeatureMap):
        return f"{model.kind} {model.settings()} {_digest(*model.arrays().values())}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))
