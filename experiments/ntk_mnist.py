"""The NTK of one hidden layer: closed-form sets, KIP from real images and from these sets, all data.

Label Solve at several sizes; KIP with learned labels from real images and from the solved set, with its test
accuracy after every quarter of the steps; with ``--all``, kernel ridge regression on every training image.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import common
import jax
import numpy as np

from jaxdistill import kip
from jaxdistill.artifact import write_atomically
from jaxdistill.certify import certify
from jaxdistill.distill.support import distill_kernel
from jaxdistill.kernel_ridge import KernelModel, fit_kernel_ridge
from jaxdistill.kernels import NTK
from jaxdistill.pipeline import Task, prepare

KEYS = ("dataset", "method", "size", "steps", "seed")


def main() -> None:
    """Run or resume, then write the table."""
    options = common.parse(__doc__ or "", _extend)
    sizes, seeds, steps = ([10], 1, 50) if options.quick else (options.sizes, options.seeds, options.steps)
    task = prepare(options.dataset, centred=True)
    rows = common.Rows(options.results / f"{options.dataset}_ntk.jsonl", KEYS)
    teacher = fit_kernel_ridge(NTK(), task.x[: options.teacher], task.y[: options.teacher], lam=0.01)
    for size in sizes:
        for seed in range(seeds):
            for labels in ("solved", "projected"):
                measure = partial(_closed, task, teacher, size, labels, seed)
                rows.once(measure, dataset=options.dataset, method=labels, size=size, steps=0, seed=seed)
            for start in ("real", "solved"):
                if size > 100:
                    continue
                for part in (steps // 4, steps // 2, steps):
                    measure = partial(_kip, task, teacher, size, start, part, seed)
                    rows.once(
                        measure,
                        dataset=options.dataset,
                        method=f"KIP from {start}",
                        size=size,
                        steps=part,
                        seed=seed,
                    )
    if options.all:
        n = len(task.x)
        rows.once(
            partial(_everything, task), dataset=options.dataset, method="all data", size=n, steps=0, seed=0
        )
    table = common.markdown_table(
        ("method", "images", "steps", "seed", "test accuracy", "relative distance", "seconds"),
        [
            (
                r["method"],
                r["size"],
                r["steps"],
                r["seed"],
                common.percent(r["accuracy"]),
                "-" if r["distance"] is None else f"{r['distance']:.3f}",
                f"{r['seconds']:.1f}",
            )
            for r in rows.rows
        ],
    )
    text = f"{common.command_line()}\n\n{common.machine()}\n\n{table}"
    write_atomically(options.results / f"{options.dataset}_ntk.md", text.encode())
    print(table)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
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


def _kip(task: Task, teacher: KernelModel, size: int, start: str, steps: int, seed: int) -> dict[str, Any]:
    key = jax.random.key(seed)
    first: Any = start
    if start == "solved":
        first = distill_kernel(teacher, task.x, task.y, size=size, key=key)
    config = kip.KipConfig(
        size=size,
        start=first,
        steps=steps,
        labels="learned",
        batch=min(2000, len(task.x)),
        learning_rate=0.04,
        evaluate_every=steps,
        checkpoint_every=steps,
    )
    result = kip.train(teacher, task.x, task.y, config, key=key)
    return _report(task, teacher, result.small, result.history.total_seconds)


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
    return {"accuracy": accuracy, "seconds": taken} | told


if __name__ == "__main__":
    main()
