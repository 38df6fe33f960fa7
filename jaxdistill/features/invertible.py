"""A random invertible network of coupling layers, with its exact inverse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap, check_inputs
from jaxdistill.features.random_matrix import orthogonal_rows
from jaxdistill.networks.activation import Activation
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.numerics.pytrees import register_pytree


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class InvertibleNetwork(AbstractFeatureMap):
    """A network of affine coupling layers, as many features as inputs, invertible everywhere.

    Each layer turns its input by an orthogonal matrix, ``(u, v) = Q h``, and moves one half by a function
    of the other: ``h' = (u, v * exp(s(u)) + t(u))``, with ``s = c tanh(...)`` and t the two outputs of a
    random network with one hidden layer. Its inverse is ``v = (v' - t(u)) exp(-s(u))`` and Q^-1: exact for
    every feature vector, without a null space, so that the reference has no say.

    Args:
        rotations: One (d, d) orthogonal matrix a layer.
        hidden: First weights of each layer's network, (width, d // 2).
        outer: Second weights, (2 (d - d // 2), width): those of s above those of t.
        stretch: c, the largest magnitude of s.
        activation: Name of the activation in each layer's network.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> phi = InvertibleNetwork.create(5, depth=3, key=jax.random.key(0))
        >>> x = jnp.linspace(-1.0, 1.0, 10).reshape(2, 5)
        >>> bool(jnp.allclose(phi.inverse(phi(x)), x, atol=1e-5))
        True

    Source: Dinh, Sohl-Dickstein and Bengio 2017; rotations, Kingma and Dhariwal 2018.
    """

    rotations: tuple[Float[Array, "d d"], ...]
    hidden: tuple[Float[Array, "_ _"], ...]
    outer: tuple[Float[Array, "_ _"], ...]
    stretch: float = field(metadata={"static": True})
    activation: str = field(metadata={"static": True})
    kind = "invertible"

    @classmethod
    @moving_arrays()
    def create(
        cls,
        dim: int,
        *,
        depth: int = 2,
        width: int | None = None,
        stretch: float = 0.5,
        activation: str = "gelu",
        key: Array,
    ) -> Self:
        """Draw a network.

        Args:
            dim: Length d of an input, at least 2; the number of features is the same.
            depth: Number of coupling layers.
            width: Hidden units of each layer's network; default d.
            stretch: Largest magnitude of the logarithm of a stretch: features grow and shrink by at most
                ``exp(stretch)`` a layer.
            activation: One of ``jaxdistill.features.ACTIVATIONS``.
            key: Random key.

        Returns:
            The network, parameters in float32.

        Raises:
            InputError: a size is too small, the stretch is negative or not finite, an unknown name.
        """
        width = dim if width is None else width
        if dim < 2 or depth < 1 or width < 1:
            raise InputError(f"sizes are too small: dim={dim} (at least 2), depth={depth}, width={width}")
        if not (math.isfinite(stretch) and stretch >= 0):
            raise InputError(f"stretch is {stretch}; it must be finite and >= 0")
        Activation(activation)
        seen, moved = dim // 2, dim - dim // 2
        rotations, hidden, outer = [], [], []
        for layer_key in jax.random.split(checked_key(key), depth):
            keys = jax.random.split(layer_key, 3)
            rotations.append(orthogonal_rows(keys[0], dim, dim))
            draws = (
                jax.random.normal(keys[1], (width, seen), jnp.float32) / np.float32(math.sqrt(seen)),
                jax.random.normal(keys[2], (2 * moved, width), jnp.float32) / np.float32(math.sqrt(width)),
            )
            hidden.append(draws[0])
            outer.append(draws[1])
        return cls(tuple(rotations), tuple(hidden), tuple(outer), float(stretch), activation)

    @property
    def num_inputs(self) -> int:
        """Length d of an input."""
        return self.rotations[0].shape[0]

    @property
    def num_features(self) -> int:
        """Number of features, d."""
        return self.num_inputs

    def _layers(self) -> Iterator[tuple[Array, Array, Array]]:
        return zip(self.rotations, self.hidden, self.outer, strict=True)

    def _coupling(self, u: Array, hidden: Array, outer: Array) -> tuple[Array, Array]:
        """Logarithm of the stretch, and the shift, that one half gives the other."""
        inner = Activation(self.activation)(matmul(u, hidden.astype(u.dtype).T))
        out = matmul(inner, outer.astype(u.dtype).T)
        stretch, shift = jnp.split(out, 2, axis=-1)
        return self.stretch * jnp.tanh(stretch), shift

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Features of one input or of a batch."""
        check_inputs(x, self.num_inputs)
        half = self.num_inputs // 2
        for rotation, hidden, outer in self._layers():
            turned = matmul(x, rotation.astype(x.dtype).T)
            u, v = turned[..., :half], turned[..., half:]
            stretch, shift = self._coupling(u, hidden, outer)
            x = jnp.concatenate([u, v * jnp.exp(stretch) + shift], axis=-1)
        return x

    @property
    def inverse_obstacle(self) -> str | None:
        """None: every feature vector has exactly one pre-image."""
        return None

    def pull_back(
        self, features: Float[Array, "*batch d"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """The pre-image, from the last layer to the first; the reference has no say."""
        del reference
        half = self.num_inputs // 2
        for rotation, hidden, outer in reversed(list(self._layers())):
            u, v = features[..., :half], features[..., half:]
            stretch, shift = self._coupling(u, hidden, outer)
            turned = jnp.concatenate([u, (v - shift) * jnp.exp(-stretch)], axis=-1)
            # Solved, not transposed: rotations are orthogonal to float32's rounding only.
            matrix = rotation.astype(features.dtype)
            flat = turned.reshape(-1, self.num_inputs)
            features = jnp.linalg.solve(matrix, flat.T).T.reshape(features.shape)
        return features

    def settings(self) -> dict[str, Any]:
        """Depth, stretch and activation."""
        return {"depth": len(self.rotations), "stretch": self.stretch, "activation": self.activation}

    def arrays(self) -> dict[str, np.ndarray]:
        """Three matrices a layer."""
        return {
            f"{name}_{i}": np.asarray(matrix)
            for name, matrices in (
                ("rotation", self.rotations),
                ("hidden", self.hidden),
                ("outer", self.outer),
            )
            for i, matrix in enumerate(matrices)
        }

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""

        def stack(name: str) -> tuple[Array, ...]:
            return tuple(jnp.asarray(arrays[f"{name}_{i}"]) for i in range(settings["depth"]))

        return cls(
            stack("rotation"), stack("hidden"), stack("outer"), settings["stretch"], settings["activation"]
        )
