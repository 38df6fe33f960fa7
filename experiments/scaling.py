"""How time grows with n, p, k and m, each figure beside its floor of the same run.

The floor of a model is one full Gram product and one eigendecomposition, both measured just before. Data are
random, with the decaying spectrum of images: time does not depend on their values. Everything from inputs in
memory to the certificate is timed, a second time where a first one compiled; the floor likewise.
"""

from __future__ import annotations

import argparse
from time import perf_counter
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from curves import Curve, Panel, draw_panels

from jaxdistill import make_mesh, one_hot
from jaxdistill.distill import distill
from jaxdistill.distill.cost import job_cost
from jaxdistill.evaluate.certify import certify
from jaxdistill.features import Linear
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.rates import measure_rates
from jaxdistill.ridge.fit import LAMS, fit_ridge

# One number changes at a time, from the first setting; n over two decades.
FULL: dict[str, Any] = {
    "base": {"n": 20_000, "p": 1024, "k": 10, "m": 10},
    "n": (2_000, 6_000, 20_000, 60_000, 200_000),
    "p": (256, 512, 1024, 2048, 3072),
    "k": (2, 10, 100, 500),
    "m": (10, 100, 500),
}
QUICK: dict[str, Any] = {
    "base": {"n": 2_000, "p": 128, "k": 10, "m": 10},
    "n": (200, 632, 2_000, 6_324, 20_000),
    "p": (64, 128, 256),
    "k": (2, 10),
    "m": (10, 20),
}
TEST = 1000


def main() -> None:
    """Measure, write the table and draw the curves."""
    options = common.parse("Time against n, p, k, m and devices, beside the floor.", _extend)
    sizes = QUICK if options.quick else FULL
    rows = common.Rows(options.results / "scaling.jsonl", ("over", "n", "p", "k", "m", "devices"))
    measured = []
    for over in ("n", "p", "k", "m"):
        for value in sizes[over]:
            setting = {**sizes["base"], over: value, "devices": options.devices}
            setting["m"] = max(setting["m"], setting["k"])
            measured.append(rows.once(lambda setting=setting: measure(**setting), over=over, **setting))
    note = f"{common.command_line()}; {common.machine()}"
    names = ("over", "n", "p", "k", "m", "devices")
    table = common.markdown_table(
        (*names, "seconds", "floor, s", "times the floor", "planned, s"),
        (
            (
                *(row[name] for name in names),
                *(f"{row[name]:.2f}" for name in ("seconds", "floor")),
                *(f"{value:.2f}" for value in (row["seconds"] / row["floor"], row["planned"])),
            )
            for row in measured
        ),
    )
    path = options.results / "scaling.md"
    path.write_text(f"# Time beside its floor\n\n{note}\n\n{table}")
    print(path)
    panels = [_panel(over, [row for row in measured if row["over"] == over]) for over in ("n", "p")]
    print(draw_panels(panels, options.figures / "scaling.png", note))


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=1, help="devices that share the rows")


def measure(n: int, p: int, k: int, m: int, devices: int) -> dict[str, Any]:
    """Seconds of a job and of its floor, and what was planned for it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n + TEST, p), np.float32)
    x *= (1 / np.sqrt(1 + np.arange(p))).astype(np.float32)
    scores = x @ rng.standard_normal((p, k), np.float32) + rng.standard_normal((n + TEST, k), np.float32)
    classes = scores.argmax(axis=1)
    y = one_hot(classes, k)
    phi, mesh = Linear(p), make_mesh(devices)
    product, eigh = jax.jit(lambda a: matmul(a.T, a)), jax.jit(jnp.linalg.eigh)

    def floor() -> None:
        gram = np.asarray(product(x[:n]), np.float64)
        with jax.enable_x64(True):
            jax.block_until_ready(eigh(gram))

    def job() -> float:
        held = x[n:], y[n:]
        # In float32 as the floor is, also where the product is so cheap that float64 is the default.
        model = fit_ridge(phi, x[:n], y[:n], validation=held, dtype=np.float32, mesh=mesh)
        small = distill(model, size=m, key=jax.random.key(0))
        return certify(model, small, x[n:], classes[n:]).relative_weight_error

    cost = job_cost(phi, num_rows=n, num_targets=k, size=m, lam=1.0, num_test=TEST)
    rates = measure_rates()
    planned = sum(rates.seconds(stage.operations, stage.kind) for stage in cost.stages)
    error = job()
    floor()
    pairs = [(_seconds(floor), _seconds(job)) for _ in range(3)]
    least, seconds = sorted(pairs, key=lambda pair: pair[1] / pair[0])[1]
    return {"seconds": seconds, "floor": least, "planned": planned, "error": float(error), "lams": len(LAMS)}


def _seconds(function: Any) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def _panel(over: str, rows: list[dict[str, Any]]) -> Panel:
    fixed = ", ".join(f"{name} = {rows[0][name]}" for name in ("n", "p", "k", "m") if name != over)
    values = [row[over] for row in rows]
    curves = [
        Curve("features to certificate", values, [row["seconds"] for row in rows]),
        Curve("floor: one Gram product, one eigh", values, [row["floor"] for row in rows], "s--"),
        Curve("planned", values, [row["planned"] for row in rows], ":"),
    ]
    label = {"n": "n, examples", "p": "p, features"}[over]
    return Panel(f"time against {over} ({fixed})", label, "seconds", curves, log_y=True)


if __name__ == "__main__":
    main()
