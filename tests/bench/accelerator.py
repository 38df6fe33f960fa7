"""What an accelerator does with the package: checked, then timed beside floors measured in the same run.

``python tests/bench/accelerator.py [--quick] [--seconds 330] [--out DIR]``, with PYTHONPATH at the checkout.
It needs what JAX users have (jax, flax, optax, orbax). MNIST and CIFAR-10 come from the folder that
JAXDISTILL_DATA_DIR names, or else are random data of their shapes. Each stage runs once cold and then warm;
none begins after the seconds given. It writes accelerator_DEVICE.json and accelerator_DEVICE.md.

The floor of a stage is what its products, its factorisation and its copies take alone, at the rates measured
here: products in float32 (HIGHEST) and float64, copies from the host, eigh in float64. That of a solver is
its passes through the feature map.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.errors import DatasetError
from jaxdistill.features import Encoder
from jaxdistill.kernels import NTK
from jaxdistill.kernels.tiles import TiledKernel, kernel_matrix
from jaxdistill.networks import make_network
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.numerics.placement import device_scope, float64_scope, placement
from jaxdistill.ridge.moments import accumulate_moments
from jaxdistill.ridge.path import factor_primal
from jaxdistill.ridge.source import ArraySource
from jaxdistill.solve.spanning_solver import solve_spanning

SHAPES = {"mnist": (60000, (28, 28, 1)), "cifar10": (50000, (32, 32, 3))}
# Seconds of KIP at 1, 10 and 50 per class, and of the analytic set (CHW, network features, one A5000 GPU).
PUBLISHED = {1: (159, 16), 10: (554, 16), 50: (3114, 16)}


@dataclass
class Row:
    """One stage: whether it is right, what it takes, what it could not do without."""

    stage: str
    check: str
    cold: float | None = None
    warm: float | None = None
    floor: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.warm / self.floor if self.warm and self.floor else None


class Bench:
    """Rows so far, the rates that floors are made of, and the time that is left."""

    def __init__(self, quick: bool, seconds: float) -> None:
        self.quick, self.end, self.rows, self.rates = quick, perf_counter() + seconds, [], {}
        self.repeats = 2 if quick else 3
        # Operations and bytes a second, by measure_rates.
        self.float32 = self.float64 = self.copy = 1.0

    def stage(
        self,
        name: str,
        run: Callable[[], Any],
        check: Callable[[Any], str],
        floor: float | Callable[[], float] | None = None,
        repeats: int | None = None,
    ) -> Any:
        """Run cold, check, run warm; the fastest counts. A stage that fails is a row, and no end."""
        if perf_counter() > self.end:
            self.rows.append(Row(name, "not run: no time was left"))
            return None
        try:
            cold, result = timed(run)
            told = check(result)
            times = [timed(run)[0] for _ in range(self.repeats if repeats is None else repeats)]
            least = floor() if callable(floor) else floor
        except Exception as error:  # what fails on a machine seen for the first time is what this is for
            self.rows.append(Row(name, f"FAILED: {type(error).__name__}: {error}".splitlines()[0][:200]))
            print(self.rows[-1].check, file=sys.stderr)
            return None
        row = Row(name, told, cold, min(times, default=cold), least)
        self.rows.append(row)
        print(f"{name:<44} cold {cold:7.2f} s, warm {row.warm:8.4f} s  {told}", file=sys.stderr)
        return result


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = perf_counter()
    result = jax.block_until_ready(run())
    return perf_counter() - begun, result


def measure_rates(bench: Bench) -> None:
    """Products and copies alone."""
    size = 512 if bench.quick else 4096
    product = jax.jit(lambda a: matmul(a, a))
    host = np.random.default_rng(0).standard_normal((size, size), np.float32)
    with device_scope(np.float32) as side:
        device = side.devices[0]
        here = jax.device_put(host, device)
        short = fastest(lambda: product(here))
        large = np.ones((16 if bench.quick else 256, 2**18), np.float32)  # 16 or 256 MiB
        copy = fastest(lambda: jax.device_put(large, device))
    with float64_scope() as where:
        wide = jax.device_put(host.astype(np.float64), where.algebra)
        long = fastest(lambda: product(wide))
    bench.float32, bench.float64 = 2 * size**3 / short, 2 * size**3 / long
    bench.copy = large.nbytes / copy
    bench.rates = {
        "float32 product, GFLOP/s": 1e-9 * bench.float32,
        "float64 product, GFLOP/s": 1e-9 * bench.float64,
        "copy from the host, GB/s": 1e-9 * bench.copy,
    }


def eigh_alone(bench: Bench, gram: np.ndarray) -> float:
    """Seconds of eigh in float64 on the device where it lives, nothing copied."""
    with float64_scope() as where:
        here = jax.device_put(gram, where.algebra)
        factor = jax.jit(jnp.linalg.eigh)
        seconds = fastest(lambda: factor(here), times=1)
    bench.rates[f"eigh in float64, {len(gram)} x {len(gram)}, seconds"] = seconds
    return seconds


def fastest(run: Callable[[], Any], times: int = 3) -> float:
    jax.block_until_ready(run())
    return min(timed(run)[0] for _ in range(times))


def load(name: str, quick: bool) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs in standard units and centred class rows, of the data where they are there."""
    n, shape = SHAPES[name]
    n, tests = (2000, 500) if quick else (n, 10000)
    if quick:
        shape = (shape[0] // 4, shape[1] // 4, shape[2])
    try:
        if quick:
            raise DatasetError("small shapes are random")
        data = jd.load_dataset(name)
    except DatasetError:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 10, n + tests)
        means = rng.standard_normal((10, int(np.prod(shape))), np.float32)
        x = means[y] + 3 * rng.standard_normal((n + tests, int(np.prod(shape))), np.float32)
        return f"random, {name}'s shape", x[:n], jd.one_hot(y[:n], 10, centred=True), x[n:], y[n:]
    scale = jd.Standardize.fit(data.x_train)
    x, t = scale.forward(data.x_train[:n]), scale.forward(data.x_test[:tests])
    return name, x, jd.one_hot(data.y_train[:n], 10, centred=True), t, data.y_test[:tests]


