"""Invertible transforms between the data's own units and the rows that a model sees.

Each is fitted on training data and knows its inverse, so that a distilled row is also an image.
NumPy arrays are transformed in blocks, into one new array. JAX arrays take a pure path that is
safe under jit, vmap and grad. The constants are float64 and are cast to the type of the input.
"""

import abc
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from jaxdistill.errors import InputError, RankError
from jaxdistill.numerics.linalg import check_finite, matmul
from jaxdistill.numerics.pytrees import register_pytree

# Elements of one block of work in float64: 32 MB.
BLOCK_ELEMENTS = 2**22

# A NumPy array stays a NumPy array, a JAX array stays a JAX array.
Array = TypeVar("Array", np.ndarray, jax.Array)


@dataclass(frozen=True, eq=False)
class AbstractPreprocess(abc.ABC):
    """An invertible transform of examples of one shape, with its constants.

    ``forward`` and ``inverse`` take any number of leading axes: (n,*shape) to (n,d) and back.

    Attributes:
        shape: Shape of one example, (H,W,C) or (d,).
    """

    kind: ClassVar[str]
    shape: tuple[int, ...] = field(metadata={"static": True})

    @property
    def num_inputs(self) -> int:
        """Length d of a row: the product of ``shape``."""
        return math.prod(self.shape)

    @abc.abstractmethod
    def forward(self, x: Array) -> Array:
        """Transform examples (n,*shape) to rows (n,d), flattened in C order, of the same type.

        An InputError says which shape or type does not fit.
        """

    @abc.abstractmethod
    def inverse(self, inputs: Array) -> Array:
        """Transform rows (n,d) back to examples (n,*shape) in the data's own units.

        An InputError says which shape or type does not fit.
        """

    def settings(self) -> dict[str, Any]:
        """What is not an array, in types that JSON keeps."""
        static = [item.name for item in fields(self) if item.metadata.get("static")]
        return {name: getattr(self, name) for name in static} | {"shape": list(self.shape)}

    def arrays(self) -> dict[str, Float64[np.ndarray, "..."]]:
        """The constants, by name."""
        names = [item.name for item in fields(self) if not item.metadata.get("static")]
        return {name: np.asarray(getattr(self, name)) for name in names}


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Identity(AbstractPreprocess):
    """Flatten, and nothing else. NumPy rows may share memory with the examples.

    Example:
        >>> Identity.fit(np.zeros((5, 2, 3, 1))).forward(np.ones((4, 2, 3, 1))).shape
        (4, 6)
    """

    kind: ClassVar[str] = "none"

    @classmethod
    def fit(cls, x: np.ndarray) -> "Identity":
        """Take the shape of one example from training data (n,*shape)."""
        _check_training_data(x)
        return cls(shape=x.shape[1:])

    def forward(self, x: Array) -> Array:  # noqa: D102
        return x.reshape((*_batch_shape(x, self.shape, "x"), self.num_inputs))

    def inverse(self, inputs: Array) -> Array:  # noqa: D102
        return inputs.reshape(_batch_shape(inputs, (self.num_inputs,), "inputs") + self.shape)


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Standardize(AbstractPreprocess):
    """Mean 0 and standard deviation 1 in every channel.

    ``forward(x) = (x - mean) / std``, where the last axis holds the channels (of a table: its
    columns) and the statistics run over all other axes. A constant channel has std 0 and is only
    centred.

    Attributes:
        mean: Mean of each channel (c,), in the data's units.
        std: Standard deviation of each channel (c,), with divisor n; 0 for a constant channel.

    Example:
        >>> table = np.array([[1.0, 5.0], [3.0, 5.0]])
        >>> pre = Standardize.fit(table)
        >>> pre.forward(table)
        array([[-1.,  0.],
               [ 1.,  0.]])
        >>> pre.constant_channels
        (1,)
    """

    kind: ClassVar[str] = "standardize"
    # Any: under JAX's transformations the leaves of a pytree are tracers, among others.
    mean: Float64[np.ndarray, " c"] | Any
    std: Float64[np.ndarray, " c"] | Any

    @classmethod
    def fit(cls, x: np.ndarray) -> "Standardize":
        """Measure mean and standard deviation of training data.

        Args:
            x: Images (n,H,W,C) or a table (n,d), float32 or float64.

        Raises:
            InputError: ``x`` has another shape or type, or values that are not finite.
        """
        _check_training_data(x)
        over = tuple(range(x.ndim - 1))
        mean = x.mean(axis=over, dtype=np.float64)
        squares = np.zeros_like(mean)
        for rows in _blocks(x):
            centred = x[rows] - mean
            squares += np.square(centred, out=centred).sum(axis=over)
        std = np.sqrt(squares / (x.size // x.shape[-1]))
        # Equality tells a constant channel; its std as computed is 0 up to rounding only.
        low = x.min(axis=over)
        constant = low == x.max(axis=over)
        return cls(x.shape[1:], np.where(constant, low, mean), np.where(constant, 0.0, std))

    @classmethod
    def from_constants(cls, mean: ArrayLike, std: ArrayLike, shape: tuple[int, ...]) -> "Standardize":
        """Use published constants, one per channel.

        Args:
            mean: Mean of each channel (c,), in the data's units.
            std: Standard deviation of each channel (c,); 0 for a channel that is only centred.
            shape: Shape of one example, (H,W,C) or (d,).

        Raises:
            InputError: A constant is missing, not finite, or negative where it is a std.

        Example:
            >>> Standardize.from_constants([0.1307], [0.3081], (28, 28, 1)).num_inputs
            784
        """
        shape = _checked_shape(shape)
        mean = _checked_constant("mean", mean, shape[-1:])
        std = _checked_constant("std", std, shape[-1:])
        if (std < 0).any():
            raise InputError(f"std[{int(np.argmax(std < 0))}] is negative; give positive numbers")
        return cls(mean=mean, std=std, shape=shape)

    @property
    def constant_channels(self) -> tuple[int, ...]:
        """Channels that did not vary in the training data, and are only centred."""
        return tuple(np.flatnonzero(self.std == 0).tolist())

    def forward(self, x: Array) -> Array:  # noqa: D102
        batch = _batch_shape(x, self.shape, "x")
        rows, mean, divisor = _matched(x, self.mean, self._divisor())
        if isinstance(rows, np.ndarray):
            rows = np.subtract(rows, mean, order="C")
            rows /= divisor
        else:
            rows = (rows - mean) / divisor
        return rows.reshape((*batch, self.num_inputs))

    def inverse(self, inputs: Array) -> Array:  # noqa: D102
        batch = _batch_shape(inputs, (self.num_inputs,), "inputs")
        x, mean, divisor = _matched(inputs.reshape(batch + self.shape), self.mean, self._divisor())
        if isinstance(x, np.ndarray):
            x = np.multiply(x, divisor, order="C")
            x += mean
            return x
        return x * divisor + mean

    def _divisor(self) -> Any:
        """The std, and 1 for constant channels."""
        xp = np if isinstance(self.std, np.ndarray) else jnp
        return xp.where(self.std == 0, 1.0, self.std)


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class ZCA(AbstractPreprocess):
    """Whitening that stays as close to the data as whitening can, with a regulariser.

    With the covariance ``C = (x - mean)^T (x - mean) / n = V diag(e) V^T`` and
    ``lam = reg * trace(C) / d``, which is ``reg`` times the mean eigenvalue,

    ``forward(x) = (x - mean) V diag(1/scale) V^T``, ``scale = sqrt(e + lam)``,

    so that the covariance of the rows has the eigenvalues ``e / (e + lam)``. The inverse multiplies
    by ``scale``, from the same decomposition. The data are centred, and not standardised first.

    Attributes:
        mean: Mean of the training rows (d,), in the data's units.
        scale: Square roots of the regularised eigenvalues (d,), ascending.
        eigenvectors: V (d,d), one a column.
        reg: The regulariser, as a multiple of the mean eigenvalue.

    Example:
        >>> x = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> pre = ZCA.fit(x, reg=0.0)
        >>> np.round(np.abs(pre.forward(x)), 6)
        array([[1.414214, 0.      ],
               [1.414214, 0.      ],
               [0.      , 1.414214],
               [0.      , 1.414214]])

    Source:
        Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", 2018. The regulariser is
        that of Nguyen, Novak, Xiao and Lee, "Dataset distillation with infinitely wide
        convolutional networks", 2021, without their layer normalisation.
    """

    kind: ClassVar[str] = "zca"
    mean: Float64[np.ndarray, " d"] | Any
    scale: Float64[np.ndarray, " d"] | Any
    eigenvectors: Float64[np.ndarray, "d d"] | Any
    reg: float = field(metadata={"static": True})

    @classmethod
    def fit(cls, x: np.ndarray, *, reg: float = 0.1) -> "ZCA":
        """Decompose the covariance of training data, in float64.

        Args:
            x: Images (n,H,W,C) or a table (n,d), float32 or float64.
            reg: Regulariser as a multiple of the mean eigenvalue, at least 0.

        Raises:
            InputError: ``x`` has another shape or type, or values that are not finite; or ``reg``
                is negative.
            RankError: The examples are all the same, or their covariance is singular and ``reg``
                too small to mend it.
        """
        _check_training_data(x)
        if not (math.isfinite(reg) and reg >= 0):
            raise InputError(f"reg is {reg}; give a finite number of at least 0")
        rows = x.reshape(len(x), -1)
        if (rows.min(axis=0) == rows.max(axis=0)).all():
            raise RankError(f"the {len(x)} examples are all the same; whitening needs variation")
        mean = rows.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((mean.size, mean.size))
        for block in _blocks(rows):
            centred = rows[block] - mean
            covariance += centred.T @ centred
        covariance /= len(x)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        smallest_sound = mean.size * np.finfo(np.float64).eps * eigenvalues[-1]
        regularised = eigenvalues + reg * np.trace(covariance) / mean.size
        if not regularised[0] > smallest_sound:
            rank = int(np.sum(eigenvalues > smallest_sound))
            raise RankError(
                f"the covariance of {len(x)} examples has rank {rank} of {mean.size}, "
                f"which reg={reg} does not make invertible; give a larger reg, such as 0.1"
            )
        scale = np.sqrt(regularised)
        return cls(x.shape[1:], mean, scale, eigenvectors, reg=float(reg))

    def forward(self, x: Array) -> Array:  # noqa: D102
        batch = _batch_shape(x, self.shape, "x")
        rows, mean = _matched(x.reshape(-1, self.num_inputs), self.mean)
        if isinstance(rows, np.ndarray):
            inputs: Any = np.empty(rows.shape, rows.dtype)
            matrix = self._matrix(1 / self.scale, rows.dtype)
            for block in _blocks(rows):
                np.matmul(rows[block] - mean, matrix, out=inputs[block])
            return inputs.reshape((*batch, self.num_inputs))
        return self._scaled(rows - mean, 1 / self.scale).reshape((*batch, self.num_inputs))

    def inverse(self, inputs: Array) -> Array:  # noqa: D102
        batch = _batch_shape(inputs, (self.num_inputs,), "inputs")
        rows, mean = _matched(inputs.reshape(-1, self.num_inputs), self.mean)
        if isinstance(rows, np.ndarray):
            x = np.matmul(rows, self._matrix(self.scale, rows.dtype))
            x += mean
            return x.reshape(batch + self.shape)
        return (self._scaled(rows, self.scale) + mean).reshape(batch + self.shape)

    def _matrix(self, scale: np.ndarray, dtype: Any) -> np.ndarray:
        """V diag(scale) V^T, computed in float64."""
        return ((self.eigenvectors * scale) @ self.eigenvectors.T).astype(dtype)

    def _scaled(self, rows: Any, scale: Any) -> Any:
        """``rows V diag(scale) V^T``, from the left: no d x d product for a few rows."""
        vectors = jnp.asarray(self.eigenvectors, dtype=rows.dtype)
        return matmul(matmul(rows, vectors) * jnp.asarray(scale, dtype=rows.dtype), vectors.T)


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
    cls = _class_of(kind)
    if reg is None:
        return cls.fit(x)
    if cls is not ZCA:
        raise InputError(f"preprocessing {kind!r} takes no reg; leave it out, or use 'zca'")
    return ZCA.fit(x, reg=reg)


def from_parts(kind: str, settings: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> AbstractPreprocess:
    """Rebuild a transform from its kind, settings and arrays, as they were saved.

    Args:
        kind: The transform's ``kind``.
        settings: What ``settings()`` gave.
        arrays: What ``arrays()`` gave.

    Raises:
        InputError: A part is missing, or does not fit.

    Example:
        >>> pre = Standardize.fit(np.array([[1.0], [3.0]]))
        >>> from_parts(pre.kind, pre.settings(), pre.arrays()).forward(np.array([[5.0]]))
        array([[3.]])
    """
    cls = _class_of(kind)
    try:
        shape = _checked_shape(settings["shape"])
        if cls is Identity:
            return Identity(shape=shape)
        if cls is Standardize:
            return Standardize.from_constants(arrays["mean"], arrays["std"], shape)
        size = math.prod(shape)
        scale = _checked_constant("scale", arrays["scale"], (size,))
        if not (scale > 0).all():
            raise InputError("scale must be positive; save the transform again")
        return ZCA(
            mean=_checked_constant("mean", arrays["mean"], (size,)),
            scale=scale,
            eigenvectors=_checked_constant("eigenvectors", arrays["eigenvectors"], (size, size)),
            shape=shape,
            reg=float(settings["reg"]),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the parts of preprocessing {kind!r} are damaged ({type(error).__name__}: {error}); "
            "save the transform again"
        ) from error


def _class_of(kind: str) -> type[Identity] | type[Standardize] | type[ZCA]:
    if kind in KINDS:
        return KINDS[kind]
    near = difflib.get_close_matches(kind, KINDS, n=1)
    cure = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(KINDS)}"
    raise InputError(f"unknown preprocessing {kind!r}; {cure}")


def _matched(x: Any, *constants: Any) -> list[Any]:
    """``x`` and the constants in its type: NumPy if all of them are, otherwise JAX."""
    if all(isinstance(array, np.ndarray) for array in (x, *constants)):
        return [x, *(constant.astype(x.dtype) for constant in constants)]
    x = jnp.asarray(x)
    return [x, *(jnp.asarray(constant, dtype=x.dtype) for constant in constants)]


def _blocks(x: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis, of at most BLOCK_ELEMENTS elements (or one example) each."""
    step = max(1, BLOCK_ELEMENTS * len(x) // max(x.size, 1))
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _batch_shape(x: Any, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The leading axes of x; an error unless it is floating and ends in shape."""
    _check_type(name, x)
    split = x.ndim - len(shape)
    if split < 0 or x.shape[split:] != shape:
        expected = ", ".join(map(str, ("n", *shape)))
        raise InputError(f"expected {name} of shape ({expected}), got {x.shape}; check the axes")
    return x.shape[:split]


def _check_type(name: str, x: Any) -> None:
    if x.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} has type {x.dtype}; convert it to float32 or float64")


def _check_training_data(x: np.ndarray) -> None:
    _check_type("x", x)
    if x.ndim not in (2, 4) or x.size == 0:
        raise InputError(f"expected images (n,H,W,C) or a table (n,d) to fit on, got {x.shape}")
    check_finite("x", x)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    shape = tuple(shape)
    if len(shape) not in (1, 3) or not all(type(size) is int and size > 0 for size in shape):
        raise InputError(f"shape is {shape}; give (H,W,C) or (d,), in positive integers")
    return shape


def _checked_constant(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.array(values, np.float64)
    if array.shape != shape:
        raise InputError(f"expected {name} of shape {shape}, got {array.shape}")
    check_finite(name, array)
    return array
