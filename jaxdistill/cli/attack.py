"""The command ``jaxdistill attack``: what somebody who has the file learns of the training data."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from jaxdistill.cli.evaluate import load_file
from jaxdistill.cli.report import seconds_of, share


def add_attack_options(parser: argparse.ArgumentParser) -> None:
    """The file, the data, and the shadow models."""
    parser.add_argument("file", metavar="FILE", help="a distilled.npz")
    parser.add_argument(
        "--dataset",
        required=True,
        help="the data set it was made from: its training part are members, its test part the others",
    )
    parser.add_argument(
        "--shadows", type=int, default=16, help="shadow models; default 16, and 0 leaves their attack out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def attack(options: argparse.Namespace) -> int:
    """Attack a saved set, and print what was found."""
    import jax

    from jaxdistill.data.datasets import one_hot
    from jaxdistill.pipeline import Stopwatch
    from jaxdistill.privacy.attacks import attack_set
    from jaxdistill.ridge.targets import TargetKind

    progress = sys.stderr.isatty() and not options.json
    watch = Stopwatch()
    with watch.stage("load"):
        small, data, x_test = load_file(options, progress)
        x = data.x_train if small.preprocess is None else small.preprocess.forward(data.x_train)
    centred = small.recipe.get("targets") == TargetKind.CENTRED.value

    def rows(y: Any) -> Any:
        return one_hot(y, data.num_classes, centred=centred) if data.is_classification else y

    with watch.stage("attack"):
        found = attack_set(
            small,
            (x, rows(data.y_train)),
            (x_test, rows(data.y_test)),
            shadows=options.shadows,
            key=jax.random.key(options.seed),
            progress=progress,
        )
    report = {
        "dataset": data.name,
        "m": len(small.x),
        **found.to_dict(),
        "seconds": seconds_of(watch.seconds),
    }
    print(json.dumps(report) if options.json else _text(report))
    return 0


def _text(r: dict[str, Any]) -> str:
    """The report as a person reads it."""
    seen, told = r["reconstruction"], r["promised"]
    lines = [
        f"data         {r['dataset']}: {r['loss']['num_members']} members, {r['loss']['num_others']} others; "
        f"set m = {r['m']}",
        "",
        f"{'':<18}{'AUC, 95 % interval':>26}{'found at 0.1 %':>18}{'at 1 % of others':>18}",
    ]
    for name in ("loss", "likelihood_ratio"):
        if r[name] is not None:
            auc = r[name]["auc"]
            told_auc = f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
            hits = (share(r[name][f"tpr_at_{rate}_percent"]["value"]) for rate in ("0_1", "1"))
            lines.append(f"{name.replace('_', ' '):<18}{told_auc:>26}" + "".join(f"{h:>18}" for h in hits))
    near, far = (seen[f"psnr_{who}"] for who in ("members", "others"))
    lines += [
        "",
        f"images       nearest member {near:.1f} dB, nearest other {far:.1f} dB; "
        f"{share(seen['nearer_to_members']['value'])} nearer to a member (chance {share(seen['chance'])})",
    ]
    if r["label"] is not None:
        told_labels = (share(r["label"][who]) for who in ("members", "others"))
        lines.append("labels       {} of members and {} of others".format(*told_labels))
    promise = "nothing"
    if told is not None:
        promise = f"epsilon {told['epsilon']:g}, delta {told['delta']:g}, for {told['covers']}"
    return "\n".join([*lines, f"promised     {promise}"])
