"""The door for arrays: every type, byte order and layout is read as the numbers it holds, or refused."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from encodings_of_arrays import encodings, whole_numbers
from hypothesis import given

from jaxdistill.errors import InputError
from jaxdistill.numerics.arrays import as_array, as_floats


@given(encode=encodings())
def test_the_numbers_are_those_that_went_in_native_and_in_c_order(encode):
    numbers = whole_numbers(np.random.default_rng(0), 5, 3)
    given = encode(numbers)
    found = as_floats("x", given)
    assert found.dtype in (np.float32, np.float64) and found.dtype.isnative and found.flags.c_contiguous
    np.testing.assert_array_equal(found, numbers)
    # What compiled code makes of it is what it is.
    np.testing.assert_array_equal(jax.jit(lambda a: a + a)(found.astype(np.float32)), 2 * numbers)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("longdouble", "f8"), (ml_dtypes.bfloat16, "f4")],
)
def test_floats_become_the_nearest_of_two_types(dtype, expected):
    assert as_floats("x", np.zeros(3, dtype)).dtype == expected


@pytest.mark.parametrize("dtype", [">i4", "i2", ">u8", "?"])
def test_integers_and_truth_values_keep_their_size(dtype):
    found = as_array("y", np.array([0, 1, 1], dtype))
    assert found.dtype == np.dtype(dtype).newbyteorder("=") and found.tolist() == [0, 1, 1]


def test_what_is_read_already_is_not_copied():
    x = np.zeros((3, 2), np.float32)
    assert as_floats("x", x) is x


REFUSED = [
    (scipy.sparse.csr_matrix(np.eye(3)), "sparse; pass x.toarray"),
    (scipy.sparse.coo_array(np.eye(3)), "sparse; pass x.toarray"),
    (np.eye(3, dtype=int), "type int64; convert"),
    (np.eye(3, dtype=bool), "type bool; convert"),
    (np.eye(3, dtype=complex), "type complex128"),
    (np.array([["a"]]), "type <U1"),
    (np.array([["a", 1.0]], object), r"Python objects \(str\)"),
    ([[1.0, 2.0], [3.0]], "cannot be read as an array"),
    (None, r"Python objects \(NoneType\)"),
    (object(), "Python objects"),
    ({1.0: 2.0}, "Python objects"),
    (np.ma.masked_array([1.0, 2.0], [False, True]), "masked"),
    (np.array([[1.0, np.nan]]), r"not finite.*index \(0, 1\)"),
    (np.array([[1.0, -np.inf]], ">f4"), r"not finite.*index \(0, 1\)"),
    (np.array([[1.0, np.longdouble("1e4000")]]), r"not finite.*index \(0, 1\)"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED)
def test_what_cannot_be_read_is_told_in_one_line(value, words):
    with pytest.raises(InputError, match=words) as caught:
        as_floats("x", value)
    assert str(caught.value).startswith("x ") and "\n" not in str(caught.value)


def test_traced_values_are_told():
    with pytest.raises(InputError, match="outside jit"):
        jax.jit(lambda a: as_floats("x", a))(jnp.zeros(3))


def test_tables_of_pandas_are_read():
    pandas = pytest.importorskip("pandas")
    found = as_floats("x", pandas.DataFrame({"a": [1.0, 2.0], "b": np.float32([3, 4])}))
    np.testing.assert_array_equal(found, [[1.0, 3.0], [2.0, 4.0]])
