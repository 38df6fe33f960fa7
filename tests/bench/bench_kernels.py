"""A 10 000 x 10 000 tile of the FC1 NTK against the plain matrix product and neural-tangents, in pairs.

``python tests/bench/bench_kernels.py`` on random data of the shape of MNIST, float32. It begins with the peak
memory of a process that makes a 60 000 x 500 kernel matrix.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdistill.kernels import NTK, from_neural_tangents, import_neural_tangents

PAIRS = 5
N, D = 10_000, 784

TALL = """
import resource, numpy as np
from jaxdistill.kernels import NTK
from jaxdistill.kernels.tiles import kernel_matrix
x = np.random.default_rng(0).standard_normal((60_000, 784), np.float32)
kernel_matrix(NTK(), x, x[:500])
print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30:.2f}")
"""


def main() -> None:
    # First: a child's peak begins at its parent's size.
    tall = subprocess.run([sys.executable, "-c", TALL], check=True, capture_output=True, text=True)
    print(f"60 000 x 500: peak of the process {tall.stdout.strip()} GiB")
    x, z = (jax.random.normal(jax.random.key(seed), (N, D)) for seed in (0, 1))
    dense = {"W_std": 2**0.5, "b_std": 0.1}
    stax = import_neural_tangents().stax
    theirs = jax.jit(
        stax.serial(stax.Dense(1, **dense), stax.Relu(), stax.Dense(1, **dense))[2], static_argnums=2
    )
    blocked = from_neural_tangents(theirs)
    matrix = jax.jit(lambda kernel, x, z: kernel.matrix(x, z))
    product = jax.jit(lambda x, z: jnp.matmul(x, z.T, precision="highest"))
    cases: dict[str, Callable[[], jax.Array]] = {
        "matrix product": lambda: product(x, z),
        "NTK": lambda: matrix(NTK(), x, z),
        "neural-tangents": lambda: theirs(x, z, "ntk"),
        "neural-tangents, in blocks": lambda: matrix(blocked, x, z),
    }
    rounds = []
    for _ in range(PAIRS + 1):
        taken = {}
        for name, run in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken[name] = time.perf_counter() - start
        rounds.append(taken)
    rounds = rounds[1:]  # the first compiles
    print(f"{N} x {N}, d = {D}; seconds, median of {PAIRS}")
    for name in cases:
        print(f"  {name:26} {sorted(r[name] for r in rounds)[PAIRS // 2]:.3f}")
    for other in ("matrix product", "neural-tangents"):
        ratios = sorted(r["NTK"] / r[other] for r in rounds)
        print(f"  NTK / {other}: {ratios[PAIRS // 2]:.2f} (median of {PAIRS} pairs)")


if __name__ == "__main__":
    main()
