"""What a certificate says of the full model itself: how well it solves the problem it was trained on."""

from __future__ import annotations

from typing import Any

from jaxdistill.ridge.kernel_fit import KernelModel
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.residual import recorded
from jaxdistill.sets.artifact import AbstractSet

_FIELDS = {
    "residual_full": "value",
    "residual_tolerance": "tolerance",
    "solved_full": "solved",
    "rank_full": "rank",
    "dropped_full": "dropped",
}


def full_residual(model: Any) -> dict[str, Any]:
    """The fields of a certificate that are about the full model.

    Args:
        model: A full model, which is measured now; a saved set, whose file tells what was measured; or
            a head without data, of which nothing is known.

    Returns:
        Residual, its tolerance, whether it is within, rank and what it dropped; each None where not known.
    """
    told: dict[str, Any] | None = None
    if isinstance(model, (RidgeModel, KernelModel)):
        told = recorded(model.solution)
    elif isinstance(model, AbstractSet):
        told = model.recipe.get("full_model")
    return {name: None if told is None else told[key] for name, key in _FIELDS.items()}
