"""Convolutional kernels of neural-tangents: closed-form sets and KIP on subsets, without TensorFlow.

Two architectures: "convolutional", two convolutions and a readout of every pixel, whose kernel takes pixels;
and "Myrtle-5" (Shankar et al. 2020), whose averages take all pairs of pixels. For each, kernel ridge
regression on a subset, sets of one and ten images per class with solved labels, and KIP from the smallest.
Inside Myrtle-5 MNIST is first averaged over 2 x 2 pixels: an entry costs the square of their number. Run it
under several versions of JAX: the table keeps them side by side.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np

from jaxdistill import kip
from jaxdistill.distill.reference import balanced_rows
from jaxdistill.distill.support import distill_kernel
from jaxdistill.evaluate.certify import certify
from jaxdistill.kernels import NeuralTangentsKernel, from_neural_tangents, import_neural_tangents
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import Task, prepare
from jaxdistill.plots import Row, draw_rows
from jaxdistill.ridge.kernel_fit import KernelModel, fit_kernel_ridge

KEYS = ("dataset", "jax", "kernel", "train", "test", "method", "size", "steps")
LAM = 1e-2
KEY = jax.random.key(0)


def main() -> None:
    """Run or resume, then write the table and the pictures."""
    options = common.parse(__doc__ or "", _extend)
    if options.quick:
        options.train, options.test, options.steps = 100, 100, 10
    task = _subset(prepare(options.dataset, centred=True), options.train, options.test)
    rows = common.Rows(options.results / f"{options.dataset}_convolutional_ntk.jsonl", KEYS)
    for name in options.kernels:
        case = Case(task, name, options.out / "sets")
        setting = {"dataset": options.dataset, "jax": jax.__version__, "kernel": name}
        setting |= {"train": len(task.x), "test": len(task.x_test)}
        rows.once(case.full, **setting, method="full model", size=len(task.x), steps=0)
        for size in (10,) if options.quick else (10, 100):
            for support in ("balanced", "kmeans"):
                rows.once(partial(case.closed, size, support), **setting, method=support, size=size, steps=0)
        if name == "convolutional" or (options.dataset == "digits" and not options.quick):
            steps = options.steps
            rows.once(partial(case.kip, steps), **setting, method="KIP", size=10, steps=steps)
    loaded = sorted({module.split(".")[0] for module in sys.modules} & {"tensorflow", "tf2jax"})
    if loaded:
        raise SystemExit(f"this process has loaded {', '.join(loaded)}; import_neural_tangents should not")
    text = _report(rows.rows)
    write_atomically(options.results / f"{options.dataset}_convolutional_ntk.md", text.encode())
    print(text)
    print(_pictures(options, task))


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    parser.add_argument("--train", type=int, default=200, help="images that the full model is trained on")
    parser.add_argument("--test", type=int, default=200, help="test images")
    parser.add_argument("--steps", type=int, default=50, help="steps of KIP")


def _subset(task: Task, train: int, test: int) -> Task:
    """Training images balanced over classes, and the first test images."""
    kept = balanced_rows(task.y, min(train, len(task.x)), True, KEY)
    return Task(
        name=task.name,
        x=task.x[kept],
        y=task.y[kept],
        x_test=task.x_test[:test],
        y_test=task.y_test[:test],
        preprocess=task.preprocess,
        class_names=task.class_names,
    )


def _convolutional(shape: tuple[int, ...]) -> NeuralTangentsKernel:
    stax, convolution = _layers()
    network = stax.serial(*convolution(), *convolution(), stax.Flatten(), stax.Dense(1))
    return from_neural_tangents(network[2], shape=shape)


def _myrtle5(shape: tuple[int, ...]) -> NeuralTangentsKernel:
    stax, convolution = _layers()
    pool = partial(stax.AvgPool, (2, 2), (2, 2), "SAME")
    layers = [*convolution(), *convolution(), pool(), *convolution(), pool(), *convolution()]
    network = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(1))

    def halved(images: jax.Array) -> jax.Array:
        n, height, width, channels = images.shape
        return images.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))

    if shape[0] < 28:
        return from_neural_tangents(network[2], shape=shape)
    return from_neural_tangents(lambda a, b, get: network[2](halved(a), halved(b), get), shape=shape)


def _layers() -> tuple[Any, Callable[[], list[Any]]]:
    with jax.numpy_dtype_promotion("standard"):
        stax = import_neural_tangents().stax
    return stax, lambda: [stax.Conv(1, (3, 3), W_std=2**0.5, b_std=0.1, padding="SAME"), stax.Relu()]


KERNELS = {"convolutional": _convolutional, "Myrtle-5": _myrtle5}


class Case:
    """One kernel on one subset; the full model is there once it is asked for."""

    def __init__(self, task: Task, name: str, folder: Path) -> None:
        self.task, self.name, self.folder = task, name, folder
        self.kernel = KERNELS[name](task.preprocess.shape)

    @cached_property
    def model(self) -> KernelModel:
        """Kernel ridge regression on the subset."""
        return fit_kernel_ridge(self.kernel, self.task.x, self.task.y, lam=LAM)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Classes that it gives to the test images."""
        return self.model.predict(self.task.x_test).argmax(axis=1)

    def full(self) -> dict[str, Any]:
        """Row of the full model."""
        start = time.perf_counter()
        accuracy = float(np.mean(self.predicted == self.task.y_test))
        return {"accuracy": accuracy, "seconds": time.perf_counter() - start}

    def closed(self, size: int, support: str) -> dict[str, Any]:
        """Row of a set with solved labels."""
        model, task = self.model, self.task
        start = time.perf_counter()
        small = distill_kernel(model, task.x, task.y, size=size, support=support, key=KEY)
        return self._judged(small, time.perf_counter() - start, f"{support}_{size}")

    def kip(self, steps: int) -> dict[str, Any]:
        """Row of KIP with learned labels, from the set of one image per class."""
        model, task = self.model, self.task
        first = distill_kernel(model, task.x, task.y, size=10, key=KEY)
        config = kip.KipConfig(
            start=first,
            steps=steps,
            labels="learned",
            batch=min(100, len(task.x)),
            learning_rate=0.04,
            evaluate_every=steps,
            checkpoint_every=steps,
        )
        result = kip.train(model, task.x, task.y, config, key=KEY)
        seconds = result.history.total_seconds + result.history.compile_seconds
        return self._judged(result.small, seconds, "KIP_10")

    def _judged(self, small: Any, seconds: float, name: str) -> dict[str, Any]:
        """Distance in the kernel's space, and what a model trained on the set says of the test images."""
        task = self.task
        found = certify(self.model, small)
        again = fit_kernel_ridge(self.kernel, small.x, small.y, lam=small.lam).predict(task.x_test)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{task.name}_{self.name}_{name}.npy", task.preprocess.inverse(small.x))
        return {
            "accuracy": float(np.mean(again.argmax(axis=1) == task.y_test)),
            "agreement": float(np.mean(again.argmax(axis=1) == self.predicted)),
            "distance": found.relative_weight_error,
            "exact": found.exact,
            "seconds": seconds,
        }


