"""Data classes as pytrees: structures tell classes apart, so that jax.jit does."""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill as jd
from jaxdistill.numerics.pytrees import register_pytree

KERNELS = (jd.kernels.RBF(1.5), jd.kernels.Laplace(1.5), jd.kernels.Matern32(1.5), jd.kernels.Matern52(1.5))


@register_pytree
@dataclass(frozen=True)
class Pair:
    left: jax.Array
    size: int = field(metadata={"static": True})
    right: jax.Array


def test_fields_are_leaves_by_name_or_part_of_the_structure():
    pair = Pair(jnp.ones(2), 3, jnp.zeros(2))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(pair)]
    assert paths == [".left", ".right"]
    doubled = jax.tree.map(lambda leaf: leaf + 1, pair)
    np.testing.assert_array_equal(doubled.left, 2.0)
    assert doubled.size == 3
    assert jax.tree.structure(pair) == jax.tree.structure(doubled)
    assert jax.tree.structure(pair) != jax.tree.structure(Pair(jnp.ones(2), 4, jnp.zeros(2)))


def test_classes_of_the_same_fields_have_structures_of_their_own(maps):
    # Where structures are equal, jax.jit may run for one class what it compiled for the other.
    instances = [*KERNELS, jd.kernels.NNGP(), jd.kernels.NTK(), *maps.values()]
    for one in instances:
        for other in instances:
            if type(one) is not type(other):
                assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.structure(KERNELS[0]) == jax.tree.structure(jd.kernels.RBF(2.0))


def test_no_class_of_the_package_is_registered_in_the_way_that_mixes_classes_up():
    for path in Path(jd.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "@jax.tree_util.register_dataclass" not in text, f"{path}: use register_pytree"
