"""Sums over the processes of one job, each of which has read its own share of the data."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.errors import InputError, ProcessError
from jaxdistill.numerics.mesh import one_per_process
from jaxdistill.numerics.placement import chosen_mesh

# Bytes that all processes exchange at once: as much memory as this takes beside the arrays.
_BYTES = 2**26


def shared_mesh() -> Mesh | None:
    """The user's mesh where it spans several processes, else None: then there is nothing to sum."""
    mesh = chosen_mesh()
    return mesh if mesh is not None and len(one_per_process(mesh).devices) > 1 else None


def refuse_shares(what: str) -> None:
    """Raise where the mesh spans several processes, for what none of them can do with its share alone.

    Raises:
        InputError: names it, and the mesh that serves.
    """
    if shared_mesh() is not None:
        raise InputError(
            f"{what} needs all examples in one process, and the mesh spans several; give it the devices of "
            "this one: mesh=jax.sharding.Mesh(jax.local_devices(), ('data',))"
        )


def gathered(array: Any) -> np.ndarray:
    """What every process of the job has in the place of an array, stacked in the order of the processes.

    Bits are exchanged, so that float64 arrives as it is whatever the devices hold. All processes must call it
    in the same order.

    Raises:
        ProcessError: a process is gone.

    Example:
        >>> gathered(np.array([0.1, 0.2])).tolist()  # of one process
        [[0.1, 0.2]]
    """
    own = np.asarray(array)
    mesh = shared_mesh()
    if mesh is None:
        return own[None]
    hosts = one_per_process(mesh)
    bits = np.ascontiguousarray(own).reshape(-1).view(np.uint8)
    split = NamedSharding(hosts, PartitionSpec("process"))
    try:
        shares = jax.make_array_from_process_local_data(split, bits[None])
        everywhere = np.asarray(_copied(shares, NamedSharding(hosts, PartitionSpec())))
    except (RuntimeError, ValueError) as error:  # which of them is the transport's choice
        reason = str(error).splitlines()[0][:200]
        raise ProcessError(
            f"another process of the job does not answer any more ({reason}); see what ended it, and start "
            "all of them again"
        ) from None
    return everywhere.view(own.dtype).reshape(len(everywhere), *own.shape)


def summed(array: Any) -> np.ndarray:
    """Sum over the processes, some rows at once: the same in all of them, bit for bit.

    Added in the order of the processes, on the host, in the precision of the array.

    Raises:
        ProcessError: a process is gone.

    Example:
        >>> summed(np.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    own = np.asarray(array)
    mesh = shared_mesh()
    if mesh is None:
        return own
    if own.ndim == 0:
        return gathered(own).sum(axis=0)
    total = np.empty_like(own)
    parts = len(one_per_process(mesh).devices)
    rows = max(1, _BYTES // max(1, parts * own[:1].nbytes))
    for i in range(0, len(own), rows):
        total[i : i + rows] = gathered(own[i : i + rows]).sum(axis=0)
    return total


@partial(jax.jit, static_argnums=1)
def _copied(shares: jax.Array, where: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(shares, where)
