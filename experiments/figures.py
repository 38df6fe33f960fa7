"""The published figures: distilled images that a person can look at.

Four pictures, each with the test accuracy of the retrained model beside that of the full model:

- ``overview``: real images and four distilled sets, two of them for the probe of a trained network.
- ``linear``: one image per class for the linear model.
- ``realistic``: real images, sets made from them in two ways, and sets made from noise.
- ``network_noise``: images without any meaning that train a network model to its full accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import common
import numpy as np

from jaxdistill.distill import distill
from jaxdistill.distill.options import SolverOptions
from jaxdistill.distill.reference import pick_reference
from jaxdistill.evaluate.certify import certify
from jaxdistill.pipeline import FeatureOptions, Task, make_features, parse_validation, prepare, split_keys
from jaxdistill.plots import Row, draw_rows
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel

PICTURES = ("overview", "linear", "realistic", "network_noise")
# Classes that are shown, the first ones.
MOST = 10


def main() -> None:
    """Draw every figure that is asked for."""
    options = common.parse("Figures of distilled images.", _extend)
    task = prepare(options.dataset)
    model = cache(partial(_model, task))
    many = options.many or (5 if options.quick else 50)
    told = f"{many} per class"

    def row(kind: str, title: str, **request: Any) -> Row:
        return _row(task, model(kind), title, **request)

    def real() -> Row:
        labels = task.y.argmax(axis=1)
        first = [int(np.argmax(labels == c)) for c in range(min(MOST, task.y.shape[1]))]
        return Row("real", task.preprocess.inverse(task.x[first]))

    one = cache(lambda: row("linear", "linear model,\n1 per class", ipc=1))
    noise = cache(lambda: row("network", "network model,\n1 per class", ipc=1))

    def probe(ipc: int) -> Row:
        return row("encoder", f"trained encoder,\n{ipc} per class", ipc=ipc, start="real")

    pictures: dict[str, Callable[[], list[Row]]] = {
        "overview": lambda: [real(), one(), noise(), probe(2), probe(10)],
        "linear": lambda: [real(), one()],
        "realistic": lambda: [
            _start(task, model("linear"), many),
            row("linear", "nearest spanning\nset", ipc=many, realistic="closest"),
            row("linear", "nearest inverse\n(Corollary 4.1.1)", ipc=many, realistic="inverse"),
            row("linear", f"from noise,\n{told}", ipc=many),
        ],
        "network_noise": lambda: [noise(), row("network", f"network model,\n{told}", ipc=many)],
    }
    names = task.class_names and task.class_names[:MOST]
    for name in options.pictures:
        path = options.figures / f"{options.dataset}_{name}.png"
        print(draw_rows(pictures[name](), names, path, common.command_line()), flush=True)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", nargs="+", default=list(PICTURES), choices=PICTURES)
    parser.add_argument(
        "--many", type=int, help="images per class of larger sets; default 50, 5 with --quick"
    )


def _model(task: Task, kind: str) -> RidgeModel:
    key_features, key_split, _ = split_keys(0)
    options = FeatureOptions(kind, activation="tanh" if kind == "encoder" else None)
    phi = make_features(options, task.x, key_features, shape=task.preprocess.shape, y=task.y)
    return fit_ridge(
        phi, task.x, task.y, validation=parse_validation("auto", len(task.x)), key=key_split, progress=True
    )


def _row(task: Task, model: RidgeModel, title: str, start: str | None = None, **request: Any) -> Row:
    """The first image of each class of a set, with what the whole set trains to."""
    reference = (task.x, task.y) if start or "realistic" in request else None
    solver = SolverOptions(start=start)
    small = distill(
        model, reference=reference, solver=solver, dtype=np.float32, key=split_keys(0)[2], **request
    )
    small = small.with_context(task.preprocess, task.class_names)
    found = certify(model, small, task.x_test, task.y_test)
    score = f"{common.percent(found.accuracy_distilled)} of {common.percent(found.accuracy_full)} %"
    return Row(f"{title}\n{score}", small.images[: min(MOST, task.y.shape[1])])


def _start(task: Task, model: RidgeModel, ipc: int) -> Row:
    """The real images that the realistic sets of the same key start from."""
    import jax

    key_pick = jax.random.split(split_keys(0)[2], 3)[0]
    x, _ = pick_reference(model, (task.x, task.y), ipc * task.y.shape[1], key_pick)
    return Row("real", task.preprocess.inverse(x[: min(MOST, task.y.shape[1])]))


if __name__ == "__main__":
    main()
