"""The command ``jaxdistill moments``: one pass over data into a file, files of several machines merged."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from jaxdistill.cli.options import add_feature_options, chosen_features, refuse_given
from jaxdistill.errors import InputError
from jaxdistill.numerics.files import check_folder


def add_moments_options(parser: argparse.ArgumentParser) -> None:
    """What to do, and its files."""
    actions = parser.add_subparsers(metavar="fit|merge", required=True, dest="action")
    fit = actions.add_parser("fit", help="sum over the training part of a data set; killed, it goes on")
    data = fit.add_argument_group("data and features")
    data.add_argument(
        "--dataset",
        default="digits",
        help="digits, FILE.npz, a tensorflow-datasets name, or the path of a folder of .npz pieces with "
        "arrays x and y; read as it is needed",
    )
    data.add_argument("--preprocess", default="standardize", help="standardize, zca or none")
    data.add_argument("--targets", choices=("one-hot", "centred"), default="one-hot")
    add_feature_options(data, default="linear")
    data.add_argument("--seed", type=int, default=0)
    data.add_argument(
        "--like",
        metavar="FILE",
        help="moments of another part of the data: its features, preprocessing and targets, so that the two "
        "can be merged",
    )
    merge = actions.add_parser("merge", help="add moments of different examples")
    merge.add_argument("files", nargs="+", metavar="FILE", help="files of: jaxdistill moments fit")
    for action in (fit, merge):
        action.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write")
        action.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def moments(options: argparse.Namespace) -> int:
    """Collect moments, or merge them, and say what the file holds."""
    check_folder(options.output)
    saved = _fit(options) if options.action == "fit" else _merge(options)
    p, k = saved.moments.cross.shape
    report = {"n": saved.num_rows, "p": p, "k": k, "features": saved.features.kind, "file": options.output}
    print(
        json.dumps(report)
        if options.json
        else f"moments      of {saved.num_rows} examples, {saved.features.kind}, p = {p}, k = {k}\n"
        f"file         {options.output}"
    )
    return 0


def _fit(options: argparse.Namespace) -> Any:
    chosen = chosen_features(options)
    if options.like is not None:
        _check_like(options)
    if chosen.is_kernel:
        raise InputError(f"{chosen.kind} has no moments; use a feature map, such as fourier")
    from jaxdistill.pipeline import make_features_of_rows, prepare_rows, split_keys
    from jaxdistill.ridge.targets import TargetKind
    from jaxdistill.sets.saved_moments import SavedMoments, collect_moments

    progress = sys.stderr.isatty() and not options.json
    if options.like is None:
        task = prepare_rows(
            options.dataset, preprocess=options.preprocess, centred=options.targets == "centred"
        )
        phi = make_features_of_rows(chosen, task, split_keys(options.seed)[0], progress=progress)
    else:
        like = SavedMoments.load(options.like)
        task = prepare_rows(
            options.dataset,
            preprocess=like.preprocess or "none",
            centred=like.target_kind is TargetKind.CENTRED,
        )
        phi = like.features
    return collect_moments(
        phi,
        task.rows,
        path=options.output,
        preprocess=task.preprocess,
        class_names=task.class_names,
        progress=progress,
    )


def _check_like(options: argparse.Namespace) -> None:
    """Raise where an option asks for what another file of moments decides."""
    parser = argparse.ArgumentParser(add_help=False)
    add_moments_options(parser)
    plain = parser.parse_args(["fit", "-o", options.output])
    why = "is decided by the file of --like; leave one of the two out"
    refuse_given(options, plain, ("dataset", "like", "output", "json"), why)


def _merge(options: argparse.Namespace) -> Any:
    from jaxdistill.sets.saved_moments import SavedMoments

    first, *others = (SavedMoments.load(file) for file in options.files)
    if not others:
        raise InputError("one file has nothing to be merged with; name two or more")
    for other in others:
        first = first.merge(other)
    first.save(options.output)
    return first
