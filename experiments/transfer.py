"""Do finite networks learn as much from exact sets of real-looking images as from the real images themselves?

Exact sets are made to train one ridge model, not networks. Here networks of three kinds are trained on sets
that started from real images, and on those real images, with the same labels, settings and seeds: hard labels
(the class) and soft ones (the full model's predictions), with and without augmentation.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from itertools import product
from typing import Any

import common
import jax
import numpy as np

from jaxdistill.data.augment import Augmentation
from jaxdistill.distill import distill
from jaxdistill.distill.reference import pick_reference
from jaxdistill.evaluate.certify import certify
from jaxdistill.evaluate.finite_networks import evaluate_images
from jaxdistill.networks.config import TrainConfig
from jaxdistill.networks.standard import make_network
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import FeatureOptions, Task, make_features, parse_validation, prepare, split_keys
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel

KEYS = ("dataset", "network", "ipc", "labels", "augment", "source")
MAPS = {
    "linear": FeatureOptions("linear"),
    "network": FeatureOptions("network"),
    "encoder": FeatureOptions("encoder", activation="tanh"),
}
AUGMENTATION = Augmentation(shift=2, rotation=10.0)


def main() -> None:
    """Run or resume, then write the table."""
    options = common.parse(__doc__ or "", _extend)
    options.networks = options.networks or (
        ["mlp", "convnet"] if options.quick else ["mlp", "resnet", "convnet"]
    )
    options.ipc = options.ipc or ([5] if options.quick else [10])
    options.augment = options.augment or ["no"]
    task = prepare(options.dataset)
    model = cache(partial(_model, task))
    data = cache(partial(_set, task, model))
    rows = common.Rows(options.results / f"{options.dataset}_transfer.jsonl", KEYS)
    cases = product(options.networks, options.ipc, options.labels, options.augment, ("real", *MAPS))
    for network, ipc, labels, augment, source in cases:
        values = (options.dataset, network, ipc, labels, augment, source)
        setting: dict[str, Any] = dict(zip(KEYS, values, strict=True))
        rows.once(partial(_measure, options, task, model, data, setting), **setting)
    chosen = [row for row in rows.rows if row["dataset"] == options.dataset]
    path = write_atomically(
        options.results / f"{options.dataset}_transfer.md", _table(options, chosen).encode()
    )
    print(path.read_text())


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="+", help="default: mlp resnet convnet (--quick: mlp convnet)")
    parser.add_argument("--ipc", type=int, nargs="+", help="default: 10 (--quick: 5)")
    parser.add_argument("--labels", nargs="+", default=["hard", "soft"], choices=("hard", "soft"))
    parser.add_argument("--augment", nargs="+", choices=("no", "yes"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)


def _model(task: Task, name: str) -> RidgeModel:
    key_features, key_split, _ = split_keys(0)
    phi = make_features(MAPS[name], task.x, key_features, shape=task.preprocess.shape, y=task.y)
    return fit_ridge(phi, task.x, task.y, validation=parse_validation("auto", len(task.x)), key=key_split)


def _set(task: Task, model_of: Any, source: str, ipc: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Inputs and classes of a source, and how near and how exact it is."""
    m, key = ipc * task.y.shape[1], split_keys(0)[2]
    model = model_of("linear" if source == "real" else source)
    reference = (task.x, task.y)
    # distill draws its start from the first of three keys; these are the same images for every source.
    real, classes = pick_reference(model, reference, m, jax.random.split(key, 3)[0])
    if source == "real":
        return real, classes, {}
    closest = None if source == "encoder" else "closest"
    small = distill(model, size=m, realistic=closest, reference=reference, dtype=np.float32, key=key)
    change = task.preprocess.inverse(small.x) - task.preprocess.inverse(real)
    found = certify(model, small, task.x_test, task.y_test)
    return (
        small.x,
        classes,
        {
            "psnr": common.psnr(change),
            "relative_weight_error": found.relative_weight_error,
            "accuracy_ridge": found.accuracy_distilled,
        },
    )


def _measure(options: Any, task: Task, model_of: Any, data: Any, setting: dict[str, Any]) -> dict[str, Any]:
    x, classes, known = data(setting["source"], setting["ipc"])
    if setting["labels"] == "soft":
        teacher = "network" if setting["source"] in ("real", "linear") else setting["source"]
        classes = model_of(teacher).predict(x)
    # Three halvings leave nothing of an image of 8 x 8 for the norm to see.
    small = {"width": 16, "depth": 2} if options.quick and setting["network"] == "convnet" else {}
    found = evaluate_images(
        x,
        classes,
        task.x_test,
        task.y_test,
        network=make_network(setting["network"], num_outputs=task.y.shape[1], **small),
        labels=setting["labels"],
        image_shape=task.preprocess.shape,
        config=TrainConfig(
            steps=options.steps, augment=AUGMENTATION if setting["augment"] == "yes" else None
        ),
        seeds=options.seeds,
        key=jax.random.key(0),
    )
    return known | found.to_dict() | {"network": setting["network"]}


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    """A line a network and labels, a column a source."""
    lines = []
    for network, ipc, labels, augment in dict.fromkeys(
        (row["network"], row["ipc"], row["labels"], row["augment"]) for row in rows
    ):
        line: list[Any] = [network, ipc, labels, augment]
        for source in ("real", *MAPS):
            row = next((r for r in rows if [r[key] for key in KEYS[1:]] == [*line[:4], source]), None)
            shown = "-" if row is None else f"{100 * row['mean']:.2f} ± {100 * row['deviation']:.2f}"
            line.append(shown)
        lines.append(line)
    sets = {row["source"]: row for row in rows if "psnr" in row}
    about = "; ".join(
        f"{name}: {row['psnr']:.1f} dB from the real images, weight error {row['relative_weight_error']:.0e}"
        for name, row in sets.items()
    )
    exact = [f"exact, {name}" for name in MAPS]
    header = ["network", "per class", "labels", "augmented", "real images", *exact]
    return "\n".join(
        [
            f"# Finite networks on exact sets and on the real images they started from, {options.dataset}",
            "",
            f"`{common.command_line()}` on {common.machine()}.",
            "",
            f"Test accuracy in per cent, mean and standard deviation of {options.seeds} seeds, "
            f"{options.steps} steps of Adam. Exact sets, in float32: {about}.",
            "",
            common.markdown_table(header, lines),
            "Exact less real, in points of accuracy: mean over seeds and its standard error. Equal seeds "
            "start from equal weights.",
            "",
            *_differences(rows),
            "",
        ]
    )


def _differences(rows: list[dict[str, Any]]) -> list[str]:
    """A line a network and labels: what each exact set gains or loses against the real images."""
    real = {tuple(row[key] for key in KEYS[1:-1]): row for row in rows if row["source"] == "real"}
    found: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        setting = tuple(row[key] for key in KEYS[1:-1])
        if row["source"] == "real" or setting not in real:
            continue
        gain = 100 * (np.array(row["accuracies"]) - np.array(real[setting]["accuracies"]))
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
        found.setdefault(setting, []).append(f"{row['source']} {gain.mean():+.2f} ± {error:.2f}")
    return [
        f"- {network}, {ipc} per class, {labels} labels{', augmented' if augment == 'yes' else ''}: "
        + "; ".join(gains)
        for (network, ipc, labels, augment), gains in found.items()
    ]


if __name__ == "__main__":
    main()
