"""The joint guarantee: everything that is released is private, labels and weights included."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Array

from jaxdistill.data.preprocess import AbstractPreprocess, Identity
from jaxdistill.distill import distill
from jaxdistill.errors import BudgetError, InputError, PenaltyError
from jaxdistill.features import AbstractFeatureMap, Encoder
from jaxdistill.numerics.linalg import check_finite, in_float64
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.privacy.budget import Budget, Neighbours, Spent, remaining_mu
from jaxdistill.privacy.clipping import ClippedFeatures, clipped_targets, feature_clip, joint_sensitivity
from jaxdistill.privacy.noise import secure_normal, symmetric_noise
from jaxdistill.privacy.spectrum import SPECTRA, Spectrum, blind_penalty, factor_mended, noise_edge
from jaxdistill.privacy.tuning import FACTORS, choice_price, exponential_choice, score_weights
from jaxdistill.ridge.fit import check_penalty
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.moments import Moments, accumulate_moments
from jaxdistill.ridge.path import RidgePath, path_weights
from jaxdistill.ridge.source import ArraySource
from jaxdistill.ridge.targets import TargetKind, detect_targets
from jaxdistill.sets.artifact import DistilledSet

# What a user can declare to be public.
PUBLIC = ("features", "preprocess")
_CHOICES = {
    "auto": "sigma sqrt(p / 2), without the data",
    "tuned": f"drawn among {len(FACTORS)} multiples of sigma sqrt(p / 2) by the exponential mechanism",
}


@final
@dataclass(frozen=True, eq=False)
class PrivateModel:
    """A ridge model whose every number was paid for, and the words that say with what.

    Args:
        model: An ordinary model; its moments are the noisy ones, mended.
        noisy: G and C of the clipped rows as they were released, before any post-processing; the number of
            examples and Y^T Y beside them are not measured on the data.
        noise: Standard deviation sigma of the noise on ``noisy``.
        statement: What is promised, in types that JSON keeps.
        preprocess: The public transform from images to inputs, or None.
    """

    model: RidgeModel
    noisy: Moments
    noise: float
    statement: dict[str, Any]
    preprocess: AbstractPreprocess | None

    def distill(
        self, *, key: Array, public_reference: tuple[Any, Any] | None = None, **request: Any
    ) -> DistilledSet:
        """Construct a set as :func:`jaxdistill.distill` does, with the promise in its recipe.

        It is post-processing of what was paid for. Real examples may come from public data alone.

        Args:
            key: Random key; it need not be secret.
            public_reference: Public examples ``(x, y)`` to start from.
            **request: As for :func:`jaxdistill.distill`, but for ``reference``.

        Raises:
            BudgetError: private examples are given as ``reference``.
        """
        if "reference" in request:
            raise BudgetError(
                "a private set cannot start from private examples; leave reference out, or give public ones "
                "as public_reference"
            )
        small = distill(self.model, reference=public_reference, key=key, **request)
        started = {} if public_reference is None else {"reference": "declared public"}
        told = self.statement | {"public": self.statement["public"] | started}
        small = replace(small, recipe=small.recipe | {"privacy": told})
        return small if self.preprocess is None else small.with_context(self.preprocess, None)


@moving_arrays()
def fit_private_ridge(
    features: AbstractFeatureMap,
    x: Any,
    y: Any,
    *,
    budget: Budget,
    clip: float | None = None,
    target_clip: float | None = None,
    lam: float | Literal["auto", "tuned"] = "auto",
    spectrum: Spectrum = "shrink",
    rank: int | None = None,
    preprocess: AbstractPreprocess | None = None,
    public: Collection[str] = (),
    spent: Collection[Spent] = (),
    progress: bool = False,
) -> PrivateModel:
    """Ridge regression of which nobody can tell whether an example was there, nor from what is made of it.

    ``G + sigma (N + N^T) / 2`` and ``C + sigma N'`` of clipped rows, with N, N' standard normal and
    ``sigma = S / mu(epsilon, delta)``: the analytic Gaussian mechanism for the joint sensitivity S of (G, C).
    All else is post-processing: eigenvalues, weights, the distilled set. Three things must hold that no
    program can check: the settings of ``features``, ``clip``, ``target_clip`` and ``lam`` were chosen without
    these data; the type of the targets is no secret; and the data are used for nothing else that is released.

    Args:
        features: Feature map phi, drawn without the data.
        x: Inputs, shape (n, d), each made from its own example alone or by public constants.
        y: Targets, shape (n, k).
        budget: What is promised.
        clip: Norm that features are clipped to. Default: the bound that the map has.
        target_clip: Norm that real-valued targets are clipped to; classes need none.
        lam: Penalty, chosen without the data; "auto" is :func:`~jaxdistill.privacy.spectrum.blind_penalty`.
            "tuned" spends a tenth of epsilon on choosing a multiple of that by the data: for few examples
            and a large epsilon.
        spectrum: "shrink" or "clip": how eigenvalues of noisy moments are mended.
        rank: Leading eigenvectors of the noisy G that are kept; default all.
        preprocess: The transform that x came from, if any; one with constants must be public or paid for.
        public: What is declared public: "features", "preprocess".
        spent: What was spent on the same data before; an entry named "features" or "preprocess" pays for it.
        progress: Whether to show a bar.

    Returns:
        The private model.

    Raises:
        BudgetError: the budget is spent, or features or preprocessing were fitted and not paid for.
        InputError: data that are not bounded, without a norm to clip to, or that do not fit.
        PenaltyError: lam is no positive number.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> from jaxdistill.privacy.budget import Budget
        >>> y = jd.one_hot(np.arange(9000) % 3, 3)
        >>> x = y @ np.eye(3, 5) + 0.1 * np.asarray(jax.random.normal(jax.random.key(0), (9000, 5)))
        >>> private = fit_private_ridge(jd.features.Linear(5), x, y, budget=Budget(1.0, 1e-5), clip=1.0)
        >>> small = private.distill(ipc=1, key=jax.random.key(1))
        >>> small.x.shape, small.recipe["privacy"]["epsilon"], jd.certify(private.model, small).exact
        ((3, 5), 1.0, True)
        >>> float(np.mean(private.model.predict(x).argmax(axis=1) == y.argmax(axis=1))) > 0.99
        True

    Source: Balle and Wang 2018 (noise); Dwork et al. 2014, Sheffet 2017 (noisy moments); McSherry and
    Talwar 2007 (choice of lam); the joint
    sensitivity and the set made of it are this package's.
    """
    check_choice("spectrum", spectrum, SPECTRA)
    source = ArraySource.of(x, y, num_inputs=features.num_inputs, breadth=features.breadth)
    told = _check_public(features, preprocess, public, spent)
    kind = detect_targets(source.y)
    c = feature_clip(features, clip)
    targets, t = clipped_targets(source.y, kind, target_clip)
    p = features.num_features
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= p):
        raise InputError(f"rank is {rank!r}; keep between 1 and {p} directions")
    sensitivity = joint_sensitivity(budget.neighbours)
    if lam == "tuned":
        spent = (*spent, choice_price(budget.epsilon))
    mu = remaining_mu(budget, spent)
    sigma = sensitivity / mu
    penalty = blind_penalty(sigma, p) if lam in ("auto", "tuned") else check_penalty("lam", lam) / c**2
    if penalty == 0:
        raise PenaltyError("lam is 0, and noisy moments are singular; give a positive number or 'auto'")

    source, clipped = replace(source, y=targets), ClippedFeatures(features, c)
    exact = accumulate_moments(clipped, source, dtype=source.dtype, progress=progress)
    noisy = _release(exact, sigma, budget.neighbours)
    if kind is TargetKind.CENTRED:  # rows of Y sum to zero, so what is else in C is noise
        noisy = replace(noisy, cross=noisy.cross - noisy.cross.mean(axis=1, keepdims=True))
    path, gram = in_float64(
        factor_mended,
        noisy.gram,
        noisy.cross,
        noisy.target_gram,
        noise_edge(sigma, p),
        spectrum,
        p if rank is None else rank,
    )
    if lam == "tuned":
        penalty = _tuned(path, penalty, clipped, source, kind, budget)
    weights = in_float64(path_weights, path, penalty) * (t / c)
    check_finite("the private weights", weights)
    model = RidgeModel(
        features=features,
        weights=features.within_span(weights),
        lam=penalty * c**2,
        # What of C lies outside the directions that were kept is noise, and no equation of this model.
        moments=Moments.without_sums(
            c**2 * gram, c * t * (path.basis @ path.projected), t**2 * noisy.target_gram, noisy.count
        ),
        rank=int(np.sum(path.eigenvalues > 0)),
        resolution=0.0,
        selection=None,
        target_kind=kind,
    )
    statement = {
        "epsilon": float(budget.epsilon),
        "delta": float(budget.delta),
        "neighbours": budget.neighbours.value,
        "mechanism": "Gaussian noise on the moments of clipped rows, analytic calibration; the rest is "
        "post-processing",
        "covers": "all of this set: inputs, labels, penalty, weights, recipe",
        "sensitivity": sensitivity,
        "noise": sigma,
        "clip": c,
        "target_clip": t,
        "lam": _CHOICES.get(str(lam), "given, chosen without the data"),
        "spectrum": spectrum,
        "directions": p if rank is None else rank,
        "examples": "public"
        if budget.neighbours is Neighbours.REPLACE_ONE
        else "estimated from noisy moments",
        "public": told,
        "spent": [vars(one) for one in spent],
    }
    return PrivateModel(model, noisy, sigma, statement, preprocess)


def _tuned(
    path: RidgePath,
    penalty: float,
    features: ClippedFeatures,
    source: ArraySource,
    kind: TargetKind,
    budget: Budget,
) -> float:
    """The multiple of a penalty that was drawn by how well its weights answer on the data."""
    candidates = penalty * FACTORS
    weights = np.stack([np.asarray(in_float64(path_weights, path, one)) for one in candidates])
    scores = score_weights(features, *source.arrays(), weights, classes=kind is not TargetKind.REAL)
    price = choice_price(budget.epsilon).epsilon
    return float(candidates[exponential_choice(scores, price, budget.neighbours)])


def _release(exact: Moments, sigma: float, neighbours: Neighbours) -> Moments:
    """Noisy G and C of rows in the unit ball; what else the moments hold is not measured on the data."""
    p, k = exact.cross.shape
    gram = exact.gram + sigma * symmetric_noise(p)
    cross = exact.cross + sigma * secure_normal(p, k)
    if neighbours is Neighbours.REPLACE_ONE:  # the number of examples is the same on both sides
        count = np.float64(exact.count)
    else:
        count = np.maximum(np.round(np.trace(gram)), 1.0)
    # Rows of norm one, evenly over the outputs: what |y| <= 1 says without looking.
    return Moments.without_sums(gram, cross, np.eye(k) * (count / k), count)


def _check_public(
    features: AbstractFeatureMap,
    preprocess: AbstractPreprocess | None,
    public: Collection[str],
    spent: Collection[Spent],
) -> dict[str, str]:
    """What features and preprocessing may know of the data, in words."""
    if isinstance(public, str):
        public = (public,)
    for name in public:
        check_choice("public", name, PUBLIC)
    paid = {one.what for one in spent}

    def told(name: str, fitted: bool, harmless: str, refusal: str) -> str:
        if name in paid:
            return "made of the data, paid for"
        if name in public:
            return "declared public"
        if fitted:
            raise BudgetError(refusal)
        return harmless

    return {
        "features": told(
            "features",
            isinstance(features, Encoder),
            f"{features.kind}, drawn without the data",
            "an encoder is trained, and nothing says on what; declare it public (public=['features']) or say "
            "what was spent on it (spent=[Spent('features', epsilon=..., delta=...)])",
        ),
        "preprocess": told(
            "preprocess",
            preprocess is not None and not isinstance(preprocess, Identity),
            "none, or each example by itself",
            f"{getattr(preprocess, 'kind', '')} constants are fitted on data; declare them public "
            "(public=['preprocess']), pay for them (spent=[Spent('preprocess', ...)]), or use none",
        ),
    }
