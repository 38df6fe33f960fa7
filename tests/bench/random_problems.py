"""Random problems, judged by NumPy alone: exact as it finds, not exact and said so, or refused.

``python tests/bench/random_problems.py --count 10000 --out problems`` solves that many and prints the counts
of each; the same command again goes on from ``problems/state.json``. Exit status 1 where one was silently
wrong or ended in an error of another kind; ``--only NUMBER`` solves that one alone and says what it was.

The oracle is ridge regression in float64 by the singular value decomposition of the features, which NumPy
computes by formulas of its own: B of the data, and B_s of the saved examples alone. Their difference counts
where it changes what ridge regression minimises, ``|A (B_s - B)| / |A B|`` with A the features over
sqrt(lam) times the identity. With an intercept the columns of both are centred, and b is judged by the
predictions. A result is silently wrong if the certificate says exact, and either this distance of the set
or that of the model is more than rounding explains.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import numpy as np

import jaxdistill as jd
from jaxdistill.numerics.files import write_atomically

DIM = 8
BLOCK = 100  # problems between two writes of the state
Rng = np.random.Generator
SILENT, CRASHED = "silently wrong", "error of another kind"


@dataclass(frozen=True)
class Problem:
    """One problem, in words."""

    features: str
    n: int
    k: int
    dtype: str
    condition: float
    spoiled: str
    targets: str
    lam: float | str
    size: int
    labels: str | None
    lam_s: float | str | None
    stored: str
    intercept: bool


# --- what is drawn -----------------------------------------------------------------------------------


def pick(rng: Rng, values: Any) -> Any:
    values = list(values)
    return values[int(rng.integers(len(values)))]


@cache
def maps() -> dict[str, Any]:
    """Few maps, so that compilation does not dominate."""
    f, key = jd.features, jax.random.key(7)
    return {
        "linear": f.Linear(DIM),
        "fourier": f.RandomFourier.create(DIM, 6, lengthscale=3.0, key=key),
        "network": f.RandomNetwork.create(DIM, widths=(DIM, 6), key=key),
        "Gaussian network": f.RandomNetwork.create(DIM, widths=(DIM,), weights="gaussian", key=key),
        "deep linear": f.DeepLinear.create(DIM, widths=(5, 7), key=key),
    }


SPOILED = (
    *("nothing",) * 6,
    *("column scales", "one large column", "one small column", "rank deficient", "duplicate rows"),
    *("duplicate columns", "constant column", "zero column", "offset", "all scaled"),
)


def draw(rng: Rng, **fixed: Any) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A problem, some of it fixed beforehand, with its inputs and its targets."""
    problem = Problem(
        features=pick(rng, maps()),
        n=pick(rng, (5, 40)),
        k=pick(rng, (1, 3)),
        dtype=pick(rng, ("float32", "float64")),
        condition=float(10.0 ** pick(rng, (0, 1, 2, 4, 6, 8))),
        spoiled=pick(rng, SPOILED),
        targets=pick(rng, ("one-hot", "centred", "real", "rank one", "linear", "huge", "tiny", "one zero")),
        lam=pick(
            rng, (0.0, 0.0, 1e-12, 1e-6, 1e-3, 1.0, 100.0, 1e4, float(10 ** rng.uniform(-9, 4)), "auto")
        ),
        size=pick(rng, (1, 3, 3, 6)),
        labels=pick(rng, (None, None, None, "hard", "soft", "soft", "given")),
        lam_s=pick(rng, (None, None, None, 0.0, 1e-6, 1.0, "max", "auto")),
        stored=pick(rng, ("float32", "float64")),
        intercept=pick(rng, (False, True)),
    )
    problem = replace(problem, **fixed)
    x = inputs(rng, problem)
    return problem, x.astype(problem.dtype), targets(rng, problem, x).astype(problem.dtype)


