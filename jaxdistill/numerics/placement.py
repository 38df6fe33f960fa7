"""Where float64 lives: on the accelerator where it has float64, on the host's CPU where not. Decided here.

Features, products, kernel tiles and training run on the devices in the precision of the data.
Factorisations, pseudo-inverses, residuals and certificates need float64. CPUs and the GPUs of CUDA and ROCm
have it; the compiler for TPUs refuses it in factorisations, and consumer GPUs have 1/64 of its rate.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.backend import clear_backends

from jaxdistill.errors import InputError
from jaxdistill.numerics.names import check_choice

VARIABLE = "JAXDISTILL_FLOAT64"
SETTINGS = ("auto", "device", "host")
# Platforms whose compilers take float64 in factorisations.
_NATIVE = ("cpu", "gpu", "cuda", "rocm")

_chosen: str | None = None


@dataclass(frozen=True)
class Placement:
    """Where what runs.

    Args:
        devices: Local devices for features, products, tiles and training.
        algebra: Device for everything in float64.
        native: Whether the devices may hold float64 themselves.

    Example:
        >>> where = placement()
        >>> where.native == (where.algebra in where.devices)
        True
    """

    devices: tuple[Any, ...]
    algebra: Any
    native: bool

    @property
    def title(self) -> str:
        """How it is said to a person."""
        if self.native:
            return f"on the device ({self.algebra.platform})"
        return f"on the host ({self.algebra}), the devices ({self.devices[0].platform}) hold float32 alone"


def placement() -> Placement:
    """Where what runs, as the user or else the platform has it.

    The setting is what :func:`set_float64` chose, or the environment variable ``JAXDISTILL_FLOAT64``, or
    "auto": the device where it has float64, the host's CPU where not. With several devices of the CPU and
    the setting "host", the last of them is the host and the others stand for accelerators.

    Raises:
        InputError: an unknown setting, or one that this machine cannot follow.
    """
    setting = _chosen or os.environ.get(VARIABLE) or "auto"
    check_choice(VARIABLE, setting, SETTINGS)
    local = local_devices()
    native = local[0].platform in _NATIVE
    if setting == "device" and not native:
        raise InputError(
            f"float64 has no place on {local[0].platform}, whose compiler refuses it; choose 'host' or 'auto'"
        )
    if setting == "device" or (setting == "auto" and native):
        return Placement(local, local[0], True)
    host = _host(local)
    return Placement(tuple(d for d in local if d != host) or local, host, local == (host,))


def local_devices() -> tuple[Any, ...]:
    """The devices of this process.

    Raises:
        InputError: JAX was told to use a platform that is absent; names it and those that are there.

    Example:
        >>> local_devices()[0].platform in ("cpu", "gpu", "tpu")
        True
    """
    try:
        return tuple(jax.local_devices())
    except (RuntimeError, AssertionError) as error:  # the latter has no words
        wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        if not wanted:
            raise
        reason = " ".join(str(error).split("(set JAX_PLATFORMS")[0].split()).rstrip(".")
        reason = f" ({reason})" if reason else ""
        there = ", ".join(_platforms_there(wanted))
        raise InputError(
            f"JAX is told to use {wanted}, which is not there{reason}; this machine has {there}: set "
            "JAX_PLATFORMS to that, or leave it unset"
        ) from None


def _platforms_there(wanted: str) -> list[str]:
    """Platforms that JAX finds by itself, after it did not find those that were wanted."""
    try:
        jax.config.update("jax_platforms", None)
        return sorted({jax.local_devices()[0].platform, "cpu"})
    finally:
        jax.config.update("jax_platforms", wanted)
        clear_backends()  # or whoever asks again gets these, and no error


def _host(local: tuple[Any, ...]) -> Any:
    if local[0].platform == "cpu":
        return local[-1]
    try:
        return jax.local_devices(backend="cpu")[-1]
    except RuntimeError:
        raise InputError(
            f"float64 is to be on the host, and JAX sees only {local[0].platform}; "
            f"add the CPU: JAX_PLATFORMS={local[0].platform},cpu"
        ) from None


def set_float64(setting: str) -> None:
    """Choose where float64 lives for this process.

    Args:
        setting: "device", "host", or "auto" for what the platform can do.

    Raises:
        InputError: an unknown setting, or one that this machine cannot follow.

    Example:
        >>> set_float64("hots")
        Traceback (most recent call last):
        jaxdistill.errors.InputError: unknown JAXDISTILL_FLOAT64 'hots'; did you mean 'host'?
    """
    global _chosen
    before, _chosen = _chosen, setting
    try:
        placement()
    except InputError:
        _chosen = before
        raise


@contextmanager
def float64_on(setting: str) -> Iterator[Placement]:
    """Choose where float64 lives while the context lasts; arguments as for :func:`set_float64`."""
    global _chosen
    before = _chosen
    set_float64(setting)
    try:
        yield placement()
    finally:
        _chosen = before


@contextmanager
def moving_arrays() -> Iterator[None]:
    """Let arrays pass between host and devices on purpose, where :func:`jax.transfer_guard` stops accidents.

    As a decorator it marks the public functions that take arrays of NumPy and return such: passing them is
    what they are called for. Pure functions have no need of it.

    Example:
        >>> with jax.transfer_guard("disallow"), moving_arrays():
        ...     jax.numpy.asarray([1.0]).shape
        (1,)
    """
    with jax.transfer_guard("allow"):
        yield
