"""The command ``jaxdistill evaluate``: a saved set, certified, or trained on by other features."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from jaxdistill.cli.options import add_feature_options, chosen_features
from jaxdistill.cli.report import describe, print_report, seconds_of, text_of_transfer
from jaxdistill.cli.steps import given, number
from jaxdistill.errors import InputError

LABELS = ("soft", "hard", "own")
# Options that say how something else is trained on the set.
_OF_TRANSFER = (
    *("num_features", "depth", "activation", "negative_slope", "weights", "lengthscale", "degree"),
    *("labels", "lam", "seed"),
)


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """The file, the data, and what to train on it."""
    parser.add_argument("file", metavar="FILE", help="a distilled.npz")
    parser.add_argument("--dataset", required=True, help="data set whose test part is used")
    parser.add_argument(
        "--pictures", metavar="DIR", help="judge the images and labels of this folder, which export wrote"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    other = parser.add_argument_group(
        "transfer", "With --features, these are trained on the set in place of those it was made for."
    )
    add_feature_options(other, default=None)
    other.add_argument(
        "--labels", choices=LABELS, help="predictions of the set's own model (the default), ..."
    )
    other.add_argument(
        "--lam", metavar="auto|NUMBER", help="penalty; default a tenth of tr(K)/m; auto: leave-one-out"
    )
    other.add_argument("--seed", type=int, help="of features that are drawn at random; default 0")


def evaluate(options: argparse.Namespace) -> int:
    """Certify a saved set from its file alone, or train other features on it."""
    progress = sys.stderr.isatty() and not options.json
    if options.features is not None:
        if options.pictures is not None:
            raise InputError("--pictures is for the set's own features; leave out --features")
        return _transfer(options, progress)
    for name in _OF_TRANSFER:
        if getattr(options, name) is not None:
            told = name.replace("_", "-")
            raise InputError(f"--{told} is for other features than the set's own; name them with --features")

    from jaxdistill.evaluate.certify import certify
    from jaxdistill.pipeline import Stopwatch

    watch = Stopwatch()
    with watch.stage("load"):
        small, data, x_test = load_file(options, progress)
        if options.pictures is not None:
            small = _with_pictures(small, options.pictures)
    with watch.stage("certify"):
        certificate = certify(small, small, x_test, data.y_test, progress=progress)
    report = describe(data.name, small, certificate.to_dict()) | {"seconds": seconds_of(watch.seconds)}
    print_report(report, options.json)
    return 0


def _with_pictures(small: Any, folder: str) -> Any:
    from jaxdistill.sets.artifact import DistilledSet
    from jaxdistill.sets.pictures import with_pictures

    if not isinstance(small, DistilledSet):
        raise InputError("--pictures is for sets of a feature map, which is what export writes")
    return with_pictures(small, folder)


def _transfer(options: argparse.Namespace, progress: bool) -> int:
    """Train other features, or a kernel, on the set alone."""
    chosen = chosen_features(options)
    if chosen.kind == "encoder":
        raise InputError(
            "an encoder is trained on all data, a transfer on the set alone; choose other features"
        )
    lam = number("lam", options.lam, ("auto",))

    from jaxdistill.evaluate.transfer import transfer
    from jaxdistill.pipeline import Stopwatch, make_features, make_kernel, split_keys

    watch = Stopwatch()
    with watch.stage("load"):
        small, data, x_test = load_file(options, progress)
    with watch.stage("transfer"):
        if chosen.is_kernel:
            features: Any = make_kernel(chosen, small.x)
        else:
            shape = None if small.preprocess is None else small.preprocess.shape
            features = make_features(chosen, small.x, split_keys(options.seed or 0)[0], shape=shape)
        found = transfer(
            small, features, x_test, data.y_test, lam=lam, progress=progress, **given(options, "labels")
        )
    report = {
        "dataset": data.name,
        "d": small.x.shape[1],
        "p": None if chosen.is_kernel else features.num_features,
        "k": small.y.shape[1],
        "m": len(small.x),
        "settings": features.settings() if chosen.is_kernel else None,
        "seed": None if chosen.is_kernel else options.seed or 0,
        **found.to_dict(),
        "seconds": seconds_of(watch.seconds),
    }
    print(json.dumps(report) if options.json else text_of_transfer(report))
    return 0


def load_file(options: argparse.Namespace, progress: bool) -> tuple[Any, Any, Any]:
    """The set, the data, and their test inputs as its model sees them."""
    from jaxdistill.data.datasets import load_dataset
    from jaxdistill.data.transforms import to_inputs
    from jaxdistill.numerics.placement import on_accelerator
    from jaxdistill.sets.kernel_set import load_set

    small = load_set(options.file)
    data = load_dataset(options.dataset, progress=progress, pixels=on_accelerator())
    x_test = data.x_test
    if small.preprocess is not None:
        if small.preprocess.shape != data.example_shape:
            raise InputError(
                f"{options.file} was made for examples of shape {small.preprocess.shape}, "
                f"{data.name} has {data.example_shape}; name the data set it was made from"
            )
        x_test = to_inputs(small.preprocess, x_test, name="x_test", training=False)
    return small, data, x_test
