"""Sums in two float32 numbers against float64 sums of the same terms."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxdistill.numerics.two_sum import TwoSum, add_all

add = jax.jit(TwoSum.add)


def summed(terms):
    total = TwoSum.zeros(terms.shape[1:], terms.dtype)
    for term in terms:
        total = add(total, term)
    return total


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1), spread=st.integers(0, 12), count=st.sampled_from([1, 7, 60, 300])
)
def test_the_error_is_that_of_twice_the_digits(seed, spread, count):
    rng = np.random.default_rng(seed)
    terms = (rng.standard_normal((count, 5)) * 10.0 ** rng.uniform(-spread, spread, (count, 5))).astype(
        np.float32
    )
    exact = np.sum(terms.astype(np.longdouble), axis=0)
    sizes = np.sum(np.abs(terms).astype(np.longdouble), axis=0)
    eps = float(np.finfo(np.float32).eps)
    assert np.all(np.abs(summed(terms).to_float64() - exact) <= count * eps**2 * sizes)


def test_products_of_chunks_are_summed_as_in_float64_where_a_plain_sum_is_not():
    rng = np.random.default_rng(0)
    chunks = rng.random((60, 100, 20)).astype(np.float32)
    products = np.einsum("cni,cnj->cij", chunks, chunks)
    wide = np.sum(products, axis=0, dtype=np.float64)
    assert np.max(np.abs(summed(products).to_float64() - wide) / wide) < 4 * np.finfo(np.float64).eps
    plain = np.zeros_like(products[0])
    for product in products:
        plain += product
    assert np.max(np.abs(plain - wide) / wide) > 1e-8


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_no_compiler_is_told_to_reorder_it_and_it_holds_no_float64(platform):
    shape = jax.ShapeDtypeStruct((4, 4), np.float32)
    exported = jax.export.export(jax.jit(TwoSum.add), platforms=[platform])(TwoSum(shape, shape), shape)
    text = exported.mlir_module()
    assert text.count("stablehlo.subtract") == 4 and text.count("stablehlo.add") == 3
    assert "f64" not in text and "custom_call" not in text


def test_trees_are_added_leaf_by_leaf():
    totals = {"a": TwoSum.zeros((2,), np.float32), "b": TwoSum.zeros((), np.float32)}
    totals = add_all(totals, {"a": jax.numpy.ones(2), "b": jax.numpy.float32(3)})
    assert totals["a"].to_float64().tolist() == [1.0, 1.0] and totals["b"].to_float64() == 3.0
