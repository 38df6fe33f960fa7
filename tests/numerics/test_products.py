"""Precisions of products: what each promises, who has it, and that the products are told of it."""

import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.errors import InputError
from jaxdistill.numerics.products import PRODUCTS, measured_error, products_of
from jaxdistill.ridge import moments
from jaxdistill.sets.saved_moments import SavedMoments, collect_moments

SHORT = ("bfloat16_x3", "bfloat16_x6")


def parts_of(a, number):
    """Rows as sums of numbers of 8 bits, by NumPy alone."""
    parts, rest = [], a.astype(np.float64)
    for _ in range(number):
        mantissa, exponent = np.frexp(rest)
        parts.append(np.ldexp(np.rint(mantissa * 2**8), exponent - 8))
        rest = rest - parts[-1]
    return parts


@pytest.mark.parametrize(("name", "number"), [("bfloat16_x3", 2), ("bfloat16_x6", 3)])
def test_the_rounding_that_is_told_holds_for_every_product_of_two_numbers(name, number):
    a, b = np.random.default_rng(0).standard_normal((2, 100_000)).astype(np.float32)
    found = sum(
        x * y
        for i, x in enumerate(parts_of(a, number))
        for j, y in enumerate(parts_of(b, number))
        if i + j < number
    )
    exact = a.astype(np.float64) * b
    worst = np.max(np.abs(found - exact) / np.abs(exact))
    assert products_of(name).eps / 8 < worst < products_of(name).eps


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_the_error_that_is_measured_is_some_roundings(name):
    eps = np.finfo(name).eps
    assert eps / 100 < measured_error(products_of(name)) < 16 * eps


@pytest.mark.parametrize("asked", ["float16", "bfloat16", np.int32, "bfloat16_x4", [1], 7.0])
def test_other_precisions_are_refused_with_those_that_there_are(asked):
    x = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match=", ".join(PRODUCTS)):
        jd.fit_ridge(jd.features.Linear(2), x, x, lam=1.0, dtype=asked)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have them")
def test_a_cpu_has_no_parts_to_multiply(name):
    x = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match=f"^{name} products are not to be had here .*; use float32$"):
        jd.fit_ridge(jd.features.Linear(2), x, x, lam=1.0, dtype=name)


def test_parts_are_what_gpus_and_tpus_are_told_to_multiply_and_float32_otherwise():
    def text(name, platform):
        told = products_of(name)

        def block(x):
            return moments._block_sums(x, x, None, None, None, 2, told.precision)

        x = jax.ShapeDtypeStruct((8, 4), np.float32)
        return jax.export.export(jax.jit(block), platforms=[platform])(x).mlir_module()

    for platform in ("cuda", "tpu"):
        for name, number in zip(SHORT, (3, 6), strict=True):
            # Two strips of G, and C.
            assert text(name, platform).count(f"num_primitive_operations = {number}") == 3
        assert "num_primitive_operations" not in text("float32", platform)


def test_what_was_asked_for_is_what_model_and_file_say(monkeypatch, tmp_path):
    monkeypatch.setattr(moments, "check_products", lambda products: None)  # the CPU multiplies in float32
    x = np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)
    phi, told = jd.features.Linear(3), {"lam": 1.0, "dtype": "bfloat16_x3"}
    model = jd.fit_ridge(phi, x, x, **told)
    plain = jd.fit_ridge(phi, x, x, lam=1.0, dtype="float32")
    assert (model.product_dtype, plain.product_dtype) == ("bfloat16_x3", "float32")
    assert model.resolution == pytest.approx(plain.resolution * 2**9, rel=1e-6)
    short, usual = model.solution, plain.solution
    assert short is not None and usual is not None
    assert short.solved and short.tolerance > 50 * usual.tolerance
    collect_moments(phi, x, x, path=tmp_path / "a.npz", dtype="bfloat16_x3")
    saved = SavedMoments.load(tmp_path / "a.npz")
    assert jd.fit_ridge(phi, saved.source(), lam=1.0).product_dtype == "bfloat16_x3"
    with pytest.raises(InputError, match="dtype is float32, and these moments are of bfloat16_x3"):
        jd.fit_ridge(phi, saved.source(), lam=1.0, dtype="float32")
