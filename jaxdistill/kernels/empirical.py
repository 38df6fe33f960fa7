"""The tangent kernel of a finite network: Jacobians of a flax module, contracted in chunks."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, NamedTuple, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.features.encoder import Encoder
from jaxdistill.features.program import probe_inputs
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.checks import check_number, check_rows
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.numerics.memory import available_bytes, format_bytes
from jaxdistill.numerics.pytrees import register_pytree

# Where products outweigh the making of Jacobians, for all but the largest networks.
_MOST_MEMORY = 2**29
# Inputs whose Jacobians are held, for a product to outweigh the making of those that pass by.
_HELD = 512
# Inputs that pass by at once: matrix products are near full speed.
_PASSING = 64


class Chunks(NamedTuple):
    """How many Jacobians are in memory: for so many outputs, of so many inputs held and passing by."""

    outputs: int
    held: int
    passing: int


def plan_chunks(held: int, passing: int, outputs: int, row_bytes: int, memory: float) -> Chunks:
    """Choose how many Jacobians are in memory at once.

    Args:
        held: Inputs on the side that is held.
        passing: Inputs on the other side, which are passed by it.
        outputs: Number K of outputs.
        row_bytes: Bytes of the derivative of one output at one input.
        memory: Bytes that Jacobians may take.

    Returns:
        All outputs together if then enough inputs fit; else fewer, and one pass for each group of outputs.

    Example:
        >>> plan_chunks(1000, 5000, 10, 4 * 200_000, memory=2**29)
        Chunks(outputs=1, held=500, passing=64)
    """
    rows = max(2, int(memory // row_bytes))
    wanted = min(held, _HELD) + min(passing, _PASSING)
    groups = math.ceil(outputs / min(outputs, max(1, rows // wanted)))
    together = math.ceil(outputs / groups)
    inputs = rows // together
    beside = min(passing, _PASSING, inputs // 2)
    return Chunks(together, _even(held, inputs - beside), _even(passing, beside))


def _even(number: int, most: int) -> int:
    """Size of the chunks, when there are as few of them as can be."""
    return math.ceil(number / math.ceil(number / most)) if number else 0


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class EmpiricalNTK(AbstractKernel):
    """The neural tangent kernel of a flax module f with K outputs, at the parameters it has now.

    ``k(x, x') = (1/K) sum_o  <d f_o(x) / d theta, d f_o(x') / d theta>``

    Theta are the parameters that training moves: the floating-point arrays in the collection "params" of a
    linen module, or ``nnx.Param`` of an nnx module. Everything else (statistics of batches, other
    collections, integers) is a constant. The module runs in the precision of the inputs, and must be a
    function of them alone, as for :class:`~jaxdistill.features.Encoder`. Inputs arrive flat, shape (d,).

    A matrix holds the Jacobians of a few inputs at once and contracts them parameter by parameter; its
    gradient makes them anew. Make one with :meth:`of`. Sets of the package's own networks
    (:mod:`jaxdistill.networks`) are loaded from the file alone; for any other module pass it again to
    ``jaxdistill.load_set(file, module=...)``.

    Args:
        encoder: The module as a function, and its parameters.
        memory: Bytes that Jacobians may take at once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdistill.networks import make_network
        >>> net = make_network("mlp", widths=(16,), num_outputs=3)
        >>> variables = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
        >>> kernel = EmpiricalNTK.of(net, variables=variables, input_shape=(4, 4, 1))
        >>> kernel.matrix(jnp.ones((5, 16)), jnp.ones((2, 16))).shape
        (5, 2)

    Source: Jacot, Gabriel and Hongler 2018; Novak, Sohl-Dickstein and Schoenholz 2022 (the trace over
    outputs, divided by their number, is the default of neural-tangents).
    """

    encoder: Encoder
    memory: int = field(metadata={"static": True})
    kind = "empirical_ntk"

    @classmethod
    def of(
        cls,
        module: Any,
        *,
        input_shape: Sequence[int],
        variables: Any | None = None,
        layer: str | None = None,
        flatten: bool = False,
        store: bool = True,
        memory: float | None = None,
    ) -> Self:
        """Take the tangent kernel of a module as it is now.

        Args:
            module: A module of flax: linen, or nnx (in evaluation mode: ``module.eval()``).
            input_shape: Shape of one input as the module takes it, such as (28, 28, 1).
            variables: Variables of a linen module; an nnx module holds its own.
            layer: Layer whose output is f, by its path; default the output of the module.
            flatten: Whether an output with more than one axis an input is made a row of K outputs.
            store: Whether an artifact keeps the parameters. If not, it keeps their hash, and whoever
                loads it must have them.
            memory: Bytes that Jacobians may take at once (gradients take about three times as much); default
                a quarter of what is free, at most 512 MiB.

        Returns:
            The kernel.

        Raises:
            InputError: as :meth:`jaxdistill.features.Encoder.of`; and a module without parameters that can
                be differentiated, or whose derivatives are zero or not finite.
            MemoryBudgetError: the memory cannot hold two derivatives.
        """
        encoder = Encoder.of(
            module,
            input_shape=input_shape,
            variables=variables,
            layer=layer,
            flatten=flatten,
            store=store,
        )
        return cls._checked(encoder, memory)

    @classmethod
    def _checked(cls, encoder: Encoder, memory: float | None) -> Self:
        if memory is None:
            memory = min(_MOST_MEMORY, available_bytes() / 4)
        check_number("memory", memory)
        budget = int(memory)
        made = cls(encoder, budget)
        smallest = 2 * 8 * made._num_trained
        if smallest == 0:
            raise InputError(
                "the module has no parameters that can be differentiated; pass one with floating-point "
                "arrays in the collection 'params' of linen, or with nnx.Param (this one has "
                f"{', '.join(encoder.parameters) or 'none'})"
            )
        if budget < smallest:
            raise MemoryBudgetError(
                f"a memory budget of {format_bytes(budget)} ({budget} bytes) cannot hold two derivatives of "
                f"an output, {smallest} bytes; give a larger budget, or free memory"
            )
        _check_derivatives(made)
        return made

    @property
    def _num_trained(self) -> int:
        return sum(np.size(value) for value in self._trained().values())

    def _trained(self) -> dict[str, Any]:
        parameters = self.encoder.parameters
        names = self.encoder.program.trained
        return {n: parameters[n] for n in names if jnp.issubdtype(parameters[n].dtype, jnp.floating)}

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The kernel of one pair of inputs."""
        return self.matrix(x[None], x2[None])[0, 0]

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of (n, d) and (m, d) inputs, by chunks of Jacobians."""
        check_rows(x, z)
        # Those that are held are made once, the others once for every chunk of them.
        return _matrix(self, x, z) if len(x) <= len(z) else _matrix(self, z, x).T

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Every input with itself: sums of squares of Jacobians, a chunk at a time."""
        check_rows(x, x)
        return _diagonal(self, x)

    def _plan(self, held: int, passing: int, dtype: Any) -> Chunks:
        row_bytes = self._num_trained * np.dtype(dtype).itemsize
        return plan_chunks(held, passing, self.encoder.num_features, row_bytes, self.memory)

    def _jacobians(self, outputs: Float[Array, "q K"], x: Float[Array, "b d"]) -> list[Float[Array, "b _"]]:
        """Derivatives of combinations of outputs, a matrix for every parameter, a row for every input."""
        trained = {name: jnp.asarray(value).astype(x.dtype) for name, value in self._trained().items()}

        @jax.checkpoint
        def one(row: Array) -> dict[str, Array]:
            def function(parameters: dict[str, Array]) -> Array:
                return replace(self.encoder, parameters=self.encoder.parameters | parameters)(row)

            # Code that is not ours has derivatives that are not ours either.
            with jax.numpy_dtype_promotion("standard"):
                (derivatives,) = jax.vmap(jax.vjp(function, trained)[1])(outputs)
            return {name: value.reshape(-1) for name, value in derivatives.items()}

        # Weight gradients of many inputs at once are grouped convolutions, which are slow on a CPU.
        every = partial(jax.lax.map, one) if jax.default_backend() == "cpu" else jax.vmap(one)
        return list(every(x).values())

    def settings(self) -> dict[str, Any]:
        """Module, layer, shapes, and the hash of the parameters."""
        return self.encoder.settings()

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters, where they are stored, and the outputs for two fixed inputs."""
        return self.encoder.arrays()

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild the kernel, with the module where its code is not the package's own.

        Raises:
            ArtifactError: the module, or its parameters, are needed and missing, or not the same.
        """
        return cls._checked(Encoder.from_parts(settings, arrays, **code), None)


