"""Where a run starts: real examples, noise, or a set that exists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.distill.reference import balanced_rows
from jaxdistill.errors import InputError
from jaxdistill.kernels import AbstractKernel, FeatureKernel
from jaxdistill.kip.config import KipConfig
from jaxdistill.kip.objective import ridge_coefficients, trace_penalty
from jaxdistill.kip.problem import Params
from jaxdistill.numerics.contrasts import contrasts, contrasts_of_gram, from_contrasts
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.sets.artifact import AbstractSet, DistilledSet
from jaxdistill.sets.kernel_set import KernelSet


def starting_points(
    config: KipConfig, x: np.ndarray, y: np.ndarray, classes: bool, keys: list[Array], intercept: bool
) -> tuple[Params, np.ndarray]:
    """What is trained, and labels for each run.

    Args:
        config: The run.
        x: Training inputs, shape (n, d).
        y: Training targets, shape (n, k).
        classes: Whether these are classes.
        keys: One random key a run.
        intercept: Whether the predictor has an intercept.

    Returns:
        Parameters ``x`` (s, m, d), and ``y`` (s, m, k) where labels are learned; labels (s, m, k) where they
        are fixed.

    Raises:
        InputError: more examples than there are real ones, or a start of another shape.
    """
    dtype = np.dtype(config.dtype)
    size = _size(config, y.shape[1], classes)
    inputs, labels = [], []
    for key in keys:
        if isinstance(config.start, AbstractSet):
            if (config.start.intercept is not None) != intercept:
                told = ("no intercept", "one") if intercept else ("an intercept", "none")
                raise InputError(
                    f"the set to start from was made for {told[0]}, and the model has {told[1]}; make it for "
                    "this model"
                )
            one_x, one_y = _from_set(config, config.start, size, x.shape[1], y.shape[1])
        else:
            rows = balanced_rows(y, size, classes, key)
            one_x, one_y = x[rows], y[rows]
            if config.start == "noise":
                draw = np.asarray(jax.random.normal(jax.random.fold_in(key, 1), one_x.shape, np.float32))
                one_x = x.mean(dtype=np.float64) + x.std(dtype=np.float64) * draw
        inputs.append(one_x.astype(dtype))
        labels.append(one_y.astype(dtype))
    params = {"x": np.stack(inputs)}
    if config.labels == "learned":
        params["y"] = np.stack(labels)
    return params, np.stack(labels)


def _size(config: KipConfig, num_targets: int, classes: bool) -> int:
    if config.size is not None:
        return config.size
    if config.ipc is not None:
        if not classes:
            raise InputError("real-valued targets have no classes; give size in place of ipc")
        return config.ipc * num_targets
    assert isinstance(config.start, AbstractSet)
    return len(config.start.x)


def _from_set(
    config: KipConfig, start: AbstractSet, size: int, dim: int, num_targets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of a set, and the labels that train to its model with the penalty of this run."""
    if start.x.shape != (size, dim) or start.y.shape != (size, num_targets):
        raise InputError(
            f"the set to start from has inputs {start.x.shape} and labels {start.y.shape}, expected "
            f"({size}, {dim}) and ({size}, {num_targets})"
        )

    if config.labels == "solved":
        return start.x, start.y

    @jax.jit
    def relabel(kernel: AbstractKernel, x: Array, y: Array, lam: Array) -> Array:
        k_ss = kernel.matrix(x, x)
        level = 0.0
        if start.intercept is not None:  # the mean of the labels stays: it is not penalised
            k_ss, y, level = contrasts_of_gram(k_ss), contrasts(y), jnp.mean(y, axis=0)
        relative = lam / trace_penalty(k_ss, 1.0)
        a = ridge_coefficients(k_ss, y, relative)
        rows = matmul(k_ss, a) + trace_penalty(k_ss, config.penalty) * a
        return rows if start.intercept is None else from_contrasts(rows) + level

    if isinstance(start, KernelSet):
        kernel = start.kernel
    else:
        assert isinstance(start, DistilledSet)
        kernel = FeatureKernel(start.features)
    labels = in_float64(relabel, kernel, start.x, start.y, np.float64(start.lam))
    if not np.all(np.isfinite(labels)):
        raise InputError(
            "the examples of the set to start from are dependent, so its labels cannot follow another "
            "penalty; make it with lam_s='auto' and soft labels, or use labels='solved'"
        )
    return start.x, labels
