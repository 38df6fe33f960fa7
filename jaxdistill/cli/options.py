"""Options of data, features and kernels on the command line: what serves which, refused before any work."""

from __future__ import annotations

import argparse
from typing import Any

from jaxdistill.errors import InputError

# What only one of the two has a use for, among the options that are not settings of the features themselves.
MAPS_ONLY = (
    *("realistic", "noise", "sharpness", "exact", "box", "scale"),
    *("start", "starts", "pull", "steps", "seconds"),
)
KERNELS_ONLY = ("support", "teacher")
MAP_LABELS = ("hard", "soft", "weighted")
KERNEL_LABELS = ("solved", "projected", "hard")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options of the data and the full model, the same for every command that trains one."""
    data = parser.add_argument_group("data and model")
    data.add_argument("--dataset", default="digits", help="digits, FILE.npz, or a tensorflow-datasets name")
    data.add_argument("--preprocess", default="standardize", help="standardize, zca or none")
    data.add_argument("--targets", choices=("one-hot", "centred"), default="one-hot")
    add_feature_options(data, default="linear")
    data.add_argument(
        "--intercept",
        action=argparse.BooleanOptionalAction,
        help="an intercept that no penalty holds down; default: for real-valued targets",
    )
    data.add_argument("--lam", default="auto", metavar="auto|NUMBER", help="ridge penalty")
    data.add_argument("--validation", default="auto", metavar="auto|loo|FRACTION", help="to choose lam by")
    data.add_argument(
        "--teacher",
        type=int,
        metavar="N",
        help="examples, balanced over classes, that the full model of a kernel is trained on; default: all. "
        "The set is made for all of them",
    )
    data.add_argument("--seed", type=int, default=0)


def refuse_given(
    options: argparse.Namespace, plain: argparse.Namespace, but: tuple[str, ...], why: str
) -> None:
    """Raise where an option was given that another stands for.

    Args:
        options: What the parser made of the command.
        plain: What it makes of one without these options.
        but: Options that stay open.
        why: What the message says after the option.

    Raises:
        InputError: names the option.
    """
    for name, default in vars(plain).items():
        if name not in but and getattr(options, name) != default:
            raise InputError(f"--{name.replace('_', '-')} {why}")


def add_feature_options(group: Any, default: str | None) -> None:
    """Options that name features or a kernel."""
    group.add_argument(
        "--features",
        default=default,
        help="linear, fourier, network, conv, deep-linear, invertible, or encoder (trained on the data); or "
        "a kernel: ntk, nngp, rbf, laplace, matern32, matern52, rational-quadratic or polynomial",
    )
    group.add_argument("--num-features", type=int, metavar="P", help="features; default: as many as inputs")
    group.add_argument(
        "--depth", type=int, help="layers; default 1 for network, ntk and nngp, 2 for the others"
    )
    group.add_argument("--activation", help="leaky_relu (the default), gelu, tanh, relu, ...")
    group.add_argument("--negative-slope", type=float, help="of LeakyReLU; default 0.1, for ntk and nngp 0")
    group.add_argument("--weights", choices=("orthogonal", "gaussian"), help="of a network, or frequencies")
    group.add_argument(
        "--lengthscale", type=float, help="of fourier and of kernels; default: the rms distance of examples"
    )
    group.add_argument("--degree", type=int, help="of the polynomial kernel; default 2")


def chosen_features(options: argparse.Namespace, maps_only: tuple[str, ...] = ()) -> Any:
    """Features or kernel as asked for, as :class:`~jaxdistill.pipeline.FeatureOptions`.

    Args:
        options: What the parser made of the command.
        maps_only: Other options of the command that only feature maps have a use for.

    Raises:
        InputError: unknown features, or an option of other features.
    """
    from dataclasses import fields

    from jaxdistill.pipeline import FeatureOptions

    names = [f.name for f in fields(FeatureOptions) if f.name != "kind"]
    kind = options.features.replace("_", "-")
    chosen = FeatureOptions(kind, **{name: getattr(options, name) for name in names})
    chosen.check()
    for name in maps_only if chosen.is_kernel else KERNELS_ONLY:
        value = getattr(options, name, None)
        if value is not None and value is not False:
            what, other = ("feature maps", "a kernel") if chosen.is_kernel else ("kernels", "a feature map")
            raise InputError(f"--{name} is for {what}, and {kind} is {other}; leave it out")
    return chosen


def check_labels(options: argparse.Namespace, chosen: Any) -> None:
    """Raise where the labels of a distilled set are not those that its features or kernel can have.

    Raises:
        InputError: names those that there are.
    """
    known = KERNEL_LABELS if chosen.is_kernel else MAP_LABELS
    if options.labels is not None and options.labels not in known:
        raise InputError(f"{chosen.kind} sets have no {options.labels} labels; choose {', '.join(known)}")
