"""Random choices on the host, from JAX keys."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError


def checked_key(key: Any) -> Array:
    """The key itself, where it is one random key of JAX, of the new kind or the old.

    Raises:
        InputError: it is a number, missing, or several keys.

    Example:
        >>> checked_key(3)
        Traceback (most recent call last):
        jaxdistill.errors.InputError: key is 3; pass key=jax.random.key(3)
    """
    if isinstance(key, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == (0 if typed else 1) and (typed or key.dtype == np.uint32):
            return key  # pyright: ignore[reportReturnType] - old keys may be NumPy's
        cure = "pass one of jax.random.split(key)" if typed else "pass key=jax.random.key(0)"
        raise InputError(f"key is {key.dtype} of shape {key.shape}, not one random key; {cure}")
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        raise InputError(f"key is {key}; pass key=jax.random.key({key})")
    told = "missing" if key is None else f"a {type(key).__name__}"
    raise InputError(f"key is {told}; pass key=jax.random.key(0), or another seed")


def host_generator(key: Array) -> np.random.Generator:
    """A NumPy generator that the key determines: for shuffles, which XLA would compile a sort for.

    Example:
        >>> a, b = (host_generator(jax.random.key(3)).permutation(9) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    if jnp.issubdtype(checked_key(key).dtype, jax.dtypes.prng_key):
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
