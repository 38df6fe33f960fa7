"""The commands ``jaxdistill kip`` and ``jaxdistill compare``: thin, no numerics."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdistill.cli.options import add_data_options, chosen_features
from jaxdistill.cli.report import seconds_of, share
from jaxdistill.cli.steps import (
    add_output_options,
    certify_and_write,
    default_ipc,
    given,
    load_and_fit,
    number,
    writable_folder,
)


def add_kip_options(parser: argparse.ArgumentParser) -> None:
    """Options of data, model, run and output."""
    add_data_options(parser)
    _add_run_options(parser)
    add_output_options(parser)


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Options of data, model and run."""
    add_data_options(parser)
    _add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("KIP")
    budget = group.add_mutually_exclusive_group()
    budget.add_argument("--ipc", type=int, help="examples per class; default 1")
    budget.add_argument("--size", type=int, help="examples in all")
    group.add_argument(
        "--steps", type=int, help="default: 500, and 3000 for about one per class; kernels: 1000"
    )
    group.add_argument("--batch", metavar="N|all", help="targets in a step; default: all; kernels: 2000")
    group.add_argument("--labels", help="fixed, learned or solved (the default)")
    group.add_argument("--optimiser", help="name of an optax optimiser; default adam")
    group.add_argument(
        "--learning-rate", type=float, help="default: 0.1; of feature maps and about one per class 0.5"
    )
    group.add_argument("--schedule", help="of the learning rate; default cosine")
    group.add_argument("--reg", type=float, help="penalty relative to tr(K)/m")
    group.add_argument(
        "--ridge", type=float, help="of solved labels; default: 0; for kernels and m > p 1e-10"
    )
    group.add_argument("--start", help="real (the default), noise, or a distilled.npz")
    group.add_argument("--hold-out", type=float, metavar="FRACTION", help="of the training data, to judge by")
    group.add_argument("--patience", type=int, help="evaluations without improvement, then stop")
    group.add_argument("--checkpoint", metavar="DIR", help="go on from here, if a run was killed")


def kip(options: argparse.Namespace) -> int:
    """Train a set by gradient descent, save it, and certify what was saved."""
    chosen = chosen_features(options)
    folder = writable_folder(options.out)
    lam = number("lam", options.lam, ("auto",))
    progress = sys.stderr.isatty() and not options.json

    from jaxdistill.pipeline import Stopwatch

    watch = Stopwatch()
    task, model = load_and_fit(options, chosen, lam, watch, progress)
    with watch.stage("distill"):
        result = _train(options, task, model, progress)
    certify_and_write(options, task, model, result.small, folder, watch, progress, kip=result.to_dict())
    return 0


def compare(options: argparse.Namespace) -> int:
    """The analytic set, KIP and simple baselines at the same budget, side by side."""
    chosen = chosen_features(options)
    lam = number("lam", options.lam, ("auto",))
    progress = sys.stderr.isatty() and not options.json

    import resource

    from jaxdistill.evaluate.certify import certify
    from jaxdistill.pipeline import Stopwatch, split_keys

    watch = Stopwatch()
    task, model = load_and_fit(options, chosen, lam, watch, progress)
    budget = {"ipc": default_ipc(options, task), "size": options.size, "key": split_keys(options.seed)[2]}
    closed = (_kernel_makers if chosen.is_kernel else _feature_makers)(task, model, budget)
    makers = {
        "analytic": closed.pop("analytic"),
        "kip": lambda: _train(options, task, model, progress).small,
        **closed,
    }
    rows = []
    for name, make in makers.items():
        with watch.stage(name):
            small = make()
        found = certify(model, small, task.x_test, task.y_test)
        rows.append(
            {
                "method": name,
                "m": len(small.x),
                "accuracy_distilled": found.accuracy_distilled,
                "accuracy_full": found.accuracy_full,
                "agreement": found.agreement,
                "prediction_error": found.prediction_error,
                "relative_weight_error": found.relative_weight_error,
                "exact": found.exact,
                "seconds": watch.seconds[name],
                "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            }
        )
    report = {
        "dataset": task.name,
        "features": chosen.kind,
        "rows": rows,
        "seconds": seconds_of(watch.seconds),
    }
    print(json.dumps(report) if options.json else _table(report))
    return 0


Makers = dict[str, Callable[[], Any]]


def _feature_makers(task: Any, model: Any, budget: dict[str, Any]) -> Makers:
    """The exact set, and baselines."""
    from jaxdistill.distill import distill
    from jaxdistill.distill.baselines import BASELINES, baseline

    simple = {name: lambda name=name: baseline(name, model, task.x, task.y, **budget) for name in BASELINES}
    return {"analytic": lambda: distill(model, **budget, dtype="float32"), **simple}


def _kernel_makers(task: Any, model: Any, budget: dict[str, Any]) -> Makers:
    """Closed-form sets of a kernel: what ``distill`` makes by default, and other points or labels."""
    from jaxdistill.distill.support import distill_kernel

    def maker(**settings: Any) -> Callable[[], Any]:
        return lambda: distill_kernel(model, task.x, task.y, **budget, **settings)

    return {
        "analytic": maker(),
        "random": maker(labels="hard"),
        "pivoted": maker(support="pivoted"),
        "kmeans": maker(support="kmeans"),
    }


def _train(options: argparse.Namespace, task: Any, model: Any, progress: bool) -> Any:
    from jaxdistill.kip import KipConfig, recommended, train
    from jaxdistill.pipeline import split_keys
    from jaxdistill.ridge.model import RidgeModel
    from jaxdistill.sets.kernel_set import load_set

    told = given(
        options,
        *("steps", "batch", "labels", "optimiser", "learning_rate", "schedule", "reg", "ridge", "start"),
    )
    if told.get("start", "").endswith(".npz"):
        told["start"] = load_set(Path(told["start"]))
    if told.get("batch", "all") != "all":
        told["batch"] = int(number("batch", told["batch"], ("all",)))
    ipc, k = default_ipc(options, task), task.y.shape[1]
    p = model.features.num_features if isinstance(model, RidgeModel) else None
    usual = recommended(options.size or (ipc or 1) * k, k, p, num_train=len(task.x))
    config = KipConfig(ipc=ipc, size=options.size, patience=options.patience, **(usual | told))
    return train(
        model,
        task.x,
        task.y,
        config,
        key=split_keys(options.seed)[2],
        validation=0.05 if options.patience is not None and options.hold_out is None else options.hold_out,
        preprocess=task.preprocess,
        class_names=task.class_names,
        checkpoint=options.checkpoint,
        progress=progress,
    )


def _table(report: dict[str, Any]) -> str:
    """A line a method; memory is the peak of the process so far."""
    head = ("method", "m", "accuracy", "full model", "agreement", "weight error", "seconds", "peak, MB")
    lines = [
        (
            row["method"],
            str(row["m"]),
            share(row["accuracy_distilled"]),
            share(row["accuracy_full"]),
            share(row["agreement"]),
            f"{row['relative_weight_error']:.1e}",
            f"{row['seconds']:.2f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        )
        for row in report["rows"]
    ]
    return "\n".join(
        "  ".join([f"{line[0]:<20}", *(f"{cell:>12}" for cell in line[1:])]) for line in [head, *lines]
    )
