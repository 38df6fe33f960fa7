"""Standard finite networks of flax (linen), each defined by settings that JSON keeps.

They are what a distilled set is judged on (:mod:`jaxdistill.evaluate.finite_networks`) and what encoders
are made of (:class:`jaxdistill.features.Encoder`): the layer ``features`` of each is what its linear head
sees. Importing this module loads flax; ``import jaxdistill`` does not.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.networks.activation import Activation
from jaxdistill.networks.pooling import pool
from jaxdistill.numerics.names import check_choice

NORMS = ("none", "instance", "layer")


class Features(nn.Module):
    """The identity, there to give its input a name that :class:`~jaxdistill.features.Encoder` can ask for."""

    def __call__(self, x: Array) -> Array:
        """Return the input."""
        return x


def _normalised(x: Array, norm: str) -> Array:
    """Normalise every channel of every example by itself ("instance"), or every example ("layer")."""
    check_choice("norm", norm, NORMS)
    if norm == "none":
        return x
    return nn.GroupNorm(num_groups=None, group_size=1)(x) if norm == "instance" else nn.LayerNorm()(x)


class ConvNet(nn.Module):
    """The field's ConvNet: blocks of convolution, norm, activation and average pooling, then a linear head.

    Args:
        num_outputs: Number k of outputs.
        width: Channels of every block.
        depth: Number of blocks.
        norm: "instance", "layer" or "none".
        activation: One of ``jaxdistill.features.ACTIVATIONS``.

    Source: Gidaris and Komodakis 2018; with width 128 and depth 3, Zhao, Mopuri and Bilen 2021.
    """

    num_outputs: int = 10
    width: int = 128
    depth: int = 3
    norm: str = "instance"
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Outputs of a batch of images."""
        for _ in range(self.depth):
            x = nn.Conv(self.width, (3, 3))(x)
            x = Activation(self.activation)(_normalised(x, self.norm))
            x = pool(x, "average")
        x = Features(name="features")(x.reshape(len(x), -1))
        return nn.Dense(self.num_outputs, name="head")(x)


class ConvEncoder(nn.Module):
    """A small encoder: convolutions of stride 2, a dense layer of p features, a linear head.

    Args:
        num_outputs: Number k of outputs.
        channels: Channels of each convolution.
        num_features: Number p of features.
        activation: One of ``jaxdistill.features.ACTIVATIONS``.
        negative_slope: Slope of "leaky_relu" below zero.
    """

    num_outputs: int = 10
    channels: tuple[int, ...] = (16, 32)
    num_features: int = 128
    activation: str = "leaky_relu"
    negative_slope: float = 0.1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Outputs of a batch of images."""
        act = Activation(self.activation, self.negative_slope)
        for channels in self.channels:
            x = act(nn.Conv(channels, (3, 3), strides=(2, 2))(x))
        x = act(nn.Dense(self.num_features)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_outputs, name="head")(Features(name="features")(x))


class MLP(nn.Module):
    """Dense layers with activations, then a linear head.

    Args:
        num_outputs: Number k of outputs.
        widths: Width of each hidden layer.
        activation: One of ``jaxdistill.features.ACTIVATIONS``.
    """

    num_outputs: int = 10
    widths: tuple[int, ...] = (128, 128)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n k"]:
        """Outputs of a batch of examples of any shape."""
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = Activation(self.activation)(nn.Dense(width)(x))
        return nn.Dense(self.num_outputs, name="head")(Features(name="features")(x))


class ResNet(nn.Module):
    """A small residual network: a stage a width, each of one block, halving the image from the second on.

    Args:
        num_outputs: Number k of outputs.
        widths: Channels of each stage.
        norm: "instance", "layer" or "none". A global average of what was normalised channel by channel says
            little of an image: with ten MNIST digits a class "instance" learns to 54 %, "layer" to 67 %.
        activation: One of ``jaxdistill.features.ACTIVATIONS``.

    Source: He, Zhang, Ren and Sun 2016, with norms that do not depend on the batch.
    """

    num_outputs: int = 10
    widths: tuple[int, ...] = (32, 64, 128)
    norm: str = "layer"
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Outputs of a batch of images."""
        act = Activation(self.activation)
        x = act(_normalised(nn.Conv(self.widths[0], (3, 3))(x), self.norm))
        for stage, width in enumerate(self.widths):
            stride = 1 if stage == 0 else 2
            inner = act(_normalised(nn.Conv(width, (3, 3), strides=(stride, stride))(x), self.norm))
            inner = _normalised(nn.Conv(width, (3, 3))(inner), self.norm)
            if x.shape != inner.shape:
                x = nn.Conv(width, (1, 1), strides=(stride, stride))(x)
            x = act(x + inner)
        x = Features(name="features")(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(self.num_outputs, name="head")(x)


STANDARD: dict[str, type[nn.Module]] = {
    "convnet": ConvNet,
    "encoder": ConvEncoder,
    "mlp": MLP,
    "resnet": ResNet,
}


def make_network(name: str, **settings: Any) -> nn.Module:
    """Make a standard network from its name and settings.

    Raises:
        InputError: an unknown name or setting.

    Example:
        >>> make_network("mlp", widths=[64], num_outputs=3).widths
        (64,)
    """
    check_choice("network", name, STANDARD)
    kind = STANDARD[name]
    known = settings_of(kind())
    for setting in settings:
        check_choice(f"setting of {name}", setting, known)
    network = kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
    if getattr(network, "norm", "none") not in NORMS:
        check_choice("norm", getattr(network, "norm", "none"), NORMS)
    Activation(getattr(network, "activation", "relu"))
    for setting, value in settings_of(network).items():
        sizes = value if isinstance(value, tuple) else (value,)
        if any(isinstance(size, int) and size < 1 for size in sizes) or sizes == ():
            raise InputError(f"{setting} of {name} is {value!r:.60}; sizes must be positive")
    return network


def name_of(module: Any) -> str | None:
    """Name of a standard network, or None of any other."""
    return next((name for name, kind in STANDARD.items() if type(module) is kind), None)


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The settings that rebuild a standard network."""
    return {field: getattr(module, field) for field in module.__dataclass_fields__ if field not in _OF_FLAX}


_OF_FLAX = ("parent", "name")
