"""Train a small network in seconds and take its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError
from jaxdistill.features.encoder import Encoder
from jaxdistill.networks.config import TrainConfig
from jaxdistill.networks.standard import make_network
from jaxdistill.networks.training import train_networks
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.placement import moving_arrays

_DEFAULT = TrainConfig(steps=600, batch=128, learning_rate=2e-3)


@moving_arrays()
def train_encoder(
    x: Any,
    y: Any,
    *,
    image_shape: Sequence[int],
    network: str | nn.Module = "encoder",
    layer: str = "features",
    config: TrainConfig | None = None,
    key: Array,
    progress: bool = False,
    **settings: Any,
) -> Encoder:
    """Train a network on labelled images and freeze one of its layers as a feature map.

    A ridge model on these features is the network's linear probe, which
    :func:`~jaxdistill.distill` makes small.

    Args:
        x: Inputs, shape (n, d), as the encoder will see them.
        y: Class rows, shape (n, k).
        image_shape: (H, W, C) of an input.
        network: Name of one of the package's own networks, or a linen module.
        layer: Layer whose output is wanted.
        config: Settings of the training; default 600 steps of 128 images.
        key: Random key.
        progress: Whether to show a bar.
        **settings: Of a network that is given by name, such as ``activation="tanh"``.

    Returns:
        The encoder.

    Raises:
        InputError: an unknown network, setting or layer, or shapes that do not fit.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 64)))
        >>> y = jd.one_hot((x[:, 0] > 0).astype(int), 2)
        >>> quick = TrainConfig(steps=5)
        >>> phi = train_encoder(x, y, image_shape=(8, 8, 1), config=quick, key=jax.random.key(1),
        ...                     channels=(4,), num_features=12)
        >>> phi.num_inputs, phi.num_features
        (64, 12)
    """
    x, y = as_floats("x", x), as_floats("y", y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != int(np.prod(tuple(image_shape))):
        raise InputError(
            f"x has shape {x.shape} and y {y.shape}; expected (n, k) and rows of {tuple(image_shape)}"
        )
    if isinstance(network, str):
        network = make_network(network, num_outputs=y.shape[1], **settings)
    elif settings:
        raise InputError(f"{', '.join(settings)}: settings are for a network given by name; leave them out")
    images = x.reshape(-1, *image_shape)
    trained = train_networks(network, images, y, config or _DEFAULT, key=key, progress=progress)
    return Encoder.of(network, variables=trained.variables[0], input_shape=tuple(image_shape), layer=layer)
