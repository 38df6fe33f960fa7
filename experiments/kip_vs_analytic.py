"""Analytic sets against Kernel Inducing Points: accuracy, seconds, memory, at the same number of images.

Network features with Gaussian weights, p = d, as in the comparison of Chen, Huang and Weng (NeurIPS 2024),
whose numbers stand beside. Every row is a process of its own, so that compilation and peak memory are its
own. Three forms of KIP run: on the moments of all targets, on batches with solved labels, and on
batches with learned labels. Test accuracy over time is looked at, and nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from functools import partial
from itertools import product
from time import perf_counter, process_time
from typing import Any

import common
import numpy as np
from curves import Curve, Panel, draw_panels
from synthetic import dataset_path

from jaxdistill.numerics.files import write_atomically

KEYS = ("dataset", "method", "ipc", "seed", "steps")
METHODS = {
    "analytic": None,
    "KIP, moments": {"labels": "solved"},
    "KIP, batches": {"labels": "solved", "batch": 5000},
    "KIP, learned labels": {"labels": "learned", "batch": 5000},
}
# KIP accuracy, its seconds, analytic accuracy, its seconds (CHW, network features, one A5000 GPU).
PUBLISHED = {
    ("mnist", 1): (93.44, 159, 93.72, 16),
    ("mnist", 10): (93.75, 554, 93.69, 16),
    ("mnist", 50): (93.72, 3114, 93.62, 16),
    ("cifar10", 1): (45.83, 225, 47.85, 21),
    ("cifar10", 10): (47.50, 594, 47.76, 20),
    ("cifar10", 50): (47.48, 3510, 47.77, 20),
    ("cifar100", 1): (20.08, 616, 21.58, 20),
    ("cifar100", 10): (21.56, 9323, 21.59, 20),
    ("cifar100", 50): (None, 396000, 21.58, 25),
}
# "Reached" is the full model's accuracy less this.
MARGIN = 0.001
# Steps of the published program.
PUBLISHED_STEPS = 30_000


def main() -> None:
    """Run or resume all cases, then write the table and the figures."""
    options = common.parse(__doc__ or "", _extend)
    if options.case is not None:
        print(json.dumps(_measure(**json.loads(options.case))))
        return
    from jaxdistill.kip import recommended  # here, so that the analytic cases do not pay for optax and orbax

    if options.quick:
        options.seeds = min(options.seeds, 1)
        options.ipc = [1, 10] if options.ipc is None else options.ipc
    options.ipc = [1, 10, 50] if options.ipc is None else options.ipc
    # As many as serve MNIST's ten classes; a tenth of them where it is quick.
    usual = [recommended(10 * ipc, 10, 10 * ipc)["steps"] for ipc in options.ipc]
    steps = options.steps or [number // 10 if options.quick else number for number in usual]
    if len(steps) != len(options.ipc):
        raise SystemExit(f"--steps has {len(steps)} numbers, --ipc has {len(options.ipc)}; give as many")
    rows = common.Rows(options.results / f"{options.dataset}_kip_vs_analytic.jsonl", KEYS)
    dataset_path(options.dataset)  # made here, so that no case pays for it
    methods: list[str] = options.methods
    for seed, (ipc, number), method in product(
        range(options.seeds), zip(options.ipc, steps, strict=True), methods
    ):
        values = (options.dataset, method, ipc, seed, 0 if method == "analytic" else number)
        setting: dict[str, Any] = dict(zip(KEYS, values, strict=True))
        rows.once(partial(_in_process, setting), **setting)
    table = options.results / f"{options.dataset}_kip_vs_analytic.md"
    write_atomically(table, _table(options, rows.rows).encode())
    figures = _figures(options, rows.rows)
    print(table.read_text(), table, *figures, sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ipc", type=int, nargs="+", help="default: 1 10 50 (--quick: 1 10)")
    parser.add_argument("--steps", type=int, nargs="+", help="KIP steps for each --ipc")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--note", help="what a reader has to know of the data, such as 'JPEG copies'")
    parser.add_argument("--case", help=argparse.SUPPRESS)


def _in_process(setting: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(setting)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(f"the case {setting} failed:\n{made.stderr}")
    return json.loads(made.stdout.splitlines()[-1])


def _measure(dataset: str, method: str, ipc: int, seed: int, steps: int) -> dict[str, Any]:
    """One case, in a process of its own."""
    from jaxdistill.distill import distill
    from jaxdistill.evaluate.certify import certify
    from jaxdistill.pipeline import FeatureOptions, make_features, parse_validation, prepare, split_keys
    from jaxdistill.ridge.fit import fit_ridge

    compiling = _compile_seconds()
    task = prepare(dataset_path(dataset), centred=True)
    key_features, key_split, key_set = split_keys(seed)
    options = FeatureOptions("network", weights="gaussian")
    phi = make_features(options, task.x, key_features)
    m, classes = ipc * task.y.shape[1], task.y.shape[1]
    compiling.clear()
    start, worked = perf_counter(), process_time()
    validation = parse_validation("auto", len(task.x))
    model = fit_ridge(phi, task.x, task.y, validation=validation, key=key_split)
    fit, fit_compile = perf_counter() - start, sum(compiling)
    compiling.clear()
    report: dict[str, Any] = {"m": m, "seconds_fit": fit, "compile_fit": fit_compile}
    report["cpu_fit"] = process_time() - worked
    start, worked = perf_counter(), process_time()
    if method == "analytic":
        small = distill(model, ipc=ipc, dtype=np.float32, key=key_set)
        watch = None
    else:
        from jaxdistill import kip

        config = _config(method, ipc, steps, len(task.x), m, phi.num_features)
        result = kip.train(model, task.x, task.y, config, key=key_set)
        small = result.small
        report["seconds_step"] = result.history.total_seconds / steps
        watch = partial(kip.train, model, task.x, task.y, config, key=key_set)
    report |= {"seconds_set": perf_counter() - start, "compile_set": sum(compiling)}
    report["cpu_set"] = process_time() - worked
    report["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if watch is not None and seed == 0:
        # The same run once more with somebody looking on, which would have cost the first one time.
        history = watch(validation=(task.x_test, np.eye(classes)[task.y_test] - 1 / classes)).history
        report["curve_seconds"] = history.seconds.round(4).tolist()
        report["curve_accuracy"] = history.accuracy[:, 0].tolist()
    found = certify(model, small, task.x_test, task.y_test)
    for name in ("accuracy_full", "accuracy_distilled", "agreement", "relative_weight_error", "exact"):
        report[name] = getattr(found, name)
    return report


def _config(method: str, ipc: int, steps: int, n: int, m: int, p: int) -> Any:
    from jaxdistill.kip import KipConfig, recommended

    settings: dict[str, Any] = dict(METHODS[method] or {})
    if settings.get("batch", 0) > n:
        settings["batch"] = n // 2
    # A batch of b targets determines no more than b coefficients.
    usual = recommended(m, m // ipc, min(settings.get("batch", p), p))
    settings = {**usual, **settings, "steps": steps}
    return KipConfig(ipc=ipc, evaluate_every=max(1, steps // 40), **settings)


def _compile_seconds() -> list[float]:
    """Seconds of every compilation from now on; cleared by the reader."""
    from jax import monitoring

    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith(("jaxpr_to_mlir_module_duration", "backend_compile_duration")):
            seconds.append(duration_secs)

    monitoring.register_event_duration_secs_listener(listen)
    return seconds


def _seconds(row: dict[str, Any], compiled: bool) -> float:
    """From data in memory to the set: with the full model, where the method needs its moments."""
    total = _summed(row, "seconds")
    return total if compiled else total - _summed(row, "compile")


def _summed(row: dict[str, Any], what: str) -> float:
    """Of the set, and of the full model where the method needs its moments; NaN where it was not noted."""
    needs_fit = row["method"] in ("analytic", "KIP, moments")
    return row.get(f"{what}_set", np.nan) + (row.get(f"{what}_fit", np.nan) if needs_fit else 0)


def _reach(row: dict[str, Any]) -> float | None:
    """Seconds, without compilation, until the test accuracy is the full model's less the margin."""
    goal = row["accuracy_full"] - MARGIN
    times = [second for second, accuracy in _curve(row) if accuracy >= goal]
    return times[0] if times else None