def exact(certificate: Any) -> str:
    told = f"error {certificate.relative_weight_error:.0e}, accuracy {certificate.accuracy_distilled:.4f}"
    return f"{'exact' if certificate.exact else 'NOT EXACT'}, {told}"


def linear_stages(bench: Bench, name: str) -> None:
    """Moments, path, distil, certificate: data in host memory to certificate."""
    title, x, y, t, classes = load(name, bench.quick)
    (n, d), k = x.shape, y.shape[1]
    phi = jd.features.Linear(d)
    source = ArraySource.of(x, y, num_inputs=d, num_features=d)
    product = 2 * n * d * (d + k) / bench.float32
    rows = slice(0, n, max(1, n // 512))
    small = ArraySource.of(x[rows], y[rows], num_inputs=d, num_features=d)

    def right(_: Any) -> str:
        wide = x[rows].astype(np.float64)
        found = accumulate_moments(phi, small).gram
        error = np.linalg.norm(found - wide.T @ wide) / np.linalg.norm(found)
        return f"error {error:.0e}" if error < 1e-5 else f"WRONG by {error:.0e}"

    moments = bench.stage(
        f"moments, {title}",
        lambda: accumulate_moments(phi, source),
        right,
        max(product, x.nbytes / bench.copy),
    )
    if moments is None:
        return

    def decomposed(path: Any) -> str:
        symmetric = (moments.gram + moments.gram.T) / 2  # products in float32 are not, to the last bit
        left = symmetric @ path.basis - path.basis * path.eigenvalues
        error = np.linalg.norm(left) / np.linalg.norm(moments.gram)
        return f"error {error:.0e}" if error < 1e-10 else f"WRONG by {error:.0e}"

    factor = eigh_alone(bench, moments.gram)
    bench.stage(f"path, {title}", lambda: in_float64(factor_primal, moments, "float32"), decomposed, factor)
    key = jax.random.key(0)
    model = bench.stage(
        f"fit, lam given, {title}",
        lambda: _Held(jd.fit_ridge(phi, x, y, lam=100.0, dtype=np.float32)),
        lambda held: f"solved: {held.value.solution.solved}",
        max(product, x.nbytes / bench.copy) + factor,
        repeats=1,
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


def spanning_stages(bench: Bench) -> None:
    """Exact sets for maps without an inverse."""
    key, quick = jax.random.key(0), bench.quick
    rng = np.random.default_rng(0)
    d, p = (49, 64) if quick else (784, 3136)
    wide = jd.features.RandomNetwork.create(d, widths=(p,), activation="gelu", key=key)
    cases = {f"spanning, network p = {wide.num_features}": (wide, 20 if quick else 60, 200)}
    for name, shape, channels, m in (
        ("encoder", (28, 28, 1), (8, 16), 30),
        ("colour encoder", (32, 32, 3), (16, 32, 64), 40),
    ):
        if quick:
            channels, shape = channels[:1], (8, 8, shape[2])
        net = make_network("encoder", num_outputs=10, channels=channels, num_features=32 if quick else 128)
        variables = net.init(key, jnp.zeros((1, *shape)))
        phi = Encoder.of(net, variables=variables, input_shape=shape, layer="features")
        cases[f"spanning, {name} p = {phi.num_features}"] = (phi, m, 100)
    for name, (phi, m, steps) in cases.items():
        head = rng.standard_normal((phi.num_features, 10)) / phi.num_features**0.5
        start = 0.5 * rng.standard_normal((m, phi.num_inputs))
        found: dict[str, Any] = {}

        def run(phi: Any = phi, head: Any = head, start: Any = start, found: Any = found) -> Any:
            left = max(10.0, bench.end - perf_counter())
            found["report"] = solve_spanning(phi, head, start, steps=steps, seconds=left).report  # noqa: B023
            return None

        def check(_: Any, found: Any = found) -> str:
            report = found["report"]
            said = "exact" if report.reached else "NOT EXACT"
            return f"{said}, residual {report.residual:.0e}, {report.steps} steps, {report.method.name}"

        bench.stage(name, run, check, partial(_passes, phi, start, found), repeats=1)


def _passes(phi: Any, start: np.ndarray, found: dict[str, Any]) -> float:
    """Passes through phi, one forwards and one back for every step and iteration, in float32."""

    @jax.jit
    def once(phi: Any, x: Any) -> Any:
        value, back = jax.vjp(phi, x)
        return back(value)[0]

    with device_scope(np.float32):
        x = jnp.asarray(start, jnp.float32)
        one = fastest(lambda: once(phi, x))
    return (found["report"].steps + found["report"].iterations) * one


def kip_stages(bench: Bench) -> list[dict[str, Any]]:
    """KIP on moments at 1, 10 and 50 per class, beside the analytic set of the same model."""
    title, x, y, t, classes = load("mnist", bench.quick)
    d = x.shape[1]
    phi = jd.features.RandomNetwork.create(d, widths=(d,), weights="gaussian", key=jax.random.key(0))
    begun = perf_counter()
    model = jd.fit_ridge(phi, x, y, lam=10.0, dtype=np.float32)
    fit = perf_counter() - begun
    table = []
    for ipc in (1, 2) if bench.quick else (1, 10, 50):
        m, steps = 10 * ipc, 20 if bench.quick else 500
        config = kip.KipConfig(ipc=ipc, steps=steps, block=steps, labels="solved")
        # Features and their gradient, Phis G, the system: products in float32 and one in float64.
        floor = 6 * m * d * d / bench.float32 + (2 * m * d * d + 2 * m * m * d) / bench.float64

        def run(config: Any = config) -> Any:
            return _Held(kip.train(model, x, y, config, key=jax.random.key(1)))

        def falls(held: Any) -> str:
            loss = held.value.history.loss[:, 0]
            return f"loss {loss[0]:.4f} to {loss[-1]:.4f}" if loss[-1] < loss[0] else "LOSS DOES NOT FALL"

        name = f"KIP, {steps} steps, {ipc} per class, {title}"
        held = bench.stage(name, run, falls, steps * floor, repeats=1)
        if held is None:
            continue
        begun = perf_counter()
        small = jd.distill(model, ipc=ipc, dtype=np.float32, key=jax.random.key(2))
        analytic = perf_counter() - begun
        score = jd.certify(model, held.value.sets[0], t, classes)
        own = jd.certify(model, small, t, classes)
        row = bench.rows[-1]
        table.append(
            {
                "per class": ipc,
                "KIP seconds": row.warm,
                "KIP step, ms": 1e3 * held.value.history.total_seconds / steps,
                "KIP accuracy": score.accuracy_distilled,
                "analytic seconds": fit + analytic,
                "analytic accuracy": own.accuracy_distilled,
                "analytic exact": own.exact,
                "published KIP, analytic": PUBLISHED.get(ipc),
            }
        )
    return table


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
    try:
        jd.load_dataset("mnist")
        dataset = "digits" if bench.quick else "mnist"
    except DatasetError:
        dataset = "digits"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jaxdistill", "distill", "--dataset", dataset, "--json"]
        command += ["--out", str(Path(folder) / "out")]
        told = {
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "programs"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

        def run() -> Any:
            made = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False)
            if made.returncode:
                raise RuntimeError(made.stderr.strip().splitlines()[-1])
            return _Held(json.loads(made.stdout))

        def check(held: Any) -> str:
            return f"error {held.value['relative_weight_error']:.0e}, {held.value['seconds']}"

        bench.stage(f"jaxdistill distill --dataset {dataset}", run, check, repeats=1)


def markdown(report: dict[str, Any]) -> str:
    """The table of a report."""
    lines = [f"# {report['device']}", "", f"{report['versions']}; float64 {report['float64']}.", ""]
    lines += ["| rate | measured |", "| --- | --- |"]
    lines += [f"| {name} | {value:.4g} |" for name, value in report["rates"].items()]
    lines += [
        "",
        "| stage | cold s | warm s | floor s | ratio | check |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        numbers = (row["cold"], row["warm"], row["floor"], row["ratio"])
        cells = " | ".join("" if value is None else f"{value:.3g}" for value in numbers)
        lines.append(f"| {row['stage']} | {cells} | {row['check']} |")
    table = report["kip against analytic"]
    if table:
        lines += ["", f"| {' | '.join(table[0])} |", f"| {' | '.join(['---'] * len(table[0]))} |"]
        for row in table:
            cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Check and time the package on this accelerator.")
    parser.add_argument("--quick", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--seconds", type=float, default=330, help="no stage begins later")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args(arguments)
    bench = Bench(options.quick, options.seconds)
    measure_rates(bench)
    linear_stages(bench, "mnist")
    linear_stages(bench, "cifar10")
    table = kip_stages(bench)
    kernel_stages(bench)
    spanning_stages(bench)
    whole_process(bench)
    device = jax.local_devices()[0].device_kind
    report = {
        "device": device,
        "versions": f"Python {platform.python_version()}, JAX {jax.__version__}",
        "float64": placement().title,
        "quick": options.quick,
        "rates": bench.rates,
        "rows": [asdict(row) | {"ratio": row.ratio} for row in bench.rows],
        "kip against analytic": table,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"accelerator_{''.join(c if c.isalnum() else '_' for c in device.lower())}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1, default=float) + "\n")
    stem.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
