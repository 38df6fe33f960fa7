"""Sets as PNG files and a label file alone: what 8 and 16 bits cost, with and without feedback.

Ten images per class in [0, 1], from real images, for a linear model and for the probes of small trained
encoders, are written as a folder of PNG files with one label file. The folder is read back, trained on, and
compared with the full model on the test images. Feedback keeps groups of images back, which take up by whole
levels what the rounding of the others left.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import common
import numpy as np
from encoder_probe import SMALL

from jaxdistill.distill import distill
from jaxdistill.distill.rounding import round_pixels
from jaxdistill.evaluate.certify import certify
from jaxdistill.features import Linear
from jaxdistill.features.trained import train_encoder
from jaxdistill.numerics.files import write_atomically
from jaxdistill.pipeline import Task, parse_validation, prepare, split_keys
from jaxdistill.plots import Row, draw_rows
from jaxdistill.ridge.fit import fit_ridge
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.pictures import load_pictures, save_pictures, with_pictures
from jaxdistill.solve.box import pixel_box

KEYS = ("dataset", "map", "bits", "rounds")
SHOWN = ("agreement", "accuracy_full", "accuracy_distilled", "relative_weight_error", "prediction_error")


def main() -> None:
    """Run or resume, then write the table and the pictures."""
    options = common.parse(__doc__ or "", _extend)
    name = options.dataset
    options.maps = options.maps or (["linear"] if options.quick else ["linear", "tanh", "gelu"])
    task = cache(partial(prepare, name))
    made = cache(partial(_exact_set, task, options))
    rows = common.Rows(options.results / f"{name}_png_sets.jsonl", KEYS)
    for map_name, bits, rounds in product(options.maps, (8, 16), (0, options.rounds)):
        setting: dict[str, Any] = dict(zip(KEYS, (name, map_name, bits, rounds), strict=True))
        rows.once(partial(_measure, options, task, made, setting), **setting)
    table = write_atomically(options.results / f"{name}_png_sets.md", _table(options, rows.rows).encode())
    print(table.read_text(), *_pictures(options, task), sep="\n")


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--maps", nargs="+", help="linear, or activations of an encoder; default: all")
    parser.add_argument("--ipc", type=int, default=10, help="default: 10")
    parser.add_argument("--rounds", type=int, default=5, help="of feedback; default: 5")


def _exact_set(task_of: Any, options: Any, map_name: str) -> tuple[RidgeModel, DistilledSet, float]:
    """The full model, its exact set in the box, and the seconds that the set took."""
    task: Task = task_of()
    key_features, key_split, key_set = split_keys(0)
    if map_name == "linear":
        phi: Any = Linear(task.x.shape[1])
    else:
        settings, config = SMALL
        told: dict[str, Any] = settings | {"image_shape": task.preprocess.shape, "activation": map_name}
        phi = train_encoder(task.x, task.y, config=config, key=key_features, **told)
    validation = parse_validation("auto", len(task.x))
    model = fit_ridge(phi, task.x, task.y, validation=validation, key=key_split)
    start = perf_counter()
    small = distill(
        model,
        ipc=options.ipc,
        realistic="closest",
        reference=(task.x, task.y),
        box=pixel_box(task.preprocess, dtype=np.float32),
        dtype=np.float32,
        key=key_set,
    )
    return model, small.with_context(task.preprocess, task.class_names), perf_counter() - start


def _measure(options: Any, task_of: Any, made: Any, setting: dict[str, Any]) -> dict[str, Any]:
    task = task_of()
    model, small, seconds = made(setting["map"])
    start = perf_counter()
    rounded = round_pixels(small, bits=setting["bits"], rounds=setting["rounds"], key=split_keys(0)[2])
    took = perf_counter() - start
    folder = _folder(options, setting)
    save_pictures(rounded, folder, setting["bits"])
    judged = with_pictures(rounded, folder)
    told = certify(model, judged, task.x_test, task.y_test).to_dict()
    change = judged.images.astype(np.float64) - small.images
    return {key: told[key] for key in SHOWN} | {
        "m": len(judged.x),
        "p": len(model.weights),
        "psnr": common.psnr(change),
        "seconds_set": seconds,
        "seconds": took,
    }


def _folder(options: Any, setting: dict[str, Any]) -> Path:
    return options.out / "sets" / "_".join(["png", *(str(setting[key]) for key in KEYS)])


def _table(options: Any, rows: list[dict[str, Any]]) -> str:
    header = ["features", "bits", "feedback", "full model", "from PNG", "agreement"]
    header += ["weight error", "prediction error", "PSNR, dB", "seconds"]
    lines = [
        [
            row["map"] if row["map"] == "linear" else f"{row['map']} encoder, p {row['p']}",
            row["bits"],
            f"{row['rounds']} rounds" if row["rounds"] else "none",
            common.percent(row["accuracy_full"]),
            common.percent(row["accuracy_distilled"]),
            common.percent(row["agreement"]),
            f"{row['relative_weight_error']:.1e}",
            f"{row['prediction_error']:.1e}",
            f"{row['psnr']:.0f}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return (
        f"# Sets as PNG files and a label file, {options.dataset}, {rows[0]['m']} images\n\n"
        f"`{common.command_line()}` on {common.machine()}.\n\n"
        "Trained on what was read back from the folder alone; shares in per cent. PSNR is to the exact set "
        "in [0, 1] before rounding; seconds are those of rounding, compilation included.\n\n"
        + common.markdown_table(header, lines)
    )


def _pictures(options: Any, task_of: Any) -> list[Path]:
    """Real images, and the first image of every class of the 8-bit sets with feedback that lie on disk."""
    task: Task = task_of()
    real = [int(np.argmax(task.y.argmax(axis=1) == c)) for c in range(task.y.shape[1])]
    rows = [Row("real", task.preprocess.inverse(task.x[real]))]
    for map_name in options.maps:
        values = (options.dataset, map_name, 8, options.rounds)
        folder = _folder(options, dict(zip(KEYS, values, strict=True)))
        if folder.exists():
            found = load_pictures(folder)
            rows.append(Row(f"{map_name},\n8 bits", found.images[: task.y.shape[1]]))  # class by class
    if len(rows) == 1:  # all rows are of an earlier run, whose sets are not here
        return []
    path = options.figures / f"{options.dataset}_png_sets.png"
    return [draw_rows(rows, task.class_names, path, common.command_line())]


if __name__ == "__main__":
    main()
