"""The command ``jaxdistill distill``: thin, no numerics."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jaxdistill.cli.from_moments import add_moments_option, check_moments, fit_moments
from jaxdistill.cli.options import (
    KERNEL_LABELS,
    MAP_LABELS,
    MAPS_ONLY,
    add_data_options,
    check_labels,
    chosen_features,
)
from jaxdistill.cli.private import add_private_options, check_private, distill_private
from jaxdistill.cli.steps import (
    add_output_options,
    certify_and_write,
    default_ipc,
    given,
    load_and_fit,
    number,
    writable_folder,
)

REALISTIC = ("closest", "copies", "features", "inverse", "fixed")
STARTS = ("real", "noise", "closed", "preimages")
SUPPORTS = ("balanced", "pivoted", "kmeans")


def add_distill_options(parser: argparse.ArgumentParser) -> None:
    """Options of data, model, set, solver and output."""
    add_data_options(parser)
    add_moments_option(parser)
    small = parser.add_argument_group("distilled set")
    budget = small.add_mutually_exclusive_group()
    budget.add_argument("--ipc", type=int, help="examples per class; default 1")
    budget.add_argument("--size", type=int, help="examples in all")
    small.add_argument(
        "--labels",
        choices=tuple(dict.fromkeys(MAP_LABELS + KERNEL_LABELS)),
        help=f"of feature maps: {', '.join(MAP_LABELS)}; of kernels: {', '.join(KERNEL_LABELS)}",
    )
    small.add_argument("--lam-s", metavar="NUMBER|max|auto", help="penalty to retrain with")
    small.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of stored inputs")
    maps = parser.add_argument_group("sets of feature maps")
    maps.add_argument("--realistic", choices=REALISTIC, help="start from real examples")
    maps.add_argument("--noise", type=float, help="size of the random part; default 1")
    maps.add_argument("--sharpness", type=float, help="of --realistic closest; default 10")
    maps.add_argument("--exact", action="store_true", help="refuse what cannot be exact")
    maps.add_argument("--scale", type=float, help="factor on features and labels")
    maps.add_argument(
        "--box", type=float, nargs=2, metavar=("LOW", "HIGH"), help="least and largest value of a pixel"
    )
    solver = parser.add_argument_group(
        "sets that are solved for: maps without an inverse, --realistic closest"
    )
    solver.add_argument("--start", choices=STARTS, help="where to start; default: real examples")
    solver.add_argument("--starts", type=int, help="starts that run side by side; default 1")
    solver.add_argument("--pull", type=int, help="rounds of drawing back towards the start; default 0")
    solver.add_argument("--steps", type=int, help="steps at most")
    solver.add_argument("--seconds", type=float, help="time after which the best so far is kept")
    kernels = parser.add_argument_group("sets of kernels")
    kernels.add_argument("--support", choices=SUPPORTS, help="which points; default balanced")
    add_private_options(parser)
    add_output_options(parser)


def distill(options: argparse.Namespace) -> int:
    """Construct a distilled set, save it, and certify what was saved."""
    if options.moments is not None:
        check_moments(options)
    chosen = chosen_features(options, MAPS_ONLY)
    check_labels(options, chosen)
    check_private(options, chosen)
    folder = writable_folder(options.out)
    lam = number("lam", options.lam, ("auto",) if options.epsilon is None else ("auto", "tuned"))
    lam_s = number("lam_s", options.lam_s, ("auto",) if chosen.is_kernel else ("max", "auto"))
    progress = sys.stderr.isatty() and not options.json

    if options.epsilon is not None:
        distill_private(options, chosen, lam, lam_s, folder, progress)
        return 0

    from jaxdistill.pipeline import Stopwatch

    watch = Stopwatch()
    if options.moments is None:
        task, model = load_and_fit(options, chosen, lam, watch, progress)
    else:
        task, model = fit_moments(options, lam, watch)
    make = _kernel_set if chosen.is_kernel else _feature_set
    with watch.stage("distill"):
        small = make(options, task, model, lam_s, progress).with_context(task.preprocess, task.class_names)
    certify_and_write(options, task, model, small, folder, watch, progress)
    return 0


def _feature_set(options: argparse.Namespace, task: Any, model: Any, lam_s: Any, progress: bool) -> Any:
    from jaxdistill.distill import distill
    from jaxdistill.distill.options import SolverOptions
    from jaxdistill.pipeline import split_keys
    from jaxdistill.solve.box import pixel_box

    solved = options.realistic is not None or model.features.construction_obstacle is not None
    box = None if options.box is None else pixel_box(task.preprocess, *options.box, dtype=options.dtype)
    return distill(
        model,
        ipc=default_ipc(options, task),
        size=options.size,
        labels=options.labels,
        lam_s=lam_s,
        realistic=options.realistic,
        reference=(task.x, task.y) if solved and task.x is not None else None,
        scale=options.scale,
        exact=options.exact,
        box=box,
        solver=SolverOptions(**given(options, "start", "starts", "pull", "steps", "seconds")),
        dtype=options.dtype,
        progress=progress,
        key=split_keys(options.seed)[2],
        **given(options, "noise", "sharpness"),
    )


def _kernel_set(options: argparse.Namespace, task: Any, model: Any, lam_s: Any, progress: bool) -> Any:
    from jaxdistill.distill.support import distill_kernel
    from jaxdistill.pipeline import split_keys

    return distill_kernel(
        model,
        task.x,
        task.y,
        ipc=default_ipc(options, task),
        size=options.size,
        lam_s=None if lam_s == "auto" else lam_s,
        dtype=options.dtype,
        key=split_keys(options.seed)[2],
        progress=progress,
        **given(options, "support", "labels"),
    )
