"""Random networks of any width and activation, inverted layer by layer where that is possible."""

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
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.linalg import least_change, matmul
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.numerics.pytrees import register_pytree


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class RandomNetwork(AbstractFeatureMap):
    """Last hidden layer of a random network, ``phi(x) = act(W_L ... act(W_1 x))``.

    act is LeakyReLU by default, ``act(z) = z`` for z >= 0 and ``a z`` below, which is invertible for
    a > 0; any other of ``ACTIVATIONS`` serves too. With an invertible one, widths d >= d_1 >= ... >= p
    and weights of full row rank the inverse is taken layer by layer, ``h = h0 + W^+ (act^-1(z) - W h0)``,
    h0 the layer's value at the reference: the smallest change of each layer. Square Gaussian weights
    are badly conditioned, so that small changes of features become large pixels; orthogonal weights
    lose no accuracy and keep pixels sane. Wider layers, and activations that are not monotone, have no
    closed-form inverse.

    Args:
        weights: One (d_l, d_{l-1}) matrix a layer.
        negative_slope: Slope a of LeakyReLU below zero.
        activation: Name of the activation.

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
    activation: str = field(default="leaky_relu", metadata={"static": True})
    kind = "network"

    @classmethod
    @moving_arrays()
    def create(
        cls,
        dim: int,
        *,
        widths: Sequence[int],
        activation: str = "leaky_relu",
        negative_slope: float = 0.1,
        weights: Literal["gaussian", "orthogonal"] = "orthogonal",
        key: Array,
    ) -> Self:
        """Draw a network.

        Args:
            dim: Length d of an input.
            widths: Width of each hidden layer; the last is the number p of features.
            activation: "leaky_relu", "gelu", "tanh", "relu", "softplus", "cosine" or another of
                ``jaxdistill.features.ACTIVATIONS``.
            negative_slope: Slope of LeakyReLU below zero, in [0, 1]; 0 is ReLU, which has no inverse.
            weights: "orthogonal", unit rows, orthogonal in blocks; or "gaussian", entries
                N(0, 1/fan_in). Both keep the mean square of a layer's input.
            key: Random key.

        Returns:
            The network, parameters in float32.

        Raises:
            InputError: a size is not positive, the slope is out of range, a name is unknown.
        """
        sizes = (dim, *widths)
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(
                f"sizes must be positive with at least one layer, got dim={dim}, widths={tuple(widths)}"
            )
        Activation(activation, negative_slope)  # refuses what it does not know, before any work
        if weights not in ("gaussian", "orthogonal"):
            raise InputError(f"unknown weights {weights!r}; choose 'gaussian' or 'orthogonal'")
        keys = jax.random.split(checked_key(key), len(widths))
        layers = []
        for layer_key, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True):
            if weights == "gaussian":
                draw = jax.random.normal(layer_key, (fan_out, fan_in), jnp.float32)
                layers.append(draw / np.float32(math.sqrt(fan_in)))
            else:
                layers.append(orthogonal_rows(layer_key, fan_out, fan_in))
        return cls(tuple(layers), float(negative_slope), activation)

    @property
    def num_inputs(self) -> int:
        """Length d of an input."""
        return self.weights[0].shape[1]

    @property
    def num_features(self) -> int:
        """Width p of the last layer."""
        return self.weights[-1].shape[0]

    @property
    def breadth(self) -> int:
        """Width of the widest layer."""
        return max(len(weight) for weight in self.weights)

    @property
    def _act(self) -> Activation:
        return Activation(self.activation, self.negative_slope)

    @property
    def feature_bound(self) -> float | None:
        """Largest magnitude of the activation."""
        return self._act.bound

    def _layers(self, x: Float[Array, "*batch d"]) -> list[Array]:
        """Input and the value after each activation."""
        values = [x]
        for weight in self.weights:
            values.append(self._act(matmul(values[-1], weight.astype(x.dtype).T)))
        return values

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features after the last activation."""
        check_inputs(x, self.num_inputs)
        return self._layers(x)[-1]

    @property
    def inverse_obstacle(self) -> str | None:
        """Named where a layer is wider than the one below, or the activation has no inverse."""
        sizes = (self.num_inputs, *(w.shape[0] for w in self.weights))
        if self._act.obstacle is not None:
            return self._act.obstacle
        for layer, (below, width) in enumerate(itertools.pairwise(sizes), start=1):
            if width > below:
                return (
                    f"layer {layer} of the network is wider ({width}) than its input ({below}) and "
                    f"has no closed-form inverse; use widths that do not increase, such as {below}"
                )
        return None

    @property
    def construction_obstacle(self) -> str | None:
        """Also named where layers cannot take every value that the construction may ask for."""
        return self.inverse_obstacle or self._act.construction_obstacle(len(self.weights))

    def domain_violation(self, features: np.ndarray) -> str | None:
        """Named where a feature lies outside the range of the activation."""
        return self._act.domain_violation(features)

    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Pre-image by the smallest change of each layer, from the last to the first."""
        below = self._layers(reference)[:-1]
        value = features
        for weight, start in zip(reversed(self.weights), reversed(below), strict=True):
            weight = weight.astype(features.dtype)
            value = start + least_change(weight, self._act.inverse(value) - matmul(start, weight.T))
        return value

    def settings(self) -> dict[str, Any]:
        """Activation, slope and number of layers."""
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "layers": len(self.weights),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """One matrix a layer."""
        return {f"weights_{i}": np.asarray(w) for i, w in enumerate(self.weights)}

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        layers = tuple(jnp.asarray(arrays[f"weights_{i}"]) for i in range(settings["layers"]))
        return cls(layers, float(settings["negative_slope"]), settings["activation"])
