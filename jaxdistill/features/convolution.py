"""Random convolutional networks, inverted layer by layer where the layers do not widen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap, check_inputs
from jaxdistill.features.random_matrix import orthogonal_rows
from jaxdistill.networks.activation import Activation
from jaxdistill.networks.pooling import POOLS, pool
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.linalg import HIGHEST, least_change
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.numerics.pytrees import register_pytree

Shape = tuple[int, int, int]
_POOL_SIZE = 2


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class ConvolutionalNetwork(AbstractFeatureMap):
    """Last layer of a random convolutional network, each layer ``h = pool(act(W * h))``, as a row.

    Inputs are flat images, (H W C,). A convolution is a linear map; where no layer has more outputs than
    inputs, its matrix has full row rank, the activation is invertible and pooling is by averages, the
    inverse is taken layer by layer with the smallest change of each layer. Kernels as large as their stride
    do not overlap: with orthogonal weights such a layer is an orthogonal map, and pixels stay sane.
    Overlapping kernels are worse conditioned.

    Args:
        kernels: One (size, size, channels in, channels out) array a layer.
        image_shape: (H, W, C) of an input.
        stride: Step of the kernels.
        padding: "valid", or "same", with zeros.
        pool: "none", "average" or "max", over squares of 2, after the activation.
        activation: Name of the activation.
        negative_slope: Slope of LeakyReLU below zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> make = ConvolutionalNetwork.create
        >>> phi = make((8, 8, 1), channels=(4,), kernel_size=2, stride=2, key=jax.random.key(0))
        >>> x = jnp.linspace(-1.0, 1.0, 128).reshape(2, 64)
        >>> phi.num_features, phi(x).shape
        (64, (2, 64))
        >>> bool(jnp.allclose(phi.inverse(phi(x)), x, atol=1e-5))
        True

    Source: CHW Corollary 5.1.1, each layer as the linear map that it is.
    """

    kernels: tuple[Float[Array, "_ _ _ _"], ...]
    image_shape: Shape = field(metadata={"static": True})
    stride: int = field(metadata={"static": True})
    padding: str = field(metadata={"static": True})
    pool: str = field(metadata={"static": True})
    activation: str = field(metadata={"static": True})
    negative_slope: float = field(metadata={"static": True})
    kind = "conv"

    @classmethod
    @moving_arrays()
    def create(
        cls,
        image_shape: Sequence[int],
        *,
        channels: Sequence[int],
        kernel_size: int = 3,
        stride: int = 1,
        padding: Literal["same", "valid"] = "same",
        pool: Literal["none", "average", "max"] = "none",
        activation: str = "leaky_relu",
        negative_slope: float = 0.1,
        weights: Literal["gaussian", "orthogonal"] = "orthogonal",
        key: Array,
    ) -> Self:
        """Draw a network.

        Args:
            image_shape: (H, W, C) of an input.
            channels: Channels of each layer.
            kernel_size: Side of the kernels, in pixels.
            stride: Step of the kernels, in pixels.
            padding: "same" or "valid".
            pool: Pooling after each activation.
            activation: One of ``jaxdistill.features.ACTIVATIONS``.
            negative_slope: Slope of LeakyReLU below zero, in [0, 1].
            weights: "orthogonal", kernels of unit norm, orthogonal in blocks; or "gaussian", entries
                N(0, 1/fan_in).
            key: Random key.

        Returns:
            The network, parameters in float32.

        Raises:
            InputError: a size is not positive, a name is unknown, or a layer has nothing left to see.
        """
        shape = tuple(image_shape)
        sizes = (*shape, *channels, kernel_size, stride)
        if len(shape) != 3 or len(channels) == 0 or min(sizes) < 1:
            raise InputError(
                f"image_shape={shape}, channels={tuple(channels)}, kernel_size={kernel_size} and "
                f"stride={stride} must be positive, the shape (H, W, C), with at least one layer"
            )
        check_choice("padding", padding, ("same", "valid"))
        check_choice("pool", pool, POOLS)
        check_choice("weights", weights, ("gaussian", "orthogonal"))
        Activation(activation, negative_slope)
        kernels = []
        for layer_key, fan, out in zip(
            jax.random.split(checked_key(key), len(channels)), (shape[2], *channels), channels, strict=False
        ):
            fan_in = kernel_size**2 * fan
            if weights == "gaussian":
                rows = jax.random.normal(layer_key, (out, fan_in), jnp.float32) / np.float32(
                    math.sqrt(fan_in)
                )
            else:
                rows = orthogonal_rows(layer_key, out, fan_in)
            kernels.append(rows.T.reshape(kernel_size, kernel_size, fan, out))
        made = cls(tuple(kernels), shape, stride, padding, pool, activation, float(negative_slope))
        for layer, stage in enumerate(made._shapes(), start=1):
            if min(stage) < 1:
                raise InputError(
                    f"layer {layer} of the network leaves images of shape {stage}; use fewer layers, a "
                    "smaller kernel, stride or pooling, or padding='same'"
                )
        return made

    @property
    def num_inputs(self) -> int:
        """Length d of a flat image."""
        return math.prod(self.image_shape)

    @property
    def num_features(self) -> int:
        """Values p of the last layer."""
        return math.prod(self._shapes()[-1])

    @property
    def _act(self) -> Activation:
        return Activation(self.activation, self.negative_slope)

    @property
    def feature_bound(self) -> float | None:
        """Largest magnitude of the activation."""
        return self._act.bound

    def _convolved_shape(self, shape: Shape, kernel: Array) -> Shape:
        size = kernel.shape[0]
        room = 0 if self.padding == "same" else size - 1
        return (
            -((room - shape[0]) // self.stride),
            -((room - shape[1]) // self.stride),
            kernel.shape[3],
        )

    def _shapes(self) -> list[Shape]:
        """Shape of the image after each layer."""
        shapes, shape = [], self.image_shape
        side = 1 if self.pool == "none" else _POOL_SIZE
        for kernel in self.kernels:
            height, width, channels = self._convolved_shape(shape, kernel)
            shape = (height // side, width // side, channels)
            shapes.append(shape)
        return shapes

    def _convolve(self, images: Float[Array, "n h w c"], kernel: Array) -> Float[Array, "n i j k"]:
        return jax.lax.conv_general_dilated(
            images,
            kernel.astype(images.dtype),
            (self.stride, self.stride),
            self.padding.upper(),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=HIGHEST,
        )

    def _layers(self, images: Float[Array, "n h w c"]) -> list[tuple[Array, Array]]:
        """Image before each layer with its activation; and the last layer's output with itself."""
        values = []
        for kernel in self.kernels:
            active = self._act(self._convolve(images, kernel))
            values.append((images, active))
            images = pool(active, self.pool)
        return [*values, (images, images)]

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features of one flat image or of a batch."""
        check_inputs(x, self.num_inputs)
        images = x.reshape(math.prod(x.shape[:-1]), *self.image_shape)
        return self._layers(images)[-1][0].reshape(*x.shape[:-1], self.num_features)

    @property
    def inverse_obstacle(self) -> str | None:
        """Named where a layer widens, pools by maxima, or the activation has no inverse."""
        if self._act.obstacle is not None:
            return self._act.obstacle
        if self.pool == "max":
            return "pooling by maxima loses what is smaller and has no inverse; use pool='average' or 'none'"
        shapes = [self.image_shape, *self._shapes()]
        for layer, ((before, _), kernel) in enumerate(
            zip(itertools.pairwise(shapes), self.kernels, strict=True), start=1
        ):
            below, width = math.prod(before), math.prod(self._convolved_shape(before, kernel))
            if width > below:
                return (
                    f"layer {layer} of the network is wider ({width}) than its input ({below}) and has no "
                    "closed-form inverse; use a larger stride or fewer channels"
                )
        return None

    @property
    def construction_obstacle(self) -> str | None:
        """Also named where layers cannot take every value that the construction may ask for."""
        # Undoing an average moves activations too, like one more layer.
        layers = len(self.kernels) + (self.pool != "none")
        return self.inverse_obstacle or self._act.construction_obstacle(layers)

    def domain_violation(self, features: np.ndarray) -> str | None:
        """Named where a feature lies outside the range of the activation."""
        return self._act.domain_violation(features)

    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Pre-image by the smallest change of each layer, from the last to the first."""
        images = reference.reshape(math.prod(reference.shape[:-1]), *self.image_shape)
        *layers, (last, _) = self._layers(images)
        value = features.reshape(last.shape)
        for kernel, (start, active) in zip(reversed(self.kernels), reversed(layers), strict=True):
            wanted = self._act.inverse(self._unpool(value, active))
            matrix = self._matrix(kernel, start.shape[1:], features.dtype)
            residual = (wanted - self._convolve(start, kernel)).reshape(len(start), -1)
            value = start + least_change(matrix, residual).reshape(start.shape)
        return value.reshape(reference.shape)

    def _unpool(self, value: Array, start: Array) -> Array:
        """Nearest image to ``start`` with these averages: what is missing goes to all four alike."""
        if self.pool == "none":
            return value
        change = value - pool(start, self.pool)
        change = jnp.repeat(jnp.repeat(change, _POOL_SIZE, axis=1), _POOL_SIZE, axis=2)
        missing = [(0, start.shape[axis] - change.shape[axis]) for axis in (1, 2)]
        return start + jnp.pad(change, ((0, 0), *missing, (0, 0)))

    def _matrix(self, kernel: Array, shape: tuple[int, ...], dtype: Any) -> Float[Array, "p d"]:
        """The convolution as a matrix: its values at the unit images."""
        unit = jnp.eye(math.prod(shape), dtype=dtype).reshape(-1, *shape)
        return self._convolve(unit, kernel).reshape(len(unit), -1).T

    def settings(self) -> dict[str, Any]:
        """Everything but the kernels."""
        return {
            "image_shape": list(self.image_shape),
            "layers": len(self.kernels),
            "stride": self.stride,
            "padding": self.padding,
            "pool": self.pool,
            "activation": self.activation,
            "negative_slope": self.negative_slope,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """One kernel a layer."""
        return {f"kernel_{i}": np.asarray(kernel) for i, kernel in enumerate(self.kernels)}

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        height, width, channels = settings["image_shape"]
        return cls(
            kernels=tuple(jnp.asarray(arrays[f"kernel_{i}"]) for i in range(settings["layers"])),
            image_shape=(height, width, channels),
            stride=settings["stride"],
            padding=settings["padding"],
            pool=settings["pool"],
            activation=settings["activation"],
            negative_slope=settings["negative_slope"],
        )
