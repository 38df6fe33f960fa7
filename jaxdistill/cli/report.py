"""What the command line says of a set and its certificate: one JSON object, or a text for a person."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

from jaxdistill.numerics.clock import STARTED
from jaxdistill.sets.kernel_set import KernelSet

# What a certificate says of test examples, where there are any.
_NEED_TESTS = ("test accuracy", "agreement", "prediction error")


def describe(dataset: str, small: Any, certificate: dict[str, Any]) -> dict[str, Any]:
    """What ``distill`` and ``evaluate`` both say of a set and its certificate."""
    recipe, kernel = small.recipe, isinstance(small, KernelSet)
    source: Any = small.kernel if kernel else small.features
    about = {
        "dataset": dataset,
        "features": source.kind,
        "settings": source.settings() if kernel else None,
        "n": recipe.get("num_targets", recipe["num_train"]),
        "teacher": recipe["num_train"] if kernel else None,
        "d": small.x.shape[1],
        "p": None if kernel else source.num_features,
        "k": small.y.shape[1],
        "m": len(small.x),
        "lam": recipe["lam"],
        "intercept": small.intercept is not None,
        "lam_s": small.lam,
        "largest_lam_s": recipe.get("largest_lam_s"),
        "labels": recipe["labels"],
        "construction": recipe["construction"],
        "lost": recipe.get("lost", 0.0),
        "count": recipe.get("count"),
        "solver": recipe.get("solver"),
    }
    told = {name: value for name, value in certificate.items() if name != "size"}
    return about | told | {"not_measured": [] if certificate["num_test"] else list(_NEED_TESTS)}


def seconds_of(stages: dict[str, float]) -> dict[str, float]:
    """Seconds of each stage, and in all since the package began to be imported."""
    total = perf_counter() - STARTED
    return {name: round(value, 3) for name, value in (stages | {"total": total}).items()}


def print_report(report: dict[str, Any], as_json: bool) -> None:
    """Print a report: JSON and nothing else, or the text."""
    if as_json:
        print(json.dumps(report))
        return
    print(text_of(report))


def text_of(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    lines = [*_head(report), "", *_table(report), "", *_verdict(report)]
    lines.append(_time(report))
    if report["not_measured"]:
        lines.append(f"not measured {', '.join(report['not_measured'])}: there are no test examples")
    if report.get("lam_at_edge"):
        lines.append("note         lam is at the edge of the grid; a wider one may do better")
    if "files" in report:
        lines.append("files        " + ", ".join(report["files"]))
    return "\n".join(lines)


def text_of_transfer(report: dict[str, Any]) -> str:
    """What other features learned from a set, as a person reads it."""
    r = report
    seed = "" if r["seed"] is None else f", seed {r['seed']}"
    lines = [
        f"data         {r['dataset']}: {r['num_test']} test examples, d = {r['d']}, k = {r['k']}",
        f"set          m = {r['m']}, made for {r['made_for']}",
        f"trained      {_model(r)}{seed}, {r['labels']} labels, lam = {r['lam']:.4g} ({r['lam_chosen_by']}), "
        f"{r['relative_lam']:.3g} tr(K)/m",
        "",
        f"{'':<22}{'own':>14}{r['features']:>14}".rstrip(),
    ]
    name, shown = ("squared_error", _plain) if r["accuracy"] is None else ("accuracy", share)
    title = name.replace("_", " ") if r["accuracy"] is None else "test accuracy"
    lines.append(f"{title:<22}{shown(r[f'{name}_own']):>14}{shown(r[name]):>14}")
    return "\n".join([*lines, f"{'agreement':<22}{'':>14}{share(r['agreement']):>14}", "", _time(r)])


def share(value: float | None) -> str:
    """A share in per cent, or a dash where it is not known."""
    return "-" if value is None else f"{100 * value:.2f} %"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _time(r: dict[str, Any]) -> str:
    return "time         " + ", ".join(f"{name} {took:.2f} s" for name, took in r["seconds"].items())


def _model(r: dict[str, Any]) -> str:
    """Features with their number, or a kernel with its settings."""
    if r["settings"] is None:
        return f"{r['features']}, p = {r['p']}"
    numbers = {name: value for name, value in r["settings"].items() if isinstance(value, (int, float))}
    told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()).replace("_", " ")
    return r["features"] + (f" ({told})" if told else "")


def _head(r: dict[str, Any]) -> list[str]:
    """Data, model, set and solver, a line each."""
    model = _model(r) + (", intercept" if r["intercept"] else "")
    if r["teacher"] not in (None, r["n"]):
        model += f", trained on {r['teacher']}"
    lost = f", {100 * r['lost']:.3g} % of the squared predictions lost" if r["lost"] else ""
    # A head whose weights were given has neither.
    training = "" if r["n"] is None else f"{r['n']} training and "
    test = r["num_test"] or "no"
    penalty = "given weights" if r["lam"] is None else f"lam = {r['lam']:.4g}"
    lines = [
        f"data         {r['dataset']}: {training}{test} test examples, d = {r['d']}, k = {r['k']}",
        f"model        {model}, {penalty}" + (f" ({r['lam_chosen_by']})" if "lam_chosen_by" in r else ""),
        f"set          m = {r['m']}, {r['labels']} labels, lam_s = {r['lam_s']:.4g}, "
        f"{r['construction']}, inputs in {r['stored']}{lost}",
    ]
    if r["solved_full"] is not None:
        rank = "" if r["rank_full"] is None else f", rank {r['rank_full']} of {r['p']}"
        dropped = f", up to {r['dropped_full']:.0e} of a feature dropped" if r["dropped_full"] else ""
        lines.insert(2, f"full model   solved to {r['residual_full']:.0e}{rank}{dropped}")
    if r["solver"] is not None and "method" in r["solver"]:
        found = r["solver"]
        ended = "solved" if found["reached"] else f"{found['outcome']}, the best so far"
        lines.append(
            f"solver       m* = {r['count']}, {found['steps']} steps ({found['method'].replace('_', '-')}), "
            f"residual {found['residual']:.1e}, {ended} on rung {found['rung']} of {found['rungs']} "
            f"({found['began']})"
        )
    elif r["solver"] is not None and "copies" in r["solver"]:
        found = r["solver"]
        ended = "" if found["reached"] else "; more images leave less"
        lines.append(
            f"solver       {found['images']} real images, {found['copies']} copies of each, changed by "
            f"{found['change']:.1e}; {found['outside']:.1e} of a direction left out{ended}"
        )
    return lines


def _table(r: dict[str, Any]) -> list[str]:
    """The full model, the retrained one, and that in float32, side by side."""
    scores = (share(r[f"accuracy_{which}"]) for which in ("full", "distilled", "distilled_float32"))
    judged: tuple[str, ...] = ("test accuracy", *scores)
    if r["accuracy_distilled"] is None:
        errors = (_plain(r[f"squared_error_{which}"]) for which in ("full", "distilled"))
        judged = ("squared error", *errors, "")
    agreed = "agreement", "", share(r["agreement"]), share(r["agreement_float32"])
    kernel = r["settings"] is not None
    distance, shown = ("relative RKHS distance", _plain) if kernel else ("relative weight error", _error)
    rows: list[tuple[str, ...]] = [
        ("", "full model", "retrained", "in float32"),
        *([judged, agreed] if r["num_test"] else []),
        (distance, "", shown(r["relative_weight_error"]), shown(r["relative_weight_error_float32"])),
    ]
    if r["intercept_error"] is not None:
        rows.append(("intercept error", "", _error(r["intercept_error"]), ""))
    if kernel:
        rows += [
            ("smallest, these points", "", shown(r["best_weight_error"]), ""),
            ("largest prediction gap", "", shown(r["largest_gap"]), ""),
            ("bound on that gap", "", shown(r["gap_bound"]), ""),
        ]
    if r["num_test"]:
        rows.append(("prediction error", "", shown(r["prediction_error"]), ""))
    return ["  ".join([f"{row[0]:<22}", *(f"{cell:>12}" for cell in row[1:])]).rstrip() for row in rows]


# Half of the digits of float32: what a person sees of an error.
_VISIBLE = 2.0**-11.5


def _verdict(r: dict[str, Any]) -> list[str]:
    """What the certificate says, in words."""
    return [*_verdict_in_float64(r), *_verdict_in_float32(r)]


def _verdict_in_float32(r: dict[str, Any]) -> list[str]:
    """A line where a set trains to something visibly different in float32 than in float64."""
    wide, narrow = r["relative_weight_error"], r["relative_weight_error_float32"]
    if narrow <= max(2 * wide, _VISIBLE):  # NaN is neither, and told
        return []
    seen = ""
    if r["agreement_float32"] is not None:
        seen = f", agreement {share(r['agreement_float32'])} for {share(r['agreement'])}"
    return [f"in float32   another model: error {_error(narrow)} for {_error(wide)}{seen}; train in float64"]


def _verdict_in_float64(r: dict[str, Any]) -> list[str]:
    if r["exact"]:
        # Kernels are computed in float64 throughout.
        short = ", in float32 as the features are computed" if r.get("precision") == "float32" else ""
        return [
            f"certificate  exact: the error is within what rounding explains{short}, {r['tolerance']:.0e}"
        ]
    if r["solved_full"] is False:
        return [
            "certificate  not exact: the full model itself is not the ridge solution: it leaves a residual "
            f"of {r['residual_full']:.0e}, rounding explains {r['residual_tolerance']:.0e}"
        ]
    seen = r.get("training_error")
    if seen is not None and r["m"] >= r["rank"] and r["relative_weight_error"] <= r["tolerance"] < seen:
        return [
            "certificate  not exact: the weights are within rounding, but predictions on the training data "
            f"differ by {seen:.0e}, since features differ so much in size or hardly from each other; try "
            "--dtype float64"
        ]
    if r["settings"] is not None:
        return [
            "certificate  not exact: without a small feature map no small set is; no labels bring these "
            f"points nearer than {r['best_weight_error']:.3g}, and no test prediction is off by more than "
            f"{r['gap_bound']:.3g}"
        ]
    helpless = r["m"] < r["rank"] or r["construction"] != "exact"
    advice = "" if helpless else "; try --targets centred or --dtype float64"
    return [
        f"certificate  not exact: m = {r['m']}, rank of the weights {r['rank']}, "
        f"error {_error(r['relative_weight_error'])}, rounding explains {r['tolerance']:.0e}{advice}"
    ]
