"""What every test runs under: checked shapes, strict promotion, one hypothesis profile, a flag at rest."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Several test processes cannot share a TPU, nor a GPU's memory: they run on the CPU unless told otherwise.
# `python -m pytest -n 0` is one process, on whatever device JAX finds. It must stand before JAX is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
elif "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    # XLA's older emitters on the CPU, each program in one piece: a third of the time of its MLIR emitters.
    QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    # Flags that this XLA does not know end the process: another one tries them while this one starts.
    TRIAL = subprocess.Popen(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": QUICK_FLAGS, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shape_checks

if TYPE_CHECKING:
    from jaxdistill.features import AbstractFeatureMap

# Before the first import of the package, which the process that only leads the workers does without:
# every shape annotation is checked.
shape_checks.install()

# Millions of live objects of JAX's caches need not be walked over and over again.
gc.set_threshold(100_000, 50, 1000)

# Compilation is most of the time; under JAX_DISABLE_MOST_OPTIMIZATIONS=0 it is done as users do it.
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ
if QUICK:
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config: pytest.Config) -> None:
    """Compile quickly and once, here and in every process that comes from here."""
    share_the_context_of_programs()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # its environment has everything
    share_compiled_programs(config)
    # Threads of NumPy's BLAS wait in a loop for more work, and take the processors of the other workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not QUICK:
        return
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
    if TRIAL.wait() == 0:
        # XLA reads them when the first device is asked for.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_FLAGS}"


def pytest_sessionfinish() -> None:
    """What is left is looked at once, not five times as pytest does at the end, for seconds each."""
    gc.collect()
    gc.freeze()


def share_compiled_programs(config: pytest.Config) -> None:
    """What one process has compiled, the others read, from a folder that lives as long as the run.

    A folder that JAX_COMPILATION_CACHE_DIR names is kept, and makes the next run faster.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="jaxdistill-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        jax.config.update("jax_compilation_cache_dir", folder.name)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Writing one program costs 5 ms, and one in five is asked for again.
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def share_the_context_of_programs() -> None:
    """One MLIR context a process, not one a program: in JAX 0.10 making it is half of a small lowering."""
    from jax._src.interpreters import mlir  # private: where it has no such name, programs go on as they do

    if hasattr(mlir, "make_ir_context"):
        mlir.make_ir_context = functools.cache(mlir.make_ir_context)


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
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def problem() -> dict[str, np.ndarray]:
    """A classification problem with d = 12, k = 3."""
    from jaxdistill import one_hot

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 12))
    labels = np.arange(210) % 3
    x = (centres[labels] + 0.8 * rng.standard_normal((210, 12))).astype(np.float32)
    y = one_hot(labels, 3)
    return {"x": x[:150], "y": y[:150], "x_test": x[150:], "y_test": labels[150:]}


@pytest.fixture(scope="session")
def maps() -> dict[str, AbstractFeatureMap]:
    """One small map of every kind, p <= d = 12."""
    from jaxdistill import features as f

    key = jax.random.key(5)
    return {
        "linear": f.Linear(12),
        "fourier": f.RandomFourier.create(12, 10, lengthscale=4.0, key=key),
        "orthogonal fourier": f.RandomFourier.create(
            12, 12, lengthscale=4.0, frequencies="orthogonal", key=key
        ),
        "network": f.RandomNetwork.create(12, widths=(12, 9), key=key),
        "gaussian network": f.RandomNetwork.create(12, widths=(11,), weights="gaussian", key=key),
    }
