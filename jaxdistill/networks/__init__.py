"""Standard networks of flax and how they are trained; the activations that random features share with them.

Knows images and labels; nothing of ridge regression. Begin with
:func:`jaxdistill.networks.standard.make_network`. The names of this room load flax (and training optax)
when they are first asked for.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import what needs flax or optax when it is first asked for."""
    if name in ("make_network", "STANDARD"):
        from jaxdistill.networks import standard

        return getattr(standard, name)
    if name == "TrainConfig":
        from jaxdistill.networks.config import TrainConfig

        return TrainConfig
    if name in ("train_networks", "Trained"):
        from jaxdistill.networks import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
