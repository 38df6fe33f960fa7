"""Features that are somebody's code: a function of named arrays and a batch, checked and fingerprinted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import ArtifactError, InputError
from jaxdistill.features.base import AbstractFeatureMap, check_inputs
from jaxdistill.numerics.linalg import check_finite, in_float64
from jaxdistill.numerics.placement import float64_scope
from jaxdistill.numerics.traces import arrays_made

Parameters = dict[str, Any]
Map = TypeVar("Map", bound="AbstractProgramMap")

# How far the features of another version of the libraries may differ from those on record, by what the
# function computes in.
_SAME_FUNCTION = {"float64": 1e-6, "float32": 1e-4}
# Inputs of the batch that a function is traced with. Arrays whose sizes it divides are taken for arrays of
# rows: it is prime, and divides few kernels.
_ROWS = 13


@dataclass(frozen=True, eq=False)
class Program:
    """What of a feature map is not an array: compared by identity, so that one map compiles once.

    Args:
        call: Output for parameters and a batch of inputs in the function's own shape.
        trained: Names of the parameters that training moves.
        input_shape: Shape of one input as the function takes it.
        num_features: p.
        breadth: Numbers that one input becomes at most on the way.
        flatten: Whether outputs of more axes become rows.
        precision: "float64" where the function is as precise as its inputs, "float32" where it is fixed.
        probe: Features of two fixed inputs, shape (2, p): they tell one function from another.
        origin: Where the code is, and a hash of the parameters, in types that JSON keeps.
        stored: Whether an artifact keeps the parameters.
    """

    call: Callable[[Parameters, Array], Any]
    trained: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_features: int
    breadth: int
    flatten: bool
    precision: str
    probe: np.ndarray
    origin: dict[str, Any]
    stored: bool


class AbstractProgramMap(AbstractFeatureMap):
    """What :class:`~jaxdistill.features.Encoder` and :class:`~jaxdistill.features.Function` share.

    Inputs arrive flat, shape (d,), and are reshaped to what the function takes. It must be a function of its
    parameters and of each input alone.
    """

    parameters: Parameters
    program: Program = field(metadata={"static": True})

    @classmethod
    def _made(cls, parameters: Parameters, program: Program) -> Self:
        """The map of these parts, which are checked already."""
        return cls(parameters, program)  # pyright: ignore[reportCallIssue]

    @property
    def num_inputs(self) -> int:
        """Length d of a flat input."""
        return math.prod(self.program.input_shape)

    @property
    def num_features(self) -> int:
        """Length p of the output."""
        return self.program.num_features

    @property
    def breadth(self) -> int:
        """Numbers that one input becomes at most inside the function, such as the pixels of all channels."""
        return self.program.breadth

    @property
    def precision(self) -> str:
        """What float64 inputs are computed in: "float64", or "float32" where the map is made so."""
        return self.program.precision

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features of one input or of a batch, in the type of the inputs."""
        check_inputs(x, self.num_inputs)
        batch = x.shape[:-1]
        if 0 in batch:  # a function that reshapes by -1 could not
            return jnp.zeros((*batch, self.num_features), x.dtype)
        images = x.reshape(math.prod(batch), *self.program.input_shape)
        # Code that is not ours may rely on JAX's ordinary promotion.
        with jax.numpy_dtype_promotion("standard"):
            output = self.program.call(cast(self.parameters, x.dtype), images)
        return output.astype(x.dtype).reshape(*batch, self.num_features)

    @property
    def inverse_obstacle(self) -> str | None:
        """Always named: a network of any kind has no closed-form inverse."""
        return (
            f"{self.kind} features have no closed-form inverse; distil them by the spanning equations, from "
            "real examples"
        )

    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Not available; see :attr:`inverse_obstacle`."""
        raise NotImplementedError(self.inverse_obstacle)

    def settings(self) -> dict[str, Any]:
        """Where the code is, shapes, and the hash of the parameters."""
        program = self.program
        return {
            **program.origin,
            "input_shape": list(program.input_shape),
            "flatten": program.flatten,
            "precision": program.precision,
            "stored": program.stored,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters, where they are stored, and the features of the two fixed inputs."""
        stored = {f"parameters/{name}": np.asarray(value) for name, value in self.parameters.items()}
        return {"probe": self.program.probe} | (stored if self.program.stored else {})

    def recorded(self, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """This map, after a check that it is the one that a file was made with; with the file's parameters.

        Raises:
            ArtifactError: other parameters, where the file keeps none, or another function.
        """
        made = self
        if made.program.origin["parameters"] != settings["parameters"] and settings["stored"]:
            made = made._with_parameters(stored_parameters(arrays))
        if made.program.origin["parameters"] != settings["parameters"]:
            raise ArtifactError(
                f"the parameters of the {self.kind} are not those that the set was made with (their hash is "
                f"{made.program.origin['parameters'][:12]}, not {settings['parameters'][:12]}); pass the "
                "trained one"
            )
        probe = np.asarray(arrays["probe"])
        difference = np.linalg.norm(made.program.probe - probe)
        allowed = _SAME_FUNCTION[made.precision] * np.linalg.norm(probe)
        if made.program.probe.shape != probe.shape or difference > allowed:
            raise ArtifactError(
                f"the {self.kind} computes other features than the one that the set was made with; pass the "
                "same code"
            )
        return self._made(made.parameters, replace(made.program, probe=probe))

    def _with_parameters(self, stored: dict[str, np.ndarray]) -> Self:
        """The same function with other parameters of the same names and shapes."""
        for name in sorted(stored.keys() | self.parameters.keys()):
            found, wanted = self.parameters.get(name), stored.get(name)
            if found is None or wanted is None or found.shape != wanted.shape:
                raise ArtifactError(
                    f"the {self.kind} does not fit the file at parameter {name}: it has "
                    f"{'none' if found is None else found.shape}, the file "
                    f"{'none' if wanted is None else wanted.shape}; pass the same code"
                )
        origin = self.program.origin | {"parameters": hash_of(stored)}
        return with_probe(self._made(stored, replace(self.program, origin=origin)))


def checked_program(
    call: Callable[[Parameters, Array], Any],
    parameters: Parameters,
    trained: tuple[str, ...],
    input_shape: Sequence[int],
    *,
    flatten: bool,
    origin: dict[str, Any],
    stored: bool,
) -> Program:
    """The program of a function, after all checks that need no derivative; its probe is still empty.

    Raises:
        InputError: an output that is not (n, p), or too short a type; parameters that are not finite.
    """
    shape = checked_shape(input_shape)
    for name, value in parameters.items():
        check_finite(f"parameter {name}", value)
    num_features, breadth, precision = _check_output(call, parameters, shape, flatten)
    origin = origin | {"parameters": hash_of(parameters)}
    told = num_features, breadth, flatten, precision
    return Program(call, trained, shape, *told, np.empty((2, 0)), origin, stored)


def stored_parameters(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters among what :meth:`AbstractProgramMap.arrays` returned."""
    prefix = "parameters/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def of_kind(kind: type[Map], features: Any) -> Map:
    """The map that a caller gave for a file, if it is of the kind that the file needs.

    Raises:
        ArtifactError: it is something else.
    """
    if isinstance(features, kind):
        return features
    raise ArtifactError(
        f"the file needs features of kind {kind.kind!r}, not a {type(features).__name__}; pass the map it "
        "was made with"
    )


def cast(parameters: Parameters, dtype: Any) -> Parameters:
    """Floating-point parameters in the precision of the inputs."""
    return {
        name: value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in parameters.items()
    }


def checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one input as a tuple of positive numbers."""
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if not shape or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in shape):
        raise InputError(
            f"input_shape is {input_shape!r:.60}; give the shape of one input, such as (28, 28, 1)"
        )
    return shape


def _check_output(
    call: Callable[[Parameters, Array], Any], parameters: Parameters, shape: tuple[int, ...], flatten: bool
) -> tuple[int, int, str]:
    """Number of features, breadth and precision; with float64 inputs, so that a fixed one is found out."""
    with float64_scope(), jax.numpy_dtype_promotion("standard"):
        batch = jax.ShapeDtypeStruct((_ROWS, *shape), jnp.float64)
        trace = jax.make_jaxpr(lambda p, x: call(cast(p, jnp.float64), x), return_shape=True)
        traced, output = trace(parameters, batch)
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise InputError(f"the output is a {type(output).__name__}, not one array (n, p); name a layer")
    if output.ndim < 2 or output.shape[0] != _ROWS:
        raise InputError(
            f"the output for {_ROWS} inputs has shape {output.shape}, expected ({_ROWS}, p), one row an "
            "input; name a layer, or map over the inputs with jax.vmap"
        )
    if output.ndim > 2 and not flatten:
        raise InputError(
            f"the output has shape (n, {', '.join(map(str, output.shape[1:]))}), expected (n, p); pass "
            f"flatten=True to take all {math.prod(output.shape[1:])} values as features"
        )
    if output.dtype not in (jnp.float64, jnp.float32):
        raise InputError(
            f"the features have type {output.dtype}, too short to find or prove a set; compute them in "
            "float32 (dtype=jnp.float32), or without a type of their own (dtype=None)"
        )
    sizes = (math.prod(array.shape) for array in arrays_made(traced))
    breadth = max([math.prod(shape), *(size // _ROWS for size in sizes if size % _ROWS == 0)])
    return math.prod(output.shape[1:]), breadth, output.dtype.name


def probe_inputs(dim: int) -> np.ndarray:
    """Two fixed inputs on which a function is tried, shape (2, d)."""
    return np.sin(np.arange(2 * dim, dtype=np.float64)).reshape(2, -1)


def with_probe(phi: Map) -> Map:
    """The map with its features of two fixed inputs, after a check that neither sees the other."""
    x = probe_inputs(phi.num_inputs)
    together = in_float64(_features, phi, x)
    beside_another = in_float64(_features, phi, np.stack([x[0], 2 * x[1] - 1]))
    check_finite("the features of a probe input", together)
    allowed = _SAME_FUNCTION[phi.precision] * np.linalg.norm(together)
    if np.linalg.norm(together[0] - beside_another[0]) > allowed:
        raise InputError(
            "the features of an input depend on the others in its batch; use the evaluation mode of the "
            "module, or a norm of single examples"
        )
    return phi._made(phi.parameters, replace(phi.program, probe=together))


@jax.jit
def _features(phi: AbstractFeatureMap, x: Array) -> Array:
    return phi(x)


def hash_of(parameters: Parameters) -> str:
    """A hash of names, types, shapes and values."""
    sha = hashlib.sha256()
    for name in sorted(parameters):
        value = np.ascontiguousarray(parameters[name])
        sha.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()
