"""Where float64 lives: on the accelerator where it has float64, on the host's CPU where not. Decided here.

Features, products, kernel tiles and training run on the devices in the precision of the data.
Factorisations, pseudo-inverses, residuals and certificates need float64. CPUs and the GPUs of CUDA and ROCm
have it; the compiler for TPUs refuses it in factorisations, and consumer GPUs have 1/64 of its rate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.backend import clear_backends
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.numerics.memory import device_bytes, format_bytes
from jaxdistill.numerics.mesh import DATA, EACH, SAME, checked_mesh, local_part, mesh_of
from jaxdistill.numerics.names import check_choice

VARIABLE = "JAXDISTILL_FLOAT64"
SETTINGS = ("auto", "device", "host")
# Platforms whose compilers take float64 in factorisations.
_NATIVE = ("cpu", "gpu", "cuda", "rocm")

_chosen: str | None = None
_mesh: Mesh | None = None


@dataclass(frozen=True)
class Placement:
    """Where what runs.

    Args:
        devices: Local devices for features, products, tiles and training.
        algebra: Device for everything in float64.
        native: Whether the devices may hold float64 themselves.
        feature_parts: Devices in a row that share the columns of features.

    Example:
        >>> where = placement()
        >>> where.native == (where.algebra in where.devices)
        True
    """

    devices: tuple[Any, ...]
    algebra: Any
    native: bool
    feature_parts: int = 1

    @property
    def mesh(self) -> Mesh:
        """The devices, and what each of them takes."""
        return mesh_of(self.devices, self.feature_parts)

    @property
    def home(self) -> Any:
        """Where to put what float64 algebra reads; None where JAX puts it there by itself."""
        return _unless_default(self.algebra)

    @property
    def title(self) -> str:
        """How it is said to a person."""
        if self.native:
            return f"on the device ({self.algebra.platform})"
        return f"on the host ({self.algebra}), the devices ({self.devices[0].platform}) hold float32 alone"

    def to_dict(self) -> dict[str, Any]:
        """What a file keeps of it, in types that JSON keeps."""
        kinds = sorted({device.device_kind for device in self.devices})
        return {"devices": kinds, "float64": self.algebra.device_kind, "native": self.native}


def placement() -> Placement:
    """Where what runs, as the user or else the platform has it.

    The setting is what :func:`set_float64` chose, or the environment variable ``JAXDISTILL_FLOAT64``, or
    "auto": the device where it has float64, the host's CPU where not. With several devices of the CPU and
    the setting "host", the last of them is the host and the others stand for accelerators. The devices are
    those of the mesh that :func:`over` chose, or all of this process.

    Raises:
        InputError: an unknown setting, or one that this machine cannot follow.
    """
    setting = _chosen or os.environ.get(VARIABLE) or "auto"
    check_choice(VARIABLE, setting, SETTINGS)
    local = local_devices()
    native = local[0].platform in _NATIVE
    if setting == "device" and not native:
        raise InputError(
            f"float64 has no place on {local[0].platform}, whose compiler refuses it; this machine can "
            f"follow {VARIABLE}=auto or host"
        )
    own, parts = (local, 1) if _mesh is None else local_part(_mesh)
    if setting == "device" or (setting == "auto" and native):
        return Placement(own, own[0], True, parts)
    host = _host(local)
    if _mesh is None:
        own = tuple(d for d in local if d != host) or local
    elif len(own) > 1 and host in own:
        raise InputError(
            f"the mesh takes all devices, and {VARIABLE}=host keeps the last of the CPU for float64; leave "
            f"{host} out of the mesh"
        )
    return Placement(own, host, own == (host,), parts)


def _unless_default(device: Any) -> Any:
    """The device, or None if it is the one that JAX takes by itself."""
    return None if device == local_devices()[0] else device


def chosen_mesh() -> Mesh | None:
    """The mesh of devices that the user chose, those of other processes too; None for what is here."""
    return _mesh


@contextmanager
def over(mesh: Mesh | None) -> Iterator[None]:
    """Let the devices of a mesh share the work while the context lasts.

    Rows of data are split over its axis "data", columns of features over its axis "features", and the
    compiler does the rest. Of a mesh that spans several processes, each works on its own rows with its own
    devices, and sums are added over the processes at the end of a pass.

    Args:
        mesh: As of :func:`~jaxdistill.numerics.mesh.make_mesh`; None changes nothing.

    Raises:
        InputError: a mesh with other axes, or one that splits features over processes.

    Example:
        >>> from jaxdistill.numerics.mesh import make_mesh
        >>> with over(make_mesh(1)):
        ...     len(placement().devices)
        1
    """
    global _mesh
    before = _mesh
    if mesh is not None:
        _mesh = checked_mesh(mesh)
    try:
        yield
    finally:
        _mesh = before


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
        here = local[0].platform
        others = f", or choose {VARIABLE}=auto or device" if here in _NATIVE else ""
        raise InputError(
            f"float64 is to be on the host, and JAX sees only {here}; add the CPU: "
            f"JAX_PLATFORMS={here},cpu{others}"
        ) from None


def on_accelerator() -> bool:
    """Whether work runs far from the host: a compiled loop is as fast as its steps, and copies take time."""
    return placement().devices[0].platform != "cpu"


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


class Side(NamedTuple):
    """Where a piece of work runs.

    Args:
        mesh: Devices that share it, and what each of them takes.
        wide: Whether they may hold float64: for sums, where the work is in float32.
        home: The first of them, where arrays have to be put there; None where they are there by default.
    """

    mesh: Mesh
    wide: bool
    home: Any

    @property
    def devices(self) -> tuple[Any, ...]:
        """The devices of the mesh."""
        return tuple(self.mesh.devices.flat)

    @property
    def far(self) -> bool:
        """Whether the devices are accelerators, which rows have to cross to."""
        return self.devices[0].platform != "cpu"

    @property
    def ahead(self) -> int:
        """Chunks to send before they are used: to an accelerator many go side by side at the full rate."""
        return 6 if self.far else 0

    def whole_rows(self, size: int) -> int:
        """A number of rows, or as many more as it takes for every device to have equally many."""
        parts = self.mesh.shape[DATA]
        return -(-size // parts) * parts

    def everywhere(self, tree: Any) -> Any:
        """Copies of arrays on all of the devices."""
        return self._placed(tree, SAME)

    def each(self, tree: Any) -> Any:
        """Arrays of whose rows every device has a part, whatever the axes of the mesh."""
        return self._placed(tree, EACH)

    def _placed(self, tree: Any, spec: PartitionSpec) -> Any:
        alone = len(self.devices) == 1
        return jax.device_put(tree, self.home if alone else NamedSharding(self.mesh, spec))

    def by_row(self, tree: Any) -> Any:
        """Arrays whose rows are split over the devices; a single one of the CPU takes them as they are."""
        if len(self.devices) == 1:
            return jax.device_put(tree, self.devices[0]) if self.far else tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(DATA)))


@contextmanager
def float64_scope() -> Iterator[Placement]:
    """The scope of algebra: float64 exists in it, and what is made in it lies where float64 lives.

    Raises:
        MemoryBudgetError: in place of XLA's own error, if the device has no room.

    Example:
        >>> with float64_scope():
        ...     jax.numpy.ones(2).dtype
        dtype('float64')
    """
    where = placement()
    there = nullcontext() if where.home is None else jax.default_device(where.home)
    with jax.enable_x64(True), there, _room_told(where.algebra):
        yield where


@contextmanager
def device_scope(dtype: Any, *, wide_sums: bool = False) -> Iterator[Side]:
    """The scope of work that grows with the data: on the devices, in the precision of the data.

    What is asked for in float64 runs where float64 lives. Work in float32 never sees float64, but for sums
    where the devices have it.

    Args:
        dtype: Precision of the work.
        wide_sums: Whether float32 work adds up in float64 where it may (``side.wide``).

    Yields:
        The devices, and whether they may hold float64.

    Raises:
        MemoryBudgetError: in place of XLA's own error, if a device has no room.

    Example:
        >>> with device_scope("float32") as side:
        ...     jax.numpy.ones(2).dtype, len(side.devices) > 0
        (dtype('float32'), True)
    """
    if np.dtype(dtype) == np.float64:
        with float64_scope() as where:
            yield Side(where.mesh if where.native else mesh_of((where.algebra,)), True, where.home)
        return
    where = placement()
    wide = wide_sums and where.native
    first = _unless_default(where.devices[0])
    # Within a scope of algebra on the host JAX would take everything there that is not held on a device.
    outside = where.native or jax.config.jax_default_device is None  # pyright: ignore[reportAttributeAccessIssue]
    there = nullcontext() if first is None and outside else jax.default_device(where.devices[0])
    with jax.enable_x64(wide), there, _room_told(where.devices[0]):
        yield Side(where.mesh, wide, first)


@contextmanager
def _room_told(device: Any) -> Iterator[None]:
    """Say in one line that a device is full, and what would fit."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        found = re.search(r"allocat\w* (?:(\d+) bytes|([\d.]+ ?[KMGT]iB))", text)
        size, said = found.groups() if found else (None, "what was asked for")
        wanted = format_bytes(int(size)) if size else said
        free = device_bytes(device)
        left = "" if free is None else f", and {format_bytes(free)} for this process unless others hold them"
        host = "" if device.platform == "cpu" else f", or keep float64 off the device with {VARIABLE}=host"
        raise MemoryBudgetError(
            f"{device} has no room for {wanted}{left}; use fewer features, fewer examples at once or a "
            f"smaller memory budget for tiles{host}"
        ) from None
