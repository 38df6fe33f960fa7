"""The command ``jaxdistill``: thin, no numerics."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from jaxdistill.errors import InputError, JaxDistillError, OutputError, PenaltyError

REALISTIC = ("closest", "inverse", "fixed")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest valid choice."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), [str(c) for c in action.choices], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(action.choices)}"
            raise argparse.ArgumentError(action, f"unknown value {value!r}; {hint}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; default those of the process.

    Returns:
        Exit status: 0, or 2 for bad input, 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except JaxDistillError as error:
        print(f"jaxdistill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxdistill: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxdistill",
        description="Exact dataset distillation for kernel ridge regression, in closed form.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    make = commands.add_parser(
        "distill", help="construct a distilled set, save it, and certify what was saved"
    )
    _add_data_options(make)
    _add_set_options(make)
    make.set_defaults(run=_distill)

    evaluate = commands.add_parser("evaluate", help="certify a saved set from the file alone")
    evaluate.add_argument("file", metavar="FILE", help="a distilled.npz")
    evaluate.add_argument("--dataset", required=True, help="data set whose test part is used")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)

    info = commands.add_parser("info", help="versions, devices, precision, what is installed")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=_info)
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data and model")
    data.add_argument("--dataset", default="digits", help="digits, FILE.npz, or a tensorflow-datasets name")
    data.add_argument("--preprocess", default="standardize", help="standardize, zca or none")
    data.add_argument("--targets", choices=("one-hot", "centred"), default="one-hot")
    data.add_argument("--features", default="linear", help="linear, fourier or network")
    data.add_argument("--num-features", type=int, metavar="P", help="features; default: as many as inputs")
    data.add_argument("--depth", type=int, default=1, help="layers of a network")
    data.add_argument("--negative-slope", type=float, default=0.1, help="of the network's LeakyReLU")
    data.add_argument("--weights", choices=("orthogonal", "gaussian"), help="of a network, or frequencies")
    data.add_argument("--lengthscale", type=float, help="of the Fourier features' kernel")
    data.add_argument("--lam", default="auto", metavar="auto|NUMBER", help="ridge penalty")
    data.add_argument("--validation", default="auto", metavar="auto|loo|FRACTION", help="to choose lam by")
    data.add_argument("--seed", type=int, default=0)


def _add_set_options(parser: argparse.ArgumentParser) -> None:
    small = parser.add_argument_group("distilled set")
    budget = small.add_mutually_exclusive_group()
    budget.add_argument("--ipc", type=int, help="examples per class; default 1")
    budget.add_argument("--size", type=int, help="examples in all")
    small.add_argument("--labels", choices=("hard", "soft", "weighted"))
    small.add_argument("--lam-s", metavar="NUMBER|max|auto", help="penalty to retrain with")
    small.add_argument("--realistic", choices=REALISTIC, help="start from real examples")
    small.add_argument("--noise", type=float, default=1.0, help="size of the random part")
    small.add_argument("--sharpness", type=float, default=10.0, help="of --realistic closest")
    small.add_argument("--scale", type=float, help="factor on features and labels")
    small.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of stored inputs")
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="distilled", metavar="DIR", help="default: ./distilled")
    output.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _distill(options: argparse.Namespace) -> int:
    folder = _writable_folder(options.out)
    lam, lam_s = _number("lam", options.lam, ("auto",)), _number("lam_s", options.lam_s, ("max", "auto"))
    progress = sys.stderr.isatty() and not options.json

    from jaxdistill.certify import certify
    from jaxdistill.distill import distill
    from jaxdistill.fit import fit_ridge
    from jaxdistill.pipeline import (
        FeatureOptions,
        Stopwatch,
        make_features,
        parse_validation,
        prepare,
        split_keys,
    )

    watch = Stopwatch()
    key_features, key_split, key_set = split_keys(options.seed)
    with watch.stage("load"):
        task = prepare(
            options.dataset,
            preprocess=options.preprocess,
            centred=options.targets == "centred",
            progress=progress,
        )
    with watch.stage("fit"):
        phi = make_features(
            FeatureOptions(
                options.features,
                options.num_features,
                options.depth,
                options.negative_slope,
                options.weights,
                options.lengthscale,
            ),
            task.x,
            key_features,
        )
        validation = parse_validation(options.validation, len(task.x))
        model = fit_ridge(
            phi, task.x, task.y, lam=lam, validation=validation, key=key_split, progress=progress
        )
    ipc = 1 if options.ipc is None and options.size is None and task.class_names else options.ipc
    with watch.stage("distill"):
        small = distill(
            model,
            ipc=ipc,
            size=options.size,
            labels=options.labels,
            lam_s=lam_s,
            realistic=options.realistic,
            reference=(task.x, task.y) if options.realistic else None,
            noise=options.noise,
            sharpness=options.sharpness,
            scale=options.scale,
            dtype=options.dtype,
            key=key_set,
        ).with_context(task.preprocess, task.class_names)
    with watch.stage("certify"):
        certificate = certify(model, small, task.x_test, task.y_test, progress=progress)
        small = small.with_certificate(certificate)
    with watch.stage("write"):
        files = _write(folder, small, task)
    selection = model.selection
    report = _report(task.name, small, certificate.to_dict()) | {
        "n": len(task.x),
        "lam_chosen_by": "given" if selection is None else selection.method,
        "lam_at_edge": None if selection is None else selection.at_edge,
        "files": files,
        "seconds": _seconds(watch.seconds),
    }
    _print(report, options.json)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from jaxdistill.artifact import DistilledSet
    from jaxdistill.certify import certify
    from jaxdistill.data import load_dataset
    from jaxdistill.pipeline import Stopwatch

    progress = sys.stderr.isatty() and not options.json
    watch = Stopwatch()
    with watch.stage("load"):
        small = DistilledSet.load(options.file)
        data = load_dataset(options.dataset, progress=progress)
        x_test = data.x_test
        if small.preprocess is not None:
            if small.preprocess.shape != data.example_shape:
                raise InputError(
                    f"{options.file} was made for examples of shape {small.preprocess.shape}, "
                    f"{data.name} has {data.example_shape}; name the data set it was made from"
                )
            x_test = small.preprocess.forward(x_test)
    with watch.stage("certify"):
        certificate = certify(small, small, x_test, data.y_test, progress=progress)
    report = _report(data.name, small, certificate.to_dict()) | {"seconds": _seconds(watch.seconds)}
    _print(report, options.json)
    return 0


def _info(options: argparse.Namespace) -> int:
    from importlib import metadata

    import jax

    packages = (
        "jaxdistill",
        "jax",
        "jaxlib",
        "numpy",
        "flax",
        "optax",
        "neural-tangents",
        "tensorflow-datasets",
        "scikit-learn",
        "matplotlib",
    )

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    report = {
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.devices()],
        "x64": jax.numpy.zeros(()).dtype == "float64",
        "matmul_precision": "highest, stated at every product",
        "data_dir": os.environ.get("JAXDISTILL_DATA_DIR"),
        "memory_available": psutil.virtual_memory().available,
    }
    if options.json:
        print(json.dumps(report))
        return 0
    for name, value in report.pop("versions").items():
        print(f"{name:<20} {value or 'not installed'}")
    for name, value in report.items():
        print(f"{name.replace('_', ' '):<20} {value}")
    return 0


def _number(name: str, text: str | None, words: tuple[str, ...]) -> Any:
    """A penalty from the command line: a number, or one of the words."""
    if text is None or text in words:
        return text
    try:
        return float(text)
    except ValueError:
        raise PenaltyError(f"{name} is {text!r}; give a number or {' or '.join(words)}") from None


def _writable_folder(name: str) -> Path:
    """The output folder, checked before any work is done; it is made only when there is output."""
    folder = Path(name)
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}: {nearest} is not a folder that can be written")
    return folder


def _write(folder: Path, small: Any, task: Any) -> list[str]:
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


def _report(dataset: str, small: Any, certificate: dict[str, Any]) -> dict[str, Any]:
    """What ``distill`` and ``evaluate`` both say of a set and its certificate."""
    recipe = small.recipe
    about = {
        "dataset": dataset,
        "features": small.features.kind,
        "n": recipe["num_train"],
        "d": small.x.shape[1],
        "p": small.features.num_features,
        "k": small.y.shape[1],
        "m": len(small.x),
        "lam": recipe["lam"],
        "lam_s": small.lam,
        "largest_lam_s": recipe["largest_lam_s"],
        "labels": recipe["labels"],
        "construction": recipe["construction"],
        "lost": recipe["lost"],
    }
    return about | {name: value for name, value in certificate.items() if name != "size"}


def _seconds(stages: dict[str, float]) -> dict[str, float]:
    """Seconds of each stage, and of the whole process from its start, imports included."""
    import time

    total = time.time() - psutil.Process().create_time()
    return {name: round(value, 3) for name, value in (stages | {"total": total}).items()}


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    print(_text(report))


def _text(report: dict[str, Any]) -> str:
    """The report as a person reads it."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    def error(value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}"

    r = report
    lost = f", {100 * r['lost']:.3g} % of the squared predictions lost" if r["lost"] else ""
    table: list[tuple[str, ...]] = [
        ("", "full model", "retrained", "in float32"),
        (
            "test accuracy",
            share(r["accuracy_full"]),
            share(r["accuracy_distilled"]),
            share(r["accuracy_distilled_float32"]),
        ),
        ("agreement", "", share(r["agreement"]), share(r["agreement_float32"])),
        (
            "relative weight error",
            "",
            error(r["relative_weight_error"]),
            error(r["relative_weight_error_float32"]),
        ),
        ("prediction error", "", error(r["prediction_error"]), ""),
    ]
    if r["accuracy_full"] is None:
        squared = (f"{v:.4g}" if v is not None else "-" for v in _squared_errors(r))
        table[1] = ("squared error", *squared, "")
    verdict = (
        f"exact: the error is within what rounding explains, {r['tolerance']:.0e}"
        if r["exact"]
        else f"not exact: m = {r['m']}, rank of the weights {r['rank']}, "
        f"error {error(r['relative_weight_error'])}, rounding explains {r['tolerance']:.0e}"
        + ("" if r["m"] < r["rank"] else "; try --targets centred or --dtype float64")
    )
    lines = [
        f"data         {r['dataset']}: {r['n']} training and {r['num_test']} test examples, "
        f"d = {r['d']}, k = {r['k']}",
        f"model        {r['features']}, p = {r['p']}, lam = {r['lam']:.4g}"
        + (f" ({r['lam_chosen_by']})" if "lam_chosen_by" in r else ""),
        f"set          m = {r['m']}, {r['labels']} labels, lam_s = {r['lam_s']:.4g}, "
        f"{r['construction']}, inputs in {r['stored']}{lost}",
        "",
        *("  ".join([f"{row[0]:<22}", *(f"{cell:>12}" for cell in row[1:])]).rstrip() for row in table),
        "",
        f"certificate  {verdict}",
        "time         " + ", ".join(f"{name} {value:.2f} s" for name, value in r["seconds"].items()),
    ]
    if r.get("lam_at_edge"):
        lines.append("note         lam is at the edge of the grid; a wider one may do better")
    if "files" in r:
        lines.append("files        " + ", ".join(r["files"]))
    return "\n".join(lines)


def _squared_errors(report: dict[str, Any]) -> tuple[float | None, float | None]:
    return report["squared_error_full"], report["squared_error_distilled"]
