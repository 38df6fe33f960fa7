"""The commands ``jaxdistill kip`` and ``jaxdistill compare``: thin, no numerics."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jaxdistill.commands import (
    chosen_penalty,
    default_ipc,
    load_and_fit,
    number,
    writable_folder,
    write_files,
)
from jaxdistill.report import describe, print_report, seconds_of


def add_kip_options(parser: argparse.ArgumentParser) -> None:
    """Options of a KIP run; those of the data and the model are the same for every command."""
    group = parser.add_argument_group("KIP")
    budget = group.add_mutually_exclusive_group()
    budget.add_argument("--ipc", type=int, help="examples per class; default 1")
    budget.add_argument("--size", type=int, help="examples in all")
    group.add_argument("--steps", type=int, help="default: 500, and 3000 for about one per class")
    group.add_argument("--batch", default="all", metavar="N|all", help="targets in a step")
    group.add_argument("--labels", default="solved", help="fixed, learned or solved")
    group.add_argument("--optimiser", default="adam", help="name of an optax optimiser")
    group.add_argument("--learning-rate", type=float, help="default: 0.1, and 0.5 for about one per class")
    group.add_argument("--schedule", default="cosine", help="of the learning rate")
    group.add_argument("--reg", type=float, help="penalty relative to tr(K)/m")
    group.add_argument("--ridge", type=float, help="of solved labels; default: 0, and 1e-10 where m > p")
    group.add_argument("--start", default="real", help="real, noise, or a distilled.npz")
    group.add_argument("--hold-out", type=float, metavar="FRACTION", help="of the training data, to judge by")
    group.add_argument("--patience", type=int, help="evaluations without improvement, then stop")
    group.add_argument("--checkpoint", metavar="DIR", help="go on from here, if a run was killed")


def kip(options: argparse.Namespace) -> int:
    """Train a set by gradient descent, save it, and certify what was saved."""
    folder = writable_folder(options.out)
    lam = number("lam", options.lam, ("auto",))
    progress = sys.stderr.isatty() and not options.json

    from jaxdistill.certify import certify
    from jaxdistill.pipeline import Stopwatch

    watch = Stopwatch()
    task, model = load_and_fit(options, lam, watch, progress)
    with watch.stage("distill"):
        result = _train(options, task, model, progress)
    with watch.stage("certify"):
        certificate = certify(model, result.small, task.x_test, task.y_test, progress=progress)
        small = result.small.with_certificate(certificate)
    with watch.stage("write"):
        files = write_files(folder, small, task)
    report = describe(task.name, small, certificate.to_dict()) | {
        **chosen_penalty(model),
        "kip": result.to_dict(),
        "files": files,
        "seconds": seconds_of(watch.seconds),
    }
    print_report(report, options.json)
    return 0


def compare(options: argparse.Namespace) -> int:
    """The analytic set, KIP and simple baselines at the same budget, side by side."""
    lam = number("lam", options.lam, ("auto",))
    progress = sys.stderr.isatty() and not options.json

    import resource

    from jaxdistill.baselines import BASELINES, baseline
    from jaxdistill.certify import certify
    from jaxdistill.distill import distill
    from jaxdistill.pipeline import Stopwatch, split_keys

    watch = Stopwatch()
    task, model = load_and_fit(options, lam, watch, progress)
    budget = {"ipc": default_ipc(options, task), "size": options.size}
    key = split_keys(options.seed)[2]
    makers = {
        "analytic": lambda: distill(model, **budget, dtype="float32", key=key),
        "kip": lambda: _train(options, task, model, progress).small,
    } | {
        name: lambda name=name: baseline(name, model, task.x, task.y, **budget, key=key) for name in BASELINES
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
        "features": model.features.kind,
        "rows": rows,
        "seconds": seconds_of(watch.seconds),
    }
    print(json.dumps(report) if options.json else _table(report))
    return 0


def _train(options: argparse.Namespace, task: Any, model: Any, progress: bool) -> Any:
    from jaxdistill.artifact import DistilledSet
    from jaxdistill.kip import KipConfig, recommended, train
    from jaxdistill.pipeline import split_keys

    start = options.start
    if start.endswith(".npz"):
        start = DistilledSet.load(Path(start))
    ipc, k = default_ipc(options, task), task.y.shape[1]
    told = {"steps": options.steps, "learning_rate": options.learning_rate, "ridge": options.ridge}
    chosen = {name: value for name, value in told.items() if value is not None}
    config = KipConfig(
        ipc=ipc,
        size=options.size,
        **(recommended(options.size or (ipc or 1) * k, k, model.features.num_features) | chosen),
        batch=options.batch if options.batch == "all" else int(number("batch", options.batch, ("all",))),
        labels=options.labels,
        optimiser=options.optimiser,
        schedule=options.schedule,
        reg=options.reg,
        start=start,
        patience=options.patience,
    )
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

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

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