@jax.jit
def _matrix(kernel: EmpiricalNTK, x: Array, z: Array) -> Array:
    n, m, num_outputs = len(x), len(z), kernel.encoder.num_features
    if n == 0 or m == 0:
        return jnp.zeros((n, m), x.dtype)
    plan = kernel._plan(n, m, x.dtype)
    held, passing = _chunks(x, plan.held), _chunks(z, plan.passing)

    # Without checkpoints a gradient would keep the Jacobians of all chunks.
    @jax.checkpoint
    def rows(outputs: Array, some: Array) -> Array:
        left = kernel._jacobians(outputs, some)

        @jax.checkpoint
        def block(others: Array) -> Array:
            right = kernel._jacobians(outputs, others)
            return reduce(operator.add, (matmul(a, b.T) for a, b in zip(left, right, strict=True)))

        return jax.lax.map(block, passing)

    def add(total: Array, outputs: Array) -> tuple[Array, None]:
        return total + jax.lax.map(partial(rows, outputs), held), None

    empty = jnp.zeros((len(held), len(passing), plan.held, plan.passing), x.dtype)
    total, _ = jax.lax.scan(add, empty, _outputs(num_outputs, plan.outputs, x.dtype))
    return jnp.swapaxes(total, 1, 2).reshape(held.shape[0] * plan.held, -1)[:n, :m] / num_outputs