def inputs(rng: Rng, problem: Problem) -> np.ndarray:
    """Rows of a chosen condition, then spoiled."""
    n, rank = problem.n, min(problem.n, DIM)
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in (n, DIM))
    x = np.sqrt(n) * left * np.geomspace(1, 1 / problem.condition, rank) @ right.T
    column, power = int(rng.integers(DIM)), float(rng.uniform(2, 8))
    match problem.spoiled:
        case "column scales":
            x *= 10.0 ** rng.uniform(-4, 4, DIM)
        case "one large column":
            x[:, column] *= 10**power
        case "one small column":
            x[:, column] /= 10**power
        case "rank deficient":
            x = x[:, :3] @ rng.standard_normal((3, DIM))
        case "duplicate rows":
            x = x[rng.integers(max(2, n // 4), size=n)]
        case "duplicate columns":
            x[:, column] = x[:, column - 1]
        case "constant column":
            x[:, column] = 1.0
        case "zero column":
            x[:, column] = 0.0
        case "offset":
            x += 10.0 ** rng.uniform(0, 5)
        case "all scaled":
            x *= 10.0 ** rng.uniform(-8, 8)
    return x


def targets(rng: Rng, problem: Problem, x: np.ndarray) -> np.ndarray:
    """Rows of classes, or real values of several kinds."""
    n, k = problem.n, problem.k
    if problem.targets in ("one-hot", "centred") and k > 1:
        return jd.one_hot(np.arange(n) % k, k, centred=problem.targets == "centred")
    y = rng.standard_normal((n, k))
    match problem.targets:
        case "rank one":
            y = y[:, :1] @ rng.standard_normal((1, k))
        case "linear":
            y = x / np.abs(x).max(axis=0, initial=1e-300) @ rng.standard_normal((DIM, k))
        case "huge":
            y *= 1e8
        case "tiny":
            y *= 1e-8
        case "one zero" if k > 1:
            y[:, 0] = 0.0
    return y


# --- the oracle --------------------------------------------------------------------------------------


def features_of(kind: str, x: np.ndarray) -> np.ndarray:
    """Features in float64, from the arrays of a map and formulas of its own."""
    arrays = {name: value.astype(np.float64) for name, value in maps()[kind].arrays().items()}
    h = np.asarray(x, np.float64)
    if kind == "fourier":
        phase = h @ arrays["frequencies"].T + arrays["phases"]
        return np.sqrt(2 / phase.shape[1]) * np.cos(phase)
    for layer in range(len(arrays)):
        h = h @ arrays[f"weights_{layer}"].T
        if "network" in kind:
            h = np.where(h >= 0, h, 0.1 * h)
    return h


def ridge(phi: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    """``(Phi^T Phi + lam I)^-1 Phi^T Y`` by the singular values of Phi; of least norm at lam = 0."""
    left, s, right = np.linalg.svd(phi, full_matrices=False)
    kept = s > (max(phi.shape) * np.finfo(np.float64).eps * s[0] if lam == 0 else 0.0)
    factor = np.divide(s, s**2 + lam, out=np.zeros_like(s), where=kept)
    return right.T @ (factor[:, None] * (left.T @ np.asarray(y, np.float64)))


def centred(rows: np.ndarray) -> np.ndarray:
    """Rows minus their mean, twice: the first mean is rounded."""
    rows = rows - rows.mean(axis=0)
    return rows - rows.mean(axis=0)


Model = tuple[np.ndarray, np.ndarray | None]


def trained(phi: np.ndarray, y: np.ndarray, lam: float, intercept: bool) -> Model:
    """Weights, and the intercept of a model that has one."""
    if not intercept:
        return ridge(phi, y, lam), None
    weights = ridge(centred(phi), centred(y), lam)
    return weights, y.mean(axis=0) - phi.mean(axis=0) @ weights


def size_of(phi: np.ndarray, lam: float, weights: np.ndarray, level: np.ndarray | float = 0.0) -> float:
    """``|A B|``: what weights, and a shift of all predictions, are for the ridge objective."""
    return float(np.hypot(np.linalg.norm(phi @ weights + level), np.sqrt(lam) * np.linalg.norm(weights)))


def distance(phi: np.ndarray, lam: float, found: Model, wanted: Model) -> float:
    """``|A (B_s - B)| / |A B|``: what a difference of weights means for the ridge objective."""
    if found[1] is None or wanted[1] is None:
        scale, change = size_of(phi, lam, wanted[0]), size_of(phi, lam, found[0] - wanted[0])
    else:
        scale = size_of(centred(phi), lam, wanted[0])
        change = size_of(phi, lam, found[0] - wanted[0], found[1] - wanted[1])
    return change / scale if scale > 0 else float(change > 0)


def explained(phi: np.ndarray, y: np.ndarray, lam: float, full: Model, tolerance: float) -> float:
    """What rounding explains: ten tolerances of the certificate, or half the digits of float64.

    And what features far from zero lose when their mean is subtracted, here as there; and where features are
    dependent, what ridge regression makes of their rounding: weights along it are of size
    ``eps |Phi| |y| / lam``, and count ``eps |Phi| |y| / sqrt(lam)``.
    """
    seen = phi if full[1] is None else centred(phi)
    fitted = size_of(seen, lam, full[0])
    lost = np.linalg.norm(y) / max(fitted, 1e-300) + np.linalg.norm(phi) / max(np.linalg.norm(seen), 1e-300)
    eps = float(np.finfo(np.float64).eps)
    values = np.linalg.svd(seen, compute_uv=False)
    if lam > 0 and values.min() < 100 * eps * values.max():
        lost += np.linalg.norm(phi) / np.sqrt(lam) * np.linalg.norm(y) / max(fitted, 1e-300) / 1e4
    return float(max(10 * tolerance, np.sqrt(eps)) + 1e4 * eps * (1 + lost))


# --- one problem -------------------------------------------------------------------------------------


def said(caught: list[warnings.WarningMessage]) -> bool:
    """Whether the package warned, by a class of its own."""
    return any(warning.category.__module__.startswith("jaxdistill") for warning in caught)


def outcome_of(rng: Rng, **fixed: Any) -> tuple[str, Problem, str]:
    """Solve one problem, some of it fixed beforehand: what came of it, the problem, and its numbers."""
    problem, x, y = draw(rng, **fixed)
    request: dict[str, Any] = {"size": problem.size, "lam_s": problem.lam_s, "dtype": problem.stored}
    given = rng.standard_normal((problem.size, problem.k))
    request["labels"] = given if problem.labels == "given" else problem.labels
    key = jax.random.key(int(rng.integers(2**31)))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            told: dict[str, Any] = {"lam": problem.lam, "intercept": problem.intercept}
            model = jd.fit_ridge(maps()[problem.features], x, y, **told)
            small = jd.distill(model, key=key, **request)
            certificate = jd.certify(model, small)
    except jd.JaxDistillError as error:
        return f"refused: {type(error).__name__}", problem, str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"
        return CRASHED, problem, words
    assert model.lam is not None  # it was trained
    phi = features_of(problem.features, x)
    wide = np.asarray(y, np.float64)
    full = trained(phi, wide, model.lam, problem.intercept)
    again = trained(features_of(problem.features, small.x), small.y, small.lam, problem.intercept)
    of_model = distance(phi, model.lam, (np.asarray(model.weights), model.intercept), full)
    of_set = distance(phi, model.lam, again, full)
    bound = explained(phi, wide, model.lam, full, certificate.tolerance)
    numbers = f"set {of_set:.1e}, model {of_model:.1e}, explained {bound:.1e}, rank {model.rank}"
    if certificate.exact:
        right = of_set <= bound and of_model <= bound
        return ("exact, as NumPy finds" if right else SILENT), problem, numbers
    if of_model > bound and not said(caught):
        return "not exact and said so; the model is off", problem, numbers
    return "not exact and said so", problem, numbers


def run(count: int, seconds: float, out: Path, seed: int) -> dict[str, Any]:
    """Solve problems up to a number, from where the last run stopped."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "state.json"
    state: dict[str, Any] = {"seed": seed, "done": 0, "seconds": 0.0, "counts": {}, "failures": []}
    if file.exists():
        state = json.loads(file.read_text())
        if state["seed"] != seed:
            raise SystemExit(f"{file} is of seed {state['seed']}; choose another --out")
    begun, before = monotonic(), state["seconds"]
    while state["done"] < count and monotonic() - begun < seconds:
        stop = min(count, state["done"] + BLOCK)
        for number in range(state["done"], stop):
            outcome, problem, told = outcome_of(np.random.default_rng([seed, number]))
            state["counts"][outcome] = state["counts"].get(outcome, 0) + 1
            if outcome in (SILENT, CRASHED):
                state["failures"].append([number, outcome, asdict(problem), told])
        state["done"], state["seconds"] = stop, before + monotonic() - begun
        write_atomically(file, json.dumps(state).encode())
        print(f"{stop} of {count}, {len(state['failures'])} failed", file=sys.stderr, flush=True)
    return state


def table(state: dict[str, Any]) -> str:
    """A line an outcome, and what the failures have in common."""
    lines = ["| outcome | problems |", "| --- | --- |"]
    lines += [f"| {outcome} | {number} |" for outcome, number in sorted(state["counts"].items())]
    lines.append(f"{state['done']} problems in {state['seconds']:.0f} s")
    for field in ("features", "spoiled", "lam") if state["failures"] else ():
        common = Counter(str(problem[field]) for _, _, problem, _ in state["failures"]).most_common(5)
        lines.append(f"failures by {field}: " + ", ".join(f"{value} {times}" for value, times in common))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3000.0)
    parser.add_argument("--out", type=Path, default=Path("problems"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="solve this one alone")
    options = parser.parse_args()
    if options.only is not None:
        print(*outcome_of(np.random.default_rng([options.seed, options.only])), sep="\n")
        return 0
    state = run(options.count, options.seconds, options.out, options.seed)
    print(table(state))
    for number, outcome, problem, told in state["failures"][:50]:
        print(f"number {number}, {outcome}: {told}; {problem}")
    return int(bool(state["failures"]))


if __name__ == "__main__":
    sys.exit(main())
