"""Images of CIFAR's shape for speed and memory, where the real ones cannot be had: not for accuracy."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np

from jaxdistill.numerics.files import write_atomically

_NAME = re.compile(r"cifar(\d+)-shaped")
_TRAIN, _TEST, _SIDE, _SEED = 50_000, 10_000, 32, 0


def dataset_path(name: str) -> str:
    """A name that data sets are loaded by: ``cifarK-shaped`` is made once, other names are kept.

    Every class has four smooth prototypes in colour; an example is one of them at a random strength, among
    prototypes of other classes and noise, so that no model is perfect.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return name
    path = Path(tempfile.gettempdir()) / f"jaxdistill-{name}.npz"
    if not path.exists():
        import io

        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **_make(int(found[1])))
        write_atomically(path, buffer.getvalue())
    return str(path)


def _make(num_classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(_SEED)
    coarse = rng.standard_normal((4 * num_classes, 8, 8, 3)).astype(np.float32)
    prototypes = np.kron(coarse, np.ones((1, 4, 4, 1), np.float32)).reshape(4 * num_classes, -1)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    arrays = {}
    for part, n in (("train", _TRAIN), ("test", _TEST)):
        y = rng.permutation(np.arange(n) % num_classes)
        own = prototypes[4 * y + rng.integers(0, 4, n)]
        other = prototypes[rng.integers(0, 4 * num_classes, n)]
        strength = rng.uniform(0.5, 1.5, (2, n, 1)).astype(np.float32)
        x = 40 * (strength[0] * own + strength[1] * other)
        x += rng.standard_normal(x.shape, np.float32)
        pixels = np.clip(128 + 24 * x, 0, 255).astype(np.uint8)
        arrays[f"x_{part}"] = pixels.reshape(n, _SIDE, _SIDE, 3)
        arrays[f"y_{part}"] = y
    return arrays
