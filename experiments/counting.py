"""How many examples make an exact set? The count of unknowns, and where solving first succeeds.

Exact sets solve ``phi(Xs)^T M = Q``: p r equations (r the rank of the weights), m (d + r) unknowns. Counting
says that ``m* = max(r, ceil(p r / (d + r)))`` examples are enough. Below p r / (d + r) the image of the
equations has measure zero (Sard), so that almost no weights have an exact set; that trained weights have one
at m* is what is measured here, and is not proved. Random networks, weights of ridge regression on random
examples and targets, solved from random starts at every m around m*; every set is judged by ridge
regression in NumPy, by least squares on its features and soft labels, in float64.

Beside the count stands the first m at which the Jacobian of the equations has full rank at a random point: it
sees unknowns that do not count, as the scales of examples do under LeakyReLU, where c x with M / c is the
same.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np

from jaxdistill.features import (
    AbstractFeatureMap,
    ConvolutionalNetwork,
    DeepLinear,
    RandomFourier,
    RandomNetwork,
)
from jaxdistill.numerics.files import write_atomically
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.solve.spanning import spanning_count
from jaxdistill.solve.spanning_solver import solve_spanning
from jaxdistill.solve.tangent import jacobians

KEYS = ("setting", "m", "seed", "starts", "rounds")
# Relative weight error below which a set is called exact: rounding, times the condition of a set.
EXACT = 1e-9
PENALTY = 1.0


@dataclass(frozen=True, eq=False)
class Setting:
    """A kind of map.

    Args:
        make: Draws the map.
        targets: k.
        rank: Rank r of the targets.
        inputs: Dimension that the features depend on; default d.
        features: Dimension of the span of the features; default p.
        note: What is special about it.
    """

    make: Callable[[Any], AbstractFeatureMap]
    targets: int
    rank: int
    inputs: int | None = None
    features: int | None = None
    note: str = ""

    def sizes(self) -> tuple[int, int]:
        """P and d as they are counted."""
        phi = _map(self, 0)
        return self.features or phi.num_features, self.inputs or phi.num_inputs

    def ratio(self) -> float:
        """P r / (d + r)."""
        p, d = self.sizes()
        return p * self.rank / (d + self.rank)

    def count(self) -> int:
        """m*."""
        p, d = self.sizes()
        return spanning_count(p, d, self.targets, self.rank)


def _network(d: int, *widths: int, activation: str) -> Callable[[Any], AbstractFeatureMap]:
    return lambda key: RandomNetwork.create(d, widths=widths, activation=activation, key=key)


def _convolution(
    side: int, *channels: int, activation: str, **more: Any
) -> Callable[[Any], AbstractFeatureMap]:
    make = partial(ConvolutionalNetwork.create, (side, side, 1), channels=channels, activation=activation)
    return lambda key: make(key=key, **more)


SCALES = "kinks; c x with M / c is the same, so that d counts as d - 1"
SETTINGS = {
    "GELU": Setting(_network(20, 80, activation="gelu"), 3, 3),
    "tanh": Setting(_network(20, 80, activation="tanh"), 3, 3),
    "cosine": Setting(_network(20, 80, activation="cosine"), 3, 3),
    "random Fourier": Setting(
        lambda key: RandomFourier.create(20, 80, lengthscale=4.5, key=key), 3, 3, note="random phases"
    ),
    "GELU, few inputs": Setting(_network(10, 100, activation="gelu"), 2, 2),
    "GELU, k = 5": Setting(_network(20, 64, activation="gelu"), 5, 5),
    "GELU, many inputs": Setting(
        _network(40, 30, activation="gelu"), 5, 5, note="the rank decides: p r/(d + r) < r"
    ),
    "GELU, rank 2 of 3": Setting(
        _network(20, 80, activation="gelu"), 3, 2, note="targets, and so weights, of rank 2"
    ),
    "tanh, two layers": Setting(_network(20, 40, 80, activation="tanh"), 3, 3),
    "tanh, bottleneck": Setting(
        _network(20, 8, 60, activation="tanh"),
        3,
        3,
        inputs=8,
        note="20 inputs through 8 units: d counts as 8",
    ),
    "tanh, convolution": Setting(_convolution(5, 4, activation="tanh"), 3, 3),
    "GELU, two convolutions": Setting(_convolution(4, 4, 6, activation="gelu"), 3, 3),
    "deep linear": Setting(
        lambda key: DeepLinear.create(10, widths=(15, 40), key=key),
        3,
        3,
        features=10,
        note="features of rank 10: p counts as 10, and the rank of B decides",
    ),
    "LeakyReLU, p = 2 d": Setting(_network(20, 40, activation="leaky_relu"), 3, 3, inputs=19, note=SCALES),
    "LeakyReLU, p = 4 d": Setting(_network(20, 80, activation="leaky_relu"), 3, 3, inputs=19, note=SCALES),
}
QUICK = {
    "GELU, d = 6": Setting(_network(6, 18, activation="gelu"), 2, 2),
    "tanh, d = 6": Setting(_network(6, 18, activation="tanh"), 2, 2),
    "deep linear, d = 6": Setting(
        lambda key: DeepLinear.create(6, widths=(12,), key=key), 2, 2, features=6, note="rank 6"
    ),
    "LeakyReLU, d = 6": Setting(_network(6, 18, activation="leaky_relu"), 2, 2, inputs=5, note=SCALES),
}


def main() -> None:
    """Run or resume, then write the table and the figure."""
    options = common.parse(__doc__ or "", _extend)
    if options.dataset != "synthetic":
        raise SystemExit(
            f"counting.py draws its examples at random and reads no data set {options.dataset!r}"
        )
    settings = QUICK if options.quick else SETTINGS
    below, above = (1, 1) if options.quick else (options.below, options.above)
    seeds = 1 if options.quick else options.seeds
    rows = common.Rows(options.results / "counting.jsonl", KEYS)
    found = []
    for name, setting in settings.items():
        count = setting.count()
        for m in range(max(1, count - below), count + above + 1):
            for seed in range(seeds):
                values = (name, m, seed, options.starts, options.rounds)
                key: dict[str, Any] = dict(zip(KEYS, values, strict=True))
                found.append(rows.once(partial(_measure, setting, options, m, seed), **key))
    chosen = {name: [row for row in found if row["setting"] == name] for name in settings}
    table = write_atomically(
        options.results / "counting.md", _table(options, seeds, settings, chosen).encode()
    )
    print(table.read_text(), _figure(options, settings, chosen), sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(dataset="synthetic")
    parser.add_argument("--seeds", type=int, default=3, help="maps, training examples and starts")
    parser.add_argument("--below", type=int, default=3, help="sizes below the count")
    parser.add_argument("--above", type=int, default=4, help="sizes above it")
    parser.add_argument("--starts", type=int, default=8, help="random starts, side by side")
    parser.add_argument("--rounds", type=int, default=3, help="of such starts, until one is exact")


def _key(*numbers: int) -> Any:
    key = jax.random.key(0)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


@cache
def _map(setting: Setting, seed: int) -> AbstractFeatureMap:
    return setting.make(_key(seed))


@cache
def _weights(setting: Setting, seed: int) -> np.ndarray:
    """Weights that ridge regression learns from random examples and targets."""
    phi, rng = _map(setting, seed), np.random.default_rng(seed)
    x = rng.standard_normal((5 * phi.num_features, phi.num_inputs))
    y = rng.standard_normal((len(x), setting.rank))
    if setting.rank < setting.targets:
        y = y @ rng.standard_normal((setting.rank, setting.targets))
    return fit_ridge(phi, x, y, lam=PENALTY).weights


def _measure(setting: Setting, options: Any, m: int, seed: int) -> dict[str, Any]:
    """Solve from fresh starts until one is exact, and judge the best set."""
    phi, weights = _map(setting, seed), _weights(setting, seed)
    rank = min(setting.rank, m)  # fewer examples than the rank span a part of the weights at most
    solutions = []
    for one in range(options.rounds):
        rng = np.random.default_rng([seed, m, one])
        starts = rng.standard_normal((options.starts, m, phi.num_inputs))
        solutions.append(solve_spanning(phi, weights, starts, rank=rank))
        if solutions[-1].report.reached:
            break
    best = min(solutions, key=lambda solution: solution.report.residual)
    return {
        "error": _retrained_error(in_float64(phi, best.x), weights),
        "residual": best.report.residual,
        "outcome": best.report.outcome.name.lower(),
        "rounds_used": len(solutions),
        "steps": sum(solution.report.steps for solution in solutions),
        "seconds": sum(solution.report.seconds for solution in solutions),
        "regular": _is_regular(setting, m, seed),
    }


def _retrained_error(features: np.ndarray, weights: np.ndarray) -> float:
    """Relative error of ridge regression on soft labels: plain least squares, nothing of the package.

    With the self-conditioning penalty lam; labels (Phis Phis^T + lam I) alpha, alpha = (Phis^T)^+ B;
    retrained from them as the least squares solution of [Phis; sqrt(lam) I] W = [Ys; 0].
    """
    penalty = np.sum(features**2) / len(features)
    alpha = np.linalg.lstsq(features.T, weights, rcond=None)[0]
    labels = features @ (features.T @ alpha) + penalty * alpha
    system = np.vstack([features, np.sqrt(penalty) * np.eye(features.shape[1])])
    again = np.linalg.lstsq(system, np.vstack([labels, np.zeros_like(weights)]), rcond=None)[0]
    return float(np.linalg.norm(again - weights) / np.linalg.norm(weights))


def _is_regular(setting: Setting, m: int, seed: int) -> bool:
    """Whether the Jacobian of phi(Xs)^T M in Xs and M has full rank at a random point."""
    phi, rng, r = _map(setting, seed), np.random.default_rng([seed, m]), setting.rank
    x, mix = rng.standard_normal((m, phi.num_inputs)), rng.standard_normal((m, r))
    features, slopes = in_float64(lambda phi, x: (phi(x), jacobians(phi, x)), phi, x)
    by_inputs = np.einsum("ipd,ir->prid", slopes, mix).reshape(features.shape[1] * r, -1)
    by_mix = np.einsum("ip,rs->pris", features, np.eye(r)).reshape(len(by_inputs), -1)
    rank = np.linalg.matrix_rank(np.hstack([by_inputs, by_mix]), rtol=1e-9)
    return bool(rank == setting.sizes()[0] * r)


def _table(
    options: Any, seeds: int, settings: dict[str, Setting], rows: dict[str, list[dict[str, Any]]]
) -> str:
    header = ["map", "d", "p", "k", "r", "p r/(d+r)", "m*", "full rank from"]
    header += ["error at m* - 1", "at m*", "at m* + 1", "exact from", "note"]
    lines = []
    for name, setting in settings.items():
        (p, d), count, own = setting.sizes(), setting.count(), rows[name]
        sizes = sorted({row["m"] for row in own})
        exact = [m for m in sizes if all(row["error"] < EXACT for row in own if row["m"] == m)]
        first = next((m for m in exact if all(n in exact for n in sizes if n > m)), None)
        regular = [m for m in sizes if all(row["regular"] for row in own if row["m"] == m)]
        phi = _map(setting, 0)
        lines.append(
            [
                name,
                d if d == phi.num_inputs else f"{d} of {phi.num_inputs}",
                p if p == phi.num_features else f"{p} of {phi.num_features}",
                setting.targets,
                setting.rank,
                f"{setting.ratio():.1f}",
                count,
                regular[0] if regular else "-",
                *(_errors(own, m) for m in (count - 1, count, count + 1)),
                f"**{first}**" if first == count else first or "-",
                setting.note,
            ]
        )
    return "\n".join(
        [
            "# The count of the spanning equations, and where solving succeeds",
            "",
            f"`{common.command_line()}` on {common.machine()}.",
            "",
            "Exact sets solve phi(Xs)^T M = Q: p r equations and m (d + r) unknowns. Below p r/(d + r) "
            "almost no weights have an exact set (the image of the equations has measure zero); that trained "
            "weights have one from m* = max(r, ceil(p r/(d + r))) on is a count with the evidence of this "
            "table, not a theorem.",
            "",
            f"Random maps, ridge weights of random examples and targets, {seeds} seed(s) of all three; "
            f"{options.starts} random starts side by side, up to {options.rounds} rounds, the best kept. "
            "Errors are relative errors of the weights, retrained in NumPy by least squares from inputs and "
            "soft labels in float64; smallest to largest over seeds. "
            f"Exact: below {EXACT:g} in every seed, there and at every larger size that was tried. Full rank "
            "from: the first m at which the Jacobian of the equations has full "
            "rank at a random point.",
            "",
            common.markdown_table(header, lines),
            "",
        ]
    )


def _errors(rows: list[dict[str, Any]], m: int) -> str:
    """Smallest to largest error over seeds."""
    errors = sorted(row["error"] for row in rows if row["m"] == m)
    if not errors:
        return "-"
    low, high = f"{errors[0]:.0e}", f"{errors[-1]:.0e}"
    return low if low == high else f"{low} to {high}"


def _figure(options: Any, settings: dict[str, Setting], rows: dict[str, list[dict[str, Any]]]) -> Path:
    """A panel a setting: error over m, the count as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    across = min(5, len(settings))
    down = -(-len(settings) // across)
    figure = Figure(figsize=(2.75 * across, 2.35 * down + 0.7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in grid.flat[len(settings) :]:
        axes.axis("off")
    for axes, (name, setting) in zip(grid.flat, settings.items(), strict=False):
        own, (p, d) = rows[name], setting.sizes()
        sizes = sorted({row["m"] for row in own})
        count = max(setting.ratio(), setting.rank)
        axes.axvspan(sizes[0] - 0.6, count, color="0.93", zorder=0)
        axes.axvline(count, color="0.25", linestyle="--", linewidth=1.1)
        medians = [np.median([row["error"] for row in own if row["m"] == m]) for m in sizes]
        axes.plot(sizes, medians, color="0.6", linewidth=1, zorder=1)
        for kind, color in ((True, "tab:blue"), (False, "tab:red")):
            points = [(row["m"], row["error"]) for row in own if (row["error"] < EXACT) == kind]
            if points:
                axes.scatter(
                    *zip(*points, strict=True), s=16, color=color, alpha=0.75, linewidths=0, zorder=2
                )
        axes.set_yscale("log")
        axes.set(xlim=(sizes[0] - 0.6, sizes[-1] + 0.6), ylim=(1e-16, 5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        shape = f"d {d}, p {p}, k {setting.targets}"
        axes.set_title(f"{name}\n", fontsize=9, fontweight="bold")
        axes.text(0.5, 1.02, shape, transform=axes.transAxes, fontsize=7.5, ha="center", va="bottom")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, linewidth=0.5)
    figure.supylabel("relative error of the retrained weights", fontsize=9)
    figure.supxlabel(
        "examples m   (grey: fewer unknowns than equations; dashed: p r/(d + r), or r where that is more; "
        "blue: exact)\n" + common.command_line(),
        fontsize=8,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(options.figures / "counting.png", buffer.getvalue())


if __name__ == "__main__":
    main()
