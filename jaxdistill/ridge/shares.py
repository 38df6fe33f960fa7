"""Examples of which every process of a job reads its own share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Self, final

import numpy as np

from jaxdistill.errors import InputError, ProcessError
from jaxdistill.numerics.processes import gathered
from jaxdistill.ridge.source import AbstractSource, Unprepared
from jaxdistill.ridge.targets import TargetKind

_KINDS = tuple(TargetKind)


@final
@dataclass(frozen=True, eq=False)
class SharedSource(AbstractSource):
    """The rows of all processes: it counts all of them, and reads those of this process.

    Sums over its chunks are sums of this process, which whoever takes them adds over the processes.

    Args:
        own: The share of this process.
        num_rows: Rows of all; None where a process does not know its own.
        data_dtype: The finest of the types that hold the inputs of the processes.

    Example:
        >>> from jaxdistill.ridge.source import ArraySource
        >>> own = ArraySource.of(np.eye(3), np.ones((3, 1)), num_inputs=3, breadth=8)
        >>> SharedSource.of(own).num_rows  # one process has all
        3
    """

    never_split: ClassVar[str] = (
        "rows of several processes are not held out at random; give each its part of the examples held out "
        "as (x, y), or leave validation at 'leave-one-out'"
    )

    own: AbstractSource
    num_rows: int | None
    data_dtype: np.dtype

    @classmethod
    def of(cls, own: AbstractSource) -> Self:
        """Compare the shares of all processes.

        Raises:
            ProcessError: shares of another width or type; names them.
        """
        rows = -1 if own.num_rows is None else own.num_rows
        sizes = own.dtype.itemsize, own.data_dtype.itemsize
        every = gathered(np.array([rows, own.num_inputs, own.num_targets, *sizes]))
        for name, column in (("inputs", 1), ("targets", 2), ("bytes a number", 3)):
            found = every[:, column].tolist()
            if len(set(found)) > 1:
                raise ProcessError(
                    f"the processes read examples with {found} {name}; give all of them parts of one set"
                )
        counts = every[:, 0]
        total = None if np.any(counts < 0) else int(counts.sum())
        return cls(own, total, np.dtype(f"float{8 * int(every[:, 4].max())}"))

    @property
    def num_inputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Length d of an input."""
        return self.own.num_inputs

    @property
    def num_targets(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number k of targets."""
        return self.own.num_targets

    @property
    def dtype(self) -> np.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Type of the inputs."""
        return self.own.dtype

    @property
    def chunk_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Rows in a chunk of this process."""
        return self.own.chunk_size

    @property
    def target_kind(self) -> TargetKind:
        """What the targets of all are; all processes must ask for it together."""
        kinds = set(gathered(np.array(_KINDS.index(self.own.target_kind))).tolist())
        return _KINDS[kinds.pop()] if len(kinds) == 1 else TargetKind.REAL

    def chunks(self, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets of this process."""
        return self.own.chunks(start)

    def unprepared(self, start: int = 0) -> Unprepared:
        """The same, of images in uint8 as bytes."""
        return self.own.unprepared(start)

    def arrays(self) -> NoReturn:
        """Refused: no process has all rows.

        Raises:
            InputError: always.
        """
        raise InputError(
            "the examples are spread over several processes, and fewer than the features, which takes all of "
            "them in one; fit them in one process, or use fewer features"
        )
