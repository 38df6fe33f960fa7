"""Feature maps by the name of their kind, and back from what a file keeps of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.features.convolution import ConvolutionalNetwork
from jaxdistill.features.deep_linear import DeepLinear
from jaxdistill.features.encoder import Encoder
from jaxdistill.features.fourier import RandomFourier
from jaxdistill.features.function import Function
from jaxdistill.features.invertible import InvertibleNetwork
from jaxdistill.features.linear import Linear
from jaxdistill.features.network import RandomNetwork

KINDS: dict[str, type[AbstractFeatureMap]] = {
    kind.kind: kind
    for kind in (
        *(Linear, RandomFourier, RandomNetwork, ConvolutionalNetwork, DeepLinear, InvertibleNetwork),
        *(Encoder, Function),
    )
}


def parts_of(features: AbstractFeatureMap) -> dict[str, Any]:
    """Kind and settings of a feature map, as JSON keeps them."""
    return {"kind": features.kind, "settings": features.settings()}


def rebuild(parts: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> AbstractFeatureMap:
    """The feature map of :func:`parts_of` and its arrays.

    Args:
        parts: Kind and settings.
        arrays: Arrays by name.
        code: What no file holds, for a map that has need of it: ``module``, ``variables``, ``features``.
            Others pass over it, and so does None.

    Example:
        >>> rebuild(parts_of(Linear(3)), {}).num_inputs
        3
    """
    kind: Any = KINDS[parts["kind"]]
    given = {name: value for name, value in code.items() if value is not None and name in kind.code}
    return kind.from_parts(parts["settings"], arrays, **given)
