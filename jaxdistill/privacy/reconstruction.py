"""What can be read out of a set or of moments: images that were there, labels, the last unknown example."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdistill.errors import InputError
from jaxdistill.privacy.rates import clopper_pearson

_BLOCK = 4096


class Nearest(NamedTuple):
    """The nearest example of every image of a set.

    Args:
        rows: Which one, shape (m,).
        distance: How far, root mean square over pixels, shape (m,).
        psnr: The same in dB for the range of the examples, shape (m,); infinite for a copy.
    """

    rows: np.ndarray
    distance: Float[np.ndarray, " m"]
    psnr: Float[np.ndarray, " m"]


def nearest_examples(images: Any, examples: Any) -> Nearest:
    """For every image of a set the nearest example: a copy, something like it, or nothing.

    Compare with the nearest of as many examples that were not trained on: only what is nearer to training
    examples than to those was given away.

    Args:
        images: The set, shape (m, ...), in the data's units.
        examples: Examples, shape (n, ...), of the same shape.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> import numpy as np
        >>> pool = np.eye(4)
        >>> found = nearest_examples(pool[2:3] + 0.1, pool)
        >>> int(found.rows[0]), round(float(found.psnr[0]), 6)
        (2, 20.0)
    """
    small, pool = (np.asarray(a).reshape(len(a), -1) for a in (images, examples))
    if small.shape[1] != pool.shape[1] or len(pool) == 0:
        raise InputError(f"images have {small.shape[1]} pixels and {len(pool)} examples {pool.shape[1]}")
    small = small.astype(np.float64)
    best, index = np.full(len(small), np.inf), np.zeros(len(small), int)
    low, high = np.inf, -np.inf
    for start in range(0, len(pool), _BLOCK):
        block = pool[start : start + _BLOCK].astype(np.float64)
        low, high = min(low, block.min()), max(high, block.max())
        squared = (small**2).sum(1)[:, None] - 2 * small @ block.T + (block**2).sum(1)
        place = squared.argmin(axis=1)
        # Again from the difference: the expanded square loses what two near images do not share.
        exact = np.sum((small - block[place]) ** 2, axis=1)
        nearer = exact < best
        best, index = np.where(nearer, exact, best), np.where(nearer, start + place, index)
    distance = np.sqrt(best / small.shape[1])
    with np.errstate(divide="ignore"):
        psnr = 20 * np.log10((high - low) / distance)
    return Nearest(index, distance, psnr)


class Inversion(NamedTuple):
    """The one example that was not known.

    Args:
        features: Its features, shape (p,), the sign by the targets.
        targets: Its targets, shape (k,).
        share: Share of the remainder that one example explains: 1 where it is exact, near 0 in noise.
    """

    features: Float[np.ndarray, " p"]
    targets: Float[np.ndarray, " k"]
    share: float


def invert_moments(gram: Any, cross: Any, known_gram: Any, known_cross: Any) -> Inversion:
    """From moments to the one example that is not known: what is left over is ``phi phi^T`` and ``phi y^T``.

    Exact moments give it away to somebody who knows all others; noisy ones do not.

    Args:
        gram: G that was released, shape (p, p).
        cross: C that was released, shape (p, k).
        known_gram: G of the examples that are known.
        known_cross: C of the examples that are known.

    Example:
        >>> import numpy as np
        >>> phi, y = np.array([[1.0, 2.0], [3.0, -1.0]]), np.eye(2)
        >>> left = invert_moments(phi.T @ phi, phi.T @ y, phi[:1].T @ phi[:1], phi[:1].T @ y[:1])
        >>> left.features.round(6).tolist(), int(left.targets.argmax()), round(left.share, 6)
        ([3.0, -1.0], 1, 1.0)
    """
    rest = np.asarray(gram, np.float64) - np.asarray(known_gram, np.float64)
    values, vectors = np.linalg.eigh((rest + rest.T) / 2)
    phi = vectors[:, -1] * math.sqrt(max(values[-1], 0.0))
    y = phi @ (np.asarray(cross, np.float64) - np.asarray(known_cross, np.float64)) / max(phi @ phi, 1e-300)
    # The sign that makes the largest target positive: class rows have no other.
    sign = 1.0 if y[np.abs(y).argmax()] >= 0 else -1.0
    return Inversion(sign * phi, sign * y, float(max(values[-1], 0.0) / np.abs(values).sum()))


class LabelGuess(NamedTuple):
    """How often a model trained on the set names the class of an example.

    Args:
        members: Share of members, with its 95 % interval.
        others: Share of the others.
        advantage: Difference, what membership adds; 0 where the class is learned and not remembered.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end.
    """

    members: float
    others: float
    advantage: float
    low: float
    high: float


def label_guess(members: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]) -> LabelGuess:
    """Whether retraining reveals a secret class of members better than of others.

    Args:
        members: Predictions and targets of members, shapes (a, k).
        others: Predictions and targets of others, shapes (b, k).

    Example:
        >>> import numpy as np
        >>> label_guess((np.eye(2), np.eye(2)), (np.eye(2), np.eye(2)[::-1])).advantage
        1.0

    Source: Yeom et al. 2018 (advantage); interval of a difference, Newcombe 1998 with exact ends.
    """
    shares, ends = [], []
    for outputs, y in (members, others):
        hits = int(np.sum(outputs.argmax(axis=1) == y.argmax(axis=1)))
        shares.append(hits / len(y))
        ends.append(clopper_pearson(hits, len(y)))
    (a, b), ((a_low, a_high), (b_low, b_high)) = shares, ends
    difference = a - b
    low, high = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
    return LabelGuess(a, b, difference, float(difference - low), float(difference + high))
