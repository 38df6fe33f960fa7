"""What every test runs under: checked shapes, strict promotion, one hypothesis profile, a flag at rest."""

import os
from collections.abc import Iterator

# Several test processes cannot share a TPU, nor a GPU's memory: they run on the CPU unless told otherwise.
# `python -m pytest -n 0` is one process, on whatever device JAX finds. It must stand before JAX is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

# Before the first import of the package: every shape annotation is checked while the tests run.
jaxtyping.install_import_hook("jaxdistill", "shape_checks.check")

import jaxdistill as jd  # noqa: E402

# Compilation is most of the time. Processes that the tests start compile in full, as users' do, and so does
# everything under JAX_DISABLE_MOST_OPTIMIZATIONS=0.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)

hypothesis.settings.register_profile("jaxdistill", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("jaxdistill")


@pytest.fixture(autouse=True)
def strict_types() -> Iterator[None]:
    """No silent promotion between types, and no public call that leaves the x64 flag changed."""
    before = jnp.zeros(()).dtype
    with jax.numpy_dtype_promotion("strict"):
        yield
    assert jnp.zeros(()).dtype == before


@pytest.fixture(scope="module", autouse=True)
def compiled_code_is_let_go() -> Iterator[None]:
    """Every compiled function maps memory, and a process may have 65 530 maps on Linux: then XLA crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def problem() -> dict[str, np.ndarray]:
    """A classification problem with d = 12, k = 3."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 12))
    labels = np.arange(210) % 3
    x = (centres[labels] + 0.8 * rng.standard_normal((210, 12))).astype(np.float32)
    y = jd.one_hot(labels, 3)
    return {"x": x[:150], "y": y[:150], "x_test": x[150:], "y_test": labels[150:]}


@pytest.fixture(scope="session")
def maps() -> dict[str, jd.features.AbstractFeatureMap]:
    """One small map of every kind, p <= d = 12."""
    key = jax.random.key(5)
    f = jd.features
    return {
        "linear": f.Linear(12),
        "fourier": f.RandomFourier.create(12, 10, lengthscale=4.0, key=key),
        "orthogonal fourier": f.RandomFourier.create(
            12, 12, lengthscale=4.0, frequencies="orthogonal", key=key
        ),
        "network": f.RandomNetwork.create(12, widths=(12, 9), key=key),
        "gaussian network": f.RandomNetwork.create(12, widths=(11,), weights="gaussian", key=key),
    }
