"""Images in uint8, prepared where they are read: a quarter of the bytes on the way to an accelerator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float32, UInt8

from jaxdistill.data.preprocess import Identity, Standardize


@final
@dataclass(frozen=True, eq=False)
class Pixels:
    """Images in uint8 that NumPy reads as what they stand for, in float32: in [0,1], or as a model's rows.

    The host makes floats of them only where something reads them so; an accelerator takes the bytes, and does
    the same there. ZCA's product is not the same on both sides: its rows are made on the host.

    Args:
        images: Shape (n,H,W,C).
        preprocess: What makes rows (n,d) of images in [0,1]; None for the images themselves.

    Example:
        >>> images = Pixels(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1))
        >>> np.asarray(images).ravel().tolist()
        [0.0, 0.20000000298023224, 1.0]
        >>> rows = Pixels(images.images, Standardize.from_constants([0.2], [0.4], (1, 1, 1)))
        >>> rows.shape, rows[2].tolist(), rows.bytes[2].tolist()
        ((3, 1), [2.0], [255])
    """

    images: UInt8[np.ndarray, "n h w c"]
    preprocess: Identity | Standardize | None = None
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what NumPy reads."""
        return self.images.shape if self.preprocess is None else self.bytes.shape

    @property
    def ndim(self) -> int:
        """Number of axes of what NumPy reads."""
        return len(self.shape)

    @property
    def bytes(self) -> UInt8[np.ndarray, "n d"]:
        """The images as rows, as they cross to an accelerator."""
        return self.images.reshape(len(self), -1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> np.ndarray:
        images = in_unit_range(self.images[rows])
        return images if self.preprocess is None else self.preprocess.forward(images)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._floats, dtype=dtype, copy=copy)

    @cached_property
    def _floats(self) -> np.ndarray:
        return self[:]


def in_unit_range(images: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Images of 0 to 255 as float32 in [0,1].

    Example:
        >>> in_unit_range(np.array([0, 255], np.uint8))
        array([0., 1.], dtype=float32)
    """
    return np.divide(images, 255, dtype=np.float32, order="C")
