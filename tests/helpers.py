"""What several tests share: errors, tolerances that follow from rounding, cores compiled in float64."""

from fractions import Fraction
from functools import partial

import jax
import numpy as np

from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.source import ArraySource

EPS = {np.float32: float(np.finfo(np.float32).eps), np.float64: float(np.finfo(np.float64).eps)}


def relative(found, expected):
    """Frobenius norm of the difference, relative to what was expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def condition(matrix):
    """Ratio of the extreme singular values."""
    s = np.linalg.svd(matrix, compute_uv=False)
    return float(s[0] / s[-1])


def rounding(*matrices, dtype=np.float64, factor=8):
    """Relative error of a backward stable computation: eps, the largest side, the product of conditions."""
    side = max(max(m.shape) for m in matrices)
    return factor * side * EPS[dtype] * float(np.prod([condition(m) for m in matrices]))


def compiled(function, static=()):
    """The pure function compiled once a shape, from NumPy to NumPy in float64."""
    return partial(in_float64, jax.jit(function, static_argnums=static))


def of_condition(rng, rows, columns, number):
    """Random matrix whose singular values run geometrically from 1 to 1/number."""
    rank = min(rows, columns)
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in (rows, columns))
    return left * np.geomspace(1, 1 / number, rank) @ right.T


def source_of(x, y, chunk=256, rows=None):
    """Arrays as a source, in chunks of a size that a test chooses."""
    return ArraySource(x, y, chunk, rows)


def exact_numbers(matrix):
    """The numbers of a matrix as fractions, which they are."""
    return [[v if isinstance(v, Fraction) else Fraction(float(v)) for v in row] for row in matrix]


def rational(x, y, lam):
    """``(X^T X + lam I)^-1 X^T Y`` in rational numbers: no rounding before the last step."""
    n, p = len(x), len(x[0])
    rows, targets = exact_numbers(x), exact_numbers(y)
    small = range(min(n, p))
    columns = list(zip(*rows, strict=True))
    sides = rows if n < p else columns

    def dot(a, b):
        return sum(s * t for s, t in zip(a, b, strict=True))

    right = targets if n < p else [[dot(c, t) for t in zip(*targets, strict=True)] for c in columns]
    system = [
        [dot(sides[i], sides[j]) + (Fraction(lam) if i == j else 0) for j in small] + right[i] for i in small
    ]
    for i in small:
        pivot = max(range(i, len(system)), key=lambda row, i=i: abs(system[row][i]))
        system[i], system[pivot] = system[pivot], system[i]
        system[i] = [v / system[i][i] for v in system[i]]
        for row in small:
            if row != i:
                factor = system[row][i]
                system[row] = [a - factor * b for a, b in zip(system[row], system[i], strict=True)]
    found = [row[len(small) :] for row in system]
    if n < p:
        found = [[dot(c, t) for t in zip(*found, strict=True)] for c in columns]
    return np.array([[float(v) for v in row] for row in found])
