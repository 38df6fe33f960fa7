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

from jaxdistill.cli.attack import add_attack_options, attack
from jaxdistill.cli.cache import cache_folder, kept_programs
from jaxdistill.cli.distill import add_distill_options, distill
from jaxdistill.cli.evaluate import add_evaluate_options, evaluate
from jaxdistill.cli.export import add_export_options, export
from jaxdistill.cli.gpu import untuned_products
from jaxdistill.cli.kip import add_compare_options, add_kip_options, compare, kip
from jaxdistill.cli.moments import add_moments_options, moments
from jaxdistill.cli.plan import plan
from jaxdistill.errors import InputError, JaxDistillError


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
        with untuned_products():
            if options.run is not _info:  # which says what it can
                _check_platform()
            with kept_programs(not options.no_cache):
                return options.run(options)
    except JaxDistillError as error:
        print(f"jaxdistill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxdistill: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130


def _check_platform() -> None:
    """Raise before any work where a platform or placement that is asked for cannot be had."""
    import jax

    from jaxdistill.numerics.placement import VARIABLE, placement

    wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if wanted or VARIABLE in os.environ:  # else JAX takes what there is, when it is needed
        placement()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxdistill",
        description="Exact dataset distillation for kernel ridge regression, in closed form.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    made = (
        (
            "distill",
            add_distill_options,
            distill,
            "construct a distilled set, save it and certify it",
        ),
        (
            "plan",
            add_distill_options,
            plan,
            "what a distill job will take: passes, operations, bytes, seconds",
        ),
        ("kip", add_kip_options, kip, "train a set by gradient descent, the method to compare with"),
        ("compare", add_compare_options, compare, "analytic set, KIP and baselines, side by side"),
        ("evaluate", add_evaluate_options, evaluate, "certify a saved set, or train other features on it"),
        ("export", add_export_options, export, "a saved set as PNG files and one label file"),
        ("attack", add_attack_options, attack, "ask a saved set who was in its training data"),
        ("moments", add_moments_options, moments, "sums over data as a file: collected, merged"),
    )
    for name, add_options, run, about in made:
        command = commands.add_parser(name, help=about)
        add_options(command)
        command.add_argument(
            "--no-cache", action="store_true", help="neither read nor keep compiled programs"
        )
        command.set_defaults(run=run)

    info = commands.add_parser("info", help="versions, devices, precision, what is installed")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=_info, no_cache=True)
    return parser


def _info(options: argparse.Namespace) -> int:
    from importlib import metadata

    import jax

    from jaxdistill.numerics.placement import local_devices, placement
    from jaxdistill.numerics.products import measured_errors

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

    devices, where, absent = (), None, None
    try:
        devices = local_devices()
        where = placement().title
    except InputError as error:
        absent = error
    report = {
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
        "backend": devices[0].platform if devices else None,
        "devices": [str(device) for device in devices],
        "x64": jax.numpy.result_type(float) == "float64",
        "products": measured_errors() if absent is None else None,
        "float64": where,
        "compiled_programs": cache_folder()[0],
        "data_dir": os.environ.get("JAXDISTILL_DATA_DIR"),
        "memory_available": psutil.virtual_memory().available,
    }
    if options.json:
        print(json.dumps(report))
    else:
        _print_lines(report)
    if absent is not None:
        raise absent
    return 0


def _print_lines(report: dict[str, Any]) -> None:
    for name, value in report.pop("versions").items():
        print(f"{name:<20} {value or 'not installed'}")
    errors = report["products"] or {}
    report["products"] = ", ".join(
        f"{name} {'not here' if error is None else f'to {error:.0e}'}" for name, error in errors.items()
    )
    for name, value in report.items():
        print(f"{name.replace('_', ' '):<20} {value}")
