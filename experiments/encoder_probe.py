"""The linear probe of a trained encoder, distilled: exact sets against everything else at the same budget.

A small convolutional encoder is trained in seconds, its features are frozen, and ridge regression on them is
the model to distil. For every activation and number of images per class: the set of the spanning
equations, from real images; random images, class means, k-means, herding, label distillation, and KIP.
The first is saved in float32 and judged by ``jaxdistill evaluate`` in a fresh process, from the file alone.

``--dataset cifar10`` and ``cifar100`` have a wider encoder of 256 features, trained for longer, or with
``--encoder small`` one of 128 that learns in minutes on two cores; the rows of each have their own files. The
network ``resnet`` is residual, with ReLU, layer normalisation and pooled features. ``--methods boxed`` keeps
the pixels of an exact set between 0 and 1. ``cifar10-shaped`` and ``cifar100-shaped`` are synthetic images.

Where a set has as many images as there are features, any that span them are enough: no image is solved for,
and label distillation is judged from its file. Encoders are trained once and kept in ``sets/``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import common
import jax
import numpy as np
from curves import Curve, Panel, draw_panels
from flax.traverse_util import unflatten_dict
from synthetic import dataset_path

from jaxdistill.data.augment import Augmentation
from jaxdistill.distill import distill
from jaxdistill.distill.baselines import BASELINES, baseline
from jaxdistill.distill.options import SolverOptions
from jaxdistill.distill.reference import pick_reference
from jaxdistill.evaluate.certify import certify
from jaxdistill.features.encoder import Encoder
from jaxdistill.features.trained import train_encoder
from jaxdistill.kip import KipConfig, recommended, train
from jaxdistill.networks import make_network
from jaxdistill.networks.config import TrainConfig
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import Task, parse_validation, prepare, split_keys
from jaxdistill.plots import Row, draw_rows
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel, predict
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.solve.box import pixel_box

KEYS = ("dataset", "activation", "ipc", "method")
SOLVED = ("spanning", "boxed", "copies")
METHODS = (*SOLVED, *BASELINES, "kip")
SHOWN = ("accuracy_full", "accuracy_distilled", "agreement", "relative_weight_error", "exact")
NAMES = {"boxed": "spanning, pixels in [0, 1]", "copies": "near copies"}
# Trained in seconds: a small encoder for digits, a deeper one for images of CIFAR's shape. For CIFAR itself
# one that takes minutes on two cores, and a wide one that takes a fraction of one on an accelerator.
SMALL = ({"channels": (16, 32), "num_features": 128}, TrainConfig(steps=800, batch=128, learning_rate=2e-3))
DEEP = (
    {"channels": (32, 64, 128), "num_features": 256},
    TrainConfig(steps=500, batch=64, learning_rate=1e-3),
)
COLOURED = (
    {"channels": (32, 64, 128), "num_features": 128},
    # A slow rate, and decay, keep units from saturating or falling asleep, and so few images solvable.
    TrainConfig(
        steps=1500,
        batch=128,
        learning_rate=1e-3,
        weight_decay=1e-2,
        augment=Augmentation(flip=True, shift=2),
    ),
)
WIDE = (
    {"channels": (64, 128, 256), "num_features": 256},
    TrainConfig(steps=2000, batch=256, learning_rate=2e-3, augment=Augmentation(flip=True, shift=4)),
)
COLOUR = ("cifar10", "cifar100")
# Widths of the residual network; of the last there are features.
RESNET = {"small": (16, 32, 64), "large": (32, 64, 128)}


def main() -> None:
    """Run or resume, then write the table, the figure and the pictures."""
    options = common.parse(__doc__ or "", _extend)
    options.activations = options.activations or (
        ["tanh"] if options.quick else ["leaky_relu", "tanh", "gelu"]
    )
    options.ipc = options.ipc or ([1, 2] if options.quick else [1, 2, 10])
    name, stem = options.dataset, _stem(options)
    path = dataset_path(name)
    task = cache(partial(prepare, path))
    model = cache(partial(_model, options, task))
    rows = common.Rows(options.results / f"{stem}_encoder_probe.jsonl", KEYS)
    triples: Any = product(options.activations, options.methods, options.ipc)
    for activation, method, ipc in triples:
        setting: dict[str, Any] = dict(zip(KEYS, (name, activation, ipc, method), strict=True))
        wanted = not options.draw and rows.find(**setting) is None
        if wanted and _serves(method, ipc, task, model, activation):
            rows.once(partial(_measure, options, path, task, model, setting), **setting)
    chosen = [row for row in rows.rows if row["dataset"] == name]
    if not chosen:
        raise SystemExit(f"there are no rows of {name} in {options.results}; leave --draw out")
    chosen.sort(key=lambda row: (row["ipc"], METHODS.index(row["method"])))
    table = write_atomically(options.results / f"{stem}_encoder_probe.md", _table(options, chosen).encode())
    drawn = [*_figures(options, chosen), *_pictures(options, task, rows)]
    print(table.read_text(), *drawn, sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--activations", nargs="+", help="default: leaky_relu tanh gelu (--quick: tanh)")
    parser.add_argument(
        "--encoder", choices=tuple(RESNET), default="large", help="of cifar10 and cifar100; default large"
    )
    parser.add_argument("--ipc", type=int, nargs="+", help="default: 1 2 10 (--quick: 1 2)")
    parser.add_argument("--starts", type=int, default=4, help="real starts, side by side")
    parser.add_argument("--steps", type=int, default=200, help="of Levenberg-Marquardt, at most")
    parser.add_argument("--seconds", type=float, help="for a try at a spanning set; default no limit")
    own = [method for method in METHODS if method not in ("boxed", "copies")]
    parser.add_argument(
        "--methods", nargs="+", default=own, choices=METHODS, help="default: not boxed, copies"
    )
    parser.add_argument("--train-steps", type=int, help="of an encoder; default as the data need")
    parser.add_argument("--learning-rate", type=float, help="of an encoder; default as the data need")
    parser.add_argument("--weight-decay", type=float, help="of an encoder; default as the data need")
    parser.add_argument("--judge-on", metavar="PLATFORM", help="of the fresh process, such as cpu")
    parser.add_argument("--draw", action="store_true", help="draw the rows that are there, measure nothing")
    parser.add_argument("--note", help="what a reader has to know of the data, such as 'JPEG copies'")


def _asked(options: Any) -> dict[str, Any]:
    """Settings of the training that differ from what the data need."""
    asked = {"steps": options.train_steps}
    asked |= {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay}
    return {name: value for name, value in asked.items() if value is not None}


def _encoder(options: Any, task: Task, activation: str) -> tuple[Encoder, float]:
    """A trained encoder and the seconds that it took, now or in an earlier run."""
    key, shape, k = split_keys(0)[0], task.preprocess.shape, task.y.shape[1]
    settings, config = SMALL
    if options.dataset in COLOUR:
        settings, config = COLOURED if options.encoder == "small" else WIDE
    if options.dataset.endswith("-shaped"):
        settings, config = DEEP
    config = replace(config, **_asked(options))
    name, told = "encoder", settings | {"activation": activation}
    if activation == "resnet":
        name, told = "resnet", {"widths": RESNET[options.encoder]}
    network = make_network(name, num_outputs=k, **told)
    own = "".join(f"_{value:g}" for name, value in _asked(options).items() if name != "steps")
    file = _folder(options) / f"{_stem(options)}_{activation}_{config.steps}{own}_encoder.npz"
    if not file.exists():
        start = perf_counter()
        phi = train_encoder(task.x, task.y, image_shape=shape, network=network, config=config, key=key)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"seconds": perf_counter() - start, **phi.parameters}
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(file, buffer.getvalue())
    with np.load(file) as arrays:
        kept = dict(arrays)
    seconds = float(kept.pop("seconds"))
    variables = unflatten_dict(kept, sep="/")
    return Encoder.of(network, variables=variables, input_shape=shape, layer="features"), seconds


def _model(options: Any, task_of: Callable[[], Task], activation: str) -> tuple[RidgeModel, dict[str, float]]:
    """The probe of a trained encoder, and the seconds that both took."""
    task = task_of()
    phi, trained = _encoder(options, task, activation)
    start = perf_counter()
    validation = parse_validation("auto", len(task.x))
    model = fit_ridge(phi, task.x, task.y, validation=validation, key=split_keys(0)[1])
    return model, {"seconds_train": trained, "seconds_fit": perf_counter() - start}


def _serves(method: str, ipc: int, task_of: Callable[[], Task], model_of: Any, activation: str) -> bool:
    """Whether there is anything to solve for: not where the set has as many images as there are features."""
    if method in BASELINES:
        return True
    return ipc * task_of().y.shape[1] < model_of(activation)[0].features.num_features


def _measure(
    options: Any, path: str, task_of: Callable[[], Task], model_of: Any, setting: dict[str, Any]
) -> dict[str, Any]:
    task = task_of()
    model, seconds = model_of(setting["activation"])
    method, m = setting["method"], setting["ipc"] * task.y.shape[1]
    key = split_keys(0)[2]
    start, more = perf_counter(), {}
    if method in SOLVED:
        box = pixel_box(task.preprocess, dtype=np.float32) if method == "boxed" else None
        if method == "copies":
            data = np.asarray(task.x), task.y
            small = distill(model, size=m, realistic="copies", reference=data, dtype=np.float32, key=key)
            began = common.copied(small)
        else:
            small, began = _solved(options, model, task, m, box, key)
        more["solver"] = small.recipe["solver"]
        if began is not None:
            change = task.preprocess.inverse(small.x) - task.preprocess.inverse(began)
            if change.any():
                more["psnr"] = common.psnr(change)
    elif method == "kip":
        config = KipConfig(size=m, **recommended(m, task.y.shape[1], model.features.num_features))
        small = train(model, task.x, task.y, config, key=key).small
    else:
        small = baseline(method, model, task.x, task.y, size=m, key=key)
    seconds = seconds | {"seconds": perf_counter() - start}
    small = small.with_context(task.preprocess, task.class_names)
    if method in SOLVED or (method == "label distillation" and m >= model.features.num_features):
        found = _evaluate(options, small.save(_set_path(options, setting)), path)
    else:
        found = certify(model, small, task.x_test, task.y_test).to_dict()
    images = small.images
    return (
        {name: found[name] for name in SHOWN}
        | more
        | seconds
        | {
            "m": m,
            "p": model.features.num_features,
            "train": len(task.x),
            "test": len(task.x_test),
            "lam": model.lam,
            **_asked(options),
            "low": float(images.min()),
            "high": float(images.max()),
            "machine": common.machine(),
        }
        | common.peaks()
    )


def _solved(
    options: Any, model: RidgeModel, task: Task, m: int, box: Any, key: Any
) -> tuple[DistilledSet, np.ndarray | None]:
    """A set of the spanning equations, and the real images that it started from, where it did.

    Nothing is to spare with one image per class: what the package takes by default first, several real starts
    after it; elsewhere several where the first fails, unless pixels must stay in a box.
    """
    told: dict[str, Any] = {"steps": options.steps, "seconds": options.seconds}
    tight = m < 2 * task.y.shape[1] and box is None
    if tight:
        data, solver = (task.x, task.y), SolverOptions(**told)
        small = distill(model, size=m, reference=data, solver=solver, dtype=np.float32, key=key)
        if small.recipe["solver"].get("reached"):
            return small, None

    def begun(number: int) -> tuple[DistilledSet, np.ndarray]:
        starts = _starts(model, task, m, number, key)
        solver = SolverOptions(start=starts, starts=number, **told)
        small = distill(model, size=m, solver=solver, box=box, dtype=np.float32, key=key)
        return small, starts[small.recipe["solver"].get("chosen", 0)]

    if tight:
        return begun(options.starts)
    first = begun(1)
    return first if box is not None or first[0].recipe["solver"].get("reached") else begun(options.starts)


def _starts(model: RidgeModel, task: Task, m: int, number: int, key: Any) -> np.ndarray:
    """Sets of real images to start from, shape (number, m, d)."""
    keys = [jax.random.fold_in(key, start) for start in range(number)]
    picked = [pick_reference(model, (task.x, task.y), m, one)[0] for one in keys]
    return np.stack([_waking(model, task, x) for x in picked])


def _waking(model: RidgeModel, task: Task, x: np.ndarray) -> np.ndarray:
    """Images of which each feature that the weights use is awake on one, where any image wakes it.

    A unit of ReLU that is zero on all images has no derivative there, and the solver cannot reach it: an
    image that wakes it takes the place of one of its class that no other unit needs.
    """
    phi, k = model.features, task.y.shape[1]
    own = predict(phi, np.eye(phi.num_features), x)
    asleep = (own == own[0]).all(axis=0) & np.any(model.weights != 0, axis=1)
    if not asleep.any():
        return x
    pool = predict(phi, np.eye(phi.num_features), task.x)
    x, awake = x.copy(), own != 0
    for unit in np.flatnonzero(asleep & (pool != 0).any(axis=0)):
        if awake[:, unit].any():  # by an image that came for another unit
            continue
        best = int(np.argmax(np.abs(pool[:, unit])))
        slots = np.arange(int(task.y[best].argmax()), len(x), k)
        alone = [int((awake[slot] & (awake.sum(axis=0) == 1)).sum()) for slot in slots]
        slot = slots[int(np.argmin(alone))]
        x[slot], awake[slot] = task.x[best], pool[best] != 0
    return x


def _stem(options: Any) -> str:
    """How the files of a data set and an encoder are called."""
    small = options.dataset in COLOUR and options.encoder == "small"
    return f"{options.dataset}_small" if small else options.dataset


def _folder(options: Any) -> Path:
    folder = options.out / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _set_path(options: Any, setting: dict[str, Any]) -> Path:
    end = "" if setting["method"] == "spanning" else "_" + setting["method"].replace(" ", "_")
    return _folder(options) / f"{_stem(options)}_{setting['activation']}_{setting['ipc']}{end}.npz"


def _evaluate(options: Any, file: Path, dataset: str) -> dict[str, Any]:
    """What a fresh process makes of a file."""
    command = [sys.executable, "-m", "jaxdistill", "evaluate", str(file), "--dataset", dataset, "--json"]
    platform = {} if options.judge_on is None else {"JAX_PLATFORMS": options.judge_on}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | platform)
    return json.loads(done.stdout)


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    """One table an activation."""
    parts = [
        f"# Linear probes of trained encoders, {options.dataset}",
        "",
        f"`{common.command_line()}` on {common.machines(rows)}.",
        "",
        *([f"The data are {options.note}.", ""] if options.note else []),
        "Spanning sets are judged from the saved float32 file in a fresh process. PSNR is to the real images "
        "that the set started from; seconds include compilation, and leave out training the encoder and "
        "fitting its probe. Label distillation has the labels of least weight error, the other baselines and "
        "KIP those of best prediction. With as many images as features any that span are enough: no image is "
        "solved for.",
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
        counts = f", {first['train']} training and {first['test']} test images" if "train" in first else ""
        parts += [
            f"## {activation}: full probe {common.percent(first['accuracy_full'])} %{counts}",
            "",
            f"Encoder trained in {first['seconds_train']:.0f} s, probe in {first['seconds_fit']:.0f} s "
            f"with lam = {first['lam']:.4g}; shares in per cent.",
            "",
            common.markdown_table(
                header,
                (
                    [
                        row["m"],
                        NAMES.get(row["method"], row["method"]),
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


def _figures(options: Any, rows: list[dict[str, Any]]) -> list[Path]:
    """Accuracy of every method, and how near to real images the exact sets are."""
    panels, near = [], []
    solved = [row["activation"] for row in rows if row["method"] in SOLVED]
    # A panel is of no use where no set was solved for, unless there is none at all.
    for activation in dict.fromkeys(solved or [row["activation"] for row in rows]):
        own = [row for row in rows if row["activation"] == activation]
        curves = []
        for method in reversed(METHODS):  # the exact sets on top
            found = sorted((row for row in own if row["method"] == method), key=lambda row: row["ipc"])
            name = NAMES.get(method, method)
            style = {"spanning": "k*-", "boxed": "k+-", "copies": "kd-"}.get(method, "o--")
            parts = {name: (found, style)}
            if method in SOLVED:
                missed = [row for row in found if not row["exact"]]
                parts = {f"{name}, not exact": (missed, "kx")}
                parts[name] = [row for row in found if row["exact"]], style
            for label, (part, look) in parts.items():
                accuracies = [100 * row["accuracy_distilled"] for row in part]
                if part:
                    curves.append(Curve(label, [row["ipc"] for row in part], accuracies, look))
        ends = [min(row["ipc"] for row in own), max(row["ipc"] for row in own)]
        curves.append(Curve("full probe", ends, [100 * own[0]["accuracy_full"]] * 2, "k:"))
        panels.append(Panel(f"{activation} encoder", "images per class", "test accuracy, %", curves))
        for method in SOLVED:
            exact = [row for row in own if row["method"] == method and row["exact"] and "psnr" in row]
            exact.sort(key=lambda row: row["ipc"])
            if exact:
                values = [row["ipc"] for row in exact], [row["psnr"] for row in exact]
                end = {"boxed": ", pixels in [0, 1]", "copies": ", near copies"}.get(method, "")
                near.append(Curve(f"{activation}{end}", *values, "+--" if end else "*-"))
    name, note = f"{_stem(options)}_encoder_probe", common.command_line()
    drawn = [draw_panels(panels, options.figures / f"{name}.png", note)]
    if any(len(curve.x) > 1 for curve in near):
        panel = Panel("exact sets", "images per class", "PSNR to real images, dB", near)
        drawn.append(draw_panels([panel], options.figures / f"{name}_nearness.png", note))
    return drawn


def _pictures(options: Any, task_of: Callable[[], Task], measured: common.Rows) -> list[Path]:
    """The sets of the spanning equations that were judged, and real images."""
    if not any(_folder(options).glob(f"{_stem(options)}_*.npz")):  # all rows are of an earlier run
        return []
    rows = []
    task = task_of()
    k = min(10, task.y.shape[1])
    first = [int(np.argmax(task.y.argmax(axis=1) == c)) for c in range(k)]
    rows.append(Row("real", task.preprocess.inverse(task.x[first])))
    for values in product((options.dataset,), options.activations, sorted(options.ipc), SOLVED):
        setting: dict[str, Any] = dict(zip(KEYS, values, strict=True))
        path, judged = _set_path(options, setting), measured.find(**setting)
        if path.exists() and judged is not None:
            small = DistilledSet.load(path)
            end = {"boxed": "\nin [0, 1]", "copies": "\nnear copies"}.get(setting["method"], "")
            end += "" if judged["exact"] else "\nnot exact"
            label = f"{setting['activation']},\n{setting['ipc']} per class{end}"
            rows.append(Row(label, small.images[:k]))
    if len(rows) == 1:
        return []
    names = None if task.class_names is None else task.class_names[:k]
    path = options.figures / f"{_stem(options)}_encoder_probe_images.png"
    return [draw_rows(rows, names, path, common.command_line())]


if __name__ == "__main__":
    main()
