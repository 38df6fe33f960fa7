"""Random LeakyReLU networks, inverted layer by layer."""

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
from jaxdistill.linalg import least_change, matmul


@final
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RandomNetwork(AbstractFeatureMap):
    """Last hidden layer of a random network, ``phi(x) = act(W_L ... act(W_1 x))``.

    act is LeakyReLU, ``act(z) = z`` for z >= 0 and ``a z`` below, which is invertible for a > 0. With
    widths d >= d_1 >= ... >= p and weights of full row rank the inverse is taken layer by layer,
    ``h = h0 + W^+ (act^-1(z) - W h0)``, h0 the layer's value at the reference: the smallest change
    of each layer. Square Gaussian weights are badly conditioned, so that small changes of features
    become large pixels; orthogonal weights lose no accuracy and keep pixels sane.

    Args:
        weights: One (d_l, d_{l-1}) matrix a layer.
        negative_slope: Slope a of the activation below zero.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> phi = RandomNetwork.create(6, widths=(5, 4), key=jax.random.key(0))
        >>> x = jnp.linspace(-1.0, 1.0, 12).reshape(2, 6)
        >>> back = jnp.asarray(phi.inverse(phi(x)), x.dtype)
        >>> bool(jnp.allclose(phi(back), phi(x), atol=1e-5))
        True

    Source: CHW section 6 (one layer, slope 0.1, weights N(0, 1/d)) and Corollary 5.1.1.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    negative_slope: float = field(metadata={"static": True})
    kind = "network"

    @classmethod
    def create(
        cls,
        dim: int,
        *,
        widths: Sequence[int],
        negative_slope: float = 0.1,
        weights: Literal["gaussian", "orthogonal"] = "orthogonal",
        key: Array,
    ) -> Self:
        """Draw a network.

        Args:
            dim: Length d of an input.
            widths: Width of each hidden layer; the last is the number p of features.
            negative_slope: Slope of the activation below zero, in [0, 1]; 0 is ReLU, which has no
                inverse.
            weights: "orthogonal", unit rows, orthogonal in blocks; or "gaussian", entries
                N(0, 1/fan_in). Both keep the mean square of a layer's input.
            key: Random key.

        Returns:
            The network, parameters in float32.

        Raises:
            InputError: a size is not positive, the slope is out of range, the kind is unknown.
        """
        sizes = (dim, *widths)
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(
                f"sizes must be positive with at least one layer, got dim={dim}, widths={tuple(widths)}"
            )
        if not 0 <= negative_slope <= 1:
            raise InputError(f"negative_slope is {negative_slope}; choose it in [0, 1]")
        if weights not in ("gaussian", "orthogonal"):
            raise InputError(f"unknown weights {weights!r}; choose 'gaussian' or 'orthogonal'")
        keys = jax.random.split(key, len(widths))
        layers = []
        for layer_key, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True):
            if weights == "gaussian":
                draw = jax.random.normal(layer_key, (fan_out, fan_in), jnp.float32)
                layers.append(draw / np.float32(math.sqrt(fan_in)))
            else:
                layers.append(orthogonal_rows(layer_key, fan_out, fan_in))
        return cls(tuple(layers), float(negative_slope))

    @property
    def num_inputs(self) -> int:
        """Length d of an input."""
        return self.weights[0].shape[1]

    @property
    def num_features(self) -> int:
        """Width p of the last layer."""
        return self.weights[-1].shape[0]

    def _layers(self, x: Float[Array, "*batch d"]) -> list[Array]:
        """Input and the value after each activation."""
        values = [x]
        for weight in self.weights:
            z = matmul(values[-1], weight.astype(x.dtype).T)
            values.append(jnp.where(z < 0, self.negative_slope * z, z))
        return values

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features after the last activation."""
        check_inputs(x, self.num_inputs)
        return self._layers(x)[-1]

    @property
    def inverse_obstacle(self) -> str | None:
        """Named where a layer is wider than the one below, or the slope is zero."""
        sizes = (self.num_inputs, *(w.shape[0] for w in self.weights))
        if self.negative_slope == 0:
            return (
                "a ReLU network (negative_slope 0) loses what is below zero and has no inverse; "
                "use a positive slope, such as 0.1"
            )
        for layer, (below, width) in enumerate(itertools.pairwise(sizes), start=1):
            if width > below:
                return (
                    f"layer {layer} of the network is wider ({width}) than its input ({below}) and "
                    f"has no closed-form inverse; use widths that do not increase, such as {below}"
                )
        return None

    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Pre-image by the smallest change of each layer, from the last to the first."""
        below = self._layers(reference)[:-1]
        value = features
        for weight, start in zip(reversed(self.weights), reversed(below), strict=True):
            weight = weight.astype(features.dtype)
            z = jnp.where(value < 0, value / self.negative_slope, value)
            value = start + least_change(weight, z - matmul(start, weight.T))
        return value

    def settings(self) -> dict[str, Any]:
        """Slope and number of layers."""
        return {"negative_slope": self.negative_slope, "layers": len(self.weights)}

    def arrays(self) -> dict[str, np.ndarray]:
        """One matrix a layer."""
        return {f"weights_{i}": np.asarray(w) for i, w in enumerate(self.weights)}

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        layers = tuple(jnp.asarray(arrays[f"weights_{i}"]) for i in range(settings["layers"]))
        return cls(layers, float(settings["negative_slope"]))
