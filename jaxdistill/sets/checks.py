"""Whether the parts of a file make a set: what a digest cannot tell, since anyone can compute one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from jaxdistill.errors import ArtifactError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.sets.archive import first_line


@contextmanager
def understood(where: Any) -> Iterator[None]:
    """Turn whatever is raised while a set is put together from its parts into one line.

    Raises:
        ArtifactError: what is missing, or does not fit.
    """
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:  # parts of another version, or that no version would write
        raise ArtifactError(
            f"{where} lacks or does not understand {first_line(error)}; make it again with this version"
        ) from None


def check_code(where: Any, what: str, code: dict[str, Any], maps: Sequence[AbstractFeatureMap]) -> None:
    """Raise where code was given for a file that none of whose feature maps takes it.

    Args:
        where: What to call the file in errors.
        what: What the file has, in words that "no module" ends, such as "linear features, which need".
        code: What was given, by the name of the argument.
        maps: Feature maps of the set.

    Raises:
        ArtifactError: names the argument.
    """
    for name, value in code.items():
        if value is not None and not any(name in phi.code for phi in maps):
            raise ArtifactError(f"{where} has {what} no {name}; leave it out")


def check_examples(
    where: Any, arrays: dict[str, np.ndarray], meta: dict[str, Any], told: tuple[str, ...]
) -> None:
    """Raise unless the arrays of a set have the types and shapes that go together.

    Args:
        where: What to call the file in errors.
        arrays: Arrays by name.
        meta: Metadata; every network in it takes inputs of the set's length.
        told: Names of what tells the full model, the first with a column an output.

    Raises:
        ArtifactError: names the array.
    """
    x, y, full = arrays["inputs"], arrays["labels"], arrays[told[0]]
    fits = {
        "inputs": x.ndim == 2 and x.size > 0,
        "labels": y.ndim == 2 and y.size > 0 and len(y) == len(x),
        told[0]: full.ndim == 2 and full.shape[1:] == y.shape[1:],
        **{name: arrays[name].ndim == 0 for name in ("lam", *told[1:])},
    }
    if "intercept" in arrays:
        fits["intercept"] = arrays["intercept"].shape == y.shape[1:]
    for name, fine in fits.items():
        if not fine or arrays[name].dtype.kind != "f":
            raise ArtifactError(
                f"{where} has {name} of shape {arrays[name].shape} and type {arrays[name].dtype}, "
                "which fit no set; get the original"
            )
    if not 0 <= arrays["lam"] < np.inf:
        raise ArtifactError(
            f"{where} has the penalty {arrays['lam']}, and none is negative or infinite; get the original"
        )
    names = arrays.get("class_names")
    if names is not None and names.shape != y.shape[1:]:
        raise ArtifactError(
            f"{where} names {names.size} classes and has {y.shape[1]} outputs; get the original"
        )
    # Before a network is built, which is tried on inputs of the shape that it names.
    for shape in _input_shapes(meta):
        if math.prod(shape) != x.shape[1]:
            raise ArtifactError(
                f"{where} has inputs of length {x.shape[1]} for a network that takes others; get the original"
            )


def _input_shapes(part: Any) -> Iterator[list[int]]:
    """Every input_shape in the metadata of a map or kernel, and of kernels made of others."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "input_shape":
                yield value
            else:
                yield from _input_shapes(value)


def check_parameters(where: Any, found: dict[str, np.ndarray], stored: dict[str, np.ndarray]) -> None:
    """Raise unless a map, kernel or transform holds the very arrays that were stored.

    Raises:
        ArtifactError: arrays that nobody reads, or float64 that JAX rounded to float32.
    """
    if found.keys() != stored.keys():
        odd = ", ".join(sorted(found.keys() ^ stored.keys()))
        raise ArtifactError(
            f"{where} lacks parameters, or holds some that nothing reads: {odd}; get the original"
        )
    for name, value in stored.items():
        if found[name].dtype != value.dtype:
            raise ArtifactError(
                f"{where} holds the parameter {name} in {value.dtype}, which JAX makes "
                f"{found[name].dtype}; read it inside jax.enable_x64(True)"
            )
        if found[name].shape != value.shape or found[name].tobytes() != value.tobytes():
            raise ArtifactError(
                f"{where} holds the parameter {name} in a form that is not read; get the original"
            )
