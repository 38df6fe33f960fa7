"""The one door for arrays: what NumPy reads, in types and layouts that compiled code takes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import check_finite


def as_array(name: str, value: Any) -> np.ndarray:
    """Whatever NumPy reads, as an array of native type in C order.

    A compiled function reads numbers of another byte order as if they were of its own. Floats of less than
    32 bits become float32, of more than 64 float64; integers and truth values keep their size.

    Args:
        name: What it is called in a message.
        value: An array of NumPy or JAX, nested lists, or anything else with ``__array__``, as tables have.

    Raises:
        InputError: it is sparse, masked, ragged, traced, or made of Python objects.

    Example:
        >>> as_array("x", np.array([[1.0, 2.0]], ">f8").T).dtype.str[1:]
        'f8'
    """
    kind = f"{name} ({type(value).__name__})"
    if type(value).__module__.startswith("scipy.sparse"):
        raise InputError(f"{kind} is sparse; pass {name}.toarray(), some of the rows where all are too many")
    if isinstance(value, Tracer):
        raise InputError(f"{kind} is traced; call this outside jit, vmap and grad")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError(f"{kind} has masked values; fill them, or leave their rows out")
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the object's own conversion raises
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{kind} cannot be read as an array ({reason}); give rows of numbers") from None
    if array.dtype == object:
        first = type(array.flat[0]).__name__ if array.size else "nothing"
        raise InputError(f"{kind} holds Python objects ({first}); convert it to numbers of one type")
    dtype = array.dtype.newbyteorder("=")
    if jnp.issubdtype(array.dtype, jnp.floating):
        dtype = np.dtype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
    with np.errstate(over="ignore"):  # what float64 cannot hold is infinite, which a check names
        return np.asarray(array, dtype, order="C")


def as_floats(
    name: str, value: Any, *, finite: bool = True, cure: str = "convert it to float32 or float64"
) -> np.ndarray:
    """Whatever NumPy reads, as float32 or float64 and finite.

    Integers are refused: class numbers and pixels of 0 to 255 are seldom meant as they are.

    Args:
        name: What it is called in a message.
        value: As for :func:`as_array`.
        finite: Whether to look for NaN and infinity.
        cure: What to do about another type.

    Raises:
        InputError: as :func:`as_array`; another type than floats; or the first value that is not finite.

    Example:
        >>> as_floats("x", np.ones((2, 3), np.float16)).dtype
        dtype('float32')
        >>> as_floats("x", [[1, 2]])
        Traceback (most recent call last):
        jaxdistill.errors.InputError: x has type int64; convert it to float32 or float64
    """
    array = as_array(name, value)
    if array.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} has type {array.dtype}; {cure}")
    if finite:
        check_finite(name, array)
    return array
