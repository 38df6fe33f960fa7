"""How much memory a task needs, asked before it is taken."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from typing import Any

import psutil

from jaxdistill.errors import InputError, MemoryBudgetError

LIMIT_VARIABLE = "JAXDISTILL_MEMORY_LIMIT"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def format_bytes(size: float) -> str:
    """Readable size in binary units.

    Example:
        >>> format_bytes(3 * 2**30)
        '3.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def available_bytes() -> int:
    """Memory that may still be used: what the machine has free, or less if the limit says so.

    ``JAXDISTILL_MEMORY_LIMIT`` (such as ``2G``) bounds the whole process on a shared machine.

    Raises:
        InputError: the variable cannot be read as a size.
    """
    free = psutil.virtual_memory().available
    limit = os.environ.get(LIMIT_VARIABLE)
    if not limit:
        return free
    text = limit.strip().upper().removesuffix("B").removesuffix("I")
    unit = text[-1:] if text[-1:] in _UNITS and not text[-1:].isdigit() else ""
    try:
        size = float(text.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        raise InputError(f"{LIMIT_VARIABLE}={limit!r} is not a size; write it like 2G") from None
    return max(0, min(free, int(size) - psutil.Process().memory_info().rss))


def device_capacity(device: Any) -> int | None:
    """Memory that JAX may use of a device; None where it is the host's, or the device does not tell."""
    return (device.memory_stats() or {}).get("bytes_limit")


def device_bytes(device: Any) -> int | None:
    """Memory that a device of JAX still has; None where it is the host's, or the device does not tell."""
    capacity = device_capacity(device)
    if capacity is None:
        return None
    return max(0, int(capacity) - int((device.memory_stats() or {}).get("bytes_in_use", 0)))


def return_freed_memory() -> None:
    """Hand back to the system what was freed, before a task that needs as much in other pieces.

    JAX lets go of arrays that it borrowed from NumPy when Python collects garbage, and the C library of
    Linux keeps what is freed in blocks of megabytes: after a pass over data some 300 MB. Other C libraries
    keep less.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def require_memory(size: int, task: str, cure: str) -> None:
    """Raise before a task that cannot fit.

    Args:
        size: Bytes that the task will take at its peak.
        task: What is being done, as the start of the message.
        cure: What would need less.

    Raises:
        MemoryBudgetError: the task, the bytes it needs and the bytes that are free.
    """
    free = available_bytes()
    if size > free:
        raise MemoryBudgetError(
            f"{task} needs about {format_bytes(size)} ({size} bytes) and {format_bytes(free)} are "
            f"free; {cure}"
        )
