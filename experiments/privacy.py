"""What privacy costs, and what an attacker gets: accuracy over epsilon, and attacks on every kind of set.

Accuracy: private sets of one image per class, of random Fourier features whose length scale is a quarter of
the root of the number of pixels, clipped to norm one; features twice and a half as wide have no such set, and
show how far it goes. Nothing is chosen by test data. Attacks: members are half of a few thousand training
images, the others the rest, so that models remember more than they would with all of the data. Noise images
whose network keeps its accuracy, the published figure, are drawn beside the nearest members.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any

import common
import jax
import numpy as np
from curves import Curve, Panel, draw_panels

from jaxdistill.distill import distill
from jaxdistill.distill.baselines import baseline
from jaxdistill.evaluate.certify import certify
from jaxdistill.evaluate.scores import accuracy, read_test_targets
from jaxdistill.features import RandomFourier
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import FeatureOptions, Task, make_features, prepare, split_keys
from jaxdistill.plots import Row, draw_rows
from jaxdistill.privacy.attacks import attack_set
from jaxdistill.privacy.budget import Budget
from jaxdistill.privacy.mechanism import fit_private_ridge
from jaxdistill.privacy.reconstruction import nearest_examples
from jaxdistill.ridge.fit import fit_ridge

KEYS = ("dataset", "kind", "epsilon", "width", "spectrum", "seed")
DELTA = 1e-5
# Sets that are attacked; the private ones at these epsilons.
NETWORK = "noise, network"
SETS = ("real images", "real images, solved labels", "noise", NETWORK, "nearest spanning set", "KIP")
ATTACKED = (1.0, 8.0)


def main() -> None:
    """Run or resume, then write the tables and the figures."""
    options = common.parse(__doc__ or "", _extend)
    task = prepare(options.dataset, preprocess="none")
    rows = common.Rows(options.results / f"{options.dataset}_privacy.jsonl", KEYS)
    d, seeds = task.x.shape[1], range(1 if options.quick else options.seeds)
    scored = [
        _once(rows, task, _score, "accuracy", epsilon, width, spectrum, seed)
        for width, spectrum in ((d, "shrink"), (d, "clip"), (5 * d // 2, "shrink"))
        for epsilon, seed in product(options.epsilons, seeds if width == d else seeds[:1])
    ]
    attacked = [
        _once(rows, task, partial(_attack, options), kind, None, d, "shrink", seed)
        for kind, seed in product(SETS, seeds)
    ] + [
        _once(rows, task, partial(_attack, options), "private", epsilon, d, "shrink", seed)
        for epsilon, seed in product(ATTACKED, seeds)
    ]
    text = _text(options, d, scored, attacked)
    path = write_atomically(options.results / f"{options.dataset}_privacy.md", text.encode())
    print(path.read_text(), *_figures(options, task, scored, attacked), sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 3.0, 8.0])
    parser.add_argument("--members", type=int, help="members that are attacked; default 2000, digits 500")


def _once(rows: common.Rows, task: Task, compute: Any, *values: Any) -> dict[str, Any]:
    setting: dict[str, Any] = dict(zip(KEYS, (task.name, *values), strict=True))
    return rows.once(partial(compute, task, setting), **setting)


def _features(task: Task, setting: dict[str, Any]) -> Any:
    d, key = task.x.shape[1], split_keys(setting["seed"])[0]
    if setting["kind"] == NETWORK:
        return make_features(FeatureOptions("network"), task.x, key)
    scale = math.sqrt(d) / 4
    return RandomFourier.create(d, setting["width"], lengthscale=scale, frequencies="orthogonal", key=key)


def _private(task: Task, setting: dict[str, Any], x: Any, y: Any) -> Any:
    budget = Budget(setting["epsilon"], DELTA)
    return fit_private_ridge(
        _features(task, setting), x, y, budget=budget, clip=1.0, spectrum=setting["spectrum"]
    )


def _score(task: Task, setting: dict[str, Any]) -> dict[str, Any]:
    start = perf_counter()
    private = _private(task, setting, task.x, task.y)
    if setting["width"] > task.x.shape[1]:
        outputs = private.model.predict(task.x_test)
        targets = read_test_targets(task.y_test, len(outputs), outputs.shape[1], real=False)
        return {
            "accuracy": accuracy(outputs, targets),
            "images": None,
            "seconds": perf_counter() - start,
        }
    small = private.distill(ipc=1, dtype=np.float32, key=split_keys(setting["seed"])[2])
    seconds = perf_counter() - start
    found = certify(private.model, small, task.x_test, task.y_test)
    return {
        "accuracy": found.accuracy_distilled,
        "exact": found.exact,
        "images": len(small.x),
        "seconds": seconds,
    }


def _halves(options: Any, task: Task, seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Members, and as many others."""
    half = options.members or (500 if task.name == "digits" else 2000)
    chosen = np.asarray(jax.random.permutation(split_keys(seed)[1], len(task.x)))[: 2 * half]
    members, others = (
        (task.x[part], task.y[part]) for part in (chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :])
    )
    return members, others


