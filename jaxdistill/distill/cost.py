"""What a job will take, counted before it runs: passes over the data, operations, bytes, seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.gram import num_blocks
from jaxdistill.numerics.rates import EIGH
from jaxdistill.ridge.fit import LAMS, default_dtype, factor_bytes

# Rows of which the operations of a feature map are counted.
_ROWS = 64


@dataclass(frozen=True)
class Stage:
    """A part of a job.

    Args:
        name: What is done.
        operations: Floating point operations.
        kind: The rate that they run at, a field of :class:`~jaxdistill.numerics.rates.Rates`.
        passes: Passes over the training data.
    """

    name: str
    operations: float
    kind: str
    passes: float = 0.0


@dataclass(frozen=True)
class JobCost:
    """The parts of a job, and the memory it takes at its peak.

    Args:
        stages: In the order in which they run.
        memory: Bytes at the peak, with the data.
    """

    stages: tuple[Stage, ...]
    memory: int

    @property
    def passes(self) -> float:
        """Passes over the training data."""
        return sum(stage.passes for stage in self.stages)


def job_cost(
    features: AbstractFeatureMap,
    *,
    num_rows: int,
    num_targets: int,
    size: int,
    lam: Any,
    held: float = 0.0,
    num_test: int = 0,
    dtype: Any = np.float32,
) -> JobCost:
    """Count what training a model, distilling it in closed form and certifying the set take.

    Sets that are solved for take as long as their solver needs: it is not counted. Of one penalty an
    eigendecomposition is counted, though a Cholesky factor may take its place.

    Args:
        features: Feature map phi, d -> p.
        num_rows: n.
        num_targets: k.
        size: m.
        lam: Penalty, or "auto": then all candidates are scored.
        held: Share of the rows that is held out to choose it; 0 for leave-one-out.
        num_test: Examples that the set is judged by.
        dtype: Type of the inputs.

    Example:
        >>> from jaxdistill.features import Linear
        >>> cost = job_cost(Linear(3072), num_rows=47500, num_targets=10, size=10, lam=1.0)
        >>> [(stage.name, f"{stage.operations:.1e}") for stage in cost.stages[1:3]]
        [('Gram matrix', '5.6e+11'), ('eigendecomposition', '2.6e+11')]
        >>> cost.passes
        1.0
    """
    n, d, p, k, m = num_rows, features.num_inputs, features.num_features, num_targets, size
    auto = isinstance(lam, str)
    kept = round(n * (1 - held)) if auto else n
    kind = default_dtype(kept, p, lam, dtype).name
    each, side = _operations(features), min(kept, p)
    blocks = num_blocks(p)
    product = p * p * (blocks + 1) / blocks + 2 * p * k  # a row
    stages = [
        Stage("features", kept * each, kind, kept / n),
        Stage("Gram matrix", kept * product, kind),
        Stage("eigendecomposition", EIGH * side**3, "eigh"),
    ]
    if kept < p:  # the Gram matrix of the examples is the smaller one
        stages.insert(
            2, Stage("Gram matrix of examples", kept * (each + 4.0 * kept * p), "float64", kept / n)
        )
    if auto:
        scored = n - kept if held else n
        leverages = 0 if held else 2 * side * len(LAMS)
        row = each + 2 * p * side + leverages + 2 * side * k * len(LAMS)
        exact = not held and kept < p  # leverages near one
        stages.append(Stage("choice of lam", scored * row, "float64" if exact else kind, scored / n))
        if held:
            stages.append(Stage("the rest trained on", scored * (each + product), kind, held))
            stages.append(Stage("Cholesky factor", p**3 / 3, "float64"))
    stages.append(Stage("distilled set", 6.0 * m * m * (p + d) + 2 * m * p * k, "float64"))
    retrained = m * each + 4.0 * m * m * p + m**3 + 2 * p * p * k
    stages.append(Stage("certificate", retrained, "float64"))
    if num_test:
        stages.append(Stage("test examples", 3 * num_test * (each + 2 * p * k), "float32"))
    data = np.dtype(dtype).itemsize * n * d + 8 * n * k
    return JobCost(tuple(stages), data + factor_bytes(kept, p))


def _operations(features: AbstractFeatureMap) -> float:
    """Operations of the features of one example, as the compiler counts them."""
    rows = jax.ShapeDtypeStruct((_ROWS, features.num_inputs), jnp.float32)
    counted = jax.jit(features.__call__).lower(rows).cost_analysis()
    return float((counted or {}).get("flops", 0.0)) / _ROWS
