"""Images in which every feature of EfficientNet-Lite0 is awake, near real ones.

A rectified feature that is zero stays zero however an image is changed a little. A real image wakes half of
the features. Few images are changed until each feature is, somewhere in them, clearly positive.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from efficientnet_lite import MEAN, NUM_FEATURES, SCALE, EfficientNetLite0, pretrained_variables
from jaxtyping import Array, Float

# Places at which a feature is to be awake, and the size before pooling that counts as awake.
PLACES, MARGIN = 5, 1.0
STEPS, LEARNING_RATE = 300, 0.03
# The real image keeps this far from the ends of the pixels' range, where tanh does not move.
ROOM = 0.02


def wake(images: Float[np.ndarray, "g d"], side: int, shape: tuple[int, ...]) -> Float[np.ndarray, "g d"]:
    """Images near real ones, pixels in [0, 1], in which together every feature is awake at several places.

    Adam on ``sum of relu(margin - h)`` over the largest values h of every feature before its ReLU6, until
    none is left, with pixels as the tanh of what moves.

    Args:
        images: Real images in the network's units, flat, shape (g, d).
        side: Pixels to which the network enlarges them.
        shape: Their shape (h, w, c).

    Returns:
        Images, shape (g, d), in the network's units and in float32.
    """
    module, variables = EfficientNetLite0(side), pretrained_variables()
    middle, reach = (0.5 - MEAN) / SCALE, 0.5 / SCALE

    def pixels(free: Array) -> Array:
        return middle + reach * jnp.tanh(free)

    def asleep(free: Array) -> Array:
        x = pixels(free).reshape(-1, *shape)
        seen: Any = module.apply(variables, x, capture_intermediates=lambda inner, _: inner.name == "head")
        values = seen[1]["intermediates"]["head"]["__call__"][0].reshape(-1, NUM_FEATURES)
        largest = jax.lax.top_k(values.T, min(PLACES, len(values)))[0]
        return jnp.sum(jax.nn.relu(MARGIN - largest))

    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(free: Array, state: Any) -> tuple[Array, Any, Array]:
        left, slopes = jax.value_and_grad(asleep)(free)
        updates, state = optimizer.update(slopes, state)
        moved: Any = optax.apply_updates(free, updates)
        return jnp.where(left > 0, moved, free), state, left

    inside = np.clip((images - middle) / reach, ROOM - 1, 1 - ROOM)
    free = jnp.asarray(np.arctanh(inside), jnp.float32)
    state = optimizer.init(free)
    for _ in range(STEPS):
        free, state, left = step(free, state)
        if left == 0:
            break
    return np.asarray(pixels(free))
