"""The NTK of one hidden layer: closed-form sets, KIP from real images and from these sets, all data.

Label Solve and projection at several sizes and seeds; KIP with learned labels from real images and from the
solved set, its test accuracy looked at forty times and nothing chosen by it; with ``--all``, kernel ridge
regression on every training image.
"""

from __future__ import annotations

import argparse
import resource
import time
from functools import partial
from itertools import product
from typing import Any

import common
import jax
import numpy as np
from curves import Curve, Panel, draw_panels

from jaxdistill import kip
from jaxdistill.distill.support import distill_kernel
from jaxdistill.evaluate.certify import certify
from jaxdistill.kernels import NTK
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import Task, prepare
from jaxdistill.ridge.kernel_fit import KernelModel, fit_kernel_ridge

KEYS = ("dataset", "method", "size", "steps", "seed")
STARTS = ("real", "solved")
# Above it KIP is for machines with an accelerator.
LARGEST_KIP = 100


def main() -> None:
    """Run or resume, then write the table and the figure."""
    options = common.parse(__doc__ or "", _extend)
    sizes, seeds, steps = ([10], 1, 200) if options.quick else (options.sizes, options.seeds, options.steps)
    task = prepare(options.dataset, centred=True)
    rows = common.Rows(options.results / f"{options.dataset}_ntk.jsonl", KEYS)
    teacher = fit_kernel_ridge(NTK(), task.x[: options.teacher], task.y[: options.teacher], lam=0.01)
    for size, seed, labels in product(sizes, range(seeds), ("solved", "projected")):
        setting: dict[str, Any] = {"dataset": options.dataset, "size": size, "steps": 0, "seed": seed}
        rows.once(partial(_closed, task, teacher, size, labels, seed), method=labels, **setting)
    for size, start in product([size for size in sizes if size <= LARGEST_KIP], STARTS):
        setting = {"dataset": options.dataset, "size": size, "steps": steps, "seed": 0}
        rows.once(partial(_kip, task, teacher, size, start, steps), method=f"KIP from {start}", **setting)
    if options.all:
        setting = {"dataset": options.dataset, "size": len(task.x), "steps": 0, "seed": 0}
        rows.once(partial(_everything, task), method="all data", **setting)
    table = options.results / f"{options.dataset}_ntk.md"
    write_atomically(table, _table(options, rows.rows).encode())
    print(table.read_text(), _figure(options, rows.rows), sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--seeds", type=int, default=3, help="of the closed-form sets")
    parser.add_argument("--steps", type=int, default=8000, help="of KIP")
    parser.add_argument("--teacher", type=int, default=6000, help="images that the full model is trained on")
    parser.add_argument("--all", action="store_true", help="kernel ridge regression on all images")


def _report(task: Task, model: KernelModel, small: Any, seconds: float) -> dict[str, Any]:
    found = certify(model, small, task.x_test, task.y_test)
    return {
        "accuracy": found.accuracy_distilled,
        "accuracy_full": found.accuracy_full,
        "distance": found.relative_weight_error,
        "exact": found.exact,
        "seconds": seconds,
    }


def _closed(task: Task, teacher: KernelModel, size: int, labels: str, seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    small = distill_kernel(teacher, task.x, task.y, size=size, labels=labels, key=jax.random.key(seed))
    return _report(task, teacher, small, time.perf_counter() - start)


def _kip(task: Task, teacher: KernelModel, size: int, start: str, steps: int) -> dict[str, Any]:
    key = jax.random.key(0)
    first: Any = start
    if start == "solved":
        first = distill_kernel(teacher, task.x, task.y, size=size, key=key)
    config = kip.KipConfig(
        size=size,
        start=first,
        steps=steps,
        labels="learned",
        batch=min(2000, len(task.x)),
        learning_rate=0.06,
        evaluate_every=max(1, steps // 40),
        checkpoint_every=steps,
    )
    classes = task.y.shape[1]
    looking = task.x_test, np.eye(classes)[task.y_test] - 1 / classes
    result = kip.train(teacher, task.x, task.y, config, key=key, validation=looking)
    history = result.history
    return _report(task, teacher, result.small, float(history.seconds[-1])) | {
        "curve_steps": history.evaluated_at.tolist(),
        "curve_accuracy": history.accuracy[:, 0].tolist(),
        "steps_to_final": _first_at(history, float(history.accuracy[-1, 0])),
    }


def _first_at(history: Any, accuracy: float) -> int:
    """Steps after which the accuracy first was within 0.1 points of the last one."""
    return int(history.evaluated_at[np.argmax(history.accuracy[:, 0] >= accuracy - 1e-3)])


def _everything(task: Task) -> dict[str, Any]:
    start = time.perf_counter()
    model = fit_kernel_ridge(
        NTK(),
        task.x,
        task.y,
        lam=0.1,
        solver="cg",
        rank=min(1500, len(task.x)),
        tolerance=1e-3,
        memory=4 * 2**30,
        key=jax.random.key(0),
        progress=True,
    )
    taken = time.perf_counter() - start
    accuracy = float(np.mean(model.predict(task.x_test).argmax(1) == task.y_test))
    told = {"residual": model.residual, "products": model.steps, "distance": None}
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"accuracy": accuracy, "seconds": taken, "peak_bytes": peak} | told


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    header = (
        *("method", "images", "seeds", "test accuracy, %", "relative RKHS distance"),
        *("KIP steps", "steps to within 0.1 of the end", "seconds"),
    )
    lines = []
    for method, size in dict.fromkeys((row["method"], row["size"]) for row in rows):
        found = [row for row in rows if (row["method"], row["size"]) == (method, size)]
        accuracy = 100 * np.array([row["accuracy"] for row in found])
        first = found[0]
        lines.append(
            [
                method,
                size,
                len(found),
                f"{accuracy.mean():.2f}" + (f" ± {accuracy.std():.2f}" if len(found) > 1 else ""),
                "-" if first["distance"] is None else f"{np.mean([r['distance'] for r in found]):.3f}",
                first["steps"] or "-",
                first.get("steps_to_final", "-"),
                f"{np.mean([row['seconds'] for row in found]):.1f}",
            ]
        )
    full = [row for row in rows if "residual" in row]
    notes = [
        f"All data: lam = 0.1, conjugate gradients, {row['products']} products with the kernel matrix, "
        f"residual {row['residual']:.0e}, peak memory of the process {row['peak_bytes'] / 2**30:.2f} GiB."
        for row in full
    ]
    return "\n".join(
        [
            f"# NTK of one hidden layer, {options.dataset}",
            "",
            f"`{common.command_line()}` on {common.machine()}.",
            "",
            f"Full model on at most {options.teacher} images: {common.percent(rows[0]['accuracy_full'])} %. "
            "Solved labels and KIP see the targets of all training images; projected labels see the full "
            "model alone. The distance is that of the set's function to the full model's, in the kernel's "
            "space. Seconds are of a machine that other work shared. Published KIP on MNIST, fully connected "
            "kernel: 85.5 with 10 images, 97.2 with 100.",
            "",
            common.markdown_table(header, lines),
            *notes,
        ]
    )


def _figure(options: Any, rows: list[dict[str, Any]]) -> Any:
    """Test accuracy of KIP over steps, beside what Label Solve reaches without any."""
    panels = []
    for size in dict.fromkeys(row["size"] for row in rows if "curve_steps" in row):
        own = [row for row in rows if row["size"] == size]
        curves = [
            Curve(row["method"], row["curve_steps"], [100 * a for a in row["curve_accuracy"]], style)
            for row, style in zip((r for r in own if "curve_steps" in r), ("-", "--"), strict=True)
        ]
        last = max(max(curve.x) for curve in curves)
        solved = 100 * float(np.mean([row["accuracy"] for row in own if row["method"] == "solved"]))
        curves.append(Curve("Label Solve, real images", [min(curves[0].x), last], [solved] * 2, "k:"))
        panels.append(Panel(f"{size} images", "KIP steps", "test accuracy, %", curves))
    path = options.figures / f"{options.dataset}_ntk.png"
    return draw_panels(panels, path, common.command_line())


if __name__ == "__main__":
    main()
