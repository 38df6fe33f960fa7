"""From names to arrays: what the command line and the experiments share before a model is fitted."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.data import load_dataset, one_hot
from jaxdistill.errors import InputError
from jaxdistill.features import KINDS, AbstractFeatureMap, Linear, RandomFourier, RandomNetwork
from jaxdistill.fit import Validation
from jaxdistill.preprocess import AbstractPreprocess, fit_preprocess

# Up to this many examples leave-one-out costs nothing; above it, a held-out part is as good.
MOST_LEAVE_ONE_OUT = 10_000
VALIDATION_FRACTION = 0.05


@dataclass(frozen=True, eq=False)
class Task:
    """A data set as a model sees it.

    Args:
        name: Name of the data set.
        x: Training inputs, shape (n, d).
        y: Training targets, shape (n, k), float64.
        x_test: Test inputs, shape (t, d).
        y_test: Test targets: classes (t,), or real values (t, k).
        preprocess: Transform from images to inputs.
        class_names: Names of the classes, or None for regression.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    preprocess: AbstractPreprocess
    class_names: tuple[str, ...] | None


def prepare(
    dataset: str, *, preprocess: str = "standardize", centred: bool = False, progress: bool = False
) -> Task:
    """Load a data set, fit its preprocessing on the training part, and make targets.

    Args:
        dataset: As for :func:`jaxdistill.load_dataset`.
        preprocess: "standardize", "zca" or "none".
        centred: Whether one-hot targets are centred.
        progress: Whether to show bars.

    Returns:
        The task.

    Raises:
        DatasetError: the data cannot be used.
        InputError: an unknown preprocessing.
    """
    data = load_dataset(dataset, progress=progress)
    transform = fit_preprocess(preprocess, data.x_train)
    if data.is_classification:
        y = one_hot(data.y_train, data.num_classes, centred=centred)
    elif centred:
        raise InputError(f"{data.name} has real-valued targets; centring is for classes")
    else:
        y = data.y_train
    return Task(
        name=data.name,
        x=transform.forward(data.x_train),
        y=y,
        x_test=transform.forward(data.x_test),
        y_test=data.y_test,
        preprocess=transform,
        class_names=data.class_names,
    )


@dataclass(frozen=True)
class FeatureOptions:
    """Settings of a feature map, by name.

    Args:
        kind: "linear", "fourier" or "network".
        num_features: p; default the length of an input.
        depth: Layers of a network, all of width p.
        negative_slope: Slope of its activation.
        weights: "orthogonal" or "gaussian": network weights, Fourier frequencies. Default:
            orthogonal for networks, Gaussian for Fourier features.
        lengthscale: Width of the Gaussian kernel; default the root mean square distance of examples.
    """

    kind: str = "linear"
    num_features: int | None = None
    depth: int = 1
    negative_slope: float = 0.1
    weights: str | None = None
    lengthscale: float | None = None


def make_features(options: FeatureOptions, x: np.ndarray, key: Array) -> AbstractFeatureMap:
    """Draw the feature map that the options describe, for inputs like ``x``.

    Raises:
        InputError: an unknown kind, with the nearest known one, or settings that make no sense.
    """
    dim = x.shape[1]
    width = dim if options.num_features is None else options.num_features
    if options.kind not in KINDS:
        near = difflib.get_close_matches(options.kind, KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of " + ", ".join(sorted(KINDS))
        raise InputError(f"unknown features {options.kind!r}; {hint}")
    if options.kind == Linear.kind:
        if width != dim:
            raise InputError(f"linear features have as many features as inputs, {dim}, not {width}")
        return Linear(dim)
    weights: Any = options.weights
    if options.kind == RandomFourier.kind:
        scale = rms_distance(x) if options.lengthscale is None else options.lengthscale
        return RandomFourier.create(dim, width, lengthscale=scale, frequencies=weights or "gaussian", key=key)
    return RandomNetwork.create(
        dim,
        widths=(width,) * options.depth,
        negative_slope=options.negative_slope,
        weights=weights or "orthogonal",
        key=key,
    )


def rms_distance(x: np.ndarray) -> float:
    """Root mean square distance between two examples, ``sqrt(2 sum_j var_j)``.

    Example:
        >>> round(rms_distance(np.array([[0.0], [2.0]])), 3)
        1.414
    """
    return float(np.sqrt(2 * np.sum(np.var(x, axis=0, dtype=np.float64))))


def parse_validation(text: str, n: int) -> Validation:
    """Read "auto", "loo" or a fraction; "auto" is leave-one-out for up to 10 000 examples.

    Raises:
        InputError: anything else.
    """
    if text == "auto":
        return "leave-one-out" if n <= MOST_LEAVE_ONE_OUT else VALIDATION_FRACTION
    if text == "loo":
        return "leave-one-out"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"validation is {text!r}; give 'auto', 'loo' or a fraction such as 0.05") from None


@dataclass
class Stopwatch:
    """Seconds spent in named stages.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.stage("load"):
        ...     pass
        >>> list(watch.seconds)
        ['load']
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = perf_counter()
        yield
        self.seconds[name] = perf_counter() - start


def split_keys(seed: int) -> tuple[Array, Array, Array]:
    """Keys for the feature map, the validation split and the set, from one seed."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return keys[0], keys[1], keys[2]
