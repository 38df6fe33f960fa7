"""Feature maps phi: d -> p, each a frozen pytree with its inverse beside its forward.

Knows inputs and their features; nothing of targets. A new map is one file here: a subclass of
:class:`AbstractFeatureMap` and a line in ``stored.KINDS``. Begin with :mod:`jaxdistill.features.linear`.
"""

from typing import TYPE_CHECKING, Any

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.features.convolution import ConvolutionalNetwork
from jaxdistill.features.deep_linear import DeepLinear
from jaxdistill.features.encoder import Encoder
from jaxdistill.features.fourier import RandomFourier
from jaxdistill.features.function import Function
from jaxdistill.features.invertible import InvertibleNetwork
from jaxdistill.features.linear import Linear
from jaxdistill.features.network import RandomNetwork
from jaxdistill.features.stored import KINDS
from jaxdistill.networks.activation import ACTIVATIONS, Activation

if TYPE_CHECKING:
    from jaxdistill.features.trained import train_encoder

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "AbstractFeatureMap",
    "Activation",
    "ConvolutionalNetwork",
    "DeepLinear",
    "Encoder",
    "Function",
    "InvertibleNetwork",
    "Linear",
    "RandomFourier",
    "RandomNetwork",
    "train_encoder",
]


def __getattr__(name: str) -> Any:
    """Import ``train_encoder`` when it is first asked for: it alone needs flax and optax."""
    if name == "train_encoder":
        from jaxdistill.features.trained import train_encoder

        return train_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
