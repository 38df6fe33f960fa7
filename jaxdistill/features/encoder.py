"""The features of a trained network: any layer of any flax module, as a feature map."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import ArtifactError, InputError
from jaxdistill.features.base import AbstractFeatureMap, check_inputs
from jaxdistill.features.modules import Parameters, Pure, check_layer, describe_class, explained, purify
from jaxdistill.numerics.linalg import check_finite, in_float64
from jaxdistill.numerics.pytrees import register_pytree

# How far the features of another version of the libraries may differ from those on record.
_SAME_FUNCTION = 1e-6


@dataclass(frozen=True, eq=False)
class Program:
    """What of an encoder is not an array: compared by identity, so that one encoder compiles once.

    Args:
        call: Output for parameters and a batch of inputs in the module's own shape.
        trained: Names of the parameters that training moves.
        input_shape: Shape of one input as the module takes it.
        num_features: p.
        flatten: Whether outputs of more axes become rows.
        probe: Features of two fixed inputs, shape (2, p): they tell one function from another.
        origin: Which module and layer, in types that JSON keeps.
        stored: Whether an artifact keeps the parameters.
    """

    call: Callable[[Parameters, Array], Any]
    trained: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_features: int
    flatten: bool
    probe: np.ndarray
    origin: dict[str, Any]
    stored: bool


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Encoder(AbstractFeatureMap):
    """Features of a flax module, ``phi(x) = layer(x)``, its parameters frozen as they are now.

    Inputs arrive flat, shape (d,), and are reshaped to what the module takes. The module runs in the
    precision of its inputs and must be a function of them alone: its state may not change, random
    numbers may not be drawn, and no input may see the others of its batch. There is no closed-form
    inverse; exact sets come from the spanning equations.

    Make one with :meth:`of`. Encoders of the package's own networks (:mod:`jaxdistill.networks`) are
    rebuilt from an artifact alone; for any other module pass it again to
    ``jaxdistill.load_set(file, module=...)``, which checks that it is the same function.

    Args:
        parameters: Arrays of the module by name.
        program: The function, and where it came from.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdistill.networks import make_network
        >>> net = make_network("mlp", widths=(16, 8), num_outputs=3)
        >>> variables = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
        >>> phi = Encoder.of(net, variables=variables, input_shape=(4, 4, 1), layer="features")
        >>> phi.num_inputs, phi.num_features, phi(jnp.ones((5, 16))).shape
        (16, 8, (5, 8))

    Source: linear probes, Alain and Bengio 2016.
    """

    parameters: Parameters
    program: Program = field(metadata={"static": True})
    kind = "encoder"

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
    ) -> Self:
        """Freeze a module as a feature map.

        Args:
            module: A module of flax: linen, or nnx (in evaluation mode: ``module.eval()``).
            input_shape: Shape of one input as the module takes it, such as (28, 28, 1).
            variables: Variables of a linen module; an nnx module holds its own.
            layer: Layer whose output is wanted, by its path, such as "blocks/1/conv"; default the output
                of the module.
            flatten: Whether an output with more than one axis an input, such as a stack of images, is
                made a row.
            store: Whether an artifact keeps the parameters. If not, it keeps their hash, and whoever
                loads it must have them.

        Returns:
            The feature map.

        Raises:
            InputError: not a flax module; a layer that does not exist (listing those that do); another
                input shape; an output that is not (n, p); state that changes, random numbers, or inputs
                that see each other; a module that is not as precise as its inputs.
        """
        shape = _checked_shape(input_shape)
        pure = purify(module, variables, layer)
        for name, value in pure.parameters.items():
            check_finite(f"parameter {name}", value)
        origin = {
            "module": _module_record(module),
            "library": pure.library,
            "layer": layer,
            "parameters": _hash(pure.parameters),
        }
        _check_call(pure, shape, layer)
        num_features = _check_output(pure, shape, flatten)
        program = Program(
            pure.call, pure.trained, shape, num_features, flatten, np.empty((2, 0)), origin, store
        )
        probe = _probe(cls(pure.parameters, program))
        return cls(pure.parameters, Program(**{**program.__dict__, "probe": probe}))

    @property
    def num_inputs(self) -> int:
        """Length d of a flat input."""
        return math.prod(self.program.input_shape)

    @property
    def num_features(self) -> int:
        """Length p of the layer's output."""
        return self.program.num_features

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features of one input or of a batch."""
        check_inputs(x, self.num_inputs)
        batch = x.shape[:-1]
        if 0 in batch:  # a module that reshapes by -1 could not
            return jnp.zeros((*batch, self.num_features), x.dtype)
        images = x.reshape(math.prod(batch), *self.program.input_shape)
        # Code that is not ours may rely on JAX's ordinary promotion.
        with jax.numpy_dtype_promotion("standard"):
            output = self.program.call(_cast(self.parameters, x.dtype), images)
        return output.reshape(*batch, self.num_features)

    @property
    def inverse_obstacle(self) -> str | None:
        """Always named: a network of any kind has no closed-form inverse."""
        return (
            "an encoder has no closed-form inverse; distil it by the spanning equations, from real examples"
        )

    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Not available; see :attr:`inverse_obstacle`."""
        raise NotImplementedError(self.inverse_obstacle)

    def settings(self) -> dict[str, Any]:
        """Module, layer, shapes, and the hash of the parameters."""
        program = self.program
        return {
            **program.origin,
            "input_shape": list(program.input_shape),
            "flatten": program.flatten,
            "stored": program.stored,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters, where they are stored, and the features of the two fixed inputs."""
        stored = {name: np.asarray(value) for name, value in self.parameters.items()}
        return {"probe": self.program.probe} | (stored if self.program.stored else {})

    @classmethod
    def from_parts(
        cls,
        settings: dict[str, Any],
        arrays: dict[str, np.ndarray],
        module: Any | None = None,
        variables: Any | None = None,
    ) -> Self:
        """Rebuild the encoder, with the module where its code is not the package's own.

        Raises:
            ArtifactError: the module, or its parameters, are needed and missing, or not the same.
        """
        own = settings["module"]["standard"]
        stored = {name: value for name, value in arrays.items() if name != "probe"}
        if module is None:
            if own is None:
                raise ArtifactError(
                    f"the features are those of {settings['module']['class']} (flax {settings['library']}), "
                    "whose code is not in the file; pass the module: jaxdistill.load_set(file, module=...)"
                )
            module = _standard_module(own)
        if settings["library"] == "linen" and settings["stored"]:
            from flax.traverse_util import unflatten_dict

            variables = unflatten_dict(stored, sep="/")
        elif settings["library"] == "linen" and variables is None:
            raise ArtifactError(
                "the file keeps only a hash of the encoder's parameters; pass module=... and variables=..."
            )
        made = cls.of(
            module,
            input_shape=settings["input_shape"],
            variables=variables,
            layer=settings["layer"],
            flatten=settings["flatten"],
            store=settings["stored"],
        )
        if settings["library"] == "nnx" and settings["stored"]:
            made = made._with_parameters(stored)
        if made.program.origin["parameters"] != settings["parameters"]:
            raise ArtifactError(
                "the parameters of the module are not those that the set was made with (their hash is "
                f"{made.program.origin['parameters'][:12]}, not {settings['parameters'][:12]}); pass the "
                "trained module"
            )
        probe = np.asarray(arrays["probe"])
        difference = np.linalg.norm(made.program.probe - probe)
        if made.program.probe.shape != probe.shape or difference > _SAME_FUNCTION * np.linalg.norm(probe):
            raise ArtifactError(
                "the module computes other features than the one that the set was made with; pass the "
                f"same {settings['module']['class']}"
            )
        return cls(made.parameters, Program(**{**made.program.__dict__, "probe": probe}))

    def _with_parameters(self, stored: dict[str, np.ndarray]) -> Encoder:
        """The same module with other parameters of the same names and shapes."""
        for name in sorted(stored.keys() | self.parameters.keys()):
            found, wanted = self.parameters.get(name), stored.get(name)
            if found is None or wanted is None or found.shape != wanted.shape:
                raise ArtifactError(
                    f"the module does not fit the file at parameter {name}: it has "
                    f"{'none' if found is None else found.shape}, the file "
                    f"{'none' if wanted is None else wanted.shape}; pass the same module"
                )
        origin = self.program.origin | {"parameters": _hash(stored)}
        program = Program(**{**self.program.__dict__, "origin": origin})
        probe = _probe(Encoder(stored, program))
        return Encoder(stored, Program(**{**program.__dict__, "probe": probe}))


def _cast(parameters: Parameters, dtype: Any) -> Parameters:
    """Floating-point parameters in the precision of the inputs."""
    return {
        name: value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in parameters.items()
    }


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(input_shape)
    if not shape or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in shape):
        raise InputError(f"input_shape is {shape}; give the shape of one input, such as (28, 28, 1)")
    return shape


def _check_call(pure: Pure, shape: tuple[int, ...], layer: str | None) -> None:
    batch: Any = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    with explained(shape), jax.numpy_dtype_promotion("standard"):
        known = pure.layers(batch)
    if layer is not None:
        check_layer(layer, known)


def _check_output(pure: Pure, shape: tuple[int, ...], flatten: bool) -> int:
    """Number of features; in float64, so that a module of fixed precision is found out."""
    with jax.enable_x64(True), explained(shape), jax.numpy_dtype_promotion("standard"):
        batch = jax.ShapeDtypeStruct((3, *shape), jnp.float64)

        def wide(parameters: Parameters, x: Any) -> Any:
            return pure.call(_cast(parameters, jnp.float64), x)

        output: Any = jax.eval_shape(wide, pure.parameters, batch)
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise InputError(f"the output is a {type(output).__name__}, not one array (n, p); name a layer")
    if output.ndim < 2 or output.shape[0] != 3:
        raise InputError(
            f"the output for 3 inputs has shape {output.shape}, expected (3, p); name a layer with one row "
            "an input"
        )
    if output.ndim > 2 and not flatten:
        raise InputError(
            f"the output has shape (n, {', '.join(map(str, output.shape[1:]))}), expected (n, p); pass "
            f"flatten=True to take all {math.prod(output.shape[1:])} values as features"
        )
    if output.dtype != jnp.float64:
        raise InputError(
            f"the output for float64 inputs has type {output.dtype}; make the module without a type of its "
            "own (dtype=None), so that it is as precise as its inputs"
        )
    return math.prod(output.shape[1:])


def probe_inputs(dim: int) -> np.ndarray:
    """Two fixed inputs on which a function is tried, shape (2, d)."""
    return np.sin(np.arange(2 * dim, dtype=np.float64)).reshape(2, -1)


def _probe(phi: Encoder) -> np.ndarray:
    """Features of two fixed inputs in float64, after a check that neither sees the other."""
    x = probe_inputs(phi.num_inputs)
    together = in_float64(_features, phi, x)
    beside_another = in_float64(_features, phi, np.stack([x[0], 2 * x[1] - 1]))
    check_finite("the features of a probe input", together)
    if np.linalg.norm(together[0] - beside_another[0]) > _SAME_FUNCTION * np.linalg.norm(together):
        raise InputError(
            "the features of an input depend on the others in its batch; use the evaluation mode of the "
            "module, or a norm of single examples"
        )
    return together


@jax.jit
def _features(phi: Encoder, x: Array) -> Array:
    return phi(x)


def _module_record(module: Any) -> dict[str, Any]:
    """Name and settings of the package's own networks, and the class of any other."""
    from jaxdistill.networks.standard import name_of, settings_of

    name = name_of(module)
    own = None if name is None else {"name": name, "settings": settings_of(module)}
    return {"class": describe_class(module), "standard": own}


def _standard_module(own: dict[str, Any]) -> Any:
    from jaxdistill.networks.standard import make_network

    try:
        return make_network(own["name"], **own["settings"])
    except InputError as error:
        raise ArtifactError(
            f"the encoder is of a network unknown here ({error}); upgrade jaxdistill"
        ) from None


def _hash(parameters: Parameters) -> str:
    sha = hashlib.sha256()
    for name in sorted(parameters):
        value = np.ascontiguousarray(parameters[name])
        sha.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()
