"""In which precision the products of features are formed, what that costs in digits, and who has it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.lax import DotAlgorithmPreset

from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import HIGHEST, matmul
from jaxdistill.numerics.placement import device_scope, on_accelerator

# Columns and rows of the product that is measured.
_SIDE, _ROWS = 32, 256


class Products(NamedTuple):
    """A precision of products; of :func:`products_of`.

    Args:
        name: "float32", "float64", "bfloat16_x3" or "bfloat16_x6".
        dtype: Of the features, in which they are multiplied.
        precision: What the product is told.
        eps: Rounding of a product of two numbers, relative to it.
    """

    name: str
    dtype: np.dtype
    precision: Any
    eps: float


# Two parts of 8 bits each leave 2^-16 of a number at most, and the product of the small parts, as large, is
# left out: 3 2^-16 in all. Three parts hold all of a float32, and products of 2^-24 are left out twice.
_KINDS = {
    kind.name: kind
    for kind in (
        Products("float64", np.dtype(np.float64), HIGHEST, float(np.finfo(np.float64).eps)),
        Products("float32", np.dtype(np.float32), HIGHEST, float(np.finfo(np.float32).eps)),
        Products(
            "bfloat16_x6",
            np.dtype(np.float32),
            DotAlgorithmPreset.BF16_BF16_F32_X6,
            float(np.finfo(np.float32).eps),
        ),
        Products("bfloat16_x3", np.dtype(np.float32), DotAlgorithmPreset.BF16_BF16_F32_X3, 2.0**-14),
    )
}
PRODUCTS = tuple(_KINDS)


def products_of(asked: Any) -> Products:
    """The precision that is asked for: a name, or a type of floats.

    ``bfloat16_x3`` and ``_x6`` are float32 features in two and three parts of 8 bits each, multiplied part by
    part where matrix units are fastest: on GPUs and TPUs.

    Args:
        asked: One of :data:`PRODUCTS`, a type, or what this function returned.

    Raises:
        InputError: another one.

    Example:
        >>> products_of(np.float32).name, products_of("bfloat16_x3").eps == 2**-14
        ('float32', True)
        >>> products_of("float16")
        Traceback (most recent call last):
        jaxdistill.errors.InputError: products of 'float16' are not known; choose float64, float32, ...
    """
    if isinstance(asked, Products):
        return asked
    try:
        return _KINDS[asked if isinstance(asked, str) and asked in _KINDS else np.dtype(asked).name]
    except (KeyError, TypeError):
        told = asked if isinstance(asked, str) else getattr(asked, "__name__", asked)
        raise InputError(
            f"products of {str(told)[:60]!r} are not known; choose {', '.join(PRODUCTS)}"
        ) from None


def check_products(products: Products, cure: str = "use float32") -> None:
    """Raise where the devices do not have a precision: a CPU multiplies parts of 8 bits in float32.

    Args:
        products: The precision.
        cure: What serves instead.

    Raises:
        InputError: names what serves instead.
    """
    if products.precision is HIGHEST:
        return
    reason = "a CPU multiplies in float32 whatever it is told"
    if on_accelerator():
        try:
            measured_error(products)
        except Exception as error:  # each compiler has its own
            reason = " ".join(str(error).split())[:100]
        else:
            return
    raise InputError(f"{products.name} products are not to be had here ({reason}); {cure}")


def measured_errors() -> dict[str, float | None]:
    """The error of every precision, by :func:`measured_error`; None where the devices do not have it.

    Example:
        >>> list(measured_errors()) == list(PRODUCTS)
        True
    """
    found: dict[str, float | None] = dict.fromkeys(PRODUCTS)
    for products in _KINDS.values():
        with suppress(InputError):
            check_products(products)
            found[products.name] = measured_error(products)
    return found


def measured_error(products: Products) -> float:
    """Largest error of a product of random columns, relative to their sizes, measured now.

    ``max |A^T A - exact|_ij / (|a_i| |a_j|)`` of 256 rows.

    Args:
        products: The precision.

    Example:
        >>> measured_error(products_of("float32")) < 1e-6
        True
    """
    rows = np.random.default_rng(0).standard_normal((_ROWS, _SIDE)).astype(products.dtype)
    with device_scope(products.dtype) as side:
        found = np.asarray(_product(jax.device_put(rows, side.home), products.precision))
    wide = rows.astype(np.longdouble)
    sizes = np.sqrt((wide**2).sum(axis=0))
    return float(np.max(np.abs(found - wide.T @ wide) / (sizes[:, None] * sizes)))


_product = jax.jit(lambda rows, precision: matmul(rows.T, rows, precision), static_argnums=1)
