"""What the solver of the spanning equations says about a run."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import numpy as np

from jaxdistill.solve.spanning_step import SpanningMethod


class SpanningOutcome(enum.Enum):
    """How the solver ended; the value is what it says to a person."""

    REACHED = "the spanning equations are solved"
    STALLED = (
        "the residual no longer falls; ask for near copies, more examples, several starts or a wider box"
    )
    STEPS = "all steps are used; allow more steps"
    SECONDS = "the time is over; allow more seconds"


@final
@dataclass(frozen=True)
class SpanningReport:
    """What the solver did.

    Args:
        outcome: How it ended.
        residual: ``|Q - phi(Xs)^T M| / |Q|`` of the set that is returned: how far it is from exact.
        tolerance: Residual that counts as reached.
        size: m.
        count: m*, the number of examples at which there are as many unknowns as equations.
        method: How linear equations were solved.
        steps: Levenberg-Marquardt steps.
        iterations: Conjugate gradient iterations of the start that is returned.
        starts: Starts that were run side by side.
        chosen: The start that is returned.
        rung: Rung of the ladder that the set was found on, from 1; where none is exact, the nearest.
        rungs: Rungs of the ladder.
        began: How that rung begins.
        distance: Root mean square change from the start that was asked for.
        seconds: Time taken, compilation included.
    """

    outcome: SpanningOutcome
    residual: float
    tolerance: float
    size: int
    count: int
    method: SpanningMethod
    steps: int
    iterations: int
    starts: int
    chosen: int
    rung: int
    rungs: int
    began: str
    distance: float
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether the equations are solved to the tolerance."""
        return self.outcome is SpanningOutcome.REACHED

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps; the time is left out, so that equal runs report equally."""
        fields = asdict(self) | {"outcome": self.outcome.name.lower(), "method": self.method.name.lower()}
        del fields["seconds"]
        return fields | {"reached": self.reached}


class SpanningSolution(NamedTuple):
    """A set, its coefficients, and the report.

    Args:
        x: Inputs, shape (m, d), float64.
        mix: M, shape (m, r), float64.
        report: What the solver did.
    """

    x: np.ndarray
    mix: np.ndarray
    report: SpanningReport
