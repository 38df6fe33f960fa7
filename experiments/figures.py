"""The published figures: distilled images that a person can look at.

Four pictures, each with the test accuracy of the retrained model beside that of the full model:

- ``overview``: real images and four distilled sets, two of them for the probe of a trained network.
- ``linear``: one image per class for the linear model.
- ``realistic``: real images, sets made from them in two ways, and sets made from noise.
- ``network_noise``: images without any meaning that train a network model to its full accuracy.
"""

from __future__ import annotations

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


def main() -> None:
    """Draw every figure."""
    options = common.parse("Figures of distilled images.")
    task = prepare(options.dataset)
    linear, network, encoder = (_model(task, kind) for kind in ("linear", "network", "encoder"))
    k = task.y.shape[1]
    many = 5 if options.quick else 50
    note = common.command_line()
    first = [int(np.argmax(task.y.argmax(axis=1) == c)) for c in range(k)]
    real = Row("real", task.preprocess.inverse(task.x[first]))
    one = _row(task, linear, "linear model,\n1 per class", ipc=1)
    noise = _row(task, network, "network model,\n1 per class", ipc=1)
    probes = [
        _row(task, encoder, f"trained encoder,\n{ipc} per class", ipc=ipc, start="real") for ipc in (2, 10)
    ]
    pictures = {
        "overview": [real, one, noise, *probes],
        "linear": [real, one],
        "realistic": [
            _start(task, linear, many),
            _row(task, linear, "nearest spanning\nset", ipc=many, realistic="closest"),
            _row(task, linear, "nearest inverse\n(Corollary 4.1.1)", ipc=many, realistic="inverse"),
            _row(task, linear, f"from noise,\n{many} per class", ipc=many),
        ],
        "network_noise": [
            noise,
            _row(task, network, f"network model,\n{many} per class", ipc=many),
        ],
    }
    for name, rows in pictures.items():
        path = options.figures / f"{options.dataset}_{name}.png"
        print(draw_rows(rows, task.class_names, path, note))


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
    return Row(f"{title}\n{score}", small.images[: task.y.shape[1]])


def _start(task: Task, model: RidgeModel, ipc: int) -> Row:
    """The real images that the realistic sets of the same key start from."""
    import jax

    key_pick = jax.random.split(split_keys(0)[2], 3)[0]
    x, _ = pick_reference(model, (task.x, task.y), ipc * task.y.shape[1], key_pick)
    return Row("real", task.preprocess.inverse(x[: task.y.shape[1]]))


if __name__ == "__main__":
    main()
