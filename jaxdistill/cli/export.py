"""The command ``jaxdistill export``: a saved set as a folder of PNG files with one label file."""

from __future__ import annotations

import argparse
import json
import sys

from jaxdistill.cli.evaluate import load_file
from jaxdistill.cli.report import describe, print_report, seconds_of
from jaxdistill.cli.steps import writable_folder
from jaxdistill.errors import InputError


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The file, the data that judge what rounding costs, and how pixels are rounded."""
    parser.add_argument("file", metavar="FILE", help="a distilled.npz of images")
    parser.add_argument("--dataset", required=True, help="data set whose test part is used")
    parser.add_argument("--bits", type=int, default=8, help="of a channel, 8 or 16; default 8")
    parser.add_argument(
        "--feedback", type=int, default=0, metavar="ROUNDS", help="groups that take up rounding; default 0"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="pictures", metavar="DIR", help="default: ./pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def export(options: argparse.Namespace) -> int:
    """Round the pixels, let the labels follow, write the folder, and certify what is read from it."""
    folder = writable_folder(options.out)
    progress = sys.stderr.isatty() and not options.json

    from jaxdistill.distill.rounding import round_pixels
    from jaxdistill.evaluate.certify import certify
    from jaxdistill.numerics.files import write_atomically
    from jaxdistill.pipeline import Stopwatch, split_keys
    from jaxdistill.sets.artifact import DistilledSet
    from jaxdistill.sets.pictures import save_pictures, with_pictures

    watch = Stopwatch()
    with watch.stage("load"):
        small, data, x_test = load_file(options, progress)
    if not isinstance(small, DistilledSet):
        raise InputError(f"{options.file} is a set of a kernel, whose labels do not follow rounded pixels")
    with watch.stage("round"):
        key = split_keys(options.seed)[2]
        small = round_pixels(small, bits=options.bits, rounds=options.feedback, key=key)
    with watch.stage("write"):
        files = save_pictures(small, folder, options.bits)
    with watch.stage("certify"):
        small = with_pictures(small, folder)
        certificate = certify(small, small, x_test, data.y_test, progress=progress)
        small = small.with_certificate(certificate)
        told = json.dumps(small.certificate, indent=2).encode()
        files.append(write_atomically(folder / "certificate.json", told))
    report = describe(data.name, small, certificate.to_dict()) | {
        "solver": None,
        "rounded": small.recipe["rounded"],
        "files": [str(file) for file in files[-2:]],
        "seconds": seconds_of(watch.seconds),
    }
    print_report(report, options.json)
    return 0
