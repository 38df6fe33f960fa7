"""``jaxdistill distill --epsilon E --delta D``: a private set, and nothing that was not paid for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxdistill.cli.steps import default_ipc, features_for, given, load_task, write_files
from jaxdistill.errors import BudgetError, InputError

NEIGHBOURS = ("add-or-remove", "replace-one")
SPECTRA = ("shrink", "clip")
PUBLIC = ("features", "preprocess")
_FITTED = ("standardize", "zca")
# Options that mean something with a budget only, and those that would look at private examples.
_PRIVATE = ("delta", "neighbours", "clip", "target_clip", "spectrum", "public")
_PRIVATE_EXAMPLES = ("realistic", "start")


def add_private_options(parser: argparse.ArgumentParser) -> None:
    """Options of the promise."""
    group = parser.add_argument_group(
        "privacy",
        "With --epsilon, all that is written is differentially private; --lam tuned pays for its choice.",
    )
    group.add_argument("--epsilon", type=float, help="what is promised; 1 is usual")
    group.add_argument("--delta", type=float, help="what is left out, well below one over the examples")
    group.add_argument("--neighbours", choices=NEIGHBOURS, help="default add-or-remove")
    group.add_argument(
        "--clip", type=float, help="norm of features, chosen without the data; default: their bound"
    )
    group.add_argument("--target-clip", type=float, help="norm of real-valued targets")
    group.add_argument("--spectrum", choices=SPECTRA, help="how noisy eigenvalues are mended; default shrink")
    group.add_argument(
        "--public", choices=PUBLIC, nargs="+", help="fitted on the data, and declared public all the same"
    )


def check_private(options: argparse.Namespace, chosen: Any) -> None:
    """Raise where options of the promise stand alone, or something would look at private data.

    Raises:
        BudgetError: what would have to be paid for.
        InputError: options that do not go together.
    """
    if options.epsilon is None:
        for name in _PRIVATE:
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is for private sets; give --epsilon too")
        return
    if options.delta is None:
        raise BudgetError("--epsilon needs --delta, a number well below one over the examples, such as 1e-5")
    if chosen.is_kernel:
        raise InputError(f"{chosen.kind} has no moments to make private; use a feature map, such as fourier")
    if options.intercept:
        raise InputError("private moments hold no means for an intercept; leave --intercept out")
    for name in _PRIVATE_EXAMPLES:
        if getattr(options, name) not in (None, "noise"):
            raise BudgetError(f"--{name} would start from private examples; leave it out")
    declared = options.public or ()
    if options.validation != "auto":
        raise BudgetError(
            "--validation would choose lam by private data for nothing; use --lam tuned, which is paid for"
        )
    if chosen.kind == "fourier" and chosen.lengthscale is None and "features" not in declared:
        raise BudgetError(
            "the default lengthscale is measured on the data; give --lengthscale, such as 7 for 28 x 28 "
            "pixels in [0, 1], or declare it public: --public features"
        )
    if chosen.kind == "encoder" and "features" not in declared:
        raise BudgetError(
            "--features encoder trains on private examples; use other features, or declare it public: "
            "--public features"
        )
    if options.preprocess in _FITTED and "preprocess" not in declared:
        raise BudgetError(
            f"--preprocess {options.preprocess} takes constants from private examples; use none, or declare "
            "them public: --public preprocess"
        )
    if chosen.kind == "encoder" and options.clip is None:  # before minutes of training
        raise InputError(
            "encoder features have no bound, so one example could add anything; give --clip, the largest "
            "norm that is kept, chosen without the data"
        )


def distill_private(
    options: argparse.Namespace, chosen: Any, lam: Any, lam_s: Any, folder: Path, progress: bool
) -> None:
    """Fit a private model, distil it, write the set, and print the test accuracy, which no file holds."""
    from jaxdistill.cli.report import describe, print_report, seconds_of
    from jaxdistill.distill.options import SolverOptions
    from jaxdistill.evaluate.certify import certify
    from jaxdistill.pipeline import Stopwatch, split_keys
    from jaxdistill.privacy.budget import Budget, Neighbours
    from jaxdistill.privacy.mechanism import fit_private_ridge
    from jaxdistill.solve.box import pixel_box

    budget = Budget(options.epsilon, options.delta, Neighbours.named(options.neighbours or NEIGHBOURS[0]))
    watch = Stopwatch()
    with watch.stage("load"):
        task = load_task(options, progress)
    with watch.stage("fit"):
        private = fit_private_ridge(
            features_for(options, chosen, task, progress),
            task.x,
            task.y,
            budget=budget,
            lam=lam,
            preprocess=task.preprocess,
            progress=progress,
            **given(options, "clip", "target_clip", "spectrum", "public"),
        )
    with watch.stage("distill"):
        box = None if options.box is None else pixel_box(task.preprocess, *options.box, dtype=options.dtype)
        small = private.distill(
            ipc=default_ipc(options, task),
            size=options.size,
            labels=options.labels,
            lam_s=lam_s,
            scale=options.scale,
            exact=options.exact,
            box=box,
            solver=SolverOptions(**given(options, "start", "starts", "pull", "steps", "seconds")),
            dtype=options.dtype,
            progress=progress,
            key=split_keys(options.seed)[2],
            **given(options, "noise", "sharpness"),
        ).with_context(task.preprocess, task.class_names)
    with watch.stage("certify"):
        small = small.with_certificate(certify(private.model, small))
        shown = certify(private.model, small, task.x_test, task.y_test, progress=progress)
    with watch.stage("write"):
        files = write_files(folder, small, task)
    told = small.recipe["privacy"]
    report = describe(task.name, small, shown.to_dict()) | {
        "lam_chosen_by": told["lam"],
        "lam_at_edge": None,
        "privacy": told,
        "files": files,
        "seconds": seconds_of(watch.seconds),
    }
    print_report(report, options.json)
    if not options.json:
        print(
            f"promise      epsilon {told['epsilon']:g}, delta {told['delta']:g}, {told['neighbours']}, for "
            "all that the files hold\nnote         the test accuracy above is printed here and is in no file"
        )
