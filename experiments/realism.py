"""How near to real images an exact set can stay: the nearest spanning set against Corollary 4.1.1.

For every feature map, images per class and construction: peak signal-to-noise ratio to the real images that
it started from (in dB, for a range of 1), the range of its pixels, and the relative weight error of the
model retrained from the inputs stored in float32.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from itertools import product
from typing import Any

import common
import jax
import numpy as np

from jaxdistill.distill import distill
from jaxdistill.distill.reference import pick_reference
from jaxdistill.evaluate.certify import certify
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import FeatureOptions, Task, make_features, parse_validation, prepare, split_keys
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel

KEYS = ("dataset", "features", "ipc", "realistic")


def main() -> None:
    """Run or resume, then write the table."""
    options = common.parse(__doc__ or "", _extend)
    task = prepare(options.dataset)
    rows = common.Rows(options.results / f"{options.dataset}_realism.jsonl", KEYS)
    dim = task.x.shape[1]
    maps = {
        "linear": FeatureOptions("linear"),
        "network, orthogonal": FeatureOptions("network"),
        "network, orthogonal, p = 3/4 d": FeatureOptions("network", num_features=3 * dim // 4),
        "network, Gaussian": FeatureOptions("network", weights="gaussian"),
        "fourier": FeatureOptions("fourier"),
    }
    model = cache(lambda name: _model(task, maps[name]))
    for name, ipc, realistic in product(maps, options.ipc, ("closest", "inverse")):
        setting: dict[str, Any] = dict(zip(KEYS, (options.dataset, name, ipc, realistic), strict=True))
        rows.once(partial(_measure, task, model, setting), **setting)
    header = ["features", "per class", "construction", "PSNR, dB", "pixels", "weight error", "agreement, %"]
    names = {"closest": "nearest spanning set", "inverse": "Corollary 4.1.1"}
    table = common.markdown_table(
        header,
        (
            [
                row["features"],
                row["ipc"],
                names[row["realistic"]],
                f"{row['psnr']:.1f}",
                f"[{row['low']:.2f}, {row['high']:.2f}]",
                f"{row['relative_weight_error']:.1e}",
                common.percent(row["agreement"]),
            ]
            for row in rows.rows
        ),
    )
    head = f"# Near to real images, {options.dataset}\n\n`{common.command_line()}` on {common.machine()}.\n\n"
    path = write_atomically(options.results / f"{options.dataset}_realism.md", (head + table).encode())
    print(path.read_text())


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ipc", type=int, nargs="+", default=[5, 50])


def _model(task: Task, options: FeatureOptions) -> RidgeModel:
    key_features, key_split, _ = split_keys(0)
    phi = make_features(options, task.x, key_features)
    return fit_ridge(phi, task.x, task.y, validation=parse_validation("auto", len(task.x)), key=key_split)


def _measure(task: Task, model_of: Any, setting: dict[str, Any]) -> dict[str, Any]:
    model, key = model_of(setting["features"]), split_keys(0)[2]
    reference = (task.x, task.y)
    small = distill(
        model,
        ipc=setting["ipc"],
        realistic=setting["realistic"],
        reference=reference,
        dtype=np.float32,
        key=key,
    ).with_context(task.preprocess, task.class_names)
    # distill draws its start from the first of three keys; draw the same images again.
    start, _ = pick_reference(model, reference, len(small.x), jax.random.split(key, 3)[0])
    change = small.images - task.preprocess.inverse(start)
    found = certify(model, small, task.x_test, task.y_test)
    return {
        "psnr": common.psnr(change),
        "low": float(small.images.min()),
        "high": float(small.images.max()),
        "relative_weight_error": found.relative_weight_error,
        "agreement": found.agreement,
        "exact": found.exact,
    }


if __name__ == "__main__":
    main()
