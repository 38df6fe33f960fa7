"""The Gram matrix from strips of its upper triangle: the same numbers, symmetric, in fewer products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative

from jaxdistill.numerics.gram import cut_strips, gram_strips, join_strips, num_blocks


@pytest.mark.parametrize(("p", "blocks"), [(1, 1), (7, 1), (7, 3), (12, 4)])
def test_strips_hold_the_product(p, blocks):
    rows = np.random.default_rng(p).standard_normal((20, p))
    strips = gram_strips(jnp.asarray(rows, jnp.float32), blocks)
    found = np.asarray(join_strips(strips))
    assert relative(found, rows.T @ rows) < 1e-6
    if blocks > 1:
        off = [np.asarray(strip)[:, len(strip) :] for strip in strips[:-1]]
        edges = np.cumsum([0, *map(len, strips)])
        for block, a, b in zip(off, edges, edges[1:], strict=False):
            np.testing.assert_array_equal(found[a:b, b:], block)
            np.testing.assert_array_equal(found[b:, a:b], block.T)
    for strip, again in zip(strips, cut_strips(found, blocks), strict=True):
        np.testing.assert_array_equal(strip, again)


def test_small_matrices_stay_whole_and_large_ones_take_five_eighths_of_the_operations():
    assert [num_blocks(p) for p in (1, 512, 1023, 1024, 20000)] == [1, 1, 1, 4, 4]

    def operations(p):
        lowered = jax.jit(gram_strips).lower(jax.ShapeDtypeStruct((64, p), jnp.float32))
        return lowered.cost_analysis()["flops"] / (2 * 64 * p * p)

    assert operations(512) == pytest.approx(1, abs=0.01)
    assert operations(3072) == pytest.approx(5 / 8, abs=0.01)


def test_gradients_pass_through():
    rows = jnp.arange(12.0).reshape(3, 4)

    def size(a):
        return jnp.sum(join_strips(gram_strips(a, 2)) ** 2)

    np.testing.assert_allclose(jax.grad(size)(rows), 4 * rows @ (rows.T @ rows), rtol=1e-5)
