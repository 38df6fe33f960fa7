"""Transfer: other features, or another kernel, trained on a distilled set that was not made for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, final

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.distill.exact import retrain, retrain_with_intercept
from jaxdistill.errors import InputError
from jaxdistill.evaluate.scores import (
    accuracy,
    agreement,
    classes_of,
    is_real,
    read_test_targets,
    squared_error,
)
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.feature import FeatureKernel
from jaxdistill.kernels.tiles import check_inputs
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.ridge.fit import check_penalty
from jaxdistill.ridge.kernel_fit import fit_kernel_ridge
from jaxdistill.ridge.kernel_selection import choose_penalty
from jaxdistill.ridge.model import predict
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.kernel_set import KernelSet

LABELS = ("soft", "hard", "own")

# Penalties relative to tr(K) / m: the usual one, and candidates of leave-one-out.
USUAL_PENALTY = 0.1
_RELATIVE = 10.0 ** np.arange(-6.0, 3.25, 0.5)


@final
@dataclass(frozen=True)
class TransferScores:
    """What features or a kernel learn from a set that was made for others.

    Args:
        features: Kind of the features or kernel that were trained.
        made_for: Kind of those that the set was made for.
        labels: What they were trained towards.
        lam: Penalty.
        relative_lam: Penalty relative to ``tr(K) / m``.
        lam_chosen_by: "usual", "leave-one-out" or "given".
        accuracy: Test accuracy of what was trained, in [0, 1].
        accuracy_own: Test accuracy of the set's own model.
        agreement: Share of test inputs for which both name the same class.
        squared_error: Mean squared error of what was trained, on real-valued targets.
        squared_error_own: The same of the set's own model.
        size: m.
        num_test: Number of test examples. Scores that their targets do not allow are None.

    Example: see :func:`transfer`, which makes it.

        >>> TransferScores.__dataclass_fields__["size"].type
        'int'
    """

    features: str
    made_for: str
    labels: str
    lam: float
    relative_lam: float
    lam_chosen_by: str
    accuracy: float | None
    accuracy_own: float | None
    agreement: float | None
    squared_error: float | None
    squared_error_own: float | None
    size: int
    num_test: int

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps."""
        return asdict(self)


