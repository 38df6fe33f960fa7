"""CIFAR-shaped ridge regression beside its floor: one full Gram product and one eigendecomposition.

``python tests/bench/bench_gram.py [--rows N] [--columns P] [--pairs K]``: n 47 500 and 2500 held out, p 3072,
k 10, 18 penalties, random features in memory. Everything from there to the certificate of ten examples is
timed: checks, moments, factorisation, choice of the penalty, distillation, retraining. Its floor is measured
before each run; all are warm. On a busy machine the seconds of the processor tell more than the clock.
Wanted: at most 1.15 in all, and the Gram product at most 0.85 of the full one.
"""

from __future__ import annotations

import argparse
from functools import partial
from time import perf_counter, process_time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill as jd
from jaxdistill.numerics.gram import gram_strips, num_blocks
from jaxdistill.numerics.linalg import matmul
from jaxdistill.ridge.source import chunk_rows

LAMS = 10.0 ** np.arange(-3.0, 5.75, 0.5)  # 18 of them


def data(n: int, p: int, k: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Features with the decaying spectrum of images, and class rows that depend on them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n + held, p), np.float32)
    x *= (1 / np.sqrt(1 + np.arange(p))).astype(np.float32)
    scores = x @ rng.standard_normal((p, k), np.float32) + rng.standard_normal((n + held, k), np.float32)
    return x, jd.one_hot(scores.argmax(axis=1), k)


class Timed:
    """Seconds by the clock and of the processor, and what the function returned."""

    def __init__(self, function) -> None:
        clock, work = perf_counter(), process_time()
        self.value = jax.block_until_ready(function())
        self.seconds = np.array([perf_counter() - clock, process_time() - work])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=47500)
    parser.add_argument("--columns", type=int, default=3072)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    n, p, held = options.rows, options.columns, max(10, options.rows // 19)
    x, y = data(n, p, 10, held)
    train, rest = (x[:n], y[:n]), (x[n:], y[n:])
    phi, full, eigh = jd.features.Linear(p), jax.jit(lambda a: matmul(a.T, a)), jax.jit(jnp.linalg.eigh)
    size = chunk_rows(p, n)
    chunks = [x[i : i + size] for i in range(0, n - n % size, size)]  # of one shape

    @partial(jax.jit, donate_argnums=0)
    def add_full(total, rows):
        return total + matmul(rows.T, rows).astype(jnp.float64)

    @partial(jax.jit, donate_argnums=0)
    def add_strips(total, rows):
        return tuple(a + b.astype(jnp.float64) for a, b in zip(total, gram_strips(rows), strict=True))

    def chunked(add, zero):
        for rows in chunks:
            zero = add(zero, rows)
        return zero

    def whole():
        model = jd.fit_ridge(phi, *train, validation=rest, lams=LAMS, lam="auto")
        small = jd.distill(model, ipc=1, key=jax.random.key(0))
        return jd.certify(model, small, *rest).relative_weight_error

    ratios = []
    for number in range(options.pairs + 1):
        product = Timed(lambda: full(x[:n]))
        with jax.enable_x64(True):
            gram = jnp.asarray(np.asarray(product.value), jnp.float64)
            eigen = Timed(partial(eigh, gram))
            zeros = tuple(jnp.zeros(s.shape, jnp.float64) for s in jax.eval_shape(gram_strips, x[:1]))
            in_full = Timed(lambda: chunked(add_full, jnp.zeros((p, p), jnp.float64)))
            in_strips = Timed(lambda z=zeros: chunked(add_strips, z))
        every = Timed(whole)
        parts = {
            "product": product,
            "eigh": eigen,
            "whole": every,
            "in full": in_full,
            "in strips": in_strips,
        }
        title = f"pair {number}" if number else "warm-up"
        print(title, "".join(f"  {name} {part.seconds[0]:.2f} s" for name, part in parts.items()), flush=True)
        floor = product.seconds + eigen.seconds
        ratios.append(np.stack([every.seconds / floor, in_strips.seconds / in_full.seconds]))
    whole_ratio, gram_ratio = np.median(ratios[1:], axis=0)
    print(f"n = {n}, p = {p}, {len(LAMS)} penalties, chunks of {size} rows, {num_blocks(p)} strips")
    print("medians of ratios                             by the clock  in processor seconds")
    print(
        "features to certificate over product + eigh   {:<12.2f}  {:.2f}  (wanted: 1.15)".format(*whole_ratio)
    )
    print(
        "Gram matrix in strips over the full one       {:<12.2f}  {:.2f}  (wanted: 0.85)".format(*gram_ratio)
    )


if __name__ == "__main__":
    main()
