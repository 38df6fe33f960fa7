"""A set whose pixels are rounded to what an image file holds, with labels that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxdistill.data.zca import ZCA
from jaxdistill.distill.compiled import stored_labels
from jaxdistill.errors import InputError
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.pictures import pixel_levels
from jaxdistill.solve.box import pixel_box
from jaxdistill.solve.held import spanning_with_held


def round_pixels(small: DistilledSet, *, bits: int = 8, rounds: int = 0, key: Array) -> DistilledSet:
    """The set with pixels rounded to 8 or 16 bits, and soft labels computed from the pixels as rounded.

    For m >= p nothing is lost. Below, rounding moves the span of the features off the weights, and the labels
    return the nearest that is left: what is lost, only :func:`~jaxdistill.certify` says. With feedback half
    of the pixels are rounded, the others solve the spanning equations anew, half of those are rounded, and so
    on: only the last few pixels' rounding is left, and it is a matter of how many there are beside p k.

    Args:
        small: A set of images in [0, 1], whose preprocessing treats each pixel by itself.
        bits: 8 or 16.
        rounds: Rounds of feedback; 0 rounds all pixels at once.
        key: Random key: which pixels are rounded first.

    Returns:
        The rounded set; ``recipe["rounded"]`` says how.

    Raises:
        InputError: pixels outside [0, 1], no images, or preprocessing that mixes pixels.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.random.default_rng(0).random((40, 2, 2, 1)).astype("float32")
        >>> prepare = jd.Standardize.fit(x)
        >>> rows, y = prepare.forward(x), jd.one_hot(np.arange(40) % 2, 2)
        >>> model = jd.fit_ridge(jd.features.Linear(4), rows, y, lam=1.0)
        >>> small = jd.distill(model, size=6, realistic="fixed", reference=(rows, y), key=jax.random.key(0))
        >>> small = round_pixels(small.with_context(prepare, None), key=jax.random.key(1))
        >>> bool(np.allclose(255 * small.images, np.rint(255 * small.images), atol=1e-3))
        True
        >>> jd.certify(model, small).exact
        True
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise InputError(f"rounds is {rounds!r}; it must be a whole number >= 0")
    if small.preprocess is None or isinstance(small.preprocess, ZCA):
        raise InputError(
            "rounding pixels needs a set that knows its pixels one by one; use with_context, and "
            "'standardize' or 'none'"
        )
    x = small.x
    if rounds:
        order = host_generator(key).permutation(x.size).reshape(x.shape) / x.size
        pixel_levels(small.images, bits)  # refuses early
        box = pixel_box(small.preprocess)
        for i in range(1, rounds + 1):
            held = order < 1 - 0.5**i
            start = np.where(held, _rounded(small, x, bits), x)
            level = small.intercept is not None
            x = spanning_with_held(small.features, small.weights, start, held, box, intercept=level)
    x = _rounded(small, x, bits)
    model = small.weights, small.intercept
    y, lam = in_float64(stored_labels, small.features, x, model, None)
    recipe: dict[str, Any] = small.recipe | {"labels": "soft", "rounded": {"bits": bits, "rounds": rounds}}
    return replace(small, x=x, y=y, lam=float(lam), recipe=recipe, certificate=None)


def _rounded(small: DistilledSet, x: np.ndarray, bits: int) -> np.ndarray:
    """Inputs of the rounded images, in the type that inputs are stored in."""
    assert small.preprocess is not None
    images = small.preprocess.inverse(x.astype(np.float64))
    pixels = (pixel_levels(images, bits) / (2**bits - 1)).astype(small.x.dtype)
    return np.asarray(small.preprocess.forward(pixels)).astype(small.x.dtype)
