"""Cost of a KIP step: moments against plain, and moments for two sizes of the data.

``python tests/bench/bench_kip.py`` on MNIST where JAXDISTILL_DATA_DIR holds it, on random data of the same
shape otherwise. Network features p = d = 784, 10 per class; a plain step has 5000 targets and solved labels.
Times are of warm runs in pairs, one after the other, so that a busy machine slows both.
"""

from __future__ import annotations

import jax
import numpy as np

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.errors import DatasetError

PAIRS = 9
STEPS = 200


def load() -> tuple[str, np.ndarray, np.ndarray]:
    try:
        data = jd.load_dataset("mnist")
    except DatasetError:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((60000, 784), np.float32)
        return "random data of MNIST's shape", x, jd.one_hot(rng.integers(0, 10, 60000), 10, centred=True)
    x = jd.Standardize.fit(data.x_train).forward(data.x_train)
    return "MNIST", x, jd.one_hot(data.y_train, 10, centred=True)


def main() -> None:
    name, x, y = load()
    phi = jd.features.RandomNetwork.create(784, widths=(784,), weights="gaussian", key=jax.random.key(0))
    models = {n: jd.fit_ridge(phi, x[:n], y[:n], lam=10.0, dtype=np.float32) for n in (6000, 60000)}

    def step(n: int, **settings: object) -> float:
        config = kip.KipConfig(ipc=10, steps=STEPS, block=STEPS, **settings)  # pyright: ignore[reportArgumentType]
        result = kip.train(models[n], x[:n], y[:n], config, key=jax.random.key(1))
        return 1e3 * result.history.total_seconds / STEPS

    plain = {"batch": 5000}
    cases = {
        "moments, n = 6 000": lambda: step(6000),
        "moments, n = 60 000": lambda: step(60000),
        "moments, fixed labels": lambda: step(60000, labels="fixed"),
        "moments, learned labels": lambda: step(60000, labels="learned"),
        "plain, solved labels": lambda: step(60000, **plain),
        "plain, fixed labels": lambda: step(60000, **plain, labels="fixed"),
    }
    rounds = [{case: run() for case, run in cases.items()} for _ in range(PAIRS)]
    print(f"{name}, network features p = 784, 100 examples, batch 5000; milliseconds a step")
    for case in cases:
        times = sorted(r[case] for r in rounds)
        print(f"  {case:26} {times[PAIRS // 2]:7.2f}  (fastest {times[0]:.2f}, slowest {times[-1]:.2f})")
    for top, bottom in (
        ("moments, n = 60 000", "moments, n = 6 000"),
        ("plain, solved labels", "moments, n = 60 000"),
    ):
        ratios = sorted(r[top] / r[bottom] for r in rounds)
        print(f"  {top} / {bottom}: {ratios[PAIRS // 2]:.2f} (median of {PAIRS} pairs)")


if __name__ == "__main__":
    main()
