"""The same numbers in every type, byte order, layout and container that NumPy reads."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

FLOATS = ("f2", "f4", "f8", ">f2", ">f4", ">f8", "longdouble", "bfloat16")
LAYOUTS = ("C", "F", "strided", "reversed", "read-only")
CARRIERS = ("numpy", "list", "jax", "frame", "masked")


class Frame:
    """What a table of pandas is to NumPy."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def laid_out(array, layout):
    """The same numbers, elsewhere in memory."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.zeros((len(array), 2 * array.shape[1]), array.dtype)
        wide[:, ::2] = array
        return wide[:, ::2]
    if layout == "reversed":
        return array[::-1].copy()[::-1]
    array = array.copy()
    array.flags.writeable = layout != "read-only"
    return array


def carried(array, carrier):
    """The same numbers, in another container."""
    if carrier == "list":
        return array.tolist()
    if carrier == "jax":
        with jax.enable_x64(True):
            return jnp.asarray(array.astype(array.dtype.newbyteorder("=")))
    if carrier == "frame":
        return Frame(array)
    return np.ma.masked_array(array) if carrier == "masked" else array


@st.composite
def encodings(draw):
    """A function that writes an array of numbers that float16 holds in one of many ways."""
    dtype, layout, carrier = (draw(st.sampled_from(options)) for options in (FLOATS, LAYOUTS, CARRIERS))
    if dtype == "longdouble" and carrier == "jax":
        carrier = "numpy"
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)

    def encode(array):
        return carried(laid_out(array.astype(kind), layout), carrier)

    return encode


def whole_numbers(rng, *shape):
    """Numbers that every float type holds."""
    return rng.integers(-8, 9, shape).astype(np.float64)