def _attack(options: Any, task: Task, setting: dict[str, Any]) -> dict[str, Any]:
    members, others = _halves(options, task, setting["seed"])
    key = split_keys(setting["seed"])[2]
    model, small = _make(task, setting, members, key)
    found = attack_set(small.with_context(task.preprocess, None), members, others, key=key)
    test = certify(model, small, task.x_test, task.y_test)
    return found.to_dict() | {
        "accuracy": test.accuracy_distilled,
        "accuracy_full": test.accuracy_full,
        "images": len(small.x),
    }


def _make(task: Task, setting: dict[str, Any], members: tuple[Any, Any], key: Any) -> tuple[Any, Any]:
    """The model of the members, and the set that stands for it."""
    kind = setting["kind"]
    if kind == "private":
        private = _private(task, setting, *members)
        return private.model, private.distill(ipc=1, key=key)
    model = fit_ridge(_features(task, setting), *members)
    return model, _of_model(kind, model, members, key)


def _of_model(kind: str, model: Any, members: tuple[Any, Any], key: Any) -> Any:
    if kind in ("noise", NETWORK):
        return distill(model, ipc=1, key=key)
    if kind == "nearest spanning set":
        return distill(model, ipc=5, realistic="closest", reference=members, key=key)
    if kind == "KIP":
        from jaxdistill.kip import KipConfig, recommended, train

        k = members[1].shape[1]
        config = KipConfig(size=k, **recommended(k, k, model.features.num_features))
        return train(model, *members, config, key=key).small
    labels = "hard" if kind == "real images" else "solved"
    return baseline("random", model, *members, ipc=1, labels=labels, key=key)


def _mean(rows: list[dict[str, Any]], value: Any) -> str:
    values = np.array([value(row) for row in rows])
    return f"{values.mean():.3f} ± {values.std():.3f}" if len(values) > 1 else f"{values.mean():.3f}"


def _accuracy(scored: list[dict[str, Any]], epsilon: float, width: int, spectrum: str) -> tuple[float, float]:
    """Mean over seeds, and the worst of them."""
    wanted = (epsilon, width, spectrum)
    found = [row["accuracy"] for row in scored if (row["epsilon"], row["width"], row["spectrum"]) == wanted]
    return float(np.mean(found)), min(found)


