"""Moments in place of examples: what a fit can do without reading any row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.numerics.products import Products
from jaxdistill.ridge.moments import Moments
from jaxdistill.ridge.source import AbstractSource
from jaxdistill.ridge.targets import TargetKind


@final
@dataclass(frozen=True, eq=False)
class MomentsSource(AbstractSource):
    """Moments that were collected before, with what else a fit asks of its examples.

    Args:
        moments: Of features and targets.
        num_inputs: d.
        kind: What the targets were.
        products: Precision in which the products were formed.
        data_dtype: The coarsest type that held the inputs.
        chunk_size: Rows in a chunk of other examples that stand beside these.

    Example:
        >>> import jaxdistill as jd
        >>> from jaxdistill.numerics.products import products_of
        >>> from jaxdistill.ridge.moments import accumulate_moments
        >>> from jaxdistill.ridge.source import ArraySource
        >>> phi, x = jd.features.Linear(3), np.diag([1.0, 2.0, 3.0])
        >>> rows = ArraySource.of(x, x, num_inputs=3, breadth=3)
        >>> float64, products = np.dtype("float64"), products_of("float64")
        >>> moments = accumulate_moments(phi, rows, dtype=products)
        >>> source = MomentsSource(moments, 3, rows.target_kind, products, float64, 256)
        >>> np.round(jd.fit_ridge(phi, source, lam=0.0).weights, 9).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    never_split: ClassVar[str] = "of moments no rows can be held out; give examples held out as (x, y)"

    moments: Moments
    num_inputs: int
    kind: TargetKind
    products: Products
    data_dtype: np.dtype
    chunk_size: int

    @property
    def dtype(self) -> np.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Type of the features, and of other examples that stand beside these."""
        return self.products.dtype

    @property
    def num_rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number n of examples that they are of."""
        return int(self.moments.count)

    @property
    def num_targets(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number k of targets."""
        return self.moments.cross.shape[1]

    @property
    def target_kind(self) -> TargetKind:
        """What the targets were."""
        return self.kind

    def chunks(self, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Refused: there are no rows.

        Raises:
            InputError: always.
        """
        del start
        raise InputError(
            "moments alone are here, and the examples themselves are needed: to choose lam by leave-one-out, "
            "for fewer examples than features, or for columns of very different size; give lam, validation "
            "data or validation='generalised', or fit from the examples"
        )
