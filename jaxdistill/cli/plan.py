"""The command ``jaxdistill plan``: what a distill job will take, said before it runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from jaxdistill.cli.options import MAPS_ONLY, check_labels, chosen_features
from jaxdistill.cli.steps import number
from jaxdistill.errors import InputError


def plan(options: argparse.Namespace) -> int:
    """Print passes, operations, bytes and seconds of a job; nothing is trained or written."""
    chosen = chosen_features(options, MAPS_ONLY)
    check_labels(options, chosen)
    lam = number("lam", options.lam, ("auto",))
    _check_counted(options, chosen)

    from jaxdistill.data.datasets import load_dataset
    from jaxdistill.distill.cost import job_cost
    from jaxdistill.numerics.memory import available_bytes, format_bytes
    from jaxdistill.numerics.rates import measure_rates
    from jaxdistill.pipeline import make_features, parse_validation, split_keys

    data = load_dataset(options.dataset)
    n, shape = len(data.x_train), data.x_train.shape[1:]
    # A few rows tell the shapes; what depends on their values takes no more or less time.
    few = data.x_train[:64].reshape(min(n, 64), -1)
    phi = make_features(chosen, few, split_keys(options.seed)[0], shape=shape)
    k = data.num_classes if data.is_classification else data.y_train.shape[1]
    if options.size is None and not data.is_classification:
        raise InputError(f"{data.name} has real-valued targets: give --size N")
    size = k * (options.ipc or 1) if options.size is None else options.size
    validation = parse_validation(options.validation, n)
    cost = job_cost(
        phi,
        num_rows=n,
        num_targets=k,
        size=size,
        lam=lam,
        held=validation if isinstance(validation, float) else 0.0,
        num_test=len(data.x_test),
        dtype=data.x_train.dtype,
    )
    rates = measure_rates()
    stages = [
        {
            "name": stage.name,
            "passes": stage.passes,
            "operations": stage.operations,
            "seconds": rates.seconds(stage.operations, stage.kind),
        }
        for stage in cost.stages
    ]
    report = {
        "dataset": data.name,
        "features": phi.kind,
        **{"n": n, "d": phi.num_inputs, "p": phi.num_features, "k": k, "m": size},
        "stages": stages,
        "passes": cost.passes,
        "operations": sum(stage.operations for stage in cost.stages),
        "bytes": cost.memory,
        "bytes_free": available_bytes(),
        "seconds": sum(stage["seconds"] for stage in stages),
        "solver": options.realistic is not None or phi.construction_obstacle is not None,
        "rates": {"float32": rates.float32, "float64": rates.float64, "eigh": rates.eigh},
    }
    if options.json:
        print(json.dumps(report))
    else:
        print("\n".join(_lines(report, format_bytes)))
    return 0


def _check_counted(options: argparse.Namespace, chosen: Any) -> None:
    """Raise for jobs whose length the data decide.

    Raises:
        InputError: names what is not counted.
    """
    for asked, what in (
        (chosen.is_kernel, f"a kernel ({chosen.kind})"),
        (chosen.kind == "encoder", "an encoder, which is trained first"),
        (options.epsilon is not None, "a private release (--epsilon)"),
        (options.moments is not None, "moments (--moments), of which no data are read"),
    ):
        if asked:
            raise InputError(f"plan counts jobs of feature maps, and not of {what}; leave that out")


def _lines(report: dict[str, Any], in_words: Any) -> list[str]:
    r = report
    sizes = ", ".join(f"{name} = {r[name]}" for name in ("n", "d", "p", "k", "m"))
    table = [f"{'':<26}{'passes':>8}{'operations':>13}{'seconds':>10}"]
    table += [
        f"{stage['name']:<26}{stage['passes']:>8.3g}{stage['operations']:>13.1e}{stage['seconds']:>10.2g}"
        for stage in (*r["stages"], {**r, "name": "in all"})
    ]
    rates = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in r["rates"].items())
    solver = ["not counted  the set is solved for, as long as its solver needs"] if r["solver"] else []
    return [
        f"job          {r['dataset']}, {r['features']}: {sizes}",
        f"memory       {in_words(r['bytes'])} at the peak, {in_words(r['bytes_free'])} are free",
        f"machine      {rates} GFLOP/s, measured now",
        "",
        *table,
        "",
        *solver,
        "not counted  reading the data, and compiling, some seconds the first time",
    ]
