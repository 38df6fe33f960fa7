"""What the command line says of a set and its certificate: one JSON object, or a text for a person."""

from __future__ import annotations

import json
import time
from typing import Any

import psutil


def describe(dataset: str, small: Any, certificate: dict[str, Any]) -> dict[str, Any]:
    """What ``distill`` and ``evaluate`` both say of a set and its certificate."""
    recipe = small.recipe
    about = {
        "dataset": dataset,
        "features": small.features.kind,
        "n": recipe["num_train"],
        "d": small.x.shape[1],
        "p": small.features.num_features,
        "k": small.y.shape[1],
        "m": len(small.x),
        "lam": recipe["lam"],
        "lam_s": small.lam,
        "largest_lam_s": recipe.get("largest_lam_s"),
        "labels": recipe["labels"],
        "construction": recipe["construction"],
        "lost": recipe.get("lost", 0.0),
        "count": recipe.get("count"),
        "solver": recipe.get("solver"),
    }
    return about | {name: value for name, value in certificate.items() if name != "size"}


def seconds_of(stages: dict[str, float]) -> dict[str, float]:
    """Seconds of each stage, and of the whole process from its start, imports included."""
    total = time.time() - psutil.Process().create_time()
    return {name: round(value, 3) for name, value in (stages | {"total": total}).items()}


def print_report(report: dict[str, Any], as_json: bool) -> None:
    """Print a report: JSON and nothing else, or the text."""
    if as_json:
        print(json.dumps(report))
        return
    print(text_of(report))


def text_of(report: dict[str, Any]) -> str:
    """The report as a person reads it."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    def error(value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}"

    r = report
    lost = f", {100 * r['lost']:.3g} % of the squared predictions lost" if r["lost"] else ""
    table: list[tuple[str, ...]] = [
        ("", "full model", "retrained", "in float32"),
        (
            "test accuracy",
            share(r["accuracy_full"]),
            share(r["accuracy_distilled"]),
            share(r["accuracy_distilled_float32"]),
        ),
        ("agreement", "", share(r["agreement"]), share(r["agreement_float32"])),
        (
            "relative weight error",
            "",
            error(r["relative_weight_error"]),
            error(r["relative_weight_error_float32"]),
        ),
        ("prediction error", "", error(r["prediction_error"]), ""),
    ]
    if r["accuracy_full"] is None:
        squared = (f"{v:.4g}" if v is not None else "-" for v in _squared_errors(r))
        table[1] = ("squared error", *squared, "")
    verdict = (
        f"exact: the error is within what rounding explains, {r['tolerance']:.0e}"
        if r["exact"]
        else f"not exact: m = {r['m']}, rank of the weights {r['rank']}, "
        f"error {error(r['relative_weight_error'])}, rounding explains {r['tolerance']:.0e}"
        + (
            ""
            if r["m"] < r["rank"] or r["construction"] != "exact"
            else "; try --targets centred or --dtype float64"
        )
    )
    if r["solver"] is not None and "method" in r["solver"]:
        found = r["solver"]
        ended = "solved" if found["reached"] else f"{found['outcome']}, the best so far"
        solved = [
            f"solver       m* = {r['count']}, {found['steps']} steps ({found['method'].replace('_', '-')}), "
            f"residual {found['residual']:.1e}, {ended}"
        ]
    else:
        solved = []
    lines = [
        f"data         {r['dataset']}: {r['n']} training and {r['num_test']} test examples, "
        f"d = {r['d']}, k = {r['k']}",
        f"model        {r['features']}, p = {r['p']}, lam = {r['lam']:.4g}"
        + (f" ({r['lam_chosen_by']})" if "lam_chosen_by" in r else ""),
        f"set          m = {r['m']}, {r['labels']} labels, lam_s = {r['lam_s']:.4g}, "
        f"{r['construction']}, inputs in {r['stored']}{lost}",
        *solved,
        "",
        *("  ".join([f"{row[0]:<22}", *(f"{cell:>12}" for cell in row[1:])]).rstrip() for row in table),
        "",
        f"certificate  {verdict}",
        "time         " + ", ".join(f"{name} {value:.2f} s" for name, value in r["seconds"].items()),
    ]
    if r.get("lam_at_edge"):
        lines.append("note         lam is at the edge of the grid; a wider one may do better")
    if "files" in r:
        lines.append("files        " + ", ".join(r["files"]))
    return "\n".join(lines)


def _squared_errors(report: dict[str, Any]) -> tuple[float | None, float | None]:
    return report["squared_error_full"], report["squared_error_distilled"]
