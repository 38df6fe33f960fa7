"""Feature maps phi: d -> p, each a frozen pytree with its inverse beside its forward.

A new map is one file here: a subclass of :class:`AbstractFeatureMap` and a line in ``KINDS``.
"""

from jaxdistill.features.activation import ACTIVATIONS, Activation
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.features.encoder import Encoder
from jaxdistill.features.fourier import RandomFourier
from jaxdistill.features.linear import Linear
from jaxdistill.features.network import RandomNetwork

KINDS: dict[str, type[AbstractFeatureMap]] = {
    kind.kind: kind for kind in (Linear, RandomFourier, RandomNetwork, Encoder)
}

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "AbstractFeatureMap",
    "Activation",
    "Encoder",
    "Linear",
    "RandomFourier",
    "RandomNetwork",
]
