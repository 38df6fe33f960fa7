"""Full models and distilled sets over feature maps, images per class, penalties, types and seeds.

Rebuilds the exactness table of Chen, Huang and Weng (NeurIPS 2024): test accuracy of the full model and
of the sets with 1, 10 and 50 images per class, beside the published numbers, and beyond it the relative
weight error and the agreement of the retrained model, for inputs stored in float64 and in float32.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from itertools import product
from time import perf_counter
from typing import Any

import common
import numpy as np
from curves import Curve, Panel, draw_panels

from jaxdistill.distill import distill
from jaxdistill.evaluate.certify import certify
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import FeatureOptions, Task, make_features, parse_validation, prepare, split_keys
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel

KEYS = ("dataset", "features", "seed", "ipc", "labels", "lam_s", "dtype")
SHOWN = (
    "relative_weight_error",
    "relative_weight_error_float32",
    "agreement",
    "agreement_float32",
    "accuracy_full",
    "accuracy_distilled",
    "accuracy_distilled_float32",
    "condition",
    "exact",
)
MAPS = {
    "linear": FeatureOptions("linear"),
    "network": FeatureOptions("network", weights="orthogonal"),
    "network, Gaussian": FeatureOptions("network", weights="gaussian"),
    "fourier": FeatureOptions("fourier"),
    "fourier, CHW": FeatureOptions("fourier", lengthscale=1000**0.5),
}
# Test accuracy of the full model, and at 1 / 10 / 50 images per class (CHW, main table).
PUBLISHED = {
    ("mnist", "linear"): (86.41, 86.41, 86.41, 86.41),
    ("mnist", "network, Gaussian"): (93.89, 93.89, 93.89, 93.85),
    ("mnist", "fourier, CHW"): (93.82, 93.82, 93.82, 93.82),
    ("cifar10", "linear"): (39.48, 39.48, 39.48, 39.48),
    ("cifar10", "network, Gaussian"): (47.86, 47.87, 47.84, 47.81),
    ("cifar10", "fourier, CHW"): (42.84, 42.84, 42.87, 42.73),
    ("cifar100", "linear"): (14.37, 14.37, 14.37, 14.37),
    ("cifar100", "network, Gaussian"): (21.42, 21.41, 21.52, 21.49),
    ("cifar100", "fourier, CHW"): (18.71, 18.70, 18.69, 18.57),
}
# Why a full model differs from the published one by more than 0.3 points.
REMARKS = {
    ("cifar10", "network, Gaussian"): "0.3 points above the published full model, and so are its sets: "
    "one draw of the network, on JPEG copies; we did not tell the two apart.",
    ("cifar10", "fourier, CHW"): "2.8 points above the published full model, and so are its sets, at the "
    "published scale of the frequencies; at our default, 2.5 times as long, 5.7 points above. What else "
    "differs there is not known to us.",
    ("cifar100", "linear"): "0.31 points above the published full model, and so are its sets: on JPEG "
    "copies, with a penalty chosen on another held-out part; we did not tell the two apart.",
    ("cifar100", "fourier, CHW"): "3.2 points above the published full model, and so are its sets, at the "
    "published scale of the frequencies, as on CIFAR-10; what else differs there is not known to us.",
}
# What is asked of each set: labels and penalty.
REQUESTS = {"hard": ("hard", 0.0), "hard-max": ("hard", "max"), "soft": ("soft", "auto")}
DTYPES = ("float64", "float32")


def main() -> None:
    """Run or resume the sweep, then write the table and the figure."""
    options = common.parse(__doc__ or "", _extend)
    if options.ipc is None:
        options.ipc = [1, 10] if options.quick else [1, 10, 50]
    task = prepare(options.dataset)
    rows = common.Rows(options.results / f"{options.dataset}_ipc_sweep.jsonl", KEYS)
    model = cache(partial(_model, task))
    for name, seed in product(options.features, range(options.seeds)):
        for ipc, request, dtype in product(options.ipc, options.requests, options.dtypes):
            values = (options.dataset, name, seed, ipc, *REQUESTS[str(request)], dtype)
            setting: Any = dict(zip(KEYS, values, strict=True))
            rows.once(partial(_measure, task, model, setting), **setting)
    chosen = [row for row in rows.rows if row["dataset"] == options.dataset]
    table = options.results / f"{options.dataset}_ipc_sweep.md"
    write_atomically(table, _table(options, chosen).encode())
    figure = _figure(options, chosen)
    print(table.read_text(), table, figure, sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ipc", type=int, nargs="+", help="default: 1 10 50 (--quick: 1 10)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--features", nargs="+", default=list(MAPS), choices=MAPS)
    parser.add_argument("--requests", nargs="+", default=list(REQUESTS), choices=REQUESTS)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES, help="of stored inputs")
    parser.add_argument("--note", help="what a reader has to know of the data, such as 'JPEG copies'")


def _model(task: Task, name: str, seed: int) -> tuple[RidgeModel, float]:
    """The full model of a feature map and seed, and the seconds that fitting it took."""
    key_features, key_split, _ = split_keys(seed)
    start = perf_counter()
    phi = make_features(MAPS[name], task.x, key_features)
    validation = parse_validation("auto", len(task.x))
    model = fit_ridge(phi, task.x, task.y, validation=validation, key=key_split)
    return model, perf_counter() - start


def _measure(task: Task, model_of: Any, setting: dict[str, Any]) -> dict[str, Any]:
    model, fit_seconds = model_of(setting["features"], setting["seed"])
    start = perf_counter()
    small = distill(
        model,
        ipc=setting["ipc"],
        labels=setting["labels"],
        lam_s=setting["lam_s"],
        dtype=setting["dtype"],
        key=split_keys(setting["seed"])[2],
    )
    seconds = perf_counter() - start
    found = certify(model, small, task.x_test, task.y_test).to_dict()
    return {name: found[name] for name in SHOWN} | {
        "m": len(small.x),
        "lam": model.lam,
        "lam_s_used": small.lam,
        "seconds_fit": fit_seconds,
        "seconds_distill": seconds,
    }


def _pick(rows: list[dict[str, Any]], **setting: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in setting.items())]


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    """Accuracies beside the published ones, then the worst error of each kind of set."""

    def mean(found: list[dict[str, Any]], key: str) -> str:
        return common.percent(float(np.mean([row[key] for row in found]))) if found else "-"

    def worst(found: list[dict[str, Any]], key: str, best: Any = max) -> str:
        return f"{best(row[key] for row in found):.1e}" if found else "-"

    accuracy = []
    for name in MAPS:
        stored = _pick(rows, features=name, labels="hard", lam_s=0.0, dtype="float32")
        published = PUBLISHED.get((options.dataset, name))
        accuracy.append(
            [
                name,
                mean(stored, "accuracy_full"),
                *(mean(_pick(stored, ipc=ipc), "accuracy_distilled") for ipc in options.ipc),
                "-"
                if published is None
                else f"{published[0]:.2f}; " + " / ".join(f"{value:.2f}" for value in published[1:]),
            ]
        )
    error = []
    for name, (labels, lam_s) in product(MAPS, REQUESTS.values()):
        wide = _pick(rows, features=name, labels=labels, lam_s=lam_s, dtype="float64")
        narrow = _pick(rows, features=name, labels=labels, lam_s=lam_s, dtype="float32")
        if not narrow:
            continue
        error.append(
            [
                name,
                f"{labels}, {lam_s}",
                worst(wide, "relative_weight_error"),
                worst(narrow, "relative_weight_error"),
                worst(narrow, "relative_weight_error_float32"),
                common.percent(min(row["agreement"] for row in narrow)),
                common.percent(min(row["agreement_float32"] for row in narrow)),
            ]
        )
    ipcs = [f"{ipc} per class" for ipc in options.ipc]
    return "\n".join(
        [
            f"# Images per class, {options.dataset}",
            "",
            f"`{common.command_line()}` on {common.machine()}; {options.seeds} seed(s).",
            "",
            *([f"The data are {options.note}.", ""] if options.note else []),
            "Test accuracy in per cent, hard labels, lam_s = 0, inputs stored in float32.",
            "",
            common.markdown_table(["features", "full model", *ipcs, "published"], accuracy),
            *(f"{name}: {text}\n" for (data, name), text in REMARKS.items() if data == options.dataset),
            "Largest relative weight error, and least agreement with the full model in per cent, over all "
            "images per class and seeds.",
            "",
            common.markdown_table(
                [
                    "features",
                    "labels, lam_s",
                    "float64 inputs",
                    "float32 inputs",
                    "retrained in float32",
                    "agreement",
                    "retrained in float32",
                ],
                error,
            ),
        ]
    )


def _figure(options: Any, rows: list[dict[str, Any]]) -> Any:
    accuracy, error = [], []
    for name in MAPS:
        stored = sorted(
            _pick(rows, features=name, labels="hard", lam_s=0.0, seed=0), key=lambda row: row["ipc"]
        )
        narrow, wide = _pick(stored, dtype="float32"), _pick(stored, dtype="float64")
        ipc = [row["ipc"] for row in narrow]
        accuracy.append(Curve(name, ipc, [100 * row["accuracy_distilled"] for row in narrow]))
        full = Curve("", ipc, [100 * row["accuracy_full"] for row in narrow], "k:")
        accuracy.append(full._replace(label="_full model"))
        for found, dtype, style in ((wide, "float64", "o-"), (narrow, "float32", "s--")):
            sizes, errors = [row["ipc"] for row in found], [row["relative_weight_error"] for row in found]
            if found:
                error.append(Curve(f"{name}, {dtype}", sizes, errors, style))
    return draw_panels(
        [
            Panel("Accuracy (dotted: full model)", "images per class", "test accuracy, %", accuracy),
            Panel("Weights recovered", "images per class", "relative weight error", error, log_y=True),
        ],
        options.figures / f"{options.dataset}_ipc_sweep.png",
        common.command_line(),
    )


if __name__ == "__main__":
    main()
