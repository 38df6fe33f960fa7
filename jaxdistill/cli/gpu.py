"""What a command tells XLA about NVIDIA GPUs before it starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec

_FLAG = "xla_gpu_enable_triton_gemm"
# XLA ends a process that gives it a flag which it does not know: only versions are told that know it.
_BELOW = (0, 13)


@contextlib.contextmanager
def untuned_products() -> Iterator[None]:
    """Leave products to NVIDIA's library while a command runs: nothing is tuned, and nothing is slower.

    For every product XLA makes candidates of Triton's and times them, two seconds each. Products in the full
    precision of float32 run in the library all the same: on an H200 a first ``jaxdistill distill --dataset
    mnist`` took 26 s with candidates and 8.5 s without, at the same rate of products. Who has set the flag in
    ``XLA_FLAGS`` has chosen; the variable is what it was when the command ends.
    """
    before = os.environ.get("XLA_FLAGS")
    if _FLAG in (before or "") or not _nvidia() or not _known():
        yield
        return
    os.environ["XLA_FLAGS"] = f"{before or ''} --{_FLAG}=false".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


def _nvidia() -> bool:
    """Whether JAX has what it needs for NVIDIA's GPUs."""
    return any(find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))


def _known() -> bool:
    import jax

    return jax.__version_info__ < _BELOW
