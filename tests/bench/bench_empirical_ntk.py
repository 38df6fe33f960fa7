"""The empirical NTK of 1000 x 1000 MNIST images against neural-tangents' Jacobian contraction, in pairs.

``python tests/bench/bench_empirical_ntk.py [--pairs 3] [--size 1000]``. Every run is a process of its own,
which prints the seconds of one kernel matrix after compilation, and its peak memory. neural-tangents gets the
whole matrix at once where its Jacobians fit (the convolutional network), else blocks of 250 x 250.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill as jd
from jaxdistill.kernels import EmpiricalNTK, import_neural_tangents
from jaxdistill.networks.standard import make_network

SHAPE = (28, 28, 1)
NETWORKS: dict[str, dict[str, Any]] = {"convnet": {"width": 16}, "mlp": {"widths": (256,)}}
BLOCKS = {"convnet": 0, "mlp": 250}


def run(name: str, which: str, size: int) -> dict[str, Any]:
    """One matrix: its seconds, the peak of this process, and two numbers that tell whether it is the same."""
    net = make_network(name, **NETWORKS[name])
    variables = net.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    images = jnp.asarray(jd.load_dataset("mnist").x_train[: 2 * size].reshape(2, size, -1))
    if which == "ours":
        kernel = EmpiricalNTK.of(net, variables=variables, input_shape=SHAPE)

        def matrix(x: jax.Array, z: jax.Array) -> Any:
            return kernel.matrix(x, z)
    else:
        nt = import_neural_tangents()
        contraction = nt.NtkImplementation.JACOBIAN_CONTRACTION
        theirs = nt.empirical_ntk_fn(net.apply, vmap_axes=0, implementation=contraction)
        theirs = nt.batch(theirs, min(BLOCKS[name], size)) if BLOCKS[name] else theirs

        def matrix(x: jax.Array, z: jax.Array) -> Any:
            return theirs(x.reshape(-1, *SHAPE), z.reshape(-1, *SHAPE), variables)

    compiled = jax.jit(matrix).lower(*images).compile()
    start = time.perf_counter()
    found = np.asarray(jax.block_until_ready(compiled(*images)), np.float64)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak": peak, "norm": np.linalg.norm(found), "first": found[0, 0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(*options.run, options.size)))
        return
    for name, settings in NETWORKS.items():
        rounds = []
        for _ in range(options.pairs):
            pair = {}
            for which in ("ours", "theirs"):
                command = [sys.executable, "-W", "ignore", __file__, "--size", str(options.size)]
                child = subprocess.run(
                    [*command, "--run", name, which], check=True, capture_output=True, text=True
                )
                pair[which] = json.loads(child.stdout.splitlines()[-1])
            np.testing.assert_allclose(
                *([pair[w][key] for key in ("norm", "first")] for w in pair), rtol=1e-4
            )
            rounds.append(pair)
        print(f"{name} {settings}: {options.size} x {options.size}, float32, median of {options.pairs}")
        for which in ("ours", "theirs"):
            seconds, peak = (np.median([r[which][key] for r in rounds]) for key in ("seconds", "peak"))
            print(f"  {which:6} {seconds:7.2f} s, peak of the process {peak:.2f} GiB")
        ratios = sorted(r["ours"]["seconds"] / r["theirs"]["seconds"] for r in rounds)
        print("  ours / theirs:", ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
