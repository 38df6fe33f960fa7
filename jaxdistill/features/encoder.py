"""The features of a trained network: any layer of any flax module, as a feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import ArtifactError, InputError
from jaxdistill.features.modules import Parameters, Pure, check_layer, describe_class, explained, purify
from jaxdistill.features.program import (
    AbstractProgramMap,
    Program,
    checked_program,
    checked_shape,
    of_kind,
    with_probe,
)
from jaxdistill.numerics.pytrees import register_pytree


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Encoder(AbstractProgramMap):
    """Features of a flax module, ``phi(x) = layer(x)``, its parameters frozen as they are now.

    Inputs arrive flat, shape (d,), and are reshaped to what the module takes. The module must be a function
    of them alone: its state may not change, random numbers may not be drawn, and no input may see the
    others of its batch. It runs in the precision of its inputs, or in float32 where it is made so
    (``dtype=jnp.float32``): then sets are exact to float32's rounding, and certificates say so. There is no
    closed-form inverse; exact sets come from the spanning equations.

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
    code = ("module", "variables", "features")

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
        call_arguments: Mapping[str, Any] | None = None,
    ) -> Self:
        """Freeze a module as a feature map.

        Args:
            module: A module of flax: linen, or nnx (in evaluation mode: ``module.eval()``).
            input_shape: Shape of one input as the module takes it, such as (28, 28, 1).
            variables: Variables of a linen module, or its "params" alone; an nnx module holds its own.
            layer: Layer whose output is wanted, by its path, such as "blocks/1/conv"; default the output
                of the module.
            flatten: Whether an output with more than one axis an input, such as a stack of images, is
                made a row.
            store: Whether an artifact keeps the parameters. If not, it keeps their hash, and whoever
                loads it must have them.
            call_arguments: Further arguments of the module's call, such as ``{"train": False}``: numbers,
                strings or booleans, which an artifact keeps.

        Returns:
            The feature map.

        Raises:
            InputError: not a flax module; a layer that does not exist (listing those that do); another
                input shape; an output that is not (n, p), or in half precision; state that changes,
                random numbers, or inputs that see each other.
        """
        shape = checked_shape(input_shape)
        arguments = _checked_arguments(call_arguments)
        pure = purify(module, variables, layer, shape, arguments)
        origin = {
            "module": _module_record(module),
            "library": pure.library,
            "layer": layer,
            "call_arguments": arguments,
        }
        _check_call(pure, shape, layer)
        with explained(shape):
            program = checked_program(
                pure.call,
                pure.parameters,
                pure.trained,
                shape,
                flatten=flatten,
                origin=origin,
                stored=store,
            )
        return with_probe(cls(pure.parameters, program))

    @classmethod
    def from_parts(
        cls,
        settings: dict[str, Any],
        arrays: dict[str, np.ndarray],
        *,
        module: Any | None = None,
        variables: Any | None = None,
        features: Any | None = None,
    ) -> Self:
        """Rebuild the encoder, with its module, or as it is given, where the code is not the package's own.

        Raises:
            ArtifactError: the module, or its parameters, are needed and missing, or not the same.
        """
        if features is not None:
            return of_kind(cls, features).recorded(settings, arrays)
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
            call_arguments=settings["call_arguments"],
        )
        return made.recorded(settings, arrays)


def _checked_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    for name, value in (arguments or {}).items():
        if not (value is None or isinstance(value, (bool, int, float, str))):
            raise InputError(
                f"call_arguments[{name!r}] is a {type(value).__name__}; give numbers, strings or booleans, "
                "which a file can keep"
            )
    return dict(arguments or {})


def _check_call(pure: Pure, shape: tuple[int, ...], layer: str | None) -> None:
    batch: Any = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    with explained(shape), jax.numpy_dtype_promotion("standard"):
        known = pure.layers(batch)
    if layer is not None:
        check_layer(layer, known)


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
