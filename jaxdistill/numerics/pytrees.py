"""Data classes as pytrees whose structure names their class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def register_pytree(cls: type[T], *, make: Callable[..., T] | None = None) -> type[T]:
    """Make a data class a pytree; fields with the metadata ``static`` are part of its structure.

    Fields with the metadata ``dropped`` say something of this very record: they are neither leaves nor
    structure, and what is put together from other leaves has their default.

    In place of :func:`jax.tree_util.register_dataclass`, under which (jaxlib 0.10) two classes of the same
    fields have equal structures: a jitted function that was compiled for the one may then run for the other,
    whenever the hashes of the two happen to share a slot.

    Args:
        cls: A data class.
        make: What puts one together from its fields by name; default the class itself.

    Returns:
        The class itself.

    Example:
        >>> from dataclasses import dataclass
        >>> @register_pytree
        ... @dataclass(frozen=True)
        ... class Circle:
        ...     radius: float
        >>> @register_pytree
        ... @dataclass(frozen=True)
        ... class Square:
        ...     side: float
        >>> jax.tree.structure(Circle(1.0)) == jax.tree.structure(Square(1.0))
        False
    """
    kept = [f for f in fields(cls) if not f.metadata.get("dropped", False)]  # pyright: ignore[reportArgumentType]
    leaves = tuple(f.name for f in kept if not f.metadata.get("static", False))
    settings = tuple(f.name for f in kept if f.metadata.get("static", False))

    def aux(record: T) -> tuple[Any, ...]:
        return tuple(getattr(record, name) for name in settings)

    def flatten(record: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(record, name) for name in leaves), aux(record)

    def flatten_with_keys(record: T) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        keyed = ((jax.tree_util.GetAttrKey(name), getattr(record, name)) for name in leaves)
        return tuple(keyed), aux(record)

    def unflatten(fixed: tuple[Any, ...], children: Any) -> T:
        named = dict(zip((*leaves, *settings), (*children, *fixed), strict=True))
        return (make or cls)(**named)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
