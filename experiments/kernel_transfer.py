"""What sets made for one model are worth to others: a matrix over feature maps and kernels.

Rows are sets of equal size that start from the same real images: made exact for feature maps, with solved
labels for kernels, by KIP with solved and with learned labels, and the images themselves. Columns are what
ridge regression is trained with on each of them. Network and Fourier features of the columns are drawn anew,
with other seeds than those that the sets were made for. Soft labels are the predictions of the set's own
model; hard ones are the classes.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from itertools import product
from typing import Any

import common
import jax
import numpy as np
from heat_map import HeatMap, draw_heat_maps

from jaxdistill.distill import distill
from jaxdistill.distill.support import distill_kernel
from jaxdistill.evaluate.transfer import transfer
from jaxdistill.kip import KipConfig, recommended, train
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import (
    FeatureOptions,
    Task,
    make_features,
    make_kernel,
    parse_validation,
    prepare,
    split_keys,
)
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.kernel_fit import KernelModel, fit_kernel_ridge
from jaxdistill.ridge.model import RidgeModel

KEYS = ("dataset", "ipc", "source", "target", "labels")
MADE_FOR = {
    "linear": FeatureOptions("linear"),
    "network": FeatureOptions("network"),
    "fourier": FeatureOptions("fourier"),
    "encoder": FeatureOptions("encoder", activation="tanh"),
    "rbf": FeatureOptions("rbf"),
    "ntk": FeatureOptions("ntk"),
}
# Both start from the set in closed form. Learned labels as published, with the penalty 1e-6 tr(K)/m.
KIP: dict[str, dict[str, Any]] = {
    "ntk, KIP solved": {},
    "ntk, KIP learned": {"labels": "learned", "learning_rate": 0.04},
}
SOURCES = ("real images", *MADE_FOR, *KIP)
TARGETS = {
    "linear": FeatureOptions("linear"),
    "network": FeatureOptions("network"),
    "fourier": FeatureOptions("fourier"),
    "rbf": FeatureOptions("rbf"),
    "ntk, depth 1": FeatureOptions("ntk", depth=1),
    "ntk, depth 3": FeatureOptions("ntk", depth=3),
    "nngp": FeatureOptions("nngp"),
}
DRAWN = ("network", "fourier")
FULL = "all training images"


def main() -> None:
    """Run or resume, then write the tables and the picture."""
    options = common.parse(__doc__ or "", _extend)
    task = prepare(options.dataset)
    model = cache(partial(_model, options, task))
    source = cache(partial(_set, options, task, model))
    features = cache(partial(_features, options, task))
    rows = common.Rows(options.results / f"{options.dataset}_kernel_transfer.jsonl", KEYS)
    fixed: dict[str, Any] = {"dataset": options.dataset, "ipc": options.ipc}
    for name, labels, target in product(SOURCES, ("soft", "hard"), TARGETS):
        if (name, labels) != (SOURCES[0], "soft"):  # real images have classes and no model of their own
            setting = fixed | {"source": name, "target": target, "labels": labels}
            rows.once(partial(_measure, task, source, features, setting), **setting)
    for target in TARGETS:
        setting = fixed | {"source": FULL, "target": target, "labels": "hard"}
        rows.once(partial(_whole, task, model, target), **setting)
    chosen = [row for row in rows.rows if row["dataset"] == options.dataset and row["ipc"] == options.ipc]
    table = options.results / f"{options.dataset}_kernel_transfer.md"
    write_atomically(table, _tables(options, chosen).encode())
    print(table.read_text(), _figure(options, chosen), sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="of features that are drawn at random")
    parser.add_argument("--teacher", type=int, default=6000, help="images that kernel models are trained on")


def _model(options: Any, task: Task, chosen: FeatureOptions) -> RidgeModel | KernelModel:
    """The full model of features or a kernel."""
    key_features, key_fit, _ = split_keys(0)
    if chosen.is_kernel:
        x, y = task.x[: options.teacher], task.y[: options.teacher]
        return fit_kernel_ridge(make_kernel(chosen, task.x), x, y, key=key_fit)
    phi = make_features(chosen, task.x, key_features, shape=task.preprocess.shape, y=task.y)
    return fit_ridge(phi, task.x, task.y, validation=parse_validation("auto", len(task.x)), key=key_fit)


def _set(options: Any, task: Task, model_of: Any, name: str) -> Any:
    """A set that starts from the same real images as every other."""
    key, m = split_keys(0)[2], options.ipc * task.y.shape[1]
    # distill draws its real images from the first of three keys.
    key_pick = jax.random.split(key, 3)[0]
    kind = "rbf" if name == "real images" else "ntk" if name in KIP else name
    model = model_of(MADE_FOR[kind])
    if isinstance(model, RidgeModel):
        closest = None if name == "encoder" else "closest"
        real = (task.x, task.y)
        return distill(model, size=m, realistic=closest, reference=real, dtype=np.float32, key=key)
    labels = "hard" if name == "real images" else "solved"
    small = distill_kernel(model, task.x, task.y, size=m, labels=labels, key=key_pick)
    if name not in KIP:
        return small
    usual = recommended(m, task.y.shape[1], num_train=len(task.x))
    config = KipConfig(start=small, **(usual | KIP[name]))
    return train(model, task.x, task.y, config, key=key).small


def _features(options: Any, task: Task, target: str) -> list[Any]:
    """What is trained: several draws of features that are drawn, else one."""
    chosen = TARGETS[target]
    if chosen.is_kernel:
        return [make_kernel(chosen, task.x)]
    # Not the keys of a seed from which the sets' own features were drawn.
    keys = [jax.random.fold_in(jax.random.key(1), seed) for seed in range(options.seeds)]
    return [make_features(chosen, task.x, key) for key in (keys if target in DRAWN else keys[:1])]


def _measure(task: Task, source: Any, features_of: Any, setting: dict[str, Any]) -> dict[str, Any]:
    small = source(setting["source"])
    found = [
        transfer(small, features, task.x_test, task.y_test, labels=setting["labels"])
        for features in features_of(setting["target"])
    ]
    return {
        "accuracies": [one.accuracy for one in found],
        "relative_lam": found[0].relative_lam,
        "accuracy_own": None if setting["source"] == "real images" else found[0].accuracy_own,
    }


def _whole(task: Task, model_of: Any, target: str) -> dict[str, Any]:
    model = model_of(TARGETS[target])
    accuracy = float(np.mean(model.predict(task.x_test).argmax(axis=1) == task.y_test))
    return {"accuracies": [accuracy], "accuracy_own": None}


def _shown(accuracies: list[float]) -> str:
    mean = f"{100 * np.mean(accuracies):.1f}"
    return mean if len(accuracies) == 1 else f"{mean} ± {100 * np.std(accuracies, ddof=1):.1f}"


def _tables(options: Any, rows: list[dict[str, Any]]) -> str:
    """A table for soft labels and one for classes: a line a source, a column a target."""
    parts = [
        f"# Sets trained on by models that they were not made for, {options.dataset}",
        "",
        f"`{common.command_line()}` on {common.machine()}.",
        "",
        f"Test accuracy in per cent, {options.ipc} images per class; `own` is the model that a set trains to "
        "by itself. The penalty is a tenth of tr(K)/m throughout. Network and Fourier columns: mean and "
        f"standard deviation of {options.seeds} draws, none of which is the one that the sets were made for. "
        f"Last line: each model on all training images, kernels on {options.teacher} of them, with a penalty "
        "chosen on the training data.",
        "",
    ]
    titles = {
        "soft": "Soft labels: the predictions of the set's own model",
        "hard": "Hard labels: the classes",
    }
    for labels, title in titles.items():
        lines = []
        for source in (*SOURCES, FULL):
            wanted = "hard" if source == FULL else labels
            found = {r["target"]: r for r in rows if (r["source"], r["labels"]) == (source, wanted)}
            if found:
                own = next(iter(found.values()))["accuracy_own"]
                shown = "" if own is None else f"{100 * own:.1f}"
                lines.append([source, shown, *(_shown(found[target]["accuracies"]) for target in TARGETS)])
        parts += [f"## {title}", "", common.markdown_table(["made for", "own", *TARGETS], lines)]
    return "\n".join(parts)


def _figure(options: Any, rows: list[dict[str, Any]]) -> Any:
    maps = []
    for labels, title in (("soft", "soft labels"), ("hard", "class labels")):
        sources = [s for s in SOURCES if any(r["source"] == s and r["labels"] == labels for r in rows)]
        values = np.full((len(sources), len(TARGETS)), np.nan)
        for row in rows:
            if row["labels"] == labels and row["source"] in sources:
                place = sources.index(row["source"]), list(TARGETS).index(row["target"])
                values[place] = 100 * np.mean(row["accuracies"])
        maps.append(HeatMap(title, sources, list(TARGETS), values))
    return draw_heat_maps(
        maps,
        options.figures / f"{options.dataset}_kernel_transfer.png",
        row_label="set made for",
        column_label="trained on it",
        unit="test accuracy, %",
        note=common.command_line(),
    )


if __name__ == "__main__":
    main()
