"""Random changes of images: flips, shifts, rotations. Pure functions of a key."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxdistill.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """How much images are changed; every image draws its own change.

    Args:
        flip: Whether half of the images are mirrored, left to right.
        shift: Largest shift in whole pixels, up, down, left and right.
        rotation: Largest rotation in degrees, either way.

    Raises:
        InputError: an amount that is negative, or none at all.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.arange(12.0).reshape(1, 3, 4, 1)
        >>> Augmentation(shift=1)(images, jax.random.key(0)).shape
        (1, 3, 4, 1)
    """

    flip: bool = False
    shift: int = 0
    rotation: float = 0.0

    def __post_init__(self) -> None:
        whole = isinstance(self.shift, int) and not isinstance(self.shift, bool)
        if not whole or self.shift < 0:
            raise InputError(f"shift is {self.shift!r}; it must be a whole number of pixels >= 0")
        if not (math.isfinite(self.rotation) and 0 <= self.rotation <= 180):
            raise InputError(f"rotation is {self.rotation!r}; it must be degrees between 0 and 180")
        if not (self.flip or self.shift or self.rotation):
            raise InputError("the augmentation changes nothing; pass augment=None, or an amount")

    def __call__(self, images: Float[Array, "b h w c"], key: Array) -> Float[Array, "b h w c"]:
        """Change every image by its own draw; what comes in from outside repeats the border.

        Whole pixels are moved exactly; rotations, about the centre of the image, are bilinear.

        Args:
            images: Images, shape (b, H, W, C).
            key: Random key.

        Returns:
            Images of the same shape and type.
        """
        keys = jax.random.split(key, 3)
        number = images.shape[0]
        if self.flip:
            mirrored = jax.random.bernoulli(keys[0], 0.5, (number, 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        if self.rotation:
            limit = math.radians(self.rotation)
            angles = jax.random.uniform(keys[1], (number,), images.dtype, -limit, limit)
            images = jax.vmap(rotate)(images, angles)
        if self.shift:
            shifts = jax.random.randint(keys[2], (number, 2), -self.shift, self.shift + 1)
            images = jax.vmap(_shift)(images, shifts)
        return images

    def describe(self) -> dict[str, Any]:
        """The amounts, in types that JSON keeps."""
        return asdict(self)


def rotate(image: Float[Array, "h w c"], angle: Float[Array, ""]) -> Float[Array, "h w c"]:
    """Rotate clockwise about the centre by an angle in radians, bilinear, the border repeated."""
    height, width, _ = image.shape
    down, right = jnp.meshgrid(
        jnp.arange(height, dtype=image.dtype) - (height - 1) / 2,
        jnp.arange(width, dtype=image.dtype) - (width - 1) / 2,
        indexing="ij",
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = cos * down - sin * right + (height - 1) / 2
    columns = sin * down + cos * right + (width - 1) / 2

    def one(channel: Array) -> Array:
        return map_coordinates(channel, [rows, columns], order=1, mode="nearest")

    return jax.vmap(one, in_axes=-1, out_axes=-1)(image)


def _shift(image: Array, by: Array) -> Array:
    height, width, _ = image.shape
    rows = jnp.clip(jnp.arange(height) - by[0], 0, height - 1)
    columns = jnp.clip(jnp.arange(width) - by[1], 0, width - 1)
    return image[rows][:, columns]
