"""What an accelerator does with the package: checked, then timed beside floors measured in the same run.

``python tests/bench/accelerator.py [--quick] [--seconds 350] [--out DIR]``, with PYTHONPATH at the checkout.
It needs what JAX users have (jax, flax, optax, orbax). MNIST and CIFAR-10 come from the folder that
JAXDISTILL_DATA_DIR names, or else are random data of their shapes. Each stage runs once cold and then warm.
It writes accelerator_DEVICE.json and accelerator_DEVICE.md after every section, goes on where one fails,
begins no stage in the last sixth of the seconds given, and ends itself when they are over.

The floor of a stage is what its products, its factorisation and its copies take alone, at the rates measured
here: products in float32 (HIGHEST) and float64, copies there and back, eigh in float64. That of a solver is
its passes through the feature map and, for every step, the product of Jacobians and a Cholesky factor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from stages import Bench, fastest, markdown, timed

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.data.pixels import Pixels
from jaxdistill.features import Encoder
from jaxdistill.kernels import NTK
from jaxdistill.kernels.tiles import TiledKernel, kernel_matrix
from jaxdistill.networks import make_network
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.numerics.placement import device_scope, float64_scope, on_accelerator
from jaxdistill.ridge.fit import LAMS
from jaxdistill.ridge.moments import accumulate_moments
from jaxdistill.ridge.path import factor_primal
from jaxdistill.ridge.source import ArraySource
from jaxdistill.solve.spanning_solver import solve_spanning
from jaxdistill.solve.spanning_step import SpanningMethod

SHAPES = {"mnist": (60000, (28, 28, 1)), "cifar10": (50000, (32, 32, 3))}
# Seconds that one solution of the spanning equations may take, compilation included.
MOST_SECONDS = 60.0
# Seconds of KIP at 1, 10 and 50 per class, and of the analytic set (CHW, network features, one A5000 GPU).
PUBLISHED = {1: (159, 16), 10: (554, 16), 50: (3114, 16)}


def measure_rates(bench: Bench) -> None:
    """Products and copies alone."""
    size = 512 if bench.quick else 4096
    product = jax.jit(lambda a: matmul(a, a))
    host = np.random.default_rng(0).standard_normal((size, size), np.float32)
    with device_scope(np.float32) as side:
        device = side.devices[0]
        here = jax.device_put(host, device)
        short = fastest(lambda: product(here))
        large = [np.ones(2**23, np.float32) for _ in range(1 if bench.quick else 8)]  # of 32 MiB
        copy = fastest(lambda: jax.device_put(large, device))
        there = jax.device_put(large, device)
        back = fastest(lambda: [np.asarray(part) for part in jax.tree.map(jnp.negative, there)])
    with float64_scope() as where:
        wide = jax.device_put(host.astype(np.float64), where.algebra)
        long = fastest(lambda: product(wide))
    bench.float32, bench.float64 = 2 * size**3 / short, 2 * size**3 / long
    size = sum(part.nbytes for part in large)
    bench.copy, bench.back = size / copy, size / back
    bench.rates = {
        "float32 product, GFLOP/s": 1e-9 * bench.float32,
        "float64 product, GFLOP/s": 1e-9 * bench.float64,
        "copy from the host, GB/s": 1e-9 * bench.copy,
        "copy to the host, GB/s": 1e-9 * bench.back,
    }


def eigh_alone(bench: Bench, gram: np.ndarray) -> float:
    """Seconds of eigh in float64 on the device where it lives, nothing copied."""
    with float64_scope() as where:
        here = jax.device_put(gram, where.algebra)
        factor = jax.jit(jnp.linalg.eigh)
        seconds = fastest(lambda: factor(here), times=1)
    bench.rates[f"eigh in float64, {len(gram)} x {len(gram)}, seconds"] = seconds
    return seconds


def on_disk(name: str) -> bool:
    """Whether a data set is in the folder, where nothing has to be fetched for it."""
    folder = Path(os.environ.get("JAXDISTILL_DATA_DIR", "/nowhere"))
    return (folder / f"{name}.npz").is_file() or (folder / name).is_dir()


@cache
def load(name: str, quick: bool) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs in standard units and centred class rows, of the data where they are there."""
    n, shape = SHAPES[name]
    n, tests = (2000, 500) if quick else (n, 10000)
    if quick:
        shape = (shape[0] // 4, shape[1] // 4, shape[2])
    if quick or not on_disk(name):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 10, n + tests)
        means = rng.standard_normal((10, int(np.prod(shape))), np.float32)
        x = means[y] + 3 * rng.standard_normal((n + tests, int(np.prod(shape))), np.float32)
        return f"random, {name}'s shape", x[:n], jd.one_hot(y[:n], 10, centred=True), x[n:], y[n:]
    data = jd.load_dataset(name)
    scale = jd.Standardize.fit(data.x_train)
    x, t = scale.forward(data.x_train[:n]), scale.forward(data.x_test[:tests])
    return name, x, jd.one_hot(data.y_train[:n], 10, centred=True), t, data.y_test[:tests]


