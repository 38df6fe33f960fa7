"""Whether a feature map has the derivatives that iterative constructions need."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InverseError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.linalg import in_float64


def check_derivative(phi: AbstractFeatureMap, x: Any) -> None:
    """Raise unless phi can be differentiated forwards and backwards, and says something, at these inputs.

    Args:
        phi: Feature map.
        x: A few inputs, shape (n, d), where solving will start.

    Raises:
        InverseError: a derivative that does not exist, is zero at all these inputs, or is not finite.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.features import RandomNetwork
        >>> phi = RandomNetwork.create(4, widths=(8,), activation="gelu", key=jax.random.key(0))
        >>> check_derivative(phi, np.ones((2, 4)))
    """
    kind = phi.kind
    cure = (
        "a map that rounds, counts or stops gradients cannot be inverted by its derivative; use a smooth one"
    )
    try:
        forward, backward = in_float64(_derivatives, phi, np.asarray(x))
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0][:150]
        raise InverseError(f"the {kind} features have no derivative ({reason}); {cure}") from None
    for name, value in (("forward", forward), ("backward", backward)):
        if not np.all(np.isfinite(value)):
            raise InverseError(f"the {name} derivative of the {kind} features is not finite; {cure}")
        if not np.any(value):
            raise InverseError(f"the {name} derivative of the {kind} features is zero; {cure}")


@jax.jit
def _derivatives(phi: AbstractFeatureMap, x: Array) -> tuple[Array, Array]:
    direction = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    features, forward = jax.jvp(phi, (x,), (direction,))
    _, pull = jax.vjp(phi, x)
    weights = jax.random.normal(jax.random.key(1), features.shape, features.dtype)
    return forward, pull(weights)[0]
