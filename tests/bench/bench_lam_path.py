"""Cost of a whole lam path beside its floor: one Gram product and one eigendecomposition.

``python tests/bench/bench_lam_path.py``, on MNIST where JAXDISTILL_DATA_DIR holds it, otherwise on random
data of its shape. Every run is warm; compilation is reported beside. The path is everything from inputs on
the host to the chosen penalty: moments, eigendecomposition, 24 candidates scored on 3000 examples.
"""

from __future__ import annotations

from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill as jd
from jaxdistill.errors import DatasetError
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.ridge.fit import LAMS
from jaxdistill.ridge.moments import accumulate_moments
from jaxdistill.ridge.path import factor_primal
from jaxdistill.ridge.selection import score_penalties
from jaxdistill.ridge.source import ArraySource

PAIRS = 7


def load() -> tuple[str, np.ndarray, np.ndarray]:
    try:
        data = jd.load_dataset("mnist")
    except DatasetError:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((60000, 784), np.float32)
        return "random data of MNIST's shape", x, jd.one_hot(rng.integers(0, 10, 60000), 10)
    return "MNIST", jd.Standardize.fit(data.x_train).forward(data.x_train), jd.one_hot(data.y_train, 10)


def main() -> None:
    name, x, y = load()
    phi = jd.features.Linear(x.shape[1])
    source = ArraySource.of(x, y, num_inputs=phi.num_inputs, breadth=phi.breadth)
    held = source.select(np.arange(3000))
    product = jax.jit(lambda a: matmul(a.T, a))
    eigh = jax.jit(jnp.linalg.eigh)

    def floor() -> float:
        start = perf_counter()
        gram = jax.block_until_ready(product(x))
        with jax.enable_x64(True):
            jax.block_until_ready(eigh(jnp.asarray(np.asarray(gram), jnp.float64)))
        return perf_counter() - start

    def path() -> float:
        start = perf_counter()
        moments = accumulate_moments(phi, source)
        factored = in_float64(factor_primal, moments, "float32")
        score_penalties("validation", factored, phi, held, LAMS, classes=True, dtype=np.float32)
        return perf_counter() - start

    cold = floor(), path()
    pairs = [(floor(), path()) for _ in range(PAIRS)]
    ratios = sorted(b / a for a, b in pairs)
    print(f"{name}, n = {len(x)}, p = {x.shape[1]}, {len(LAMS)} penalties")
    print(f"first call, compilation included: floor {cold[0]:.2f} s, path {cold[1]:.2f} s")
    print(f"median of {PAIRS}: floor {np.median([a for a, _ in pairs]):.2f} s, ", end="")
    print(f"path {np.median([b for _, b in pairs]):.2f} s")
    print(f"ratio of paired runs: median {np.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
