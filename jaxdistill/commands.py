"""Steps that several commands share: from options to a model, from a set to files."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from jaxdistill.errors import OutputError, PenaltyError


def load_and_fit(options: argparse.Namespace, lam: Any, watch: Any, progress: bool) -> tuple[Any, Any]:
    """The data as a model sees them, and the full model: where every command begins."""
    from jaxdistill.fit import fit_ridge
    from jaxdistill.pipeline import FeatureOptions, make_features, parse_validation, prepare, split_keys

    key_features, key_split, _ = split_keys(options.seed)
    with watch.stage("load"):
        task = prepare(
            options.dataset,
            preprocess=options.preprocess,
            centred=options.targets == "centred",
            progress=progress,
        )
    with watch.stage("fit"):
        chosen = FeatureOptions(
            options.features,
            options.num_features,
            options.depth,
            options.negative_slope,
            options.weights,
            options.lengthscale,
            options.activation,
        )
        phi = make_features(
            chosen, task.x, key_features, shape=task.preprocess.shape, y=task.y, progress=progress
        )
        validation = parse_validation(options.validation, len(task.x))
        model = fit_ridge(
            phi, task.x, task.y, lam=lam, validation=validation, key=key_split, progress=progress
        )
    return task, model


def default_ipc(options: argparse.Namespace, task: Any) -> int | None:
    """Images per class as asked for; one, where neither they nor a size are and there are classes."""
    return 1 if options.ipc is None and options.size is None and task.class_names else options.ipc


def chosen_penalty(model: Any) -> dict[str, Any]:
    """How the ridge penalty was chosen, for the report."""
    selection = model.selection
    return {
        "lam_chosen_by": "given" if selection is None else selection.method,
        "lam_at_edge": None if selection is None else selection.at_edge,
    }


def number(name: str, text: str | None, words: tuple[str, ...]) -> Any:
    """A penalty from the command line: a number, or one of the words."""
    if text is None or text in words:
        return text
    try:
        return float(text)
    except ValueError:
        raise PenaltyError(f"{name} is {text!r}; give a number or {' or '.join(words)}") from None


def writable_folder(name: str) -> Path:
    """The output folder, checked before any work is done; it is made only when there is output."""
    folder = Path(name)
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}: {nearest} is not a folder that can be written")
    return folder


def write_files(folder: Path, small: Any, task: Any) -> list[str]:
    """Write a set, its certificate and its picture; the folder is made only now."""
    import numpy as np

    from jaxdistill.artifact import write_atomically
    from jaxdistill.plots import MOST_COLUMNS, Row, draw_rows

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose another folder") from None
    certificate = json.dumps(small.certificate, indent=2)
    files = [
        small.save(folder / "distilled.npz"),
        write_atomically(folder / "certificate.json", certificate.encode()),
    ]
    images = small.images
    columns = min(MOST_COLUMNS, len(images) if task.class_names is None else len(task.class_names))
    title = "distilled" if small.recipe["construction"] != "fixed" else "real, new labels"
    lines = range(0, min(len(images), 4 * columns), columns)
    rows = [Row(title if start == 0 else "", images[start : start + columns]) for start in lines]
    names = task.class_names
    if names is not None:
        first = [int(np.argmax(task.y.argmax(axis=1) == c)) for c in range(columns)]
        rows.append(Row("real", task.preprocess.inverse(task.x[first])))
    files.append(draw_rows(rows, names, folder / "images.png", _caption(small)))
    return [str(file) for file in files]


def _caption(small: Any) -> str:
    found = small.certificate
    text = f"{len(small.x)} examples, relative weight error {found['relative_weight_error']:.0e}"
    if found["accuracy_full"] is None:
        return text
    return text + (
        f", test accuracy {100 * found['accuracy_distilled']:.2f} % (full model "
        f"{100 * found['accuracy_full']:.2f} %)"
    )
