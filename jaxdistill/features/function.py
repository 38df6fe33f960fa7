"""Any JAX function of parameters and a batch, as a feature map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, final

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import ArtifactError, InputError
from jaxdistill.features.program import (
    AbstractProgramMap,
    Parameters,
    Program,
    checked_program,
    of_kind,
    with_probe,
)
from jaxdistill.numerics.pytrees import register_pytree


@final
@dataclass(frozen=True, eq=False, init=False)
class Function(AbstractProgramMap):
    r"""Features of a function, ``phi(x) = apply(parameters, x)``: of equinox, haiku, or written by hand.

    Inputs arrive flat, shape (d,), and are reshaped to what the function takes. It must map a batch, shape
    (n, \*input_shape), to rows (n, p), each from its own input alone. It runs in the precision of its
    inputs, or in float32 where it is made so: then sets are exact to float32's rounding, and certificates
    say so.

    A file keeps the parameters and never the code: to load a set, make the map again and pass it to
    ``jaxdistill.load_set(file, features=...)``, which checks that it is the same function.

    Args:
        apply: Function of parameters and a batch.
        parameters: A pytree of arrays. Of an equinox model, ``equinox.partition(model, equinox.is_array)``
            gives it, and what ``apply`` closes over.
        input_shape: Shape of one input as the function takes it, such as (28, 28, 1).
        flatten: Whether an output with more than one axis an input is made a row.

    Raises:
        InputError: parameters that are no arrays; an output that is not (n, p), or in half precision; a
            function that cannot be called, or whose rows depend on one another.

    Example:
        >>> import jax.numpy as jnp
        >>> def layer(weights, x):
        ...     return jnp.tanh(x @ weights)
        >>> phi = Function(layer, jnp.ones((4, 3)), (4,))
        >>> phi.num_features, phi(jnp.ones((5, 4))).shape
        (3, (5, 3))
    """

    parameters: Parameters
    program: Program = field(metadata={"static": True})
    kind = "function"
    code = ("features",)

    def __init__(
        self,
        apply: Callable[[Any, Array], Any],
        parameters: Any,
        input_shape: Sequence[int],
        *,
        flatten: bool = False,
    ) -> None:
        if not callable(apply):
            raise InputError(f"apply is a {type(apply).__name__}; pass a function of parameters and a batch")
        named, call = _named(apply, parameters)
        with _explained(tuple(input_shape)):
            program = checked_program(
                call,
                named,
                tuple(named),
                input_shape,
                flatten=flatten,
                origin={"function": _title(apply)},
                stored=True,
            )
            made = with_probe(self._made(named, program))
        object.__setattr__(self, "parameters", named)
        object.__setattr__(self, "program", made.program)

    @classmethod
    def _made(cls, parameters: Parameters, program: Program) -> Self:
        made = object.__new__(cls)
        object.__setattr__(made, "parameters", parameters)
        object.__setattr__(made, "program", program)
        return made

    @classmethod
    def from_parts(
        cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], *, features: Any | None = None
    ) -> Self:
        """Rebuild the map from a file, given the map itself.

        Raises:
            ArtifactError: it is missing, or another function.
        """
        if features is None:
            raise ArtifactError(
                f"the features are those of the function {settings['function']}, whose code is in no file; "
                "make the map again and pass it: jaxdistill.load_set(file, features=...)"
            )
        return of_kind(cls, features).recorded(settings, arrays)


def _named(
    apply: Callable[[Any, Array], Any], parameters: Any
) -> tuple[Parameters, Callable[[Parameters, Array], Any]]:
    """Parameters by name, as copies that nobody can change, and the function of these."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(parameters)
    named: Parameters = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "parameters"
        array = None if callable(leaf) or isinstance(leaf, str) else np.array(leaf)
        if array is None or array.dtype.kind not in "biufV":
            raise InputError(
                f"parameters hold a {type(leaf).__name__} at {name}; pass arrays alone, and let apply close "
                "over the rest (of equinox: parameters, rest = equinox.partition(model, equinox.is_array))"
            )
        short = array.dtype.kind == "V" or (array.dtype.kind == "f" and array.dtype.itemsize < 4)
        named[name] = array.astype(np.float32) if short else array
    names = tuple(named)

    def call(flat: Parameters, x: Array) -> Any:
        return apply(jax.tree.unflatten(structure, [flat[name] for name in names]), x)

    return named, call


def _title(apply: Any) -> str:
    """Where a function's code is, for a person who has to find it."""
    place = apply if hasattr(apply, "__qualname__") else type(apply)
    return f"{place.__module__}.{place.__qualname__}"


@contextmanager
def _explained(shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what a function raises when it is tried into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever code that is not ours may raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InputError(
            f"the function cannot be called on a batch of inputs of shape {shape} ({first}); it takes "
            "(parameters, batch) and gives (n, p)"
        ) from None


register_pytree(Function, make=Function._made)