@jax.jit
def _diagonal(kernel: EmpiricalNTK, x: Array) -> Array:
    n, num_outputs = len(x), kernel.encoder.num_features
    if n == 0:
        return jnp.zeros(0, x.dtype)
    plan = kernel._plan(n, 0, x.dtype)

    @jax.checkpoint
    def rows(outputs: Array, some: Array) -> Array:
        return reduce(operator.add, (jnp.sum(a * a, axis=1) for a in kernel._jacobians(outputs, some)))

    held = _chunks(x, plan.held)
    values = jax.lax.map(
        lambda outputs: jax.lax.map(partial(rows, outputs), held),
        _outputs(num_outputs, plan.outputs, x.dtype),
    )
    return jnp.sum(values, axis=0).reshape(-1)[:n] / num_outputs


def _chunks(x: Array, size: int) -> Float[Array, "c b d"]:
    """Chunks of one size; the last repeats the last row, whose derivatives are as finite as its own."""
    padded = jnp.pad(x, ((0, -len(x) % size), (0, 0)), mode="edge")
    return padded.reshape(-1, size, x.shape[1])


def _outputs(number: int, together: int, dtype: Any) -> Float[Array, "g q K"]:
    """Groups of unit vectors, one for every output; the last is filled up with zeros."""
    groups = math.ceil(number / together)
    return jnp.eye(groups * together, number, dtype=dtype).reshape(groups, together, number)


def _check_derivatives(kernel: EmpiricalNTK) -> None:
    x = probe_inputs(kernel.encoder.num_inputs)
    try:
        values = in_float64(_diagonal, kernel, x)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0][:150]
        raise InputError(f"the module has no derivative by its parameters ({reason}); {_CURE}") from None
    if not np.all(np.isfinite(values)):
        raise InputError(f"the derivative of the module by its parameters is not finite; {_CURE}")
    if not np.any(values):
        raise InputError(f"the derivative of the module by its parameters is zero; {_CURE}")


_CURE = "name another layer, or a module that training could move"
