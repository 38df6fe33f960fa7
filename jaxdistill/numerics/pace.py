"""When a host looks at what a device does: often enough for a bar, and never before it has more to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Seconds between two looks: a bar moves, and a time limit is kept, while the visit itself costs nothing.
_BETWEEN = 0.2


class Pace:
    """Steps to take before the next look: what takes a fifth of a second, but twice the last at most.

    The first, which is compiled, tells little, and what it tells is forgotten in a few looks.

    Example:
        >>> pace = Pace()
        >>> pace.took(pace.steps, seconds=5.0), pace.took(pace.steps, seconds=0.01)
        (1, 2)
        >>> pace.took(pace.steps, seconds=0.02)
        4
    """

    def __init__(self) -> None:
        self.steps = 1

    def took(self, steps: int, seconds: float) -> int:
        """The number of steps before the next look, after some that took so long."""
        fitting = int(_BETWEEN * steps / max(seconds, 1e-9))
        self.steps = max(1, min(2 * self.steps, fitting))
        return self.steps


def late(results: Iterable[T], by: int = 1) -> Iterator[T]:
    """The same results, each once so many more are under way: a device works while the host reads.

    Args:
        results: What a device is still at work on when it is yielded.
        by: How many more.

    Example:
        >>> made = []
        >>> results = (made.append(i) or i for i in range(3))
        >>> [(i, len(made)) for i in late(results)]
        [(0, 2), (1, 3), (2, 3)]
    """
    waiting: deque[T] = deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > by:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
