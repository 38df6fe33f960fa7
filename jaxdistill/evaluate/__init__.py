"""Judgement: retrain on a set, compare with the full model, train other features or networks on it.

Knows sets and models, and changes neither. Begin with :func:`jaxdistill.evaluate.certify.certify`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import what trains networks, and so loads flax and optax, when it is first asked for."""
    if name in ("NetworkScores", "evaluate_images", "evaluate_set"):
        from jaxdistill.evaluate import finite_networks

        return getattr(finite_networks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