def _curve(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Test accuracy over seconds without compilation: one point for a set that is computed at once."""
    seconds = _seconds(row, False)
    if row["method"] == "analytic":
        return [(seconds, row["accuracy_distilled"])]
    before = seconds - row["seconds_step"] * row["steps"]
    points = zip(row["curve_seconds"], row["curve_accuracy"], strict=True)
    return [(before + second, accuracy) for second, accuracy in points]


def _pick(options: Any, rows: list[dict[str, Any]], method: str, ipc: int) -> list[dict[str, Any]]:
    wanted = {"dataset": options.dataset, "method": method, "ipc": ipc}
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    header = [
        *("images", "method", "steps", "accuracy, %", "full model, %", "agreement, %", "seconds"),
        *(
            "of them compilation",
            "CPU seconds",
            f"s to full model less {100 * MARGIN:g}",
            "times analytic",
            f"at {PUBLISHED_STEPS} steps",
            "ms a step",
            "peak memory, MB",
        ),
    ]
    lines = []
    for ipc, method in product(options.ipc, METHODS):
        found = _pick(options, rows, method, ipc)
        if not found:
            continue
        own, base = _mean(found, True), _mean(_pick(options, rows, "analytic", ipc), True)
        cpu = float(np.mean([_summed(row, "cpu") for row in found]))
        accuracy = 100 * np.array([row["accuracy_distilled"] for row in found])
        reached = _reach(found[0])
        step = float(np.mean([row.get("seconds_step", np.nan) for row in found]))
        published_run = own + (PUBLISHED_STEPS - found[0]["steps"]) * step
        lines.append(
            [
                f"{found[0]['m']} ({ipc} per class)",
                method,
                found[0]["steps"] or "-",
                f"{accuracy.mean():.2f} ± {accuracy.std():.2f}",
                common.percent(float(np.mean([row["accuracy_full"] for row in found]))),
                common.percent(float(np.mean([row["agreement"] for row in found]))),
                f"{own:.1f}",
                f"{own - _mean(found, False):.1f}",
                "-" if np.isnan(cpu) else f"{cpu:.0f}",
                "never" if reached is None else f"{reached:.1f}",
                f"{own / base:.1f}",
                "-" if np.isnan(step) else f"{published_run / base:.0f}",
                "-" if np.isnan(step) else f"{1e3 * step:.1f}",
                f"{max(row['peak_bytes'] for row in found) / 1e6:.0f}",
            ]
        )
    published = [
        [ipc, kip or "-", kip_seconds, analytic, seconds, f"{kip_seconds / seconds:.0f}"]
        for (name, ipc), (kip, kip_seconds, analytic, seconds) in PUBLISHED.items()
        if name == options.dataset
    ]
    text = [
        f"# KIP against analytic sets, {options.dataset}",
        "",
        f"`{common.command_line()}` on {common.machine()}; mean over {options.seeds} seed(s).",
        "",
        "Seconds run from data in memory to the set, compilation included; those of the analytic set and of "
        "KIP on moments include the full model, its penalty chosen on held-out data. The time to the full "
        f"model's accuracy less {100 * MARGIN:g} points is that of the first seed, without compilation. What "
        f"the published {PUBLISHED_STEPS} steps would take, as a multiple of the analytic set's seconds, is "
        "extrapolated from the seconds of a step.",
        *(["", f"The data are {options.note}."] if options.note else []),
        "",
        common.markdown_table(header, lines),
    ]
    if published:
        head = ["per class", "KIP accuracy", "KIP seconds", "analytic accuracy", "analytic seconds", "ratio"]
        text += ["Published, on one A5000 GPU:", "", common.markdown_table(head, published)]
    return "\n".join(text)


def _mean(rows: list[dict[str, Any]], compiled: bool) -> float:
    return float(np.mean([_seconds(row, compiled) for row in rows]))


def _figures(options: Any, rows: list[dict[str, Any]]) -> list[Any]:
    accuracy, seconds = [], []
    for method, style in zip(METHODS, ("ko-", "s-", "^-", "v-"), strict=True):
        found = [(ipc, _pick(options, rows, method, ipc)) for ipc in options.ipc]
        found = [(ipc, some) for ipc, some in found if some]
        ipcs = [ipc for ipc, _ in found]
        means = [100 * float(np.mean([row["accuracy_distilled"] for row in some])) for _, some in found]
        accuracy.append(Curve(method, ipcs, means, style))
        seconds.append(Curve(method, ipcs, [_mean(some, True) for _, some in found], style))
    over_ipc = [
        Panel("Accuracy of the retrained model", "images per class", "test accuracy, %", accuracy),
        Panel("Time, compilation included", "images per class", "seconds", seconds, log_y=True),
    ]
    over_time = []
    for ipc in options.ipc:
        curves = []
        for method, style in zip(METHODS, ("k*", "-", "-", "-"), strict=True):
            for row in _pick(options, rows, method, ipc)[:1]:
                times, accuracies = zip(*_curve(row), strict=True)
                curves.append(Curve(method, times, [100 * a for a in accuracies], style))
        over_time.append(
            Panel(f"{ipc} per class", "seconds, without compilation", "test accuracy, %", curves)
        )
    note = common.command_line()
    name = f"{options.dataset}_kip"
    return [
        draw_panels(over_ipc, options.figures / f"{name}_over_ipc.png", note),
        draw_panels(over_time, options.figures / f"{name}_over_time.png", note),
    ]


if __name__ == "__main__":
    main()
