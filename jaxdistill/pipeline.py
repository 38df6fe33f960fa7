"""From names to arrays: what the command line and the experiments share before a model is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.data.datasets import Dataset, load_dataset, one_hot
from jaxdistill.data.opened import OpenedDataset, open_training
from jaxdistill.data.pixels import Pixels
from jaxdistill.data.preprocess import AbstractPreprocess, moments_by_channel
from jaxdistill.data.rows import AbstractRows
from jaxdistill.data.transforms import fit_preprocess, rows_to_inputs, to_inputs
from jaxdistill.errors import InputError
from jaxdistill.features import (
    KINDS,
    AbstractFeatureMap,
    ConvolutionalNetwork,
    DeepLinear,
    Encoder,
    InvertibleNetwork,
    Linear,
    RandomFourier,
    RandomNetwork,
)
from jaxdistill.kernels import (
    NNGP,
    NTK,
    RBF,
    AbstractKernel,
    Laplace,
    Matern32,
    Matern52,
    Polynomial,
    RationalQuadratic,
)
from jaxdistill.numerics.keys import split_key
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import on_accelerator
from jaxdistill.ridge.fit import Validation

# Up to this many examples leave-one-out costs nothing; above it, a held-out part is as good.
MOST_LEAVE_ONE_OUT = 10_000
VALIDATION_FRACTION = 0.05

# Kernels that a name and a few numbers make. Sums, products and neural-tangents' kernels are made in Python.
KERNELS: dict[str, type[AbstractKernel]] = {
    "ntk": NTK,
    "nngp": NNGP,
    "rbf": RBF,
    "laplace": Laplace,
    "matern32": Matern32,
    "matern52": Matern52,
    "rational-quadratic": RationalQuadratic,
    "polynomial": Polynomial,
}

# The settings that each kind of features has; any other is refused.
SETTINGS: dict[str, tuple[str, ...]] = {
    "linear": ("num_features",),
    "fourier": ("num_features", "weights", "lengthscale"),
    "network": ("num_features", "depth", "activation", "negative_slope", "weights"),
    "conv": ("num_features", "depth", "activation", "negative_slope", "weights"),
    "deep-linear": ("num_features", "depth", "weights"),
    "invertible": ("num_features", "depth", "activation"),
    "encoder": ("num_features", "activation", "negative_slope"),
    "ntk": ("depth", "negative_slope"),
    "nngp": ("depth", "negative_slope"),
    **dict.fromkeys(("rbf", "laplace", "matern32", "matern52", "rational-quadratic"), ("lengthscale",)),
    "polynomial": ("degree",),
}


@dataclass(frozen=True, eq=False)
class Task:
    """A data set as a model sees it.

    Args:
        name: Name of the data set.
        x: Training inputs, shape (n, d), float32; for an accelerator images in uint8, which NumPy reads so.
        y: Training targets, shape (n, k), float64.
        x_test: Test inputs, shape (t, d), likewise.
        y_test: Test targets: classes (t,), or real values (t, k).
        preprocess: Transform from images to inputs.
        class_names: Names of the classes, or None for regression.
    """

    name: str
    x: np.ndarray | Pixels
    y: np.ndarray
    x_test: np.ndarray | Pixels
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
        InputError: an unknown preprocessing, or a column that float32 cannot hold even after it.
    """
    data = load_dataset(dataset, progress=progress, pixels=on_accelerator())
    to_targets = _target_rows(data, centred)
    transform = fit_preprocess(preprocess, data.x_train)
    return Task(
        name=data.name,
        x=to_inputs(transform, data.x_train, name="x_train", training=True),
        y=to_targets(data.y_train),
        x_test=to_inputs(transform, data.x_test, name="x_test", training=False),
        y_test=data.y_test,
        preprocess=transform,
        class_names=data.class_names,
    )


def _target_rows(data: Dataset | OpenedDataset, centred: bool) -> Callable[[np.ndarray], np.ndarray]:
    """What makes rows of targets: of classes one-hot ones, of real values what they are."""
    if data.class_names is not None:
        classes = len(data.class_names)
        return lambda y: one_hot(y, classes, centred=centred)
    if centred:
        raise InputError(f"{data.name} has real-valued targets; centring is for classes")
    return lambda y: y


@dataclass(frozen=True, eq=False)
class StreamedTask:
    """The training part of a data set as a model sees it, never all of it in memory.

    Args:
        name: Name of the data set.
        rows: Inputs (b, d), float32, and targets (b, k), float64.
        preprocess: Transform from images to inputs.
        class_names: Names of the classes, or None for regression.
    """

    name: str
    rows: AbstractRows
    preprocess: AbstractPreprocess
    class_names: tuple[str, ...] | None


