"""Every array and every word of a private file, and what it was computed from."""

from __future__ import annotations

import os
from pathlib import Path

from jaxdistill.errors import BudgetError
from jaxdistill.sets.artifact import read_set

_PAID = "the noisy moments"
_ASKED = "the budget and the request"
_PUBLIC = "what is public: drawn without the data, declared, or paid for before"
_PROGRAM = "the program, and the machine it ran on"

# A name, or what names begin with.
_ORIGINS = {
    **dict.fromkeys(("images", "inputs", "labels", "lam", "weights"), _PAID),
    **dict.fromkeys(("features/", "preprocess/", "class_names"), _PUBLIC),
    **dict.fromkeys(("meta/features/", "meta/preprocess", "meta/recipe/targets"), _PUBLIC),
    **dict.fromkeys(("meta/program", "meta/format", "meta/versions/", "meta/placement/"), _PROGRAM),
    "digest": "the rest of the file",
    "meta/certificate/num_test": "no test example: always 0",
    "meta/certificate": "the set itself, retrained, and the weights in the file",
    "meta/recipe/lam": "the budget and the request, or a choice that was paid for",
    **{f"meta/recipe/{name}": _ASKED for name in ("construction", "labels", "lam_s", "privacy/")},
    **{
        f"meta/recipe/{name}": _PAID
        for name in ("rank", "count", "lost", "largest_lam_s", "scale", "num_train", "solver", "full_model/")
    },
}
# Test scores of a certificate: no value may be there.
_SCORES = ("agreement", "accuracy", "prediction_error", "squared_error")


def list_contents(path: str | os.PathLike[str]) -> dict[str, str]:
    """Every array and every word of a private file, with what it was computed from.

    Args:
        path: A file that was made with a budget.

    Returns:
        From the name of an array, or the place of a word in ``meta``, to where it comes from.

    Raises:
        BudgetError: the file makes no promise, or holds something that nobody paid for.
        ArtifactError: it cannot be read.

    Example:
        >>> import tempfile, pathlib, jax, numpy as np
        >>> import jaxdistill as jd
        >>> from jaxdistill.privacy.budget import Budget
        >>> from jaxdistill.privacy.mechanism import fit_private_ridge
        >>> x, y = np.eye(40, 5), jd.one_hot(np.arange(40) % 2, 2)
        >>> budget = Budget(8.0, 1e-3)
        >>> private = fit_private_ridge(jd.features.Linear(5), x, y, budget=budget, clip=1.0, lam=1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = private.distill(ipc=1, key=jax.random.key(0)).save(pathlib.Path(folder) / "s.npz")
        ...     list_contents(file)["inputs"]
        'the noisy moments'
    """
    arrays, meta = read_set(Path(path))
    promise = meta["recipe"].get("privacy")
    if promise is None or "not_covered" in promise:
        raise BudgetError(f"{path} makes no promise for what it holds; make a set with --epsilon and --delta")
    words = _flat("meta", meta)
    for name, value in words.items():
        last = name.rsplit("/", 1)[-1]
        if name.startswith("meta/certificate/") and last.startswith(_SCORES) and value is not None:
            raise BudgetError(f"{path} holds {name}, a score on data that nobody paid for; leave it out")
    return {name: _origin(name, path) for name in [*(n for n in arrays if n != "meta"), *words]}


def _flat(prefix: str, value: object) -> dict[str, object]:
    """Words by their place, folders of words opened."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, object] = {}
    for name, inner in value.items():
        found |= _flat(f"{prefix}/{name}", inner)
    return found


def _origin(name: str, path: object) -> str:
    fitting = [known for known in _ORIGINS if name == known or name.startswith(f"{known.rstrip('/')}/")]
    if not fitting:
        raise BudgetError(f"{path} holds {name}, of which nobody can say where it comes from; leave it out")
    return _ORIGINS[max(fitting, key=len)]
