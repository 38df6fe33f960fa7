"""From a model (or features, or a kernel) and data to a problem on the device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jaxdistill.data.preprocess import AbstractPreprocess
from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.kernels import AbstractKernel, NeuralTangentsKernel
from jaxdistill.kernels.base import parts_of
from jaxdistill.kip.checkpoint import digest
from jaxdistill.kip.config import KipConfig
from jaxdistill.kip.objective import Quadratic
from jaxdistill.kip.problem import Context, Kernel, Problem
from jaxdistill.kip.targets import TargetRows, batch_order
from jaxdistill.numerics.memory import available_bytes
from jaxdistill.numerics.mesh import COLUMNS, SAME
from jaxdistill.numerics.placement import device_scope
from jaxdistill.ridge.kernel_fit import KernelModel
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.moments import Moments, accumulate_moments
from jaxdistill.ridge.source import ArraySource, chunk_rows, padded
from jaxdistill.ridge.targets import TargetKind, detect_targets

Model = RidgeModel | AbstractFeatureMap | KernelModel | AbstractKernel | Kernel


@dataclass(frozen=True, eq=False)
class Prepared:
    """A problem with its data.

    Args:
        problem: The pure functions.
        context: What they read, on the device.
        given: The same as it is on the host, where that has more digits.
        held_out: Rows and targets of the validation data, or None.
        x: Inputs that are trained on, shape (n, d).
        y: Targets that are trained on, shape (n, k).
        classes: Whether the given targets are classes.
        identity: Fingerprints of model and data, in types that JSON keeps.
    """

    problem: Problem
    context: Context
    given: Context
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
    mesh: Mesh | None = None,
) -> Prepared:
    """Check the data, choose the form, and make what the steps read; inside the scope of the run."""
    phi = model.features if isinstance(model, RidgeModel) else model
    phi = phi if isinstance(phi, AbstractFeatureMap) else None
    examples = ArraySource.of(x, y, num_inputs=phi.num_inputs if phi else None, breadth=_width(phi))
    key_split, key_order = jax.random.split(key)
    level = isinstance(model, (RidgeModel, KernelModel)) and model.has_intercept
    identity = {
        "data": digest(*examples.arrays()),
        "model": _name(model),
        "key": np.asarray(key).tolist(),
    }
    kind = detect_targets(examples.y)
    train, held = examples, None
    if isinstance(validation, tuple):
        held = examples.like(*validation, name="validation ")
    elif validation is not None:
        train, held = examples.hold_out(validation, key_split)
    identity["validation"] = None if held is None else digest(*held.arrays())
    x, y = train.arrays()
    if config.patience is not None and held is None:
        raise InputError("patience needs data to judge by; pass validation=0.05 or (x, y), never test data")

    form = _form(config, phi)
    classes = kind is not TargetKind.REAL
    _check_augmentation(config, preprocess, x)
    source: Quadratic | TargetRows
    if form == "moments":
        assert phi is not None
        source, embedded = _quadratic(model, phi, train, config, progress), True
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
            rows,
            values[order.rows].astype(dtype),
            order.weight,
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
        intercept=level,
        mesh=mesh,
    )
    held_rows = None
    if held is not None:
        held_x, held_y = held.arrays()
        rows = _rows(phi if embedded else None, held_x, np.arange(len(held_x)), config, False)
        held_rows = (jax.numpy.asarray(rows), held_y)
    given = Context(phi, source, preprocess)
    with device_scope(config.dtype, wide_sums=True) as side:
        context = jax.device_put(given, side.home) if mesh is None else _spread(given, mesh)
    return Prepared(problem, context, given, held_rows, x, y, classes, identity)


def _spread(given: Context, mesh: Mesh) -> Context:
    """What the steps read, on all devices: of G some columns on each, filled up with zeros."""
    source, same = given.source, NamedSharding(mesh, SAME)
    if isinstance(source, Quadratic):
        more = (0, -len(source.gram) % mesh.size)
        gram, cross = np.pad(source.gram, (more, more)), np.pad(source.cross, (more, (0, 0)))
        means = None if source.means is None else (np.pad(source.means[0], more), source.means[1])
        gram = jax.device_put(gram, NamedSharding(mesh, COLUMNS))
        rest = jax.device_put((cross, source.trace, means), same)
        source = Quadratic(gram, *rest)
    else:
        source = jax.device_put(source, same)
    phi, preprocess = jax.device_put((given.phi, given.preprocess), same)
    return Context(phi, source, preprocess)


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
    model: Model, phi: AbstractFeatureMap, train: ArraySource, config: KipConfig, progress: bool
) -> Quadratic:
    """Moments divided by n: those of the model where it was trained on these targets, or one pass."""
    moments = model.moments if isinstance(model, RidgeModel) else None
    level = isinstance(model, RidgeModel) and model.has_intercept
    if moments is None or not _same_targets(moments, train.arrays()[1], level):
        precision = np.dtype(config.dtype)
        moments = accumulate_moments(phi, train, dtype=precision, shifted=level, progress=progress)
        if level:
            moments = moments.centred()
    means = (moments.feature_shift, moments.target_shift) if level else None
    gram, n = moments.gram / moments.count, moments.count
    if config.targets == "data":
        parts = gram, moments.cross / n, np.trace(moments.target_gram) / n
    else:
        trained = _trained(model, "targets='model'")
        assert isinstance(trained, RidgeModel)  # a kernel has no moments
        weights = trained.weights
        cross = gram @ weights
        parts = gram, cross, np.sum(weights * cross)
        if means is not None and trained.intercept is not None:  # of the model's outputs on the data
            means = means[0], means[0] @ weights + trained.intercept
    return jax.tree.map(np.asarray, Quadratic(*parts, means))


def _same_targets(moments: Moments, y: np.ndarray, level: bool) -> bool:
    own = y.astype(np.float64)
    if level:
        own = own - own.mean(axis=0)
    same = np.allclose(own.T @ own, np.asarray(moments.target_gram), rtol=1e-12)
    return float(moments.count) == len(y) and bool(same)


def _trained(model: Model, what: str) -> RidgeModel | KernelModel:
    if not isinstance(model, (RidgeModel, KernelModel)):
        raise InputError(f"{what} needs a trained model; pass one of jaxdistill.fit_ridge")
    return model


def _width(phi: AbstractFeatureMap | None) -> int:
    return 1 if phi is None else phi.breadth


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
    with device_scope(dtype, wide_sums=True) as side:
        size, phi = side.whole_rows(chunk_rows(phi.breadth, len(order))), side.everywhere(phi)
        chunks, done = ((x[order[i : i + size]],) for i in range(0, len(order), size)), 0
        title = "features" if progress else None
        for (chunk,), mask in padded(chunks, size, total=len(order), progress=title):
            number = int(mask.sum())
            block = _embed(phi, side.by_row(chunk.astype(dtype, copy=False)))
            features[done : done + number] = np.asarray(block)[:number]
            done += number
    return features


def _check_augmentation(config: KipConfig, preprocess: AbstractPreprocess | None, x: np.ndarray) -> None:
    if config.augment is None:
        return
    if preprocess is None or len(preprocess.shape) != 3 or preprocess.num_inputs != x.shape[1]:
        raise InputError(
            "augmentation changes images; pass the preprocess that made the inputs from images (H, W, C)"
        )


def _name(model: Model) -> str:
    """A fingerprint of features and weights; of a kernel, its name."""
    if isinstance(model, RidgeModel):
        return f"ridge {_name(model.features)} {digest(model.weights, *_level(model))}"
    if isinstance(model, KernelModel):
        return f"ridge {_name(model.kernel)} {digest(model.alpha, *_level(model))}"
    if isinstance(model, AbstractKernel) and not isinstance(model, NeuralTangentsKernel):
        return f"{parts_of(model)} {digest(*model.arrays().values())}"
    if isinstance(model, AbstractFeatureMap):
        return f"{model.kind} {model.settings()} {digest(*model.arrays().values())}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))


def _level(model: RidgeModel | KernelModel) -> tuple[np.ndarray, ...]:
    return () if model.intercept is None else (model.intercept,)
