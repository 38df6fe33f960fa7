"""What a training run of finite networks is: one frozen record, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import optax

from jaxdistill.data.augment import Augmentation
from jaxdistill.errors import InputError
from jaxdistill.numerics.names import check_choice

OPTIMISERS = ("adam", "sgd")
LOSSES = ("auto", "cross-entropy", "squared")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of :func:`jaxdistill.networks.train_networks`.

    Args:
        steps: Number of steps.
        batch: Examples in a step, drawn with replacement; all of them where there are no more.
        optimiser: "adam", or "sgd" with momentum 0.9.
        learning_rate: Peak learning rate; it falls to zero along a half cosine.
        weight_decay: Decoupled weight decay (optax's adamw) for adam, added to the gradient for sgd.
        loss: "cross-entropy" of class rows or of rows of probabilities, "squared" for real rows; "auto":
            cross-entropy for rows that are a class each, squared error for all others.
        augment: Random changes of the images at every step, or None.

    Raises:
        InputError: a setting that is unknown or makes no sense.

    Example:
        >>> TrainConfig(steps=100, learning_rate=0.01).optimiser
        'adam'
    """

    steps: int = 300
    batch: int = 256
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    loss: str = "auto"
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        check_choice("optimiser", self.optimiser, OPTIMISERS)
        check_choice("loss", self.loss, LOSSES)
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r:.60}; it must be a whole number >= 1")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value!r:.60}; it must be a finite number >= 0")

    def transformation(self) -> optax.GradientTransformation:
        """The optimiser with its schedule."""
        rate = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        if self.optimiser == "adam":
            return optax.adamw(rate, weight_decay=self.weight_decay)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, momentum=0.9))

    def describe(self) -> dict[str, Any]:
        """The settings in types that JSON keeps."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        return told | {"augment": None if self.augment is None else self.augment.describe()}
