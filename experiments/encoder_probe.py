"""The linear probe of a trained encoder, distilled: exact sets against everything else at the same budget.

A small convolutional encoder is trained in seconds, its features are frozen, and ridge regression on them is
the model to distil. For every activation and number of images per class: the set of the spanning
equations, from real images; random images, class means, k-means, herding, label distillation, and KIP.
The first is saved in float32 and judged by ``jaxdistill evaluate`` in a fresh process, from the file alone.

``--dataset cifar10-shaped`` and ``cifar100-shaped`` are synthetic colour images of 10 and 100 classes, with a
deeper encoder of 256 features.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import common
import jax
import numpy as np
from curves import Curve, Panel, draw_panels
from synthetic import dataset_path

from jaxdistill.distill import distill
from jaxdistill.distill.baselines import BASELINES, baseline
from jaxdistill.distill.options import SolverOptions
from jaxdistill.distill.reference import pick_reference
from jaxdistill.evaluate.certify import certify
from jaxdistill.features.trained import train_encoder
from jaxdistill.kip import KipConfig, recommended, train
from jaxdistill.networks.config import TrainConfig
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import Task, parse_validation, prepare, split_keys
from jaxdistill.plots import Row, draw_rows
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.sets.artifact import DistilledSet

KEYS = ("dataset", "activation", "ipc", "method")
METHODS = ("spanning", *BASELINES, "kip")
# Trained in seconds: a small encoder for digits, a deeper one for colour images.
SMALL = ({"channels": (16, 32), "num_features": 128}, TrainConfig(steps=800, batch=128, learning_rate=2e-3))
DEEP = (
    {"channels": (32, 64, 128), "num_features": 256},
    TrainConfig(steps=500, batch=64, learning_rate=1e-3),
)


def main() -> None:
    """Run or resume, then write the table, the figure and the pictures."""
    options = common.parse(__doc__ or "", _extend)
    options.activations = options.activations or (
        ["tanh"] if options.quick else ["leaky_relu", "tanh", "gelu"]
    )
    options.ipc = options.ipc or ([1, 2] if options.quick else [1, 2, 10])
    name = options.dataset
    path = dataset_path(name)
    task = cache(partial(prepare, path))
    model = cache(partial(_model, name, task))
    rows = common.Rows(options.results / f"{name}_encoder_probe.jsonl", KEYS)
    for activation, ipc, method in product(options.activations, options.ipc, options.methods):
        setting: dict[str, Any] = dict(zip(KEYS, (name, activation, ipc, method), strict=True))
        rows.once(partial(_measure, options, path, task, model, setting), **setting)
    chosen = [row for row in rows.rows if row["dataset"] == name]
    chosen.sort(key=lambda row: (row["ipc"], METHODS.index(row["method"])))
    table = write_atomically(options.results / f"{name}_encoder_probe.md", _table(options, chosen).encode())
    print(table.read_text(), _figure(options, chosen), *_pictures(options, task), sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--activations", nargs="+", help="default: leaky_relu tanh gelu (--quick: tanh)")
    parser.add_argument("--ipc", type=int, nargs="+", help="default: 1 2 10 (--quick: 1 2)")
    parser.add_argument("--starts", type=int, default=4, help="real starts, side by side")
    parser.add_argument("--steps", type=int, default=200, help="of Levenberg-Marquardt, at most")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)


def _model(name: str, task_of: Callable[[], Task], activation: str) -> tuple[RidgeModel, dict[str, float]]:
    """The probe of a trained encoder, and the seconds that both took."""
    task = task_of()
    key_features, key_split, _ = split_keys(0)
    settings, config = DEEP if name.endswith("-shaped") else SMALL
    start = perf_counter()
    phi = train_encoder(
        task.x,
        task.y,
        image_shape=task.preprocess.shape,
        config=config,
        activation=activation,
        key=key_features,
        **settings,
    )
    trained = perf_counter() - start
    validation = parse_validation("auto", len(task.x))
    model = fit_ridge(phi, task.x, task.y, validation=validation, key=key_split)
    return model, {"seconds_train": trained, "seconds_fit": perf_counter() - start - trained}


def _measure(
    options: Any, path: str, task_of: Callable[[], Task], model_of: Any, setting: dict[str, Any]
) -> dict[str, Any]:
    task = task_of()
    model, seconds = model_of(setting["activation"])
    method, m = setting["method"], setting["ipc"] * task.y.shape[1]
    key = split_keys(0)[2]
    starts = np.empty((0, m, task.x.shape[1]))
    start, small = perf_counter(), None
    if method == "spanning":
        # Nothing is to spare with one image per class: several starts at once; else where the first fails.
        for number in (options.starts,) if m < 2 * task.y.shape[1] else (1, options.starts):
            starts = _starts(model, task, m, number, key)
            solver = SolverOptions(start=starts, starts=number, steps=options.steps)
            small = distill(model, size=m, solver=solver, dtype=np.float32, key=key)
            if small.recipe["solver"].get("reached"):
                break
    elif method == "kip":
        config = KipConfig(size=m, **recommended(m, task.y.shape[1], model.features.num_features))
        small = train(model, task.x, task.y, config, key=key).small
    else:
        small = baseline(method, model, task.x, task.y, size=m, key=key)
    seconds = seconds | {"seconds": perf_counter() - start}
    assert small is not None
    small = small.with_context(task.preprocess, task.class_names)
    if method == "spanning":
        file = small.save(_set_path(options, setting))
        found = _evaluate(file, path)
    else:
        found = certify(model, small, task.x_test, task.y_test).to_dict()
    images = small.images
    row = {
        name: found[name]
        for name in ("accuracy_full", "accuracy_distilled", "agreement", "relative_weight_error", "exact")
    }
    if method == "spanning":
        row["solver"] = small.recipe["solver"]
        began = starts[row["solver"].get("chosen", 0)]
        change = images - task.preprocess.inverse(began)
        row["psnr"] = float(-10 * np.log10(np.mean(np.square(change, dtype=np.float64))))
    return (
        row
        | seconds
        | {
            "m": m,
            "lam": model.lam,
            "low": float(images.min()),
            "high": float(images.max()),
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
    )


def _starts(model: RidgeModel, task: Task, m: int, number: int, key: Any) -> np.ndarray:
    """Sets of real images to start from, shape (number, m, d)."""
    keys = [jax.random.fold_in(key, start) for start in range(number)]
    return np.stack([pick_reference(model, (task.x, task.y), m, one)[0] for one in keys])


def _set_path(options: Any, setting: dict[str, Any]) -> Path:
    folder = options.out / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{setting['dataset']}_{setting['activation']}_{setting['ipc']}.npz"


def _evaluate(file: Path, dataset: str) -> dict[str, Any]:
    """What a fresh process makes of a file."""
    command = [sys.executable, "-m", "jaxdistill", "evaluate", str(file), "--dataset", dataset, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    """One table an activation."""
    parts = [
        f"# Linear probes of trained encoders, {options.dataset}",
        "",
        f"`{common.command_line()}` on {common.machine()}.",
        "",
        "Spanning sets are judged from the saved float32 file in a fresh process. PSNR is to the real images "
        "that the set started from; seconds include compilation, and leave out training the encoder and "
        "fitting its probe. Label distillation has the labels of least weight error, the other baselines and "
        "KIP those of best prediction.",
        "",
    ]
    header = [
        "m",
        "method",
        "exact",
        "accuracy",
        "agreement",
        "weight error",
        "PSNR, dB",
        "pixels",
        "seconds",
    ]
    for activation in dict.fromkeys(row["activation"] for row in rows):
        own = [row for row in rows if row["activation"] == activation]
        first = own[0]
        parts += [
            f"## {activation}: full probe {common.percent(first['accuracy_full'])} %",
            "",
            f"Encoder trained in {first['seconds_train']:.0f} s, probe in {first['seconds_fit']:.0f} s "
            f"with lam = {first['lam']:.4g}; shares in per cent.",
            "",
            common.markdown_table(
                header,
                (
                    [
                        row["m"],
                        row["method"],
                        "yes" if row["exact"] else "no",
                        common.percent(row["accuracy_distilled"]),
                        common.percent(row["agreement"]),
                        f"{row['relative_weight_error']:.1e}",
                        f"{row['psnr']:.1f}" if "psnr" in row else "",
                        f"[{row['low']:.2f}, {row['high']:.2f}]",
                        f"{row['seconds']:.1f}",
                    ]
                    for row in own
                ),
            ),
        ]
    return "\n".join(parts)


def _figure(options: Any, rows: list[dict[str, Any]]) -> Path:
    panels = []
    for activation in dict.fromkeys(row["activation"] for row in rows):
        own = [row for row in rows if row["activation"] == activation]
        curves = []
        for method in reversed(METHODS):  # the exact sets on top
            found = sorted((row for row in own if row["method"] == method), key=lambda row: row["ipc"])
            accuracies = [100 * row["accuracy_distilled"] for row in found]
            style = "k*-" if method == "spanning" else "o--"
            curves.append(Curve(method, [row["ipc"] for row in found], accuracies, style))
        ends = [min(row["ipc"] for row in own), max(row["ipc"] for row in own)]
        curves.append(Curve("full probe", ends, [100 * own[0]["accuracy_full"]] * 2, "k:"))
        panels.append(Panel(f"{activation} encoder", "images per class", "test accuracy, %", curves))
    path = options.figures / f"{options.dataset}_encoder_probe.png"
    return draw_panels(panels, path, common.command_line())


def _pictures(options: Any, task_of: Callable[[], Task]) -> list[Path]:
    """The spanning sets, and real images."""
    rows = []
    task = task_of()
    k = min(10, task.y.shape[1])
    first = [int(np.argmax(task.y.argmax(axis=1) == c)) for c in range(k)]
    rows.append(Row("real", task.preprocess.inverse(task.x[first])))
    for activation, ipc in product(options.activations, sorted(options.ipc)):
        path = _set_path(options, {"dataset": options.dataset, "activation": activation, "ipc": ipc})
        if path.exists():
            small = DistilledSet.load(path)
            rows.append(Row(f"{activation},\n{ipc} per class", small.images[:k]))
    if len(rows) == 1:  # all rows are of an earlier run, whose sets are not here
        return []
    names = None if task.class_names is None else task.class_names[:k]
    path = options.figures / f"{options.dataset}_encoder_probe_images.png"
    return [draw_rows(rows, names, path, common.command_line())]


if __name__ == "__main__":
    main()