def in_bytes(x: np.ndarray) -> Pixels:
    """Images in uint8, as many and as large."""
    images = np.clip(128 + 25 * x, 0, 255).astype(np.uint8).reshape(len(x), 1, 1, -1)
    return Pixels(
        images, jd.Standardize.from_constants([0.5] * x.shape[1], [0.1] * x.shape[1], images.shape[1:])
    )


def exact(certificate: Any) -> str:
    told = f"error {certificate.relative_weight_error:.0e}, accuracy {certificate.accuracy_distilled:.4f}"
    return f"{'exact' if certificate.exact else 'NOT EXACT'}, {told}"


def linear_stages(bench: Bench, name: str) -> None:
    """Moments, path, distil, certificate: data in host memory to certificate."""
    title, x, y, t, classes = load(name, bench.quick)
    (n, d), k = x.shape, y.shape[1]
    phi = jd.features.Linear(d)
    source = ArraySource.of(x, y, num_inputs=d, breadth=d)
    product, gram = 2 * n * d * (d + k) / bench.float32, 8 * d * d / bench.back
    rows = slice(0, n, max(1, n // 512))

    def right(_: Any, products: str = "float32", few: Any = x[rows]) -> str:
        wide = np.asarray(few, np.float64)
        small = ArraySource.of(few, y[rows], num_inputs=d, breadth=d)
        found = accumulate_moments(phi, small, dtype=products).gram
        error = np.linalg.norm(found - wide.T @ wide) / np.linalg.norm(found)
        return f"error {error:.0e}" if error < 1e-5 else f"WRONG by {error:.0e}"

    moments = bench.stage(
        f"moments, {title}",
        lambda: accumulate_moments(phi, source),
        right,
        max(product, x.nbytes / bench.copy) + gram,
    )
    if moments is None:
        return
    for products in ("bfloat16_x6", "bfloat16_x3") if on_accelerator() else ():
        bench.stage(
            f"moments by {products}, {title}",
            partial(accumulate_moments, phi, source, dtype=products),
            partial(right, products=products),
            x.nbytes / bench.copy + gram,
        )

    def decomposed(path: Any) -> str:
        symmetric = (moments.gram + moments.gram.T) / 2  # products in float32 are not, to the last bit
        left = symmetric @ path.basis - path.basis * path.eigenvalues
        error = np.linalg.norm(left) / np.linalg.norm(moments.gram)
        return f"error {error:.0e}" if error < 1e-10 else f"WRONG by {error:.0e}"

    images = in_bytes(x)
    bench.stage(
        f"moments of images in uint8, {title}",
        partial(accumulate_moments, phi, ArraySource.of(images, y, num_inputs=d, breadth=d)),
        partial(right, few=in_bytes(x[rows])),
        max(product, images.bytes.nbytes / bench.copy) + gram,
    )
    factor = eigh_alone(bench, moments.gram)
    path = partial(in_float64, factor_primal, moments, "float32")
    bench.stage(f"path, {title}", path, decomposed, factor + gram)
    key = jax.random.key(0)
    scores = 2 * n * d * (d + len(LAMS) * (k + 1)) / bench.float32
    for name, rows_of, size in (("floats", x, x.nbytes), ("images in uint8", images, images.bytes.nbytes)):
        bench.stage(
            f"fit, lam left out, {name}, {title}",
            lambda rows_of=rows_of: _Held(jd.fit_ridge(phi, rows_of, y, dtype=np.float32)),
            lambda held: f"solved: {held.value.solution.solved}",
            max(product + scores, size / bench.copy) + factor + 2 * gram,
        )
    model = bench.stage(
        f"fit, lam given, {title}",
        lambda: _Held(jd.fit_ridge(phi, x, y, lam=100.0, dtype=np.float32)),
        lambda held: f"solved: {held.value.solution.solved}",
        max(product, x.nbytes / bench.copy) + factor + 2 * gram,
    )
    if model is None:
        return
    made = bench.stage(
        f"distil, 1 per class, {title}",
        lambda: _Held(jd.distill(model.value, ipc=1, dtype=np.float32, key=key)),
        lambda held: f"{len(held.value.x)} examples",
    )
    if made is not None:
        bench.stage(
            f"certificate, {title}",
            lambda: _Held(jd.certify(model.value, made.value, t, classes)),
            lambda held: exact(held.value),
            t.nbytes / bench.copy + 2 * len(t) * d * 3 * k / bench.float32,
        )


@dataclass(eq=False)
class _Held:
    """A result that is no array, for a clock that waits for arrays."""

    value: Any


def spanning_stages(bench: Bench, *wanted: str) -> None:
    """Exact sets for maps without an inverse: "network", "encoder" or "colour encoder"."""
    key, quick = jax.random.key(0), bench.quick
    rng = np.random.default_rng(0)
    d, p = (49, 64) if quick else (784, 3136)
    wide = jd.features.RandomNetwork.create(d, widths=(p,), activation="gelu", key=key)
    cases: dict[str, tuple[Any, int, int]] = {"network": (wide, 20 if quick else 60, 200)}
    for name, shape, channels, m in (
        ("encoder", (28, 28, 1), (8, 16), 30),
        ("colour encoder", (32, 32, 3), (16, 32, 64), 40),
    ):
        if name not in wanted:
            continue
        if quick:
            channels, shape = channels[:1], (8, 8, shape[2])
        net = make_network("encoder", num_outputs=10, channels=channels, num_features=32 if quick else 128)
        variables = net.init(key, jnp.zeros((1, *shape)))
        phi = Encoder.of(net, variables=variables, input_shape=shape, layer="features")
        cases[name] = (phi, m, 100)
    for name in wanted:
        phi, m, steps = cases[name]
        head = rng.standard_normal((phi.num_features, 10)) / phi.num_features**0.5
        start = 0.5 * rng.standard_normal((m, phi.num_inputs))
        found: dict[str, Any] = {}

        def run(phi: Any = phi, head: Any = head, start: Any = start, found: Any = found) -> Any:
            left = max(1.0, min(MOST_SECONDS, bench.end - perf_counter()))
            found["report"] = solve_spanning(phi, head, start, steps=steps, seconds=left).report  # noqa: B023
            return None

        def check(_: Any, found: Any = found) -> str:
            report = found["report"]
            said = "exact" if report.reached else "NOT EXACT"
            return f"{said}, residual {report.residual:.0e}, {report.steps} steps, {report.method.name}"

        floor = partial(_least_seconds, bench, phi, start, found)
        title = f"spanning, {name} p = {phi.num_features}"
        bench.section(title, partial(bench.stage, title, run, check, floor, repeats=1))


def _least_seconds(bench: Bench, phi: Any, start: np.ndarray, found: dict[str, Any]) -> float:
    """Passes through phi, one forwards and one back for every step and iteration; products and factors."""

    @jax.jit
    def once(phi: Any, x: Any) -> Any:
        value, back = jax.vjp(phi, x)
        return back(value)[0]

    with device_scope(np.float32):
        x = jnp.asarray(start, jnp.float32)
        one = fastest(lambda: once(phi, x))
    report, p, (m, d) = found["report"], phi.num_features, start.shape
    side = 10 * p if report.method is SpanningMethod.DIRECT else p
    step = (2 * m * p * p * d + side**3 / 3) / bench.float32
    return (report.steps + report.iterations) * one + report.steps * step


def kip_stages(bench: Bench) -> None:
    """KIP on moments at 1, 10 and 50 per class, beside the analytic set of the same model."""
    title, x, y, t, classes = load("mnist", bench.quick)
    d = x.shape[1]
    phi = jd.features.RandomNetwork.create(d, widths=(d,), weights="gaussian", key=jax.random.key(0))
    fit = partial(jd.fit_ridge, phi, x, y, lam=10.0, dtype=np.float32)
    model, fits = fit(), timed(lambda: _Held(fit()))[0]
    for ipc in (1, 2) if bench.quick else (1, 10, 50):
        told = (bench, ipc, title, model, x, y, t, classes, fits)
        bench.section(f"KIP, {ipc} per class", partial(kip_beside_analytic, *told))


def kip_beside_analytic(
    bench: Bench, ipc: int, title: str, model: Any, x: Any, y: Any, t: Any, classes: Any, fit: float
) -> None:
    """A row of that table."""
    d, m, steps = x.shape[1], 10 * ipc, 20 if bench.quick else 500
    config = kip.KipConfig(ipc=ipc, steps=steps, labels="solved")
    # Features and their gradient, Phis G, the system: products in float32 and one in float64.
    floor = 6 * m * d * d / bench.float32 + (2 * m * d * d + 2 * m * m * d) / bench.float64

    def run() -> Any:
        return _Held(kip.train(model, x, y, config, key=jax.random.key(1)))

    def falls(held: Any) -> str:
        loss = held.value.history.loss[:, 0]
        return f"loss {loss[0]:.4f} to {loss[-1]:.4f}" if loss[-1] < loss[0] else "LOSS DOES NOT FALL"

    held = bench.stage(f"KIP, {steps} steps, {ipc} per class, {title}", run, falls, steps * floor, repeats=1)
    if held is None:
        return
    took = bench.rows[-1].warm or bench.rows[-1].cold
    made = partial(jd.distill, model, ipc=ipc, dtype=np.float32, key=jax.random.key(2))
    small, analytic = made(), timed(lambda: _Held(made()))[0]
    score = jd.certify(model, held.value.sets[0], t, classes)
    own = jd.certify(model, small, t, classes)
    row = {
        "per class": ipc,
        "KIP seconds": fit + took,
        "KIP step, ms": 1e3 * held.value.history.total_seconds / steps,
        "KIP accuracy": score.accuracy_distilled,
        "analytic seconds": fit + analytic,
        "analytic accuracy": own.accuracy_distilled,
        "analytic exact": own.exact,
        "published KIP, analytic": PUBLISHED.get(ipc),
    }
    bench.table.append(row)


def kernel_stages(bench: Bench) -> None:
    """Tiles of the NTK."""
    n = 512 if bench.quick else 16384
    x = np.random.default_rng(0).standard_normal((n, 784), np.float32)
    v = np.ones((n, 10))

    def right(found: Any) -> str:
        few = x[:64]
        wide = kernel_matrix(NTK(), few, x, dtype=np.float64) @ v
        error = np.linalg.norm(found[:64] - wide) / np.linalg.norm(wide)
        return f"error {error:.0e}" if error < 1e-4 else f"WRONG by {error:.0e}"

    operator = TiledKernel.of(NTK(), x)
    half = 0.5 * 2 * n * n * 784 / bench.float32
    bench.stage(f"NTK times vectors, n = {n}", lambda: operator.matmul(v), right, half)


def whole_process(bench: Bench) -> None:
    """``jaxdistill distill``, a process of its own: cold, then with its programs kept."""
    dataset = "mnist" if on_disk("mnist") and not bench.quick else "digits"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jaxdistill", "distill", "--dataset", dataset, "--json"]
        command += ["--out", str(Path(folder) / "out")]
        told = {
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "programs"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

        def run() -> Any:
            left = max(10.0, bench.end - perf_counter())
            told_to: Any = {"capture_output": True, "text": True, "check": False, "timeout": left}
            made = subprocess.run(command, env=os.environ | told, **told_to)
            if made.returncode:
                raise RuntimeError((made.stderr.strip() or f"exit {made.returncode}").splitlines()[-1])
            return _Held(json.loads(made.stdout))

        def check(held: Any) -> str:
            return f"error {held.value['relative_weight_error']:.0e}, {held.value['seconds']}"

        bench.stage(f"jaxdistill distill --dataset {dataset}", run, check, repeats=1)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Check and time the package on this accelerator.")
    parser.add_argument("--quick", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--seconds", type=float, default=350, help="most that it takes")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args(arguments)
    bench = Bench(options.quick, options.seconds, options.out)
    alarm = threading.Timer(options.seconds, bench.over)
    alarm.daemon = True
    alarm.start()
    bench.section("rates", partial(measure_rates, bench))
    # In the order of what would be missed most if the time is over.
    bench.section("linear, mnist", partial(linear_stages, bench, "mnist"))
    bench.section("KIP", partial(kip_stages, bench))
    bench.section("whole process", partial(whole_process, bench))
    bench.section("spanning", partial(spanning_stages, bench, "network", "encoder"))
    bench.section("linear, cifar10", partial(linear_stages, bench, "cifar10"))
    bench.section("kernels", partial(kernel_stages, bench))
    bench.section("spanning, colour", partial(spanning_stages, bench, "colour encoder"))
    alarm.cancel()
    report = bench.write()
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
