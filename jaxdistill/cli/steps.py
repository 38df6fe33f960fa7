"""Steps that several commands share: from options to a model, from a set to files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from jaxdistill.errors import InputError, OutputError, PenaltyError

# Constructions whose inputs are real examples.
_REAL = ("fixed", "balanced", "pivoted")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is written and printed."""
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="distilled", metavar="DIR", help="default: ./distilled")
    output.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def load_and_fit(
    options: argparse.Namespace, chosen: Any, lam: Any, watch: Any, progress: bool
) -> tuple[Any, Any]:
    """The data as a model sees them, and the full model: where every command begins.

    Args:
        options: What the parser made of the command.
        chosen: Features or kernel.
        lam: Penalty, or "auto".
        watch: Stopwatch of the stages.
        progress: Whether to show bars.
    """
    with watch.stage("load"):
        task = load_task(options, progress)
    _check_budget(options, task)
    with watch.stage("fit"):
        fit = _fit_kernel if chosen.is_kernel else _fit_features
        model = fit(options, chosen, task, lam, progress)
    return task, model


def load_task(options: argparse.Namespace, progress: bool) -> Any:
    """The data as a model sees them, in memory."""
    from jaxdistill.pipeline import prepare

    return prepare(
        options.dataset,
        preprocess=options.preprocess,
        centred=options.targets == "centred",
        progress=progress,
    )


def features_for(options: argparse.Namespace, chosen: Any, task: Any, progress: bool) -> Any:
    """The feature map that is asked for, drawn by the seed or trained on the data."""
    from jaxdistill.pipeline import make_features, split_keys

    key = split_keys(options.seed)[0]
    return make_features(chosen, task.x, key, shape=task.preprocess.shape, y=task.y, progress=progress)


def _check_budget(options: argparse.Namespace, task: Any) -> None:
    """Raise where real-valued targets, which have no classes to count by, come without a size."""
    if task.class_names is not None or options.size is not None:
        return
    from jaxdistill.ridge.targets import TargetKind, detect_targets

    k, found = task.y.shape[1], sorted(set(task.y.ravel().tolist())) if task.y.shape[1] == 1 else []
    looks = ""
    if k > 1 and detect_targets(task.y) is not TargetKind.REAL:
        looks = f" (its rows look like one-hot rows of {k} classes: save y.argmax(axis=1))"
    elif 2 <= len(found) <= len(task.y) / 2 and found == list(range(len(found))):
        looks = f" (its values are 0., 1., ... {found[-1]:.0f}.: save y.astype(int))"
    raise InputError(
        f"{task.name} has real-valued targets: give --size N; to classify, save y as integers{looks}"
    )


def _fit_features(options: argparse.Namespace, chosen: Any, task: Any, lam: Any, progress: bool) -> Any:
    from jaxdistill.pipeline import parse_validation, split_keys
    from jaxdistill.ridge.fit import fit_ridge

    return fit_ridge(
        features_for(options, chosen, task, progress),
        task.x,
        task.y,
        lam=lam,
        validation=parse_validation(options.validation, len(task.x)),
        intercept=_intercept(options, task),
        key=split_keys(options.seed)[1],
        progress=progress,
    )


def _intercept(options: argparse.Namespace, task: Any) -> bool:
    """As asked for; else for real values, as regressions have, and not for classes, as in the paper."""
    return task.class_names is None if options.intercept is None else options.intercept