def _report(rows: list[dict[str, Any]]) -> str:
    header = ("JAX", "kernel", "training", "test", "set", "images", "KIP steps")
    table = common.markdown_table(
        (*header, "test accuracy", "agreement", "relative distance", "exact", "seconds"),
        (
            [
                *(row[key] for key in ("jax", "kernel", "train", "test", "method", "size", "steps")),
                common.percent(row["accuracy"]),
                common.percent(row.get("agreement")),
                f"{row['distance']:.3f}" if "distance" in row else "-",
                ("yes" if row["exact"] else "no") if "exact" in row else "-",
                f"{row['seconds']:.1f}",
            ]
            for row in rows
        ),
    )
    lines = [
        "# Convolutional kernels of neural-tangents",
        f"`{common.command_line()}`, under each version of JAX; last on {common.machine()}.",
        "Accuracies and agreement with the full model in per cent, of the test images; labels are solved on "
        "all training images, or learned by KIP; seconds with compilation, without certificate and test. "
        "No module of TensorFlow was loaded.",
        table,
    ]
    return "\n\n".join(lines)


def _pictures(options: Any, task: Task) -> Path:
    """Real images, class means, and what KIP made of real images."""
    rows = [Row("real", task.preprocess.inverse(task.x[:10]))]
    wanted = [("convolutional", "kmeans_10", "class means")]
    wanted += [(kernel, "KIP_10", f"KIP,\n{kernel}") for kernel in KERNELS]
    for kernel, name, title in wanted:
        path = options.out / "sets" / f"{task.name}_{kernel}_{name}.npy"
        if path.exists():
            rows.append(Row(title, np.load(path)))
    path = options.figures / f"{options.dataset}_convolutional_ntk.png"
    return draw_rows(rows, task.class_names, path, common.command_line())


if __name__ == "__main__":
    main()
