"""Invertible transforms between the data's own units and the rows that a model sees.

Each is fitted on training data and knows its inverse, so that a distilled row is also an image.
NumPy arrays are transformed in blocks, into one new array. JAX arrays take a pure path that is
safe under jit, vmap and grad. The constants are float64 and are cast to the type of the input.
"""

import abc
import contextvars
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from jaxdistill.data.rows import AbstractRows, check_finite_piece, recut
from jaxdistill.errors import InputError
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.linalg import check_finite
from jaxdistill.numerics.pytrees import register_pytree

# Elements of a block of work that stays in the cache in float64, and of one for matrix products: 32 MB.
_CACHED_ELEMENTS = 2**17
PRODUCT_ELEMENTS = 2**22

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

    def forward_many(self) -> Callable[[np.ndarray], np.ndarray]:
        """``forward`` for one array of NumPy after the other: what they share is computed once."""
        return self.forward

    @abc.abstractmethod
    def inverse(self, inputs: Array) -> Array:
        """Transform rows (n,d) back to examples (n,*shape) in the data's own units.

        An InputError says which shape or type does not fit.
        """

    @classmethod
    @abc.abstractmethod
    def from_parts(cls, settings: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> Self:
        """Rebuild from what ``settings()`` and ``arrays()`` gave, checked."""

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
    def fit(cls, x: Any) -> Self:
        """Take the shape of one example from training data (n,*shape), or from the first of a stream."""
        if isinstance(x, AbstractRows):
            return cls(shape=first_block(x).shape[1:])
        x = training_data(x)
        check_finite("x", x)
        return cls(shape=x.shape[1:])

    @classmethod
    def from_parts(cls, settings: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> Self:  # noqa: D102
        del arrays
        return cls(shape=checked_shape(settings["shape"]))

    def forward(self, x: Array) -> Array:  # noqa: D102
        batch, rows = flat_rows("x", x, self.shape)
        return rows.reshape((*batch, self.num_inputs))

    def inverse(self, inputs: Array) -> Array:  # noqa: D102
        batch, rows = flat_rows("inputs", inputs, (self.num_inputs,))
        return rows.reshape(batch + self.shape)


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
    def fit(cls, x: Any) -> Self:
        """Measure mean and standard deviation of training data, in one pass over them.

        Args:
            x: Images (n,H,W,C) or a table (n,d), in floats that NumPy reads; or rows of such, read piece by
                piece, with the same result bit for bit.

        Raises:
            InputError: ``x`` has another shape or type, or values that are not finite.
        """
        found = moments_by_channel(x)
        mean, squares = found.mean, found.squares
        if not np.isfinite(squares).all():
            if not isinstance(x, AbstractRows):  # whose pieces are looked at as they are read
                check_finite("x", training_data(x))
            raise InputError("x holds values whose squares overflow float64; rescale its columns")
        # The std of a constant channel as computed is 0 up to rounding only.
        std = np.where(found.constant, 0.0, np.sqrt(squares / found.number))
        return cls(found.shape, np.where(found.constant, found.first, mean), std)

    @classmethod
    def from_parts(cls, settings: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> Self:  # noqa: D102
        return cls.from_constants(arrays["mean"], arrays["std"], settings["shape"])

    @classmethod
    def from_constants(cls, mean: ArrayLike, std: ArrayLike, shape: Sequence[int]) -> Self:
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
        shape = checked_shape(shape)
        mean = checked_constant("mean", mean, shape[-1:])
        std = checked_constant("std", std, shape[-1:])
        if (std < 0).any():
            raise InputError(f"std[{int(np.argmax(std < 0))}] is negative; give positive numbers")
        return cls(mean=mean, std=std, shape=shape)

    @property
    def constant_channels(self) -> tuple[int, ...]:
        """Channels that did not vary in the training data, and are only centred."""
        return tuple(np.flatnonzero(self.std == 0).tolist())

    def forward(self, x: Array) -> Array:  # noqa: D102
        batch, rows = flat_rows("x", x, self.shape)
        rows, mean, divisor = matched(rows, *self.row_constants())
        if isinstance(rows, np.ndarray):

            def shift_and_scale(block: np.ndarray, out: np.ndarray) -> None:
                np.subtract(block, mean, out=out)
                out /= divisor

            inputs: Any = _in_blocks(shift_and_scale, rows)
        else:
            inputs = (rows - mean) / divisor
        return inputs.reshape((*batch, self.num_inputs))

    def inverse(self, inputs: Array) -> Array:  # noqa: D102
        batch, rows = flat_rows("inputs", inputs, (self.num_inputs,))
        rows, mean, divisor = matched(rows, *self.row_constants())
        if isinstance(rows, np.ndarray):

            def scale_and_shift(block: np.ndarray, out: np.ndarray) -> None:
                np.multiply(block, divisor, out=out)
                out += mean

            x: Any = _in_blocks(scale_and_shift, rows)
        else:
            x = rows * divisor + mean
        return x.reshape(batch + self.shape)

    def row_constants(self) -> tuple[Any, Any]:
        """Mean and std for every number of a row, the std 1 in constant channels.

        Whole rows: arithmetic along an inner axis of three channels is several times slower.
        """
        xp = np if isinstance(self.std, np.ndarray) else jnp
        repeats = self.num_inputs // self.shape[-1]
        return xp.tile(self.mean, repeats), xp.tile(xp.where(self.std == 0, 1.0, self.std), repeats)


class ChannelMoments(NamedTuple):
    """What one pass finds of every channel: see :func:`moments_by_channel`."""

    number: int
    mean: Float64[np.ndarray, " c"]
    squares: Float64[np.ndarray, " c"]
    constant: np.ndarray
    first: Float64[np.ndarray, " c"]
    shape: tuple[int, ...]


def moments_by_channel(x: Any) -> ChannelMoments:
    """Number of values in a channel, their mean, the sum of their squared distances from it, and more.

    One read of the data, in float64: every block of rows is summed as it lies in memory, folded by channel,
    centred and squared while it is in the cache; blocks are merged by
    ``M = M_a + M_b + (mean_b - mean_a)^2 n_a n_b / n``, which never subtracts large squares.

    Args:
        x: Images (n,H,W,C) or a table (n,d), or rows of such.

    Returns:
        Also which channels are constant, the first value of each, and the shape of an example.

    Example:
        >>> found = moments_by_channel(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> found.number, found.mean.tolist(), found.squares.tolist(), found.constant.tolist()
        (2, [2.0, 5.0], [2.0, 0.0], [False, True])

    Source: Chan, Golub and LeVeque 1983.
    """
    count, channels, repeats = 0, 0, 0
    shape: tuple[int, ...] = ()
    first: Any = None
    mean, squares, constant, work = first, first, first, first

    def folded(block: np.ndarray) -> np.ndarray:
        return (np.ones(len(block)) @ block).reshape(repeats, channels).sum(axis=0)

    with np.errstate(over="ignore", invalid="ignore"):  # the caller asks whether the sums are finite
        for examples in example_blocks(x, _CACHED_ELEMENTS):
            rows = examples.reshape(len(examples), -1)
            if count == 0:
                shape, channels = examples.shape[1:], examples.shape[-1]
                repeats = rows.shape[1] // channels
                first = rows[0, :channels].astype(np.float64)
                mean, squares, constant = np.zeros(channels), np.zeros(channels), np.ones(channels, bool)
                # Memory that is taken once: fresh pages for every block would cost more than the sums.
                work = np.empty(rows.shape)
            if constant.any():
                same = examples[..., constant] == first[constant]
                constant[constant] = same.reshape(-1, same.shape[-1]).all(axis=0)
            block = work[: len(rows)]
            block[...] = rows
            number = len(block) * repeats
            own = folded(block) / number
            block -= np.tile(own, repeats)
            block *= block
            apart, total = own - mean, count + number
            squares += folded(block) + apart**2 * (count * number / total)
            mean += apart * (number / total)
            count = total
    return ChannelMoments(count, mean, squares, constant, first, shape)


def matched(x: Any, *constants: Any) -> list[Any]:
    """``x`` and the constants in its type: NumPy if all of them are, otherwise JAX."""
    if all(isinstance(array, np.ndarray) for array in (x, *constants)):
        return [x, *(constant.astype(x.dtype) for constant in constants)]
    x = jnp.asarray(x)
    return [x, *(jnp.asarray(constant, dtype=x.dtype) for constant in constants)]


def _block_rows(shape: tuple[int, ...], elements: int) -> int:
    """Examples of this shape that have so many elements, at least one."""
    return max(1, elements // max(1, math.prod(shape)))


def blocks(x: np.ndarray, elements: int | None = None) -> Iterator[slice]:
    """Slices of the first axis, of at most so many elements or one example; default what a cache holds."""
    step = _block_rows(x.shape[1:], _CACHED_ELEMENTS if elements is None else elements)
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _in_blocks(fill: Callable[[np.ndarray, np.ndarray], None], rows: np.ndarray) -> np.ndarray:
    """A new array that ``fill`` makes block by block, on all processors: fresh pages take the most time."""
    made = np.empty(rows.shape, rows.dtype)
    parts = list(blocks(rows))
    if len(parts) < 2:  # a set, most often: threads would take longer to start
        fill(rows, made)
        return made
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Each in a copy of the context: NumPy's treatment of overflow is part of it.
        tasks = [
            pool.submit(contextvars.copy_context().run, fill, rows[where], made[where]) for where in parts
        ]
        for task in tasks:
            task.result()
    return made


def example_blocks(x: Any, elements: int) -> Iterator[np.ndarray]:
    """Training data in blocks of rows: the same ones of an array and of a stream, however that is cut.

    Args:
        x: Images (n,H,W,C) or a table (n,d) in floats, or rows of such, whose values are checked.
        elements: Numbers in a block, or one example.

    Raises:
        InputError: another shape or type; of rows also what changes between them, or is not finite.
    """
    if not isinstance(x, AbstractRows):
        x = training_data(x)
        for block in blocks(x, elements):
            yield x[block]
        return
    pieces = _checked_pieces(x)
    first = next(pieces, None)
    if first is None:
        raise InputError("the stream holds no examples to fit on; an iterator may be used up already")
    alone = ((piece,) for piece in itertools.chain((first,), pieces))
    for (block,) in recut(alone, _block_rows(first.shape[1:], elements)):
        yield block


def first_block(rows: AbstractRows) -> np.ndarray:
    """The first examples of a stream that can be read again."""
    return next(example_blocks(rows, 1))


def _checked_pieces(rows: AbstractRows) -> Iterator[np.ndarray]:
    """Examples in floating point, of the shape and type of the first, all finite."""
    row, like = 0, None
    for number, (x, _) in enumerate(rows.pieces()):
        x = as_floats(f"chunk {number}, inputs:", x, finite=False)
        if len(x):
            if like is None:
                like = training_data(x).shape[1:], x.dtype
            if (x.shape[1:], x.dtype) != like:
                raise InputError(
                    f"chunk {number}, from row {row} on, has examples of shape {x.shape[1:]} and type "
                    f"{x.dtype}, and the first chunk {like[0]} and {like[1]}; give all alike"
                )
            check_finite_piece("inputs", x, number, row)
            yield x
        row += len(x)


def flat_rows(name: str, x: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
    """The leading axes of x, and x as rows of floats; an error unless it ends in shape.

    What is not an array of JAX becomes one of NumPy.
    """
    if isinstance(x, jax.Array):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"{name} has type {x.dtype}; convert it to float32 or float64")
        x = x if x.dtype in (jnp.float32, jnp.float64) else x.astype(jnp.float32)
    else:
        x = as_floats(name, x, finite=False)
    split = x.ndim - len(shape)
    if split < 0 or x.shape[split:] != shape:
        expected = ", ".join(map(str, ("n", *shape)))
        raise InputError(f"expected {name} of shape ({expected}), got {x.shape}; check the axes")
    return x.shape[:split], x.reshape(-1, math.prod(shape))


def channels_first(shape: tuple[int, ...]) -> str | None:
    """What to do about images (n,C,H,W), as other libraries have them; None for any other shape.

    Example:
        >>> channels_first((100, 3, 32, 32))
        'channels come last; use np.moveaxis(x, 1, -1), of shape (100, 32, 32, 3)'
    """
    if len(shape) != 4 or shape[1] not in (1, 3) or min(shape[2:]) <= 4:
        return None
    n, channels, height, width = shape
    return f"channels come last; use np.moveaxis(x, 1, -1), of shape {(n, height, width, channels)}"


def training_data(x: Any) -> np.ndarray:
    """Images or a table of floats, with at least one value, as an array of NumPy."""
    x = as_floats("x", x, finite=False)
    if x.ndim not in (2, 4) or x.size == 0:
        raise InputError(f"expected images (n,H,W,C) or a table (n,d) to fit on, got {x.shape}")
    if cure := channels_first(x.shape):
        raise InputError(f"x has shape {x.shape}; {cure}")
    return x


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Shape of an example as a tuple, checked."""
    shape = tuple(shape)
    if len(shape) not in (1, 3) or not all(type(size) is int and size > 0 for size in shape):
        raise InputError(f"shape is {shape}; give (H,W,C) or (d,), in positive integers")
    return shape


def checked_constant(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Constants of a transform in float64, checked."""
    array = np.array(values, np.float64)
    if array.shape != shape:
        raise InputError(f"expected {name} of shape {shape}, got {array.shape}")
    check_finite(name, array)
    return array
