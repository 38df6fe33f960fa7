"""Random matrices that feature maps are made of."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.jit, static_argnums=(1, 2))
def orthogonal_rows(key: Array, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """Draw unit rows, orthogonal within blocks of ``columns``; the blocks are independent.

    Each block is Haar distributed: the QR factor of a Gaussian matrix, with the signs of R's diagonal
    moved into Q (without that step the factor is not uniform; Mezzadri 2007).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = orthogonal_rows(jax.random.key(0), 3, 5)
        >>> bool(jnp.allclose(w @ w.T, jnp.eye(3), atol=1e-6))
        True
    """
    blocks = -(-rows // columns)
    gaussian = jax.random.normal(key, (blocks, columns, min(rows, columns)), jnp.float32)
    q, r = jnp.linalg.qr(gaussian)
    q = q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
    return jnp.swapaxes(q, 1, 2).reshape(-1, columns)[:rows]