@moving_arrays()
def transfer(
    small: DistilledSet | KernelSet,
    features: AbstractFeatureMap | AbstractKernel,
    x_test: Any,
    y_test: Any | None = None,
    *,
    labels: str = "soft",
    lam: float | Literal["auto"] | None = None,
    progress: bool = False,
) -> TransferScores:
    """Train ridge regression on other features, or another kernel, on a set alone, and test it.

    ``f(x) = k(x, Xs) (k(Xs, Xs) + lam I)^-1 Y``, with ``k(x, x') = phi(x) . phi(x')`` for features.

    The set's own penalty belongs to its own features, and with it come labels that no other penalty
    understands: ``Ys = f_s(Xs) + lam_s a``, where f_s is the model that the set trains to and a are its
    coefficients. Soft labels are ``f_s(Xs)`` alone. For closed-form sets of ten MNIST images per class,
    made for linear, network, Fourier, encoder, RBF and NTK models, they carried over better than the
    classes to every other model; for sets of KIP they did not always (``experiments/kernel_transfer.py``).
    Where the set's model has an intercept, all of these have one.

    Args:
        small: Any distilled set.
        features: Feature map or kernel to train.
        x_test: Test inputs, shape (t, d), as the set's own model sees them.
        y_test: Test targets: one-hot rows (t, k) or classes (t,) for accuracies, or real values (t, k).
        labels: "soft", the predictions of the set's own model for its examples; "hard", the class of each
            example: that of its label where labels are class rows, that of the soft label where they are not;
            "own", the labels of the set as they are.
        lam: Penalty; or "auto", by leave-one-out on the set, relative to ``tr(K) / m``. Default: a tenth of
            ``tr(K) / m``. A set is made and not drawn, so its examples say little of each other, and
            leave-one-out may choose badly; with one example per class, where each of them leaves a class out,
            it fails.
        progress: Whether to show bars.

    Returns:
        Scores of what was trained, beside those of the set's own model.

    Raises:
        InputError: unknown labels, shapes that do not fit, or hard labels of a regression.
        PenaltyError: a penalty that is negative or not finite.
        KernelError: K + lam I is not positive definite.

    Example:
        >>> import jax
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 6)))
        >>> classes = (x[:, 0] > 0).astype(int)
        >>> y = jd.one_hot(classes, 2)
        >>> model = jd.fit_ridge(jd.features.Linear(6), x, y, lam=1.0)
        >>> near = {"realistic": "closest", "reference": (x, y)}
        >>> small = jd.distill(model, ipc=5, key=jax.random.key(1), **near)
        >>> found = transfer(small, jd.kernels.NTK(), x, classes)
        >>> found.features, found.made_for, found.accuracy > 0.7
        ('ntk', 'linear', True)

    Source: the measure of KIP's section on transfer (Nguyen, Chen and Lee 2021); labels and penalty, this
    package.
    """
    check_choice("labels", labels, LABELS)
    if isinstance(features, AbstractFeatureMap):
        kernel: AbstractKernel = FeatureKernel(features)
        if features.num_inputs != small.x.shape[1]:
            raise InputError(
                f"the features take {features.num_inputs} inputs, the set has {small.x.shape[1]}"
            )
    elif isinstance(features, AbstractKernel):
        kernel = features
    else:
        raise InputError(f"features is a {type(features).__name__}; pass a feature map or a kernel")
    x = check_inputs("x_test", x_test, small.x.shape[1])
    real = is_real(small.recipe)
    y = None if y_test is None else read_test_targets(y_test, len(x), small.y.shape[1], real=real)
    source = small.kernel if isinstance(small, KernelSet) else small.features
    level = small.intercept is not None
    own = _train(source, small.x, small.y, small.lam, level, progress)
    rows = _rows(small, labels, own(small.x.astype(np.float64)))
    scale = float(np.mean(in_float64(jax.jit(type(kernel).diagonal), kernel, small.x)))
    if lam is None:
        lam, chosen_by = USUAL_PENALTY * scale, "usual"
    elif lam == "auto":
        m = len(small.x)
        found = choose_penalty(
            kernel, small.x, rows, "leave-one-out", _RELATIVE * scale, None, progress, most=m, intercept=level
        )
        lam, chosen_by = found.lam, found.method
    else:
        lam, chosen_by = check_penalty("lam", lam), "given"
    outputs, others = _train(features, small.x, rows, lam, level, progress)(x), own(x)
    return TransferScores(
        features=features.kind,
        made_for=source.kind,
        labels=labels,
        lam=lam,
        relative_lam=lam / scale,
        lam_chosen_by=chosen_by,
        accuracy=None if y is None else accuracy(outputs, y),
        accuracy_own=None if y is None else accuracy(others, y),
        agreement=agreement(outputs, others, real=real),
        squared_error=None if y is None else squared_error(outputs, y),
        squared_error_own=None if y is None else squared_error(others, y),
        size=len(small.x),
        num_test=len(x),
    )


def _train(
    source: Any, x: np.ndarray, rows: np.ndarray, lam: float, intercept: bool, progress: bool
) -> Callable[..., Any]:
    """Ridge regression on features or a kernel: a function from inputs to predictions."""
    if isinstance(source, AbstractFeatureMap):
        weights, level = in_float64(retrained, source, x, rows, lam, intercept)
        return lambda inputs: predict(source, weights, inputs, intercept=level, progress=progress)
    model = fit_kernel_ridge(source, x, rows, lam=lam, intercept=intercept, solver="cholesky")
    return lambda inputs: model.predict(inputs, dtype=np.float64, progress=progress)


@partial(jax.jit, static_argnums=4)
def retrained(
    features: AbstractFeatureMap, x: Array, rows: Array, lam: Array, intercept: bool
) -> tuple[Array, Array | None]:
    """Weights, and any intercept, of ridge regression on examples, compiled with their map."""
    if intercept:
        return retrain_with_intercept(features(x), rows, lam)
    return retrain(features(x), rows, lam), None


def _rows(small: DistilledSet | KernelSet, labels: str, soft: np.ndarray) -> Float[np.ndarray, "m k"]:
    """What is trained towards, from the set's own predictions for its examples."""
    if labels != "hard":
        return small.y if labels == "own" else np.asarray(soft, np.float64)
    k = small.y.shape[1]
    if k == 1 or is_real(small.recipe):
        raise InputError("a set of real-valued targets has no hard labels; use labels='soft' or 'own'")
    named = classes_of(small.y)
    return np.eye(k)[soft.argmax(axis=1) if named is None else named]
