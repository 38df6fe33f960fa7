"""``jaxdistill distill --moments FILE``: a set from sums over data, none of which is read."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from jaxdistill.cli.options import add_data_options, refuse_given
from jaxdistill.errors import InputError

# What moments leave open: all else of the data and the model is in the file.
_OPEN = ("lam", "intercept", "seed")


@dataclass(frozen=True, eq=False)
class MomentsTask:
    """What stands for the data where only their moments are there: no example, to train on or to test by.

    Args:
        name: The file.
        preprocess: Transform from images to inputs.
        class_names: Names of the classes, or None for regression.
    """

    name: str
    preprocess: Any
    class_names: tuple[str, ...] | None
    x = y = x_test = y_test = None


def add_moments_option(parser: argparse.ArgumentParser) -> None:
    """The option that names the file."""
    parser.add_argument(
        "--moments",
        metavar="FILE",
        help="instead of data and features: a file of jaxdistill moments; lam is then chosen by generalised "
        "cross-validation",
    )


def check_moments(options: argparse.Namespace) -> None:
    """Raise where options ask for what is in the file already, or for examples.

    Raises:
        InputError: names the option.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_data_options(parser)
    why = "is for examples, and --moments stands for them; leave one out"
    refuse_given(options, parser.parse_args([]), _OPEN, why)
    if options.epsilon is not None:
        raise InputError("--epsilon clips examples one by one, and moments hold none; leave --moments out")
    if options.realistic is not None or options.start == "real":
        name = "realistic" if options.realistic else "start real"
        raise InputError(
            f"--{name} begins with real examples, and moments hold none; leave one of the two out"
        )


def fit_moments(options: argparse.Namespace, lam: Any, watch: Any) -> tuple[MomentsTask, Any]:
    """What is known of the data, and the full model.

    Args:
        options: What the parser made of the command.
        lam: Penalty, or "auto".
        watch: Stopwatch of the stages.

    Raises:
        ArtifactError: a file that is missing, damaged, or something else.
        InputError: a pass that was not finished, or real-valued targets without a size.
    """
    from jaxdistill.data.preprocess import Identity
    from jaxdistill.ridge.fit import fit_ridge
    from jaxdistill.ridge.targets import TargetKind
    from jaxdistill.sets.saved_moments import SavedMoments

    with watch.stage("load"):
        saved = SavedMoments.load(options.moments)
        source, names = saved.source(), saved.class_names
    if saved.target_kind is TargetKind.REAL:
        if options.size is None:
            raise InputError(f"{options.moments} is of real-valued targets: give --size N")
    elif names is None:
        names = tuple(map(str, range(source.num_targets)))
    with watch.stage("fit"):
        intercept = names is None if options.intercept is None else options.intercept
        model = fit_ridge(saved.features, source, lam=lam, validation="generalised", intercept=intercept)
    transform = saved.preprocess or Identity((source.num_inputs,))
    return MomentsTask(options.moments, transform, names), model
