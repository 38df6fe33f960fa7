"""A distilled set as a folder of PNG files with one label file, for whoever trains without this package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.errors import ArtifactError, InputError, OutputError
from jaxdistill.numerics.files import write_atomically
from jaxdistill.sets.archive import read_json
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.png import png_bytes, png_pixels

LABELS = "labels.json"
DEPTHS = (8, 16)
# Share of a level by which rounding of float32 inputs, and the way back to pixels, may miss it.
_ON_LEVEL = 0.05


class Pictures(NamedTuple):
    """What a folder holds.

    Args:
        images: Pixels in [0, 1], shape (m, H, W, C), float64.
        labels: Soft labels, shape (m, k), float64.
        lam: Penalty to train with.
    """

    images: np.ndarray
    labels: np.ndarray
    lam: float


def pixel_levels(images: np.ndarray, bits: int) -> np.ndarray:
    """The nearest levels ``0 ... 2^bits - 1`` of images in [0, 1].

    Args:
        images: Shape (m, H, W, C) with one channel or three.
        bits: 8 or 16.

    Raises:
        InputError: no images, another depth, or pixels outside [0, 1], by how much.

    Example:
        >>> pixel_levels(np.full((1, 1, 1, 1), 0.5), 8).item()
        128
    """
    if isinstance(bits, bool) or bits not in DEPTHS:
        raise InputError(f"bits is {bits!r}; a PNG file has 8 or 16")
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"examples of shape {images.shape[1:]} are no images (H, W, 1) or (H, W, 3); save them as .npz"
        )
    most = 2**bits - 1
    levels = np.rint(images.astype(np.float64) * most)
    if levels.min() < 0 or levels.max() > most:
        below, above = max(0.0, -float(images.min())), max(0.0, float(images.max()) - 1)
        raise InputError(
            f"pixels leave [0, 1], by {below:.3g} below and {above:.3g} above, and no PNG file holds them; "
            "make the set with --realistic closest --box 0 1"
        )
    return levels.astype(np.uint8 if bits == 8 else np.uint16)


def save_pictures(small: DistilledSet, folder: str | Path, bits: int) -> list[Path]:
    """Write a set whose pixels are levels already (:func:`~jaxdistill.distill.rounding.round_pixels`).

    ``000.png``, ``001.png``, ... and ``labels.json`` with ``files``, ``labels`` (m, k), ``lam`` and
    ``class_names``. A pixel is its level divided by ``2^bits - 1``.

    Args:
        small: The set.
        folder: Where to; made if it is not there.
        bits: 8 or 16.

    Returns:
        The files.

    Raises:
        InputError: pixels that are no levels, or that no PNG file holds.
        OutputError: it cannot be written there.
    """
    folder = Path(folder)
    levels = pixel_levels(small.images, bits)
    if np.abs(levels / (2**bits - 1) - small.images).max() > _ON_LEVEL / 2**bits:
        raise InputError(
            f"the pixels are not rounded to {bits} bits; use round_pixels(small, bits={bits}) first"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose another folder") from None
    width = max(3, len(str(len(levels) - 1)))
    files = [
        write_atomically(folder / f"{i:0{width}d}.png", png_bytes(image)) for i, image in enumerate(levels)
    ]
    told = {
        "files": [file.name for file in files],
        "labels": small.y.tolist(),
        "lam": small.lam,
        "bits": bits,
        "class_names": None if small.class_names is None else list(small.class_names),
    }
    return [*files, write_atomically(folder / LABELS, json.dumps(told).encode())]


def load_pictures(folder: str | Path) -> Pictures:
    """Read a folder that :func:`save_pictures` wrote.

    Raises:
        ArtifactError: a file is missing or damaged, images differ in size, or the labels are another number.
    """
    folder = Path(folder)
    try:
        told: Any = read_json((folder / LABELS).read_text())
        names, labels = told["files"], np.asarray(told["labels"], np.float64)
        lam, images = float(told["lam"]), [_read(folder / Path(name).name) for name in names]
    except OSError as error:
        raise ArtifactError(
            f"{error.filename} cannot be read: {error.strerror}; export the set again"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{folder / LABELS} cannot be understood ({error}); export the set again"
        ) from None
    found = len(list(folder.glob("*.png")))
    if labels.ndim != 2 or not len(labels) == len(images) == found:
        raise ArtifactError(
            f"{folder} has {found} images, {len(images)} of them named, and {len(labels)} labels; "
            "export the set again into an empty folder"
        )
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise ArtifactError(f"{folder} has images of different sizes, {sorted(sizes)}; keep those of one set")
    return Pictures(np.stack(images), labels, lam)


def with_pictures(small: DistilledSet, folder: str | Path) -> DistilledSet:
    """The set whose inputs, labels and penalty are those of a folder: what someone trains who has no more.

    Args:
        small: The set that was exported: its features, weights and preprocessing.
        folder: What :func:`save_pictures` wrote.

    Raises:
        InputError: images or labels of another shape than the set's.
        ArtifactError: the folder holds no set.
    """
    found, prepare = load_pictures(folder), small.preprocess
    shape = found.images.shape[1:]
    if prepare is None or prepare.shape != shape or found.labels.shape[1] != small.y.shape[1]:
        own = None if prepare is None else prepare.shape
        raise InputError(
            f"{folder} has images {shape} and {found.labels.shape[1]} targets, the set {own} and "
            f"{small.y.shape[1]}; name the set that was exported"
        )
    x = np.asarray(prepare.forward(found.images.astype(small.x.dtype))).astype(small.x.dtype)
    return replace(small, x=x, y=found.labels, lam=found.lam, certificate=None)


def _read(path: Path) -> np.ndarray:
    pixels = png_pixels(path.read_bytes(), path)
    return pixels / float(np.iinfo(pixels.dtype).max)
