"""Where examples come from: pairs of inputs and targets, read in chunks of one size."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.data.pixels import Pixels
from jaxdistill.data.preprocess import Identity, Standardize
from jaxdistill.errors import InputError
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.memory import device_capacity
from jaxdistill.numerics.placement import placement
from jaxdistill.ridge.targets import TargetKind, detect_targets

# Bytes of float32 features in one chunk: large enough for the matrix product to run at full speed on a CPU
# (four times as many gain 4 % of its time, at p = 3072), small beside the Gram matrix of a wide map.
CHUNK_BYTES = 2**24
# On an accelerator twice as many: larger arrays go there at less than half of the rate. But rows enough that
# their product takes longer than adding it up, within a share of the memory.
_DEVICE_BYTES, _DEVICE_ROWS, _SHARE = 2**25, 2048, 256

# What to do about targets that are no floats.
NO_CLASSES = "turn class numbers into rows with jaxdistill.one_hot, and truth values into floats"


# Chunks as they cross to an accelerator, and what makes inputs of them there where they are bytes.
Unprepared = tuple[Iterator[tuple[np.ndarray, np.ndarray]], Identity | Standardize | None]


class AbstractSource(abc.ABC):
    """Examples in a fixed order: what a fit reads, wherever the rows lie.

    Whoever consumes one (moments, scores) asks for these alone, never for the kind of source:

    - ``num_rows``: n, or None where it is not known before the end;
    - ``num_inputs``, ``num_targets``: d and k;
    - ``dtype``: type of the inputs;
    - ``data_dtype``: the coarsest type that holds them, as far as the first rows tell: numbers that were once
      rounded to float32 are no more exact in float64;
    - ``chunk_size``: rows in every chunk but the last;
    - ``chunks(start)``: inputs (c, d) and targets (c, k) from a row on, a multiple of the chunk size, so
      that a pass that was killed goes on where it was.
    """

    num_rows: int | None
    num_inputs: int
    num_targets: int
    dtype: np.dtype
    data_dtype: np.dtype
    chunk_size: int
    # Why no rows are held out at random, and the cure, where that is so.
    never_split: ClassVar[str]

    @property
    @abc.abstractmethod
    def target_kind(self) -> TargetKind:
        """What the targets are; of a stream, as far as it was read."""

    @abc.abstractmethod
    def chunks(self, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets of consecutive rows, from row ``start`` on; only the last chunk is shorter."""

    def unprepared(self, start: int = 0) -> Unprepared:
        """The same chunks, of images in uint8 as bytes (c, d); and what makes inputs of these, or None."""
        return self.chunks(start), None

    def hold_out(self, fraction: Any, key: Array | None) -> tuple[AbstractSource, AbstractSource]:
        """Split into a part to train on and a part to judge by; refused where rows are not there by index.

        Raises:
            InputError: says why, and what serves instead.
        """
        del key
        raise InputError(f"validation is {fraction!r}, and {self.never_split}")

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All inputs and targets at once, in memory."""
        x, y = zip(*self.chunks(), strict=True)
        return np.concatenate(x), np.concatenate(y)

    def like(self, x: Any, y: Any, name: str) -> ArraySource:
        """Check other examples that stand beside these, such as data held out.

        Raises:
            InputError: as :meth:`ArraySource.of`, or another number of targets.
        """
        # Chunks of the same size, for which features are compiled already.
        other = ArraySource.of(x, y, num_inputs=self.num_inputs, breadth=1, name=name)
        if other.num_targets != self.num_targets:
            raise InputError(
                f"{name}y has {other.num_targets} columns and the training targets {self.num_targets}; "
                "give targets of the same kind"
            )
        return replace(other, chunk_size=self.chunk_size)


@final
@dataclass(frozen=True, eq=False)
class ArraySource(AbstractSource):
    """Arrays in memory, all of their rows or some; made by :meth:`of`, which checks them.

    Args:
        x: Inputs, shape (n, d); of images in uint8 made only where they are read.
        y: Targets, shape (n, k).
        chunk_size: Rows in a chunk.
        rows: Rows to visit, in order; None for all.

    Example:
        >>> source = ArraySource.of(np.eye(3), np.ones((3, 1)), num_inputs=3, breadth=8)
        >>> [x.shape for x, y in source.select(np.array([0, 2])).chunks()]
        [(2, 3)]
    """

    x: Float[np.ndarray, "n d"] | Pixels
    y: Float[np.ndarray, "n k"]
    chunk_size: int
    rows: np.ndarray | None = None

    @classmethod
    def of(cls, x: Any, y: Any, *, num_inputs: int | None, breadth: int, name: str = "") -> Self:
        """Check a pair of arrays, and choose the size of chunks by the features that are made of them.

        Args:
            x: Inputs, shape (n, d): floats, in whatever NumPy reads.
            y: Targets, shape (n, k): likewise.
            num_inputs: d; None for whatever x has.
            breadth: Numbers that one input becomes.
            name: What the arrays are called in a message, before "x" and "y".

        Raises:
            InputError: shapes or types that do not fit, values that are not finite.
        """
        x = input_rows(f"{name}x", x)
        y = as_floats(f"{name}y", y, cure=NO_CLASSES)
        if x.ndim != 2 or (num_inputs is not None and x.shape[1] != num_inputs):
            expected = "d" if num_inputs is None else num_inputs
            raise InputError(f"{name}x has shape {x.shape}, expected (n, {expected}) as the features take it")
        if y.ndim != 2 or len(y) != len(x) or len(x) == 0:
            raise InputError(
                f"{name}y has shape {y.shape}, expected ({len(x)}, k): one row of targets an example"
            )
        return cls(x, y, chunk_rows(breadth, len(x)))

    @property
    def num_rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - known here
        """Number n of rows that are visited."""
        return len(self.x) if self.rows is None else len(self.rows)

    @property
    def num_inputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Length d of an input."""
        return self.x.shape[1]

    @property
    def num_targets(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number k of targets."""
        return self.y.shape[1]

    @property
    def dtype(self) -> np.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Type of the inputs."""
        return self.x.dtype

    @property
    def data_dtype(self) -> np.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The coarsest type that holds the inputs, as far as the first rows tell."""
        return data_dtype_of(next(self.chunks())[0])

    @property
    def target_kind(self) -> TargetKind:
        """What the targets of all rows are, those that are not visited too."""
        return detect_targets(self.y)

    def chunks(self, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets of consecutive rows, from row ``start`` on."""
        return self._chunks_of(self.x, start)

    def unprepared(self, start: int = 0) -> Unprepared:
        """The same chunks, of images in uint8 as bytes; and what makes inputs of these, or None."""
        rows, preprocess = unprepared(self.x)
        return self._chunks_of(rows, start), preprocess

    def _chunks_of(self, x: np.ndarray | Pixels, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in range(start, self.num_rows, self.chunk_size):
            place = slice(begin, begin + self.chunk_size)
            where = place if self.rows is None else self.rows[place]
            yield x[where], self.y[where]

    def select(self, rows: np.ndarray) -> Self:
        """Some of the rows, in chunks of the same size, for which everything is compiled already."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All inputs and targets at once."""
        x, rows = np.asarray(self.x), self.rows
        return (x, self.y) if rows is None else (x[rows], self.y[rows])

    def hold_out(self, fraction: Any, key: Array | None) -> tuple[Self, Self]:
        """Split at random into a part to train on and a part to judge by, each in the order of the rows.

        Args:
            fraction: Share of the rows to hold out, between 0 and 1.
            key: Random key.

        Raises:
            InputError: no fraction, no key, or a part without any example.
        """
        n = self.num_rows
        if not isinstance(fraction, float) or not 0 < fraction < 1:
            raise InputError(f"validation is {fraction!r}; a fraction must lie between 0 and 1")
        if key is None:
            raise InputError("holding out a fraction is random; pass key=jax.random.key(...)")
        size = round(fraction * n)
        if not 0 < size < n:
            raise InputError(f"validation={fraction} of {n} examples leaves a part without any")
        order = host_generator(key).permutation(n)
        return self.select(np.sort(order[size:])), self.select(np.sort(order[:size]))


def input_rows(name: str, x: Any, **told: Any) -> np.ndarray | Pixels:
    """Inputs as an array of floats, checked; of images in uint8 as they are, where all is finite.

    Keywords as for :func:`~jaxdistill.numerics.arrays.as_floats`.
    """
    return x if isinstance(x, Pixels) else as_floats(name, x, **told)


def unprepared(x: np.ndarray | Pixels) -> tuple[np.ndarray, Identity | Standardize | None]:
    """Rows as they cross to an accelerator, and what makes inputs of them there, or None."""
    return (x.bytes, x.preprocess) if isinstance(x, Pixels) else (x, None)


def data_dtype_of(rows: np.ndarray | Pixels) -> np.dtype:
    """The coarsest type that holds these numbers.

    Example:
        >>> data_dtype_of(np.array([0.5])).name, data_dtype_of(np.array([0.1])).name
        ('float32', 'float64')
    """
    if isinstance(rows, Pixels) or rows.dtype == np.float32:
        return rows.dtype
    with np.errstate(over="ignore"):
        narrow = rows.astype(np.float32)
    return np.dtype(np.float32) if np.array_equal(narrow.astype(rows.dtype), rows) else rows.dtype


def chunk_bytes(breadth: int) -> int:
    """Bytes of features in one chunk: by the memory of a device, never by what is free of it.

    So chunks, and with them the last bits of sums, are the same in every run on one machine.
    """
    capacity = device_capacity(placement().devices[0])
    if capacity is None:
        return CHUNK_BYTES
    return max(_DEVICE_BYTES, min(4 * breadth * _DEVICE_ROWS, capacity // _SHARE))


def chunk_rows(breadth: int, num_rows: int) -> int:
    """Rows in one chunk: a multiple of the device count, bounded by memory and by the data."""
    devices, size = len(placement().devices), chunk_bytes(breadth)
    rows = max(256, min(size // 2**10, size // (4 * breadth)))
    rows = min(rows, num_rows)
    return -(-rows // devices) * devices


def row_chunks(x: np.ndarray | Pixels, size: int) -> Iterator[tuple[np.ndarray]]:
    """Consecutive rows of one array, for what needs no targets."""
    for start in range(0, len(x), size):
        yield (x[start : start + size],)


def padded(
    chunks: Iterable[tuple[np.ndarray, ...]],
    size: int,
    *,
    total: int | None = None,
    progress: str | None = None,
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Chunks of equal size, a shorter one padded with zeros, so that one compilation serves all.

    Args:
        chunks: Arrays with the same number of rows, ``size`` at most.
        size: Rows in a chunk.
        total: Rows in all, for the bar.
        progress: Title of a progress bar; default none.

    Yields:
        The chunk of every array, and a float32 mask of shape (size,) that is zero on padding.
    """
    with tqdm(total=total, desc=progress, disable=progress is None, leave=False, unit=" rows") as bar:
        for chunk in chunks:
            rows = len(chunk[0])
            mask = np.zeros(size, np.float32)
            mask[:rows] = 1
            if rows < size:
                chunk = tuple(
                    np.concatenate([c, np.zeros((size - rows, *c.shape[1:]), c.dtype)]) for c in chunk
                )
            yield chunk, mask
            bar.update(rows)