def _text(options: Any, d: int, scored: list[dict[str, Any]], attacked: list[dict[str, Any]]) -> str:
    cells = sorted(
        {(row["width"], row["spectrum"]) for row in scored}, key=lambda c: (c[0], c[1] != "shrink")
    )
    costs = []
    for epsilon in options.epsilons:
        line = [f"{epsilon:g}"]
        for width, spectrum in cells:
            mean, worst = _accuracy(scored, epsilon, width, spectrum)
            line.append(f"{common.percent(mean)} ({common.percent(worst)})")
        costs.append(line)
    told = [f"p = {width}, {spectrum}" + ("" if width == d else ", model alone") for width, spectrum in cells]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in attacked:
        name = row["kind"] if row["epsilon"] is None else f"private, epsilon {row['epsilon']:g}"
        kinds.setdefault(name, []).append(row)
    table = []
    for name, found in kinds.items():
        scores = (float(np.mean([row[one] for row in found])) for one in ("accuracy", "accuracy_full"))
        line = [name, found[0]["images"], " of ".join(map(common.percent, scores))]
        for attack in ("loss", "likelihood_ratio"):
            for rate in ("auc", "tpr_at_0_1_percent", "tpr_at_1_percent"):
                line.append(_mean(found, lambda row, a=attack, r=rate: row[a][r]["value"]))
        seen = [row["reconstruction"] for row in found]
        line.append(
            " / ".join(f"{max(one[f'psnr_{who}'] for one in seen):.1f}" for who in ("members", "others"))
        )
        line.append(_mean(found, lambda row: row["label"]["advantage"]))
        table.append(line)
    attacks = [f"{name}: {what}" for name in ("loss", "LiRA") for what in ("AUC", "at 0.1 %", "at 1 %")]
    return (
        f"# Privacy, {options.dataset}\n\n`{common.command_line()}` on {common.machine()}.\n\n"
        f"Test accuracy of private sets of one image per class, in per cent, delta {DELTA:g}, add-or-remove: "
        "mean over seeds (worst). The length scale and the rule for lam were settled on MNIST's training "
        "images, before any test: for MNIST that look is not in the budget, for other data there was "
        "none.\n\n"
        + common.markdown_table(["epsilon", *told], costs)
        + f"\nAttacks, with {attacked[0]['loss']['num_members']} members and as many others: mean and "
        "standard deviation over seeds. Accuracy is on the test set, of the retrained and of the full model; "
        "the last two columns are the nearest member / other image in dB, and how much better classes of "
        "members are named.\n\n"
        + common.markdown_table(["set", "images", "accuracy, %", *attacks, "nearest, dB", "labels"], table)
    )


def _figures(
    options: Any, task: Task, scored: list[dict[str, Any]], attacked: list[dict[str, Any]]
) -> list[str]:
    curves = []
    for width, spectrum in sorted({(row["width"], row["spectrum"]) for row in scored}):
        means = [100 * _accuracy(scored, epsilon, width, spectrum)[0] for epsilon in options.epsilons]
        curves.append(Curve(f"p = {width}, {spectrum}", options.epsilons, means))
    panel = Panel(f"private sets, {options.dataset}", "epsilon", "test accuracy, %", curves)
    path = options.figures / f"{options.dataset}_privacy.png"
    drawn = [str(draw_panels([panel], path, f"delta {DELTA:g}, add-or-remove"))]
    lines = []
    for epsilon in options.epsilons:
        values = (task.name, "private", epsilon, task.x.shape[1], "shrink", 0)
        setting: dict[str, Any] = dict(zip(KEYS, values, strict=True))
        small = _private(task, setting, task.x, task.y).distill(ipc=1, key=split_keys(0)[2])
        lines.append(Row(f"epsilon {epsilon:g}", small.with_context(task.preprocess, None).images))
    path = options.figures / f"{options.dataset}_private_images.png"
    drawn.append(str(draw_rows(lines, task.class_names, path, "private sets, one image per class")))
    row = next(row for row in attacked if row["kind"] == NETWORK and row["seed"] == 0)
    return [*drawn, _draw_noise(options, task, row)]


def _draw_noise(options: Any, task: Task, row: dict[str, Any]) -> str:
    """The noise set of a network, the nearest member of each image, and what an attacker gets of it."""
    members, _ = _halves(options, task, 0)
    _, small = _make(task, row, members, split_keys(0)[2])
    images = small.with_context(task.preprocess, None).images
    pool = task.preprocess.inverse(members[0])
    near = nearest_examples(images, pool)
    kept = " of ".join(common.percent(row[one]) for one in ("accuracy", "accuracy_full"))
    found = row["likelihood_ratio"]
    hits = common.percent(found["tpr_at_1_percent"]["value"])
    note = (
        f"network, {len(pool)} members: LiRA finds {hits} % of them at 1 % false positives, "
        f"AUC {found['auc']['value']:.3f}"
    )
    lines = [
        Row(f"noise set\n{kept} %", images),
        Row(f"nearest member\n{near.psnr.max():.1f} dB at most", pool[near.rows]),
    ]
    path = options.figures / f"{options.dataset}_noise_attacked.png"
    return str(draw_rows(lines, task.class_names, path, note))


if __name__ == "__main__":
    main()