def prepare_rows(
    dataset: str, *, preprocess: str | AbstractPreprocess = "standardize", centred: bool = False
) -> StreamedTask:
    """What :func:`prepare` does, of the training part alone and in passes over it: one fits the transform.

    Args:
        dataset: As for :func:`~jaxdistill.data.opened.open_training`.
        preprocess: "standardize", "zca" or "none"; or a transform that was fitted before.
        centred: Whether one-hot targets are centred.

    Raises:
        DatasetError: the data cannot be used.
        InputError: as for :func:`prepare`.
    """
    data = open_training(dataset, pixels=on_accelerator())
    to_targets = _target_rows(data, centred)
    transform = fit_preprocess(preprocess, data.rows) if isinstance(preprocess, str) else preprocess
    rows = rows_to_inputs(transform, data.rows, name="x_train").map(targets=to_targets)
    return StreamedTask(data.name, rows, transform, data.class_names)


@dataclass(frozen=True)
class FeatureOptions:
    """Settings of a feature map or of a kernel, by name; None leaves one at its default.

    Args:
        kind: "linear", "fourier", "network", "conv", "deep-linear", "invertible", or "encoder", which is
            trained on the data; or a kernel: "ntk", "nngp", "rbf", "laplace", "matern32", "matern52",
            "rational-quadratic" or "polynomial".
        num_features: p; default the length of an input, 128 for an encoder, and what 16, 32, ... channels
            make for "conv".
        depth: Layers: of a network, all of width p; of a convolutional one, each halving the image; hidden
            ones of an infinitely wide one. Default: 1 for networks, 2 for "conv", "deep-linear" and
            "invertible".
        negative_slope: Slope of LeakyReLU; default 0.1, and 0 (ReLU) for "ntk" and "nngp".
        weights: "orthogonal" or "gaussian": network weights, Fourier frequencies. Default:
            orthogonal for networks, Gaussian for Fourier features.
        lengthscale: Width of the kernel; default the root mean square distance of examples.
        activation: Name of the activation; default "leaky_relu", and "gelu" for "invertible".
        degree: Of the polynomial kernel; default 2.
    """

    kind: str = "linear"
    num_features: int | None = None
    depth: int | None = None
    negative_slope: float | None = None
    weights: str | None = None
    lengthscale: float | None = None
    activation: str | None = None
    degree: int | None = None

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel without a finite feature map."""
        return self.kind in KERNELS

    def check(self) -> None:
        """Raise where the kind is unknown, or a setting is given that it does not have.

        Raises:
            InputError: names the nearest kind, or the settings that there are.

        Example:
            >>> FeatureOptions("rbf", depth=2).check()
            Traceback (most recent call last):
            jaxdistill.errors.InputError: rbf features have no depth, only lengthscale; leave it out
        """
        check_choice("features", self.kind, SETTINGS)
        given = {f.name for f in fields(self) if getattr(self, f.name) is not None} - {"kind"}
        for name in sorted(given - set(SETTINGS[self.kind])):
            known = ", ".join(SETTINGS[self.kind])
            words = f"{self.kind} features have no {name}, only {known}; leave it out"
            raise InputError(words.replace("_", "-"))


def make_kernel(options: FeatureOptions, x: np.ndarray | Pixels) -> AbstractKernel:
    """The kernel that the options describe, for inputs like ``x``.

    Args:
        options: The settings.
        x: Inputs, shape (n, d); a default lengthscale is their root mean square distance.

    Raises:
        InputError: a kind that is no kernel, or settings that make no sense.

    Example:
        >>> make_kernel(FeatureOptions("rbf"), np.array([[0.0], [2.0]])).settings()
        {'lengthscale': 1.4142135623730951}
    """
    check_choice("kernel", options.kind, KERNELS)
    options.check()
    kind: Any = KERNELS[options.kind]
    told = {name: getattr(options, name) for name in SETTINGS[options.kind]}
    given = {name: value for name, value in told.items() if value is not None}
    if "lengthscale" in told and not given:
        given["lengthscale"] = rms_distance(x)
    return kind(**given)


def make_features(
    options: FeatureOptions,
    x: np.ndarray | Pixels,
    key: Array,
    *,
    shape: tuple[int, ...] | None = None,
    y: np.ndarray | None = None,
    progress: bool = False,
) -> AbstractFeatureMap:
    """Draw, or train, the feature map that the options describe, for inputs like ``x``.

    Args:
        options: The settings.
        x: Training inputs, shape (n, d).
        key: Random key.
        shape: Shape of an image, for "conv" and "encoder".
        y: Training targets, shape (n, k), for "encoder".
        progress: Whether training shows a bar.

    Raises:
        InputError: an unknown kind, with the nearest known one, or settings that make no sense.
    """
    check_choice("features", options.kind, KINDS)
    options.check()
    dim = x.shape[1]
    width = dim if options.num_features is None else options.num_features
    activation = options.activation or ("gelu" if options.kind == InvertibleNetwork.kind else "leaky_relu")
    slope = 0.1 if options.negative_slope is None else options.negative_slope
    if options.kind in (Linear.kind, InvertibleNetwork.kind) and width != dim:
        raise InputError(f"{options.kind} features have as many features as inputs, {dim}, not {width}")
    if options.kind == Linear.kind:
        return Linear(dim)
    if options.kind in (ConvolutionalNetwork.kind, Encoder.kind):
        return _make_image_features(options, activation, slope, x, key, shape, y, progress)
    weights: Any = options.weights
    depth = 2 if options.depth is None else options.depth
    if options.kind == InvertibleNetwork.kind:
        return InvertibleNetwork.create(dim, depth=depth, activation=activation, key=key)
    if options.kind == DeepLinear.kind:
        return DeepLinear.create(dim, widths=(width,) * depth, weights=weights or "gaussian", key=key)
    if options.kind == RandomFourier.kind:
        scale = rms_distance(x) if options.lengthscale is None else options.lengthscale
        return RandomFourier.create(dim, width, lengthscale=scale, frequencies=weights or "gaussian", key=key)
    return RandomNetwork.create(
        dim,
        widths=(width,) * (1 if options.depth is None else options.depth),
        activation=activation,
        negative_slope=slope,
        weights=weights or "orthogonal",
        key=key,
    )


def make_features_of_rows(
    options: FeatureOptions, task: StreamedTask, key: Array, *, progress: bool = False
) -> AbstractFeatureMap:
    """What :func:`make_features` makes of the same data in memory.

    A lengthscale that is measured takes one more pass. An encoder is trained on all of the data at once.

    Args:
        options: The settings.
        task: The data.
        key: Random key.
        progress: Whether training shows a bar.

    Raises:
        InputError: as for :func:`make_features`.
    """
    x, y = np.zeros((1, task.preprocess.num_inputs), np.float32), None
    if options.kind == Encoder.kind:
        x, y = (np.concatenate(part) for part in zip(*task.rows.pieces(), strict=True))
    elif "lengthscale" in SETTINGS[options.kind] and options.lengthscale is None:
        options = replace(options, lengthscale=rms_distance(task.rows))
    return make_features(options, x, key, shape=task.preprocess.shape, y=y, progress=progress)


def _make_image_features(
    options: FeatureOptions,
    activation: str,
    slope: float,
    x: np.ndarray | Pixels,
    key: Array,
    shape: tuple[int, ...] | None,
    y: np.ndarray | None,
    progress: bool,
) -> AbstractFeatureMap:
    """Feature maps that need to know which pixels are neighbours."""
    if shape is None or len(shape) != 3:
        raise InputError(
            f"{options.kind} features are for images (H, W, C); these examples have shape {shape}"
        )
    height, width, channels = shape
    if options.kind == Encoder.kind:
        if y is None:
            raise InputError("an encoder is trained on the data; give their targets")
        from jaxdistill.features.trained import train_encoder  # flax and optax

        return train_encoder(
            x,
            y,
            image_shape=shape,
            key=key,
            progress=progress,
            num_features=options.num_features or 128,
            activation=activation,
            negative_slope=slope,
        )
    depth = 2 if options.depth is None else options.depth
    widths = [16 * 2**layer for layer in range(depth)]
    if options.num_features is not None and depth > 0:
        area = (height // 2**depth) * (width // 2**depth)
        if area == 0 or options.num_features % area:
            raise InputError(
                f"{depth} convolutional layers leave {area} positions, so features come in multiples of "
                f"{area}, not {options.num_features}"
            )
        widths[-1] = options.num_features // area
    weights: Any = options.weights
    return ConvolutionalNetwork.create(
        (height, width, channels),
        channels=widths,
        pool="average",
        activation=activation,
        negative_slope=slope,
        weights=weights or "orthogonal",
        key=key,
    )


def rms_distance(x: np.ndarray | Pixels | AbstractRows) -> float:
    """Root mean square distance between two examples, rows of an array or a stream, ``sqrt(2 sum_j var_j)``.

    Example:
        >>> round(rms_distance(np.array([[0.0], [2.0]])), 3)
        1.414
    """
    found = moments_by_channel(x)
    return float(np.sqrt(2 * np.sum(found.squares) / found.number))


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
    features, split, small = split_key(jax.random.key(seed), 3)
    return features, split, small
