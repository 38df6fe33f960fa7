"""Feature maps phi: d -> p, each a frozen pytree with its inverse beside its forward.

A new map is one file here: a subclass of :class:`AbstractFeatureMap` and a line in ``KINDS``.
"""

from jaxdistill.features.activation import ACTIVATIONS, Activation
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.features.convolution import ConvolutionalNetwork
from jaxdistill.features.deep_linear import DeepLinear
from jaxdistill.features.encoder import Encoder
from jaxdistill.features.fourier import RandomFourier
from jaxdistill.features.invertible import InvertibleNetwork
from jaxdistill.features.linear import Linear
from jaxdistill.features.network import RandomNetwork

KINDS: dict[str, type[AbstractFeatureMap]] = {
    kind.kind: kind
    for kind in (
        Linear,
        RandomFourier,
        RandomNetwork,
        ConvolutionalNetwork,
        DeepLinear,
        InvertibleNetwork,
        Encoder,
    )
}

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "AbstractFeatureMap",
    "Activation",
    "ConvolutionalNetwork",
    "DeepLinear",
    "Encoder",
    "InvertibleNetwork",
    "Linear",
    "RandomFourier",
    "RandomNetwork",
]
