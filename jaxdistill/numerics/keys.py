"""Random choices on the host, from JAX keys."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def host_generator(key: Array) -> np.random.Generator:
    """A NumPy generator that the key determines: for shuffles, which XLA would compile a sort for.

    Example:
        >>> a, b = (host_generator(jax.random.key(3)).permutation(9) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return np.random.default_rng(np.asarray(key))


@partial(jax.jit, static_argnums=1)
def split_key(key: Array, number: int) -> tuple[Array, ...]:
    """The keys of ``jax.random.split``, one by one: one small program in place of one for each.

    Example:
        >>> first, second = split_key(jax.random.key(0), 2)
        >>> bool(first == jax.random.split(jax.random.key(0))[0])
        True
    """
    keys = jax.random.split(key, number)
    return tuple(keys[i] for i in range(number))
