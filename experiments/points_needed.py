"""How many examples give a model back? Facts of the data, and sets of k, k - 1 and k - 2 examples.

Earlier theory asks for d examples (linear models) or p (features), Chen, Huang and Weng for k, one per
class; this package for the rank of the weights, which is k for one-hot targets and k - 1 for centred ones.
Here the sizes around both are tried: the relative weight error of the set retrained from float32 inputs.
Below the rank no set is exact, and the error is what reduced rank regression leaves.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from itertools import product
from typing import Any

import common
import numpy as np
from ipc_sweep import MAPS

from jaxdistill.distill import distill
from jaxdistill.evaluate.certify import certify
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import Task, make_features, parse_validation, prepare, split_keys
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel

KEYS = ("dataset", "features", "targets", "below")
TARGETS = ("one-hot", "centred")


def main() -> None:
    """Run or resume for one data set, then write the table of all that are there."""
    options = common.parse(__doc__ or "", _extend)
    rows = common.Rows(options.results / "points_needed.jsonl", KEYS)
    task = cache(partial(prepare, options.dataset))
    models = cache(partial(_models, task))
    for name, targets, below in product(options.features, TARGETS, (0, 1, 2)):
        setting: dict[str, Any] = dict(zip(KEYS, (options.dataset, name, targets, below), strict=True))
        rows.once(partial(_measure, task, models, setting), **setting)
    text = _table(rows.rows)
    path = write_atomically(options.results / "points_needed.md", text.encode())
    print(text, path, sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--features", nargs="+", default=["linear"], choices=MAPS)


def _models(task_of: Any, name: str) -> dict[str, RidgeModel]:
    """The model of one-hot targets, and that of centred ones with the same penalty.

    Centring a row of Y takes its mean from all k entries, and so does it with a row of B: B C, where C
    projects off the vector of ones.
    """
    task: Task = task_of()
    key_features, key_split, _ = split_keys(0)
    phi = make_features(MAPS[name], task.x, key_features)
    validation = parse_validation("auto", len(task.x))
    model = fit_ridge(phi, task.x, task.y, validation=validation, key=key_split)
    weights = np.asarray(model.weights)
    centred = RidgeModel.from_weights(phi, weights - weights.mean(axis=1, keepdims=True))
    return {"one-hot": model, "centred": centred}


def _measure(task_of: Any, models_of: Any, setting: dict[str, Any]) -> dict[str, Any]:
    task, model = task_of(), models_of(setting["features"])[setting["targets"]]
    k, full = task.y.shape[1], models_of(setting["features"])["one-hot"]
    m = k - setting["below"]
    facts = {
        "n": len(task.x),
        "t": len(task.x_test),
        "d": task.x.shape[1],
        "k": k,
        "p": model.features.num_features,
        "rank_features": full.rank,
        "rank_weights": int(np.linalg.matrix_rank(np.asarray(model.weights))),
        "m": m,
    }
    if m < facts["rank_weights"] and model.moments is None:
        return facts | {"relative_weight_error": None, "agreement": None}
    small = distill(model, size=m, dtype=np.float32, key=split_keys(0)[2])
    found = certify(model, small, task.x_test, task.y_test)
    return facts | {
        "relative_weight_error": found.relative_weight_error,
        "agreement": found.agreement,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """Facts, then points."""
    facts = {row["dataset"]: [row["dataset"], row["k"], row["d"], row["n"], row["t"]] for row in rows}
    points = []
    for name, features in dict.fromkeys((row["dataset"], row["features"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["features"]) == (name, features)]
        line = [name, features, own[0]["rank_features"], own[0]["d"], own[0]["p"], own[0]["k"]]
        for targets in TARGETS:
            found = sorted((row for row in own if row["targets"] == targets), key=lambda row: -row["m"])
            line.append(found[0]["rank_weights"])
            line.append(
                "; ".join(
                    f"{row['m']}: {row['relative_weight_error']:.0e}, {common.percent(row['agreement'])} %"
                    for row in found
                    if row["relative_weight_error"] is not None
                )
            )
        points.append(line)
    header = ["data", "features", "rank of features", "earlier: d", "or p", "CHW: k"]
    header += ["one-hot: rank B", "m: error, agreement", "centred: rank B", "m: error, agreement"]
    return "\n".join(
        [
            "# Points that give a model back",
            "",
            f"`{common.command_line()}` and the same for other data, on {common.machine()}.",
            "",
            "The data:",
            "",
            common.markdown_table(["data", "classes k", "d", "training n", "test"], list(facts.values())),
            "Relative weight error of the set of m examples, retrained from float32 inputs, and its "
            "agreement with the full model:",
            "",
            common.markdown_table(header, points),
        ]
    )


if __name__ == "__main__":
    main()