def _fit_kernel(options: argparse.Namespace, chosen: Any, task: Any, lam: Any, progress: bool) -> Any:
    from jaxdistill.distill.reference import balanced_rows
    from jaxdistill.pipeline import make_kernel, parse_validation, split_keys
    from jaxdistill.ridge.kernel_fit import fit_kernel_ridge
    from jaxdistill.ridge.kernel_selection import MOST_EXAMPLES

    key_rows, key_fit, _ = split_keys(options.seed)
    x, y = task.x, task.y
    kernel = make_kernel(chosen, x)
    if options.teacher is not None:
        if options.teacher < 1:
            raise InputError(f"teacher is {options.teacher}; it must be a whole number >= 1 of examples")
        rows = balanced_rows(y, options.teacher, task.class_names is not None, key_rows)
        x, y = x[rows], y[rows]
    # Leave-one-out never sees more than these.
    validation = parse_validation(options.validation, min(len(x), MOST_EXAMPLES))
    return fit_kernel_ridge(
        kernel,
        x,
        y,
        lam=lam,
        validation=validation,
        intercept=_intercept(options, task),
        key=key_fit,
        progress=progress,
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given, by name: the defaults of the rest are those of the function called."""
    told = {name: getattr(options, name) for name in names}
    return {name: value for name, value in told.items() if value is not None}


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


def certify_and_write(
    options: argparse.Namespace,
    task: Any,
    model: Any,
    small: Any,
    folder: Path,
    watch: Any,
    progress: bool,
    **more: Any,
) -> None:
    """Certify a set, write it and print the report: where every command that makes a set ends.

    Args:
        options: What the parser made of the command.
        task: The data.
        model: The full model.
        small: The set, with its way back to images.
        folder: Where to write.
        watch: Stopwatch of the stages.
        progress: Whether to show bars.
        more: Further entries of the report.
    """
    from jaxdistill.cli.report import describe, print_report, seconds_of
    from jaxdistill.evaluate.certify import certify

    with watch.stage("certify"):
        certificate = certify(model, small, task.x_test, task.y_test, progress=progress)
        small = small.with_certificate(certificate)
    with watch.stage("write"):
        files = write_files(folder, small, task)
    report = describe(task.name, small, certificate.to_dict()) | {
        **chosen_penalty(model),
        **more,
        "files": files,
        "seconds": seconds_of(watch.seconds),
    }
    print_report(report, options.json)


def writable_folder(name: str) -> Path:
    """The output folder, checked before any work is done; it is made only when there is output."""
    folder = Path(name)
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}: {nearest} is not a folder that can be written")
    return folder


def write_files(folder: Path, small: Any, task: Any) -> list[str]:
    """Write a set, its certificate and, if it can be drawn, its picture; the folder is made only now."""
    from jaxdistill.numerics.files import write_atomically

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose another folder") from None
    certificate = json.dumps(small.certificate, indent=2)
    files = [
        small.save(folder / "distilled.npz"),
        write_atomically(folder / "certificate.json", certificate.encode()),
    ]
    try:
        files.append(_draw(small, task, folder / "images.png"))
    except Exception as error:  # a picture that fails must not cost the set
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"jaxdistill: images.png was not drawn ({reason}); the set is written", file=sys.stderr)
    return [str(file) for file in files]


def _draw(small: Any, task: Any, path: Path) -> Path:
    """The picture of a set, above real examples where there are classes."""
    import numpy as np

    from jaxdistill.plots import MOST_COLUMNS, Row, draw_rows

    images = small.images
    columns = min(MOST_COLUMNS, len(images) if task.class_names is None else len(task.class_names))
    real = small.recipe["construction"] in _REAL
    title = f"real,\n{small.recipe['labels']} labels" if real else "distilled"
    lines = range(0, min(len(images), 4 * columns), columns)
    rows = [Row(title if start == 0 else "", images[start : start + columns]) for start in lines]
    names = task.class_names
    # Real images are in no file of a private set, nor in moments.
    if names is not None and "privacy" not in small.recipe and task.x is not None:
        first = [int(np.argmax(task.y.argmax(axis=1) == c)) for c in range(columns)]
        rows.append(Row("real", task.preprocess.inverse(task.x[first])))
    return draw_rows(rows, names, path, _caption(small))


def _caption(small: Any) -> str:
    found = small.certificate
    error = found["relative_weight_error"]
    kernel = "best_weight_error" in found
    told = f"relative RKHS distance {error:.3g}" if kernel else f"relative weight error {error:.0e}"
    text = f"{len(small.x)} examples, {told}"
    if found["accuracy_full"] is None:
        return text
    return text + (
        f", test accuracy {100 * found['accuracy_distilled']:.2f} % (full model "
        f"{100 * found['accuracy_full']:.2f} %)"
    )
