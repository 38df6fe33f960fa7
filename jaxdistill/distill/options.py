"""Settings of the constructions that find inputs step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from jaxdistill.errors import InputError
from jaxdistill.numerics.names import check_choice

START_NAMES = ("real", "noise", "closed", "preimages")
Start = Literal["real", "noise", "closed", "preimages"]


@final
@dataclass(frozen=True, eq=False)
class SolverOptions:
    """How the spanning equations are solved, or a set below their count is found.

    Args:
        start: "real", examples of ``reference``; "noise", standard normal inputs; "closed", the
            closed-form set of a map that has one; "preimages", approximate pre-images of a closed-form
            set of features, found from real examples or noise; or inputs, shape (m, d) or (s, m, d); of
            near copies, which take no other option, the images that are to have them.
            Default: real examples where there are any, noise otherwise; with as many examples as the rank
            of the weights, pre-images of small features first, for maps with at most d features.
        starts: Number s of starts that run side by side until the first is exact.
        pull: Rounds in which an exact set is drawn back towards its start.
        mobility: How easily coefficients move in place of inputs: less keeps inputs nearer and takes longer.
        steps: Steps at most, of the whole ladder; default 300 for the spanning equations, 500 for the
            projection.
        seconds: Time after which to stop with the best so far; default no limit.

    Raises:
        InputError: an unknown start, with the nearest known one, or a number of starts below one.

    Example:
        >>> SolverOptions(starts=4, pull=2).starts
        4
    """

    start: Start | Any | None = None
    starts: int = 1
    pull: int = 0
    mobility: float = 1.0
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.start, str):
            check_choice("start", self.start, START_NAMES)
        if isinstance(self.starts, bool) or not isinstance(self.starts, int) or self.starts < 1:
            raise InputError(f"starts is {self.starts!r}; it must be a whole number >= 1")
