"""The command ``jaxdistill``: thin, no numerics."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import psutil

from jaxdistill.cli_kip import add_kip_options, compare, kip
from jaxdistill.commands import (
    chosen_penalty,
    default_ipc,
    load_and_fit,
    number,
    writable_folder,
    write_files,
)
from jaxdistill.errors import InputError, JaxDistillError
from jaxdistill.report import describe, print_report, seconds_of

REALISTIC = ("closest", "features", "inverse", "fixed")
STARTS = ("real", "noise", "closed", "preimages")


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

    train = commands.add_parser("kip", help="train a set by gradient descent, the method to compare with")
    _add_data_options(train)
    add_kip_options(train)
    _add_output_options(train)
    train.set_defaults(run=kip)

    side = commands.add_parser("compare", help="analytic set, KIP and baselines, side by side")
    _add_data_options(side)
    add_kip_options(side)
    side.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    side.set_defaults(run=compare)

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
    data.add_argument(
        "--features",
        default="linear",
        help="linear, fourier, network, conv, deep-linear, invertible, or encoder (trained on the data)",
    )
    data.add_argument("--num-features", type=int, metavar="P", help="features; default: as many as inputs")
    data.add_argument("--depth", type=int, help="layers; default 1 for network, 2 for the others")
    data.add_argument("--activation", default="leaky_relu", help="leaky_relu, gelu, tanh, relu, ...")
    data.add_argument("--negative-slope", type=float, default=0.1, help="of LeakyReLU")
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
    small.add_argument("--exact", action="store_true", help="refuse what cannot be exact")
    small.add_argument(
        "--box", type=float, nargs=2, metavar=("LOW", "HIGH"), help="least and largest value of a pixel"
    )
    solver = parser.add_argument_group(
        "sets that are solved for: maps without an inverse, --realistic closest"
    )
    solver.add_argument("--start", choices=STARTS, help="where to start; default: real examples")
    solver.add_argument("--starts", type=int, default=1, help="starts that run side by side")
    solver.add_argument("--pull", type=int, default=0, help="rounds of drawing back towards the start")
    solver.add_argument("--steps", type=int, help="steps at most")
    solver.add_argument("--seconds", type=float, help="time after which the best so far is kept")
    small.add_argument("--scale", type=float, help="factor on features and labels")
    small.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of stored inputs")
    _add_output_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="distilled", metavar="DIR", help="default: ./distilled")
    output.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _distill(options: argparse.Namespace) -> int:
    folder = writable_folder(options.out)
    lam, lam_s = number("lam", options.lam, ("auto",)), number("lam_s", options.lam_s, ("max", "auto"))
    progress = sys.stderr.isatty() and not options.json

    from jaxdistill.certify import certify
    from jaxdistill.distill import distill
    from jaxdistill.distill.box import pixel_box
    from jaxdistill.distill.options import SolverOptions
    from jaxdistill.pipeline import Stopwatch, split_keys

    watch = Stopwatch()
    task, model = load_and_fit(options, lam, watch, progress)
    solved = options.realistic is not None or model.features.construction_obstacle is not None
    reference = (task.x, task.y) if solved else None
    box = None if options.box is None else pixel_box(task.preprocess, *options.box, dtype=options.dtype)
    with watch.stage("distill"):
        small = distill(
            model,
            ipc=default_ipc(options, task),
            size=options.size,
            labels=options.labels,
            lam_s=lam_s,
            realistic=options.realistic,
            reference=reference,
            noise=options.noise,
            sharpness=options.sharpness,
            scale=options.scale,
            exact=options.exact,
            box=box,
            solver=SolverOptions(
                options.start,
                options.starts,
                options.pull,
                steps=options.steps,
                seconds=options.seconds,
            ),
            dtype=options.dtype,
            progress=progress,
            key=split_keys(options.seed)[2],
        ).with_context(task.preprocess, task.class_names)
    with watch.stage("certify"):
        certificate = certify(model, small, task.x_test, task.y_test, progress=progress)
        small = small.with_certificate(certificate)
    with watch.stage("write"):
        files = write_files(folder, small, task)
    report = describe(task.name, small, certificate.to_dict()) | {
        **chosen_penalty(model),
        "files": files,
        "seconds": seconds_of(watch.seconds),
    }
    print_report(report, options.json)
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
    report = describe(data.name, small, certificate.to_dict()) | {"seconds": seconds_of(watch.seconds)}
    print_report(report, options.json)
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
