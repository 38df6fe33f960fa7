"""What holds of every public call: keys, the x64 flag, compilations, both precisions of the process."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.distill import compiled
from jaxdistill.ridge.moments import _add_chunk

KEY = jax.random.key(0)


def public_callables():
    """Functions of the package's face, and the ways to create what it shows."""
    for module in (jd, jd.features):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value
            elif inspect.isclass(value):
                for method, function in inspect.getmembers(value, inspect.isroutine):
                    if not method.startswith("_") and hasattr(function, "__annotations__"):
                        yield f"{name}.{method}", function


WITH_KEY = {name: f for name, f in public_callables() if "key" in inspect.signature(f).parameters}


def test_the_functions_that_draw_are_found():
    assert {
        "jaxdistill.distill",
        "jaxdistill.fit_ridge",
        "RandomFourier.create",
        "RandomNetwork.create",
    } <= set(WITH_KEY)


@pytest.mark.parametrize("name", sorted(WITH_KEY))
def test_keys_are_keyword_only_and_never_default_to_one(name):
    key = inspect.signature(WITH_KEY[name]).parameters["key"]
    assert key.kind is key.KEYWORD_ONLY
    # Random only where something is held out or preconditioned, and then they insist.
    if name in ("jaxdistill.fit_ridge", "jaxdistill.fit_kernel_ridge"):
        assert key.default is None
    else:
        assert key.default is key.empty


def test_no_module_makes_a_key_when_it_is_imported_or_called_without_one():
    for info in pkgutil.walk_packages(jd.__path__, "jaxdistill."):
        if info.name.rpartition(".")[2] in ("__main__", "cli") or ".kernels" in info.name:
            continue
        module = importlib.import_module(info.name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            key = inspect.signature(function).parameters.get("key")
            if key is not None:
                assert key.default in (key.empty, None), f"{info.name}.{name}"


@pytest.mark.parametrize("x64", [False, True])
def test_the_chain_is_the_same_in_both_settings_and_leaves_them_alone(problem, maps, tmp_path, x64):
    with jax.enable_x64(x64):
        before = jax.config.jax_enable_x64
        model = jd.fit_ridge(maps["network"], problem["x"], problem["y"], lam="auto")
        small = jd.distill(model, ipc=2, dtype="float32", key=KEY)
        cert = jd.certify(model, small, problem["x_test"], problem["y_test"])
        again = jd.DistilledSet.load(small.with_certificate(cert).save(tmp_path / "s.npz"))
        model.predict(problem["x_test"])
        model.features.inverse(np.zeros((1, 9)))
        assert jax.config.jax_enable_x64 == before == x64
    other = jd.fit_ridge(maps["network"], problem["x"], problem["y"], lam="auto")
    np.testing.assert_array_equal(model.weights, other.weights)
    np.testing.assert_array_equal(small.x, jd.distill(other, ipc=2, dtype="float32", key=KEY).x)
    assert cert.exact and jd.certify(again, again).exact


@pytest.mark.long
def test_the_chain_runs_in_a_process_that_is_all_float64(tmp_path):
    code = f"""
import jax, numpy as np, jaxdistill as jd
assert jax.config.jax_enable_x64
rng = np.random.default_rng(0)
x = rng.standard_normal((60, 8))
y = jd.one_hot(np.arange(60) % 3, 3)
with jax.numpy_dtype_promotion("strict"):
    for dtype, phi in (
        ("float64", jd.features.RandomFourier.create(8, 7, lengthscale=3.0, key=jax.random.key(0))),
        ("float32", jd.features.RandomNetwork.create(8, widths=(8, 6), key=jax.random.key(1))),
    ):
        model = jd.fit_ridge(phi, x.astype(dtype), y, lam="auto")
        small = jd.distill(model, ipc=2, labels="soft", dtype=dtype, key=jax.random.key(2))
        path = small.save({str(tmp_path / "s.npz")!r})
        again = jd.DistilledSet.load(path)
        assert again.x.dtype == dtype and again.digest == small.digest
        assert jd.certify(again, again, x.astype(dtype), y).exact
assert jax.config.jax_enable_x64
"""
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True)


def test_fitting_and_distilling_again_compiles_nothing_new(problem):
    functions = [
        _add_chunk,
        compiled.noisy_factors,
        compiled.features_of_factors,
        compiled.stored_labels,
    ]

    def chain(seed, lam, noise, lam_s):
        rng = np.random.default_rng(seed)
        x = problem["x"] + 0.1 * rng.standard_normal(problem["x"].shape).astype(np.float32)
        model = jd.fit_ridge(jd.features.Linear(12), x, problem["y"], lam=lam)
        jd.distill(model, ipc=2, noise=noise, lam_s=lam_s, key=jax.random.key(seed))
        jd.distill(model, ipc=2, noise=noise, labels="soft", key=jax.random.key(seed))

    chain(0, 1.0, 1.0, 0.0)
    sizes = [f._cache_size() for f in functions]
    chain(1, 2.0, 0.5, 1e-6)
    assert [f._cache_size() for f in functions] == sizes


def test_maps_and_models_are_pytrees_that_pass_through_jit(problem, maps):
    model = jd.fit_ridge(maps["network"], problem["x"], problem["y"], lam=1.0)
    traced = []

    @jax.jit
    def predict(model, x):
        traced.append(0)
        return model(x)

    x = jax.numpy.asarray(problem["x_test"])
    first = predict(jax.tree.map(jax.numpy.asarray, model.features), x)
    assert first.shape == (60, 9)
    leaves, structure = jax.tree.flatten(model.features)
    np.testing.assert_array_equal(predict(structure.unflatten(leaves), x), first)
    assert len(traced) == 1  # equal structure, no new compilation
