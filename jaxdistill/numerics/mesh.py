"""Meshes of devices: what the axes mean, and what a user's mesh must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxdistill.errors import InputError

# Rows of data are split over the first axis, and where there is a second, columns of features over it.
DATA, FEATURES = "data", "features"

# Arrays of which every device has some rows, some columns, or a copy, whatever the axes of the mesh.
EACH, COLUMNS, SAME = PartitionSpec((DATA, FEATURES)), PartitionSpec(None, (DATA, FEATURES)), PartitionSpec()


def make_mesh(data: int | None = None, features: int = 1) -> Mesh:
    """A mesh of the devices of all processes.

    Args:
        data: Parts that rows of data are split into; default as many as there are devices for.
        features: Parts that columns of features, and rows of their Gram matrix, are split into: for so many
            features that one device has no room for p x p numbers. Devices of one part share a process.

    Raises:
        InputError: more devices than there are; names both numbers.

    Example:
        >>> dict(make_mesh(1).shape)
        {'data': 1, 'features': 1}
        >>> make_mesh(10**6)
        Traceback (most recent call last):
        jaxdistill.errors.InputError: a mesh of 1000000 x 1 takes 1000000 devices, and there ...
    """
    devices = jax.devices()
    data = max(1, len(devices) // max(1, features)) if data is None else data
    wanted = data * features
    if min(data, features) < 1:
        raise InputError(f"a mesh of {data} x {features} has no device; give numbers from 1 on")
    if wanted > len(devices):
        platform = devices[0].platform
        more = (
            f", or make more of the CPU with XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
            if platform == "cpu"
            else ""
        )
        raise InputError(
            f"a mesh of {data} x {features} takes {wanted} devices, and there are {len(devices)} ({platform}"
            f"); ask for fewer{more}"
        )
    return Mesh(np.asarray(devices[:wanted]).reshape(data, features), (DATA, FEATURES))


def mesh_of(devices: tuple[Any, ...], feature_parts: int = 1) -> Mesh:
    """Devices that share the rows of data, and with several feature parts the columns of features."""
    return Mesh(np.asarray(devices).reshape(-1, feature_parts), (DATA, FEATURES))


def checked_mesh(mesh: Any) -> Mesh:
    """The mesh a user passed, with both axes.

    Raises:
        InputError: no mesh, other axes, no device of this process, or features split over processes.

    Example:
        >>> checked_mesh(jax.sharding.Mesh(np.asarray(jax.local_devices()[:1]), ("rows",)))
        Traceback (most recent call last):
        jaxdistill.errors.InputError: the mesh has axes ('rows',); name them 'data' and, for columns ...
    """
    if not isinstance(mesh, Mesh):
        raise InputError(f"mesh is a {type(mesh).__name__}; pass a jax.sharding.Mesh, as of make_mesh()")
    names = mesh.axis_names
    if not set(names) <= {DATA, FEATURES} or math.prod(mesh.shape.values()) == 0:
        raise InputError(
            f"the mesh has axes {names}; name them '{DATA}' and, for columns of features, '{FEATURES}'"
        )
    devices = mesh.devices.T if names == (FEATURES, DATA) else mesh.devices
    rows = 1 if DATA not in names else mesh.shape[DATA]
    whole = Mesh(devices.reshape(rows, -1), (DATA, FEATURES))
    here = jax.process_index()
    owners = np.vectorize(lambda device: device.process_index, otypes=[int])(whole.devices)
    if not (owners == here).any():
        raise InputError(
            f"the mesh holds no device of process {here}; give one to every process that takes part"
        )
    if (owners != owners[:, :1]).any():
        raise InputError(
            f"the mesh splits features over several processes; put the devices of each row of the "
            f"'{DATA}' axis into one process"
        )
    return whole


def on_each(mesh: Mesh | None, work: Callable[..., Any], given: Any, made: Any) -> Callable[..., Any]:
    """A pure function that all devices run on their own parts of arrays, inside one compiled program.

    Each runs what one device alone would, so that what loops over blocks of its inputs is split too: left to
    itself, the compiler gives every device the whole of such a loop.

    Args:
        mesh: The devices; None for one, which has all.
        work: Function of the parts that one device has, whose first axes are as long on all of them.
        given: :data:`EACH` or :data:`SAME` for every argument.
        made: The same for the result.

    Example:
        >>> mesh = mesh_of(tuple(jax.local_devices()))
        >>> jax.jit(on_each(mesh, lambda a: a + 1, (EACH,), EACH))(np.arange(mesh.size))[0].item()
        1
    """
    if mesh is None:
        return work
    # Unchecked: loops that were not written for a mesh do not say over which axes their values differ.
    return jax.shard_map(work, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)


def local_part(mesh: Mesh) -> tuple[tuple[Any, ...], int]:
    """Those devices of a checked mesh that belong to this process, and the parts of its features."""
    here = jax.process_index()
    return tuple(d for d in mesh.devices.flat if d.process_index == here), mesh.shape[FEATURES]


def one_per_process(mesh: Mesh) -> Mesh:
    """One device of every process of a checked mesh, in the order of the processes."""
    first = {}
    for device in mesh.devices[:, 0]:
        first.setdefault(device.process_index, device)
    return Mesh(np.asarray([first[i] for i in sorted(first)]), ("process",))
