"""Random networks wider than their inputs, at one and a half times the count, by default settings.

A wide network has no inverse: its set is solved for, from real images, by the ladder of starts that is the
default. For every data set, activation, draw of the weights, width and seed (of the network and of the images
to start from): whether the set is exact, on which rung, in how many steps. Sets are kept in float64, which is
the strictest judge.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable
from functools import cache, partial
from itertools import product
from time import perf_counter
from typing import Any

import common

from jaxdistill.distill import distill
from jaxdistill.evaluate.certify import certify
from jaxdistill.features import RandomNetwork
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import Task, parse_validation, prepare, split_keys
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.solve.spanning import spanning_count

KEYS = ("dataset", "activation", "weights", "ratio", "seed")
SHOWN = ("agreement", "accuracy_full", "accuracy_distilled", "relative_weight_error", "exact")
# Examples, relative to the count.
SLACK = 1.5


def main() -> None:
    """Run or resume, then write the table."""
    options = common.parse(__doc__ or "", _extend)
    ratios, seeds = ([2.0], 1) if options.quick else (options.ratios, options.seeds)
    task = cache(partial(prepare, options.dataset))
    rows = common.Rows(options.results / "wide_networks.jsonl", KEYS)
    for weights, ratio, activation, seed in product(
        options.weights, ratios, options.activations, range(seeds)
    ):
        values = (options.dataset, activation, weights, ratio, seed)
        setting: dict[str, Any] = dict(zip(KEYS, values, strict=True))
        rows.once(partial(_measure, task, setting), **setting)
    table = write_atomically(options.results / "wide_networks.md", _table(rows.rows).encode())
    print(table.read_text())


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--activations", nargs="+", default=["leaky_relu", "gelu"])
    parser.add_argument("--weights", nargs="+", default=["orthogonal"], choices=("orthogonal", "gaussian"))
    parser.add_argument("--ratios", nargs="+", type=float, default=[2.0, 3.0, 4.0], help="widths p, of d")
    parser.add_argument("--seeds", type=int, default=5, help="default: 5")


def _measure(task_of: Any, setting: dict[str, Any]) -> dict[str, Any]:
    task: Task = task_of()
    d = task.x.shape[1]
    key_features, key_split, key_set = split_keys(setting["seed"])
    told: dict[str, Any] = {name: setting[name] for name in ("activation", "weights")}
    phi = RandomNetwork.create(d, widths=(int(setting["ratio"] * d),), key=key_features, **told)
    validation = parse_validation("auto", len(task.x))
    model = fit_ridge(phi, task.x, task.y, validation=validation, key=key_split)
    count = spanning_count(phi.num_features, d, task.y.shape[1])
    size = math.ceil(SLACK * count)
    start = perf_counter()
    small = distill(model, size=size, reference=(task.x, task.y), key=key_set)
    seconds, solver = perf_counter() - start, small.recipe["solver"]
    found = certify(model, small, task.x_test, task.y_test).to_dict()
    return {name: found[name] for name in SHOWN} | {
        "m": size,
        "count": count,
        "p": phi.num_features,
        "lam": model.lam,
        "seconds": seconds,
        **{name: solver[name] for name in ("residual", "outcome", "steps", "rung", "began", "distance")},
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """A line a width, over the seeds; every set that is not exact a line of its own."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS[:-1]), []).append(row)
    header = ["data", "activation", "weights", "p", "m*", "m", "exact", "full and distilled", "agreement"]
    header += ["weight error", "begins", "steps", "seconds"]
    lines, missed = [], []
    for (dataset, activation, weights, ratio), own in groups.items():
        began = Counter(row["began"] for row in own)
        lines.append(
            [
                *(dataset, activation, weights, f"{own[0]['p']} = {ratio:g} d", own[0]["count"], own[0]["m"]),
                f"{sum(row['exact'] for row in own)} of {len(own)}",
                " / ".join(common.percent(row["accuracy_full"]) for row in own),
                common.percent(min(row["agreement"] for row in own)),
                f"{max(row['relative_weight_error'] for row in own):.0e}",
                ", ".join(f"{name} ({number})" for name, number in began.items()),
                _range(row["steps"] for row in own),
                _range(round(row["seconds"]) for row in own),
            ]
        )
        missed += [
            f"- {dataset}, {activation}, {weights}, p {row['p']}, seed {row['seed']}: {row['outcome']} at a "
            f"residual of {row['residual']:.1e}, weight error {row['relative_weight_error']:.1e}, agreement "
            f"{common.percent(row['agreement'])}"
            for row in own
            if not row["exact"]
        ]
    return "\n".join(
        [
            "# Wide random networks, half as many images again as the count",
            "",
            f"`{common.command_line()}` last, on {common.machine()}.",
            "",
            "`jaxdistill.distill(model, size=m, reference=(x, y))` and nothing else asked for, inputs in "
            "float64; data standardised, the penalty chosen without the test set. Agreement and error are "
            "the worst over seeds (of the network, of the images to start from); accuracies are one a seed; "
            "seconds include compilation.",
            "",
            common.markdown_table(header, lines),
            *(["Not exact:", "", *missed, ""] if missed else []),
        ]
    )


def _range(values: Iterable[int]) -> str:
    """Smallest to largest."""
    low, *rest = sorted(values)
    return f"{low} to {rest[-1]}" if rest and rest[-1] != low else f"{low}"


if __name__ == "__main__":
    main()
