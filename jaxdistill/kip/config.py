"""What a KIP run is: one frozen record, checked before any work."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdistill.data.augment import Augmentation
from jaxdistill.errors import InputError
from jaxdistill.numerics.names import check_choice
from jaxdistill.sets.artifact import AbstractSet

LABELS = ("fixed", "learned", "solved")
FORMS = ("auto", "moments", "plain")
TARGETS = ("data", "model")
STARTS = ("real", "noise")
SCHEDULES = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
    "exponential": lambda rate, steps: optax.exponential_decay(rate, steps, 0.01),
    "warmup_cosine": lambda rate, steps: optax.warmup_cosine_decay_schedule(
        0.0, rate, max(1, steps // 20), steps
    ),
}
# Optimisers of optax that a learning rate alone makes.
_FROM_RATE = (
    *("adabelief", "adadelta", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad"),
    *("fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "radam", "rmsprop", "sgd"),
    "yogi",
)
# Those that choose their own step by a line search.
_SEARCHING = ("lbfgs",)
# Targets in a step of a kernel, whose cost grows with them.
_KERNEL_BATCH = 2000
# Fields that change when the host looks at a run, and nothing in its result.
_WITHOUT_INFLUENCE = ("block", "checkpoint_every")


@dataclass(frozen=True)
class KipConfig:
    """Settings of :func:`jaxdistill.kip.train`.

    Args:
        ipc: Examples per class; or
        size: examples in all, m. Give one of the two, or neither to take the size of a set that is
            the start.
        steps: Number of steps.
        batch: Targets in a step, balanced over classes, or "all".
        labels: "fixed", class rows; "learned", trained with the inputs; "solved", least squares on
            the targets at every step (Label Solve).
        form: "moments", all targets through their moments, at a cost that does not depend on their
            number; "plain", the targets themselves; "auto", moments wherever they serve.
        targets: "data", the targets that are given; "model", the predictions of the full model.
        optimiser: Name of an optax optimiser, or a transformation with its own learning rate.
        learning_rate: Peak learning rate of a named one. "lbfgs" has a line search and takes none.
        schedule: "constant", "cosine", "linear", "exponential" or "warmup_cosine".
        reg: Penalty lam_s relative to ``tr(K_ss) / m``. Default: 1e-6 for fixed and learned labels; 1 for
            solved ones, whose predictions do not depend on it, since it makes retraining immune to
            rounding.
        ridge: Ridge of solved labels relative to the mean diagonal of their system; 0 fails, and
            says so, where the examples are dependent (always for m > p).
        start: "real" examples, "noise" of their mean and spread, or a distilled set.
        augment: Random changes of the targets, or None.
        seeds: Number of runs, trained at once, with different starts and batches.
        dtype: "float32" or "float64": precision of inputs, features and target kernels.
            Factorisations are in float64; on devices without it those of the steps are in float32, with
            4 m eps more of either penalty, and those of the labels that are returned on the host.
        block: Steps between two visits of the host, as long as nothing else is due. Default: as many as take
            a fifth of a second.
        evaluate_every: Steps between two evaluations on validation data.
        patience: Evaluations without improvement after which to stop; the best state is returned.
            None: all steps, and the last state.
        checkpoint_every: Steps between two checkpoints.

    The defaults suit ten or more examples per class; :func:`recommended` has those for fewer.

    Raises:
        InputError: a setting that is unknown (with the nearest known one) or makes no sense.

    Example:
        >>> KipConfig(ipc=1, labels="solved").penalty
        1.0
    """

    ipc: int | None = None
    size: int | None = None
    steps: int = 500
    batch: int | Literal["all"] = "all"
    labels: str = "solved"
    form: str = "auto"
    targets: str = "data"
    optimiser: str | optax.GradientTransformation = "adam"
    learning_rate: float = 0.1
    schedule: str = "cosine"
    reg: float | None = None
    ridge: float = 0.0
    start: str | AbstractSet = "real"
    augment: Augmentation | None = None
    seeds: int = 1
    dtype: str = "float32"
    block: int | None = None
    evaluate_every: int = 100
    patience: int | None = None
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        check_choice("labels", self.labels, LABELS)
        check_choice("form", self.form, FORMS)
        check_choice("targets", self.targets, TARGETS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("dtype", self.dtype, ("float32", "float64"))
        if not isinstance(self.start, AbstractSet):
            check_choice("start", self.start, STARTS)
        if not isinstance(self.optimiser, optax.GradientTransformation):
            check_choice("optimiser", self.optimiser, optimisers())
        if self.ipc is not None and self.size is not None:
            raise InputError("give either ipc (images per class) or size (examples in all)")
        if self.ipc is None and self.size is None and not isinstance(self.start, AbstractSet):
            raise InputError("give ipc (images per class) or size (examples in all)")
        for name in ("ipc", "size", "batch", "block", "patience"):
            value = getattr(self, name)
            if value is not None and not (name == "batch" and value == "all"):
                _check_count(name, value)
        for name in ("steps", "seeds", "evaluate_every", "checkpoint_every"):
            _check_count(name, getattr(self, name))
        for name, value, lowest in (
            ("learning_rate", self.learning_rate, 0.0),
            ("reg", self.penalty, 0.0),
            ("ridge", self.ridge, 0.0),
        ):
            if not (isinstance(value, (int, float)) and np.isfinite(value) and value >= lowest):
                raise InputError(f"{name} is {value!r}; it must be a finite number >= 0")
        if self.form == "moments" and (self.batch != "all" or self.augment is not None):
            raise InputError("form='moments' takes all targets as they are; use batch='all', no augment")

    @property
    def penalty(self) -> float:
        """The relative penalty: ``reg``, or its default for these labels."""
        if self.reg is not None:
            return self.reg
        return 1.0 if self.labels == "solved" else 1e-6

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The optimiser with its schedule."""
        chosen = self.optimiser
        if isinstance(chosen, str):
            if chosen in _SEARCHING:
                chosen = getattr(optax, chosen)()
            else:
                rate = SCHEDULES[self.schedule](self.learning_rate, self.steps)
                chosen = getattr(optax, chosen)(rate)
        return optax.with_extra_args_support(chosen)

    def describe(self) -> dict[str, Any]:
        """The settings that the result depends on, in types that JSON keeps."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _WITHOUT_INFLUENCE}
        if not isinstance(self.optimiser, str):
            told["optimiser"] = f"custom {_fingerprint(self.optimiser)}"
        if isinstance(self.start, AbstractSet):
            told["start"] = f"set {self.start.digest}"
        told["augment"] = None if self.augment is None else self.augment.describe()
        told["reg"] = self.penalty
        return told


def recommended(
    size: int, num_targets: int, num_features: int | None = None, *, num_train: int | None = None
) -> dict[str, Any]:
    """Settings that serve a number of examples, as measured on MNIST with network features and the NTK.

    With about as many examples as outputs nothing is to spare, and the last tenth of a per cent takes large
    steps, many of them. With more examples than features, solved labels are not unique without a ridge; with
    a kernel they may nearly not be. A kernel has no moments, so a step sees a batch, which must be larger
    than the set. (NTK: 10 images reach 89.8 %, 100 images 96.9 %, in 4 and 19 s on one core; learned labels
    are no better after as many steps.)

    Args:
        size: Examples in all, m.
        num_targets: Outputs k.
        num_features: p, or None for a kernel without a finite map.
        num_train: Number of targets n that a batch is taken from; default more than a batch.

    Returns:
        Keyword arguments ``steps``, ``learning_rate`` and ``ridge`` of :class:`KipConfig`; for a kernel also
        ``batch``.

    Example:
        >>> KipConfig(ipc=1, **recommended(10, 10, 784)).steps
        3000
        >>> recommended(1000, 10)["batch"], recommended(10, 10, num_train=1500)["batch"]
        (4000, 'all')
    """
    if num_features is None:
        batch = max(_KERNEL_BATCH, 4 * size)
        whole = num_train is not None and num_train <= batch
        return {"steps": 1000, "learning_rate": 0.1, "ridge": 1e-10, "batch": "all" if whole else batch}
    few = size < 2 * num_targets
    return {
        "steps": 3000 if few else 500,
        "learning_rate": 0.5 if few else 0.1,
        "ridge": 1e-10 if size > num_features else 0.0,
    }


def optimisers() -> list[str]:
    """Names of optax's optimisers that are made from a learning rate, and L-BFGS."""
    known = [name for name in _FROM_RATE if hasattr(optax, name)]
    return sorted([*known, *_SEARCHING])


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        more = " or 'all'" if name == "batch" else ""
        raise InputError(f"{name} is {value!r}; it must be a whole number >= 1{more}")


def _fingerprint(transformation: optax.GradientTransformation) -> str:
    """What a custom optimiser does, from its trace: a closure has no name to compare."""
    probe = jnp.zeros((2, 3))
    transformation = optax.with_extra_args_support(transformation)

    def value_of(x: jax.Array) -> jax.Array:
        return jnp.sum(x**2)

    def update(x: jax.Array, state: Any) -> Any:
        return transformation.update(x, state, x, value=value_of(x), grad=x, value_fn=value_of)

    trace = str(jax.make_jaxpr(update)(probe, transformation.init(probe)))
    return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", trace).encode()).hexdigest()[:16]
