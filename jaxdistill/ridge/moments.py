"""One pass over the data: the sums that everything later is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.gram import cut_strips, gram_strips, join_strips
from jaxdistill.numerics.linalg import HIGHEST, matmul, to_host
from jaxdistill.numerics.mesh import DATA, FEATURES
from jaxdistill.numerics.pace import late
from jaxdistill.numerics.placement import Side, device_scope
from jaxdistill.numerics.processes import gathered, summed
from jaxdistill.numerics.products import check_products, products_of
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.numerics.two_sum import TwoSum, add_all
from jaxdistill.ridge.crossing import Kept, crossing
from jaxdistill.ridge.source import AbstractSource
from jaxdistill.ridge.sums import column_sums, mean_of, target_gram, target_gram_on_host


@final
@register_pytree
@dataclass(frozen=True)
class Moments:
    """Sums over examples: G = Phi^T Phi, C = Phi^T Y, T = Y^T Y, n, and what an intercept needs.

    They add over chunks, devices and hosts, and are all that ridge regression, reduced rank, data-weighted
    labels and full-data KIP need to know of the data.

    All sums are about a point (s, t): of ``phi(x) - s`` and ``y - t``. It is zero unless asked for. Centred
    sums that come from sums about zero lose a factor of (mean / spread)^2 in precision; about a point within
    the data, next to none. Moments about different points merge exactly.

    Args:
        gram: G, shape (p, p).
        cross: C, shape (p, k).
        target_gram: T, shape (k, k).
        count: n, a scalar.
        feature_sum: Sum of the features, shape (p,).
        target_sum: Sum of the targets, shape (k,).
        feature_shift: s, shape (p,).
        target_shift: t, shape (k,).

    Example:
        >>> import jax.numpy as jnp
        >>> phi, y = jnp.arange(8.0).reshape(4, 2), jnp.ones((4, 1))
        >>> moments = Moments.zeros(2, 1).update(phi, y)
        >>> float(moments.merge(moments).count)
        8.0
        >>> moments.feature_mean.tolist(), moments.centred().gram.tolist()
        ([3.0, 4.0], [[20.0, 20.0], [20.0, 20.0]])
    """

    gram: Float[Array, "p p"] | Any
    cross: Float[Array, "p k"] | Any
    target_gram: Float[Array, "k k"] | Any
    count: Float[Array, ""] | Any
    feature_sum: Float[Array, " p"] | Any
    target_sum: Float[Array, " k"] | Any
    feature_shift: Float[Array, " p"] | Any
    target_shift: Float[Array, " k"] | Any

    @classmethod
    def zeros(cls, num_features: int, num_targets: int, dtype: Any = None) -> Self:
        """Moments of no examples about zero, in ``dtype`` (default: JAX's default float)."""
        return cls(*(jnp.zeros(shape, dtype) for shape in _shapes(num_features, num_targets)))

    @classmethod
    def without_sums(cls, gram: Any, cross: Any, target_gram: Any, count: Any) -> Self:
        """Moments about zero whose sums nobody measured, and are NaN: whoever asks for a mean sees it."""
        p, k = cross.shape
        unknown = np.full(p, np.nan), np.full(k, np.nan)
        return cls(gram, cross, target_gram, count, *unknown, np.zeros(p), np.zeros(k))

    @classmethod
    def from_features(
        cls,
        features: Float[Array, "n p"],
        targets: Float[Array, "n k"],
        weight: Float[Array, " n"] | None = None,
        dtype: Any = None,
        *,
        about: tuple[Float[Array, " p"], Float[Array, " k"]] | None = None,
    ) -> Moments:
        """Moments of one block: products in the precision of the features, sums in ``dtype``; pure.

        Args:
            features: Phi, shape (n, p).
            targets: Y, shape (n, k).
            weight: Weight of each example, shape (n,); zero leaves a padding row out.
            dtype: Type of the sums; default that of the features.
            about: The point (s, t), rounded to the precision of the features and of the sums; default zero.
        """
        sums: Any = _block_sums(features, targets, weight, dtype, about)
        return replace(sums, gram=join_strips(sums.gram))

    def update(self, features: Float[Array, "n p"], targets: Float[Array, "n k"]) -> Moments:
        """Add a block of examples."""
        about = self.feature_shift, self.target_shift
        return self.merge(Moments.from_features(features, targets, dtype=self.gram.dtype, about=about))

    def merge(self, other: Moments) -> Moments:
        """Add the moments of other examples, about the point of the part that has more."""
        larger = (self.count >= other.count).astype(self.gram.dtype)
        point = [
            larger * own + (1 - larger) * others
            for own, others in (
                (self.feature_shift, other.feature_shift),
                (self.target_shift, other.target_shift),
            )
        ]
        return self.about(*point).plus(other.about(*point))

    def plus(self, other: Moments) -> Moments:
        """Add the moments of other examples about the same point."""
        total = jax.tree.map(lambda a, b: a + b, self, other)
        return replace(total, feature_shift=self.feature_shift, target_shift=self.target_shift)

    def about(
        self, feature_shift: Float[Array, " p"] | Any, target_shift: Float[Array, " k"] | Any
    ) -> Moments:
        """The same moments about another point; operators alone, so that NumPy's float64 stays."""
        n, step, target_step = (
            self.count,
            self.feature_shift - feature_shift,
            self.target_shift - target_shift,
        )
        # Half of the step on either side: from the mean, these are the mean of the sums before and after.
        features = self.feature_sum + 0.5 * n * step
        targets = self.target_sum + 0.5 * n * target_step

        def outer(a: Array, b: Array) -> Array:
            return a[:, None] * b

        return Moments(
            self.gram + (outer(features, step) + outer(step, features)),
            self.cross + (outer(features, target_step) + outer(step, targets)),
            self.target_gram + (outer(targets, target_step) + outer(target_step, targets)),
            n,
            self.feature_sum + n * step,
            self.target_sum + n * target_step,
            feature_shift,
            target_shift,
        )

    @property
    def feature_mean(self) -> Float[Array, " p"] | Any:
        """Mean of the features, shape (p,)."""
        return self.feature_shift + self.feature_sum / self.count

    @property
    def target_mean(self) -> Float[Array, " k"] | Any:
        """Mean of the targets, shape (k,)."""
        return self.target_shift + self.target_sum / self.count

    def centred(self) -> Moments:
        """Moments about the means, ``G - n mu mu^T`` and so on: those of a model with an intercept.

        With the point q spreads away from the mean they lose q^2 eps; q^2 is less than the number of examples
        over that of those whose mean the point is.
        """
        return self.about(self.feature_mean, self.target_mean)


def _block_sums(
    features: Float[Array, "n p"],
    targets: Float[Array, "n k"],
    weight: Float[Array, " n"] | None,
    dtype: Any,
    about: tuple[Float[Array, " p"], Float[Array, " k"]] | None,
    blocks: int | None = None,
    precision: Any = HIGHEST,
) -> Moments:
    """Moments of one block, of :meth:`Moments.from_features`, with G as strips of its upper triangle."""
    dtype = features.dtype if dtype is None else dtype
    y = targets.astype(dtype)
    if about is None:
        s, t = jnp.zeros(features.shape[1], features.dtype), jnp.zeros(y.shape[1], dtype)
    else:
        s, t = about[0].astype(features.dtype), about[1].astype(dtype)
        features, y = features - s[None], y - t[None]
    ones = jnp.ones(features.shape[0], dtype) if weight is None else weight.astype(dtype)
    sums = column_sums(features, ones, dtype), jnp.sum(ones[:, None] * y, axis=0)
    if weight is not None:
        root = jnp.sqrt(weight)[:, None]
        features = features * root.astype(features.dtype)
        y = y * root.astype(dtype)
    return Moments(
        tuple(strip.astype(dtype) for strip in gram_strips(features, blocks, precision)),
        matmul(features.T, y.astype(features.dtype), precision).astype(dtype),
        target_gram(targets, t, ones),
        jnp.sum(ones),
        *sums,
        s.astype(dtype),
        t,
    )


def _shapes(num_features: int, num_targets: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the fields of moments, in their order."""
    p, k = (num_features,), (num_targets,)
    return (*((p + p), (p + k), (k + k), ()), p, k, p, k)


class _Split(NamedTuple):
    """Where what lies if one device has no room for G: each holds some of its rows.

    Args:
        features: Of a chunk, rows and columns.
        lines: What has a line for every feature.
        copies: All else.
    """

    features: NamedSharding
    lines: NamedSharding
    copies: NamedSharding

    @classmethod
    def over(cls, mesh: Mesh, num_features: int) -> Self | None:
        """As the mesh has it; None where features stay together."""
        parts = mesh.shape[FEATURES]
        if num_features % parts:
            raise InputError(
                f"{num_features} features cannot be split evenly over the {parts} devices of the mesh's "
                f"'{FEATURES}' axis; use a number of features that they divide"
            )
        specs = PartitionSpec(DATA, FEATURES), PartitionSpec(FEATURES), PartitionSpec()
        return cls(*(NamedSharding(mesh, spec) for spec in specs)) if parts > 1 else None

    def of(self, sums: Moments | _ShortSums) -> Any:
        """The place of each array of sums."""
        if isinstance(sums, _ShortSums):
            return _ShortSums(self.lines, self.lines, self.lines)
        lines = dict.fromkeys(("gram", "cross", "feature_sum"), self.lines)
        return replace(jax.tree.map(lambda _: self.copies, replace(sums, gram=0.0)), **lines)


@partial(jax.jit, static_argnums=(5, 6), donate_argnums=0)
def _add_chunk(
    moments: Moments,
    features: AbstractFeatureMap,
    x: Array,
    y: Array,
    mask: Array,
    split: _Split | None = None,
    precision: Any = HIGHEST,
) -> Moments:
    """Add a chunk to moments whose G is in strips; features may be split over devices."""
    point = moments.feature_shift, moments.target_shift
    rows = _rows_of(features, x, split)
    told = moments.cross.dtype, point, len(moments.gram), precision
    total = moments.plus(_block_sums(rows, y, mask, *told))
    return total if split is None else jax.lax.with_sharding_constraint(total, split.of(total))


def _rows_of(features: AbstractFeatureMap, x: Array, split: _Split | None) -> Array:
    rows = features(x)
    return rows if split is None else jax.lax.with_sharding_constraint(rows, split.features)


class _ShortSums(NamedTuple):
    """What a device without float64 adds up: G, C and the sum of the features, each in two numbers."""

    gram: TwoSum | Any
    cross: TwoSum | Any
    feature_sum: TwoSum | Any


@partial(jax.jit, static_argnums=(6, 7), donate_argnums=0)
def _add_chunk_in_two(
    sums: _ShortSums,
    features: AbstractFeatureMap,
    x: Array,
    y: Array,
    mask: Array,
    shift: Array,
    split: _Split | None = None,
    precision: Any = HIGHEST,
) -> _ShortSums:
    """Add a chunk, of whose targets the shift is subtracted already."""
    about = shift, jnp.zeros(y.shape[1], y.dtype)
    told = None, about, len(sums.gram), precision
    block = _block_sums(_rows_of(features, x, split), y, mask, *told)
    total = _ShortSums(*add_all(tuple(sums), (block.gram, block.cross, block.feature_sum)))
    return total if split is None else jax.lax.with_sharding_constraint(total, split.of(total))


_whole = jax.jit(join_strips)


@jax.jit
def _middle(features: AbstractFeatureMap, x: Array, mask: Array) -> Array:
    """Mean of the features of a chunk."""
    return mean_of(features(x), mask)


def _in_two(sums: Any) -> TwoSum:
    """Sums of float64 in two float32 numbers."""
    high = sums.astype(np.float32)
    return TwoSum(high, (sums - high).astype(np.float32))


class _Accumulator:
    """Moments of the chunks so far, in float64 on the devices, or in two float32 numbers and on the host."""

    def __init__(self, features: AbstractFeatureMap, num_targets: int, side: Side, precision: Any) -> None:
        self.side, self.precision, p = side, precision, features.num_features
        self.split = _Split.over(side.mesh, p)
        self.copies = NamedSharding(side.mesh, PartitionSpec())
        self.features = jax.device_put(features, self.copies)
        # From the host: JAX would compile a program for each array of zeros.
        self.zeros = Moments(*(np.zeros(s) for s in _shapes(p, num_targets)))
        self.sums: Any = None
        self.wide, self.own = side.wide, self.zeros

    def begin(self, x: Any, y: np.ndarray, mask: np.ndarray, shifted: bool) -> None:
        """Choose the point that sums are about, from the first chunk; that of the first process for all."""
        if shifted:
            s, t = _middle(self.features, *self.side.by_row((x, mask))), mean_of(y, mask)
            point = gathered(np.concatenate([np.asarray(a, np.float64) for a in (s, t)]))[0]
            s, t = np.split(point, [len(s)])
            self.own = replace(self.zeros, feature_shift=s, target_shift=t)
        self.go_on(self.own)

    def go_on(self, moments: Moments) -> None:
        """Begin from moments: those of nothing, or of the first chunks."""
        self.own, place = moments, self.copies
        strips = cut_strips(moments.gram, None if self.split is None else 1)
        if self.wide:
            sums = replace(moments, gram=strips)
        else:
            parts = (strips, moments.cross, moments.feature_sum)
            sums = _ShortSums(*(jax.tree.map(_in_two, part) for part in parts))
            self.shift = jax.device_put(self.own.feature_shift.astype(np.float32), place)
        self.sums = jax.device_put(sums, place if self.split is None else self.split.of(sums))

    def send(self, x: Any, y: np.ndarray, mask: np.ndarray, shifted: bool) -> tuple[Any, Any]:
        """A chunk on its way to the devices, and the sums that the host makes of it where they may not."""
        if self.sums is None:
            self.begin(x, y, mask, shifted)
        if self.wide:
            return self.side.by_row((x, y, mask)), None
        shift, targets, weight = self.own.target_shift, y.astype(np.float64), mask.astype(np.float64)
        about = (targets - shift) * weight[:, None]
        # Small, and exact beside the data: T and what else knows no features.
        sums = target_gram_on_host(targets, shift, weight), about.sum(axis=0), weight.sum()
        return self.side.by_row((x, about.astype(np.float32), mask)), sums

    def add(self, block: tuple[Any, ...], sums: tuple[Any, ...] | None) -> None:
        """Add a chunk that was sent."""
        if sums is not None:
            own = self.own
            parts = own.target_gram, own.target_sum, own.count
            added = [part + more for part, more in zip(parts, sums, strict=True)]
            self.own = replace(own, target_gram=added[0], target_sum=added[1], count=added[2])
        # Rows are read while the device works, but only one chunk ahead of it.
        jax.block_until_ready(self.sums)
        if self.wide:
            self.sums = _add_chunk(self.sums, self.features, *block, self.split, self.precision)
        else:
            self.sums = _add_chunk_in_two(
                self.sums, self.features, *block, self.shift, self.split, self.precision
            )

    def total(self) -> Moments:
        """The moments, read back once."""
        if self.sums is None:
            return self.zeros
        if self.wide:
            return to_host(replace(self.sums, gram=_joined(self.sums.gram)))
        parts = [TwoSum(*(_joined(tuple(half)) for half in zip(*self.sums.gram, strict=True)))]
        parts += self.sums.cross, self.sums.feature_sum
        gram, cross, feature_sum = (part.to_float64() for part in parts)
        return replace(self.own, gram=gram, cross=cross, feature_sum=feature_sum)


def _joined(strips: tuple[Array, ...]) -> Array:
    """The matrix of strips; of one strip nothing has to be compiled."""
    return strips[0] if len(strips) == 1 else _whole(strips)


def accumulate_moments(
    features: AbstractFeatureMap,
    source: AbstractSource,
    *,
    dtype: Any = np.float32,
    shifted: bool = False,
    begin: Moments | None = None,
    kept: Kept | None = None,
    each: Callable[[Callable[[], Moments]], None] | None = None,
    progress: bool = False,
) -> Moments:
    """Moments of a data set, streamed in chunks over all local devices; sums in float64.

    Devices without float64 add their products up in two float32 numbers, which hold nearly as many digits.

    Args:
        features: Feature map phi.
        source: Inputs and targets.
        dtype: Precision of the features and of the product Phi^T Phi: a type, or a name of
            :mod:`jaxdistill.numerics.products`.
        shifted: Whether to sum about the means of the first chunk, as an intercept needs it.
        begin: Moments of the first rows, whole chunks of them, where a pass that was killed goes on.
        kept: Inputs that stay on an accelerator for another pass; default none.
        each: Called after every chunk with what reads the moments so far back.
        progress: Whether to show a bar.

    Returns:
        Moments as float64 NumPy arrays.

    Raises:
        InputError: a precision that the devices do not have.
    """
    products = products_of(dtype)
    check_products(products)
    dtype = products.dtype
    start = 0 if begin is None else int(begin.count)
    with device_scope(dtype, wide_sums=True) as side:
        sums = _Accumulator(features, source.num_targets, side, products.precision)
        if begin is not None:
            sums.go_on(begin)
        bar = "moments" if progress else None
        chunks = crossing(source, side, dtype, start=start, kept=kept, progress=bar)
        sent = (sums.send(x, y, mask, shifted) for (x, y), mask in chunks)
        for block in late(sent, side.ahead):
            sums.add(*block)
            if each is not None:
                each(sums.total)
        total = sums.total()
    # The point is the same in all processes.
    shift = {"feature_shift": total.feature_shift, "target_shift": total.target_shift}
    return replace(jax.tree.map(summed, total), **shift)
