"""All attacks on one set, from what its file holds and what an attacker may know."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError
from jaxdistill.evaluate.transfer import retrained
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.privacy.membership import likelihood_ratios, loss_scores
from jaxdistill.privacy.rates import AttackScore, Rate, clopper_pearson, score_attack
from jaxdistill.privacy.reconstruction import LabelGuess, label_guess, nearest_examples
from jaxdistill.ridge.model import predict
from jaxdistill.ridge.source import ArraySource
from jaxdistill.ridge.targets import TargetKind, detect_targets
from jaxdistill.sets.artifact import DistilledSet


@final
@dataclass(frozen=True)
class Reconstruction:
    """How near the images of a set come to training examples, beside others that it never saw.

    Args:
        psnr_members: Of every image to the nearest member, in dB, the largest over the set.
        psnr_others: The same for the others.
        nearer_to_members: Share of images whose nearest example of all is a member.
        chance: That share for images that know nothing: the share of members among all.
    """

    psnr_members: float
    psnr_others: float
    nearer_to_members: Rate
    chance: float


@final
@dataclass(frozen=True)
class AttackReport:
    """What an attacker gets out of a set.

    Args:
        loss: Membership by the loss of the model that is trained on the set.
        likelihood_ratio: Membership by shadow models, or None where none were asked for.
        reconstruction: Nearest training images.
        label: Whether retraining reveals the class of members better than of others; None without classes.
        promised: What the recipe promises, or None.
    """

    loss: AttackScore
    likelihood_ratio: AttackScore | None
    reconstruction: Reconstruction
    label: LabelGuess | None
    promised: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps."""
        return asdict(self) | {"label": None if self.label is None else self.label._asdict()}


@moving_arrays()
def attack_set(
    small: Any,
    members: tuple[Any, Any],
    others: tuple[Any, Any],
    *,
    shadows: int = 16,
    key: Array,
    progress: bool = False,
) -> AttackReport:
    """Train on a set as anyone can, and ask who was in its training data.

    Nothing but the set itself is attacked: its inputs, labels, penalty and features, not the weights beside
    them. Shadow models are plain ridge on as many of the examples as there are members, at the penalty that
    the recipe tells.

    Args:
        small: A set of a feature map.
        members: Training examples ``(x, y)``, shapes (a, d) and (a, k), as the model sees them.
        others: Examples of the same kind that were not trained on, shapes (b, d) and (b, k).
        shadows: Shadow models of the likelihood-ratio attack; 0 leaves it out.
        key: Random key of the shadow models.
        progress: Whether to show bars.

    Returns:
        The report.

    Raises:
        InputError: a set of a kernel, or examples and labels of another kind than the set's.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (80, 30)))
        >>> y = jd.one_hot(np.arange(80) % 2, 2)  # nothing to learn: all that is learned is remembered
        >>> model = jd.fit_ridge(jd.features.Linear(30), x[:40], y[:40], lam=1.0)
        >>> small = jd.distill(model, ipc=1, key=jax.random.key(1))
        >>> found = attack_set(small, (x[:40], y[:40]), (x[40:], y[40:]), key=jax.random.key(2))
        >>> found.loss.auc.value > 0.8, found.likelihood_ratio.auc.value > 0.8
        (True, True)
    """
    if not isinstance(small, DistilledSet):
        raise InputError(
            "attacks train on features, and this set is of a kernel; give a set of a feature map"
        )
    phi, k = small.features, small.y.shape[1]
    sources = [_examples(small, pair, name) for name, pair in (("members", members), ("others", others))]
    level = small.intercept is not None
    weights, intercept = in_float64(retrained, phi, small.x, small.y, small.lam, level)
    outputs = [predict(phi, weights, source.x, intercept=intercept, progress=progress) for source in sources]
    losses = [loss_scores(found, source.y) for found, source in zip(outputs, sources, strict=True)]
    ratio = None
    if shadows:
        # Predictions by the unit matrix are the features, in batches.
        features = predict(phi, np.eye(phi.num_features), np.concatenate([one.x for one in sources]))
        told = [features, np.concatenate([one.y for one in sources]), np.concatenate(outputs)]
        if level:  # ridge about the means of all candidates is ridge with an intercept, but for their spread
            middle = told[1].mean(axis=0)
            told = [features - features.mean(axis=0), told[1] - middle, told[2] - middle]
        scores = likelihood_ratios(
            *told,
            lam=float(small.recipe["lam"]),
            num_train=len(sources[0].x),
            shadows=shadows,
            key=key,
            progress=progress,
        )
        ratio = score_attack(scores[: len(sources[0].x)], scores[len(sources[0].x) :])
    classes = k > 1 and all(detect_targets(one.y) is not TargetKind.REAL for one in sources)
    return AttackReport(
        loss=score_attack(*losses),
        likelihood_ratio=ratio,
        reconstruction=_reconstruct(small, *(one.arrays()[0] for one in sources)),
        label=label_guess(*((f, one.y) for f, one in zip(outputs, sources, strict=True)))
        if classes
        else None,
        promised=small.recipe.get("privacy"),
    )


def _examples(small: DistilledSet, pair: tuple[Any, Any], name: str) -> ArraySource:
    phi = small.features
    found = ArraySource.of(*pair, num_inputs=phi.num_inputs, breadth=phi.breadth, name=f"{name} ")
    told, kind, k = small.recipe.get("targets"), detect_targets(found.y).value, small.y.shape[1]
    if found.num_targets != k or (told is not None and told != kind):
        raise InputError(
            f"{name} have {kind} targets of {found.num_targets} columns, and the set was made for "
            f"{'' if told is None else f'{told} '}targets of {k}; give the labels that it was made from"
        )
    return found


def _reconstruct(small: DistilledSet, members: np.ndarray, others: np.ndarray) -> Reconstruction:
    def shown(x: np.ndarray) -> np.ndarray:
        return x if small.preprocess is None else small.preprocess.inverse(x)

    near, far = (nearest_examples(small.images, shown(x)) for x in (members, others))
    closer, m = int(np.sum(near.distance < far.distance)), len(small.x)
    low, high = clopper_pearson(closer, m)
    return Reconstruction(
        float(near.psnr.max()),
        float(far.psnr.max()),
        Rate(closer / m, float(low), float(high)),
        len(members) / (len(members) + len(others)),
    )
