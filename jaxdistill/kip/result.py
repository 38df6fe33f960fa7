"""What a run returns: arrays, its history, and sets like those of the closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxdistill.errors import InputError
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.kernel_set import KernelSet


@dataclass(frozen=True)
class History:
    """How a run went; s runs at once, e evaluations.

    Args:
        loss: Training loss before each step, shape (steps, s).
        evaluated_at: Steps done at each evaluation, shape (e,).
        accuracy: Validation accuracy, shape (e, s); NaN without validation data or classes.
        validation_loss: Half the mean squared validation error, shape (e, s); NaN without such data.
        seconds: Seconds of training at each evaluation, compilation left out, shape (e,).
        compile_seconds: Seconds of compilation, in this process.
        total_seconds: Seconds of training in all, over all processes that had a part in it.
    """

    loss: Float[np.ndarray, "steps s"]
    evaluated_at: Int[np.ndarray, " e"]
    accuracy: Float[np.ndarray, "e s"]
    validation_loss: Float[np.ndarray, "e s"]
    seconds: Float[np.ndarray, " e"]
    compile_seconds: float
    total_seconds: float


@dataclass(frozen=True, eq=False)
class KipResult:
    """Trained sets, one a seed.

    Args:
        x: Inputs, shape (s, m, d), in the precision of the run.
        y: Labels, shape (s, m, k), float64: with ``lam`` they train to the predictor of the run.
        lam: Penalties ``lam_s = reg tr(K_ss) / m``, shape (s,).
        steps: Number of steps done.
        history: How it went.
        sets: One :class:`~jaxdistill.DistilledSet`, or :class:`~jaxdistill.KernelSet`, a seed, where a
            trained model was given.
    """

    x: Float[np.ndarray, "s m d"]
    y: Float[np.ndarray, "s m k"]
    lam: Float[np.ndarray, " s"]
    steps: int
    history: History
    sets: tuple[DistilledSet | KernelSet, ...] = ()

    @property
    def small(self) -> Any:
        """The set of the first seed.

        Raises:
            InputError: the run had no ridge model to compare with.
        """
        if not self.sets:
            raise InputError("a distilled set carries its full model; train with model=fit_ridge(...)")
        return self.sets[0]

    def to_dict(self) -> dict[str, Any]:
        """Losses and times in types that JSON keeps."""
        history = self.history
        return {
            "steps": self.steps,
            "first_loss": history.loss[0].tolist(),
            "last_loss": history.loss[self.steps - 1].tolist(),
            "compile_seconds": history.compile_seconds,
            "train_seconds": history.total_seconds,
        }
