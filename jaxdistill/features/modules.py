"""Flax modules as pure functions of named arrays: the one file of the feature maps that loads flax.

Both libraries of flax come down to the same :class:`Pure`: parameters by name, and a function of them and
of a batch of inputs that returns the output of the module or of one of its layers.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError

Parameters = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Pure:
    """A module without its state.

    Args:
        parameters: Every array that the module holds, by name.
        trained: Names of those that training moves: linen's "params", or ``nnx.Param``.
        call: Output of the whole module, or of the layer that was asked for, from parameters and a batch.
        layers: Names of the layers that a batch passes through.
        library: "linen" or "nnx".
    """

    parameters: Parameters
    trained: tuple[str, ...]
    call: Callable[[Parameters, Array], Any]
    layers: Callable[[Array], list[str]]
    library: str


def purify(
    module: Any,
    variables: Any | None,
    layer: str | None,
    shape: tuple[int, ...],
    arguments: dict[str, Any] | None = None,
) -> Pure:
    """Take a flax module apart.

    Args:
        module: A linen module, or an nnx module, which holds its own parameters.
        variables: Variables of a linen module, as ``module.init`` returns them, or its "params" alone.
        layer: Name of the layer whose output is wanted, such as "encoder/Dense_0"; None for the last.
        shape: Shape of one input.
        arguments: Further arguments of the module's call.

    Raises:
        InputError: not a flax module, or variables that are missing or have no place.
    """
    import flax.linen as nn
    from flax import nnx

    if isinstance(module, nn.Module):
        if variables is None:
            raise InputError(
                "a linen module holds no parameters; pass variables=module.init(key, x), after training"
            )
        return _purify_linen(module, variables, layer, arguments or {})
    if isinstance(module, nnx.Module):
        if variables is not None:
            raise InputError("an nnx module holds its own parameters; leave variables out")
        return _purify_nnx(module, layer, shape, arguments or {})
    raise InputError(f"module is a {type(module).__name__}; pass a flax module, of linen or of nnx")


def check_layer(layer: str, known: list[str]) -> None:
    """Raise unless a layer exists, listing those that do.

    Raises:
        InputError: the nearest name, and all names.
    """
    if layer in known:
        return
    near = difflib.get_close_matches(layer, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if not known:
        hint = "layers inside a jitted call cannot be seen, so take the output itself (layer=None); "
    raise InputError(f"there is no layer {layer!r:.60}; {hint}the layers are: {', '.join(known) or 'none'}")


@contextmanager
def explained(shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what a module raises when it is called into one line that says what to do.

    Raises:
        InputError: state that changes, random numbers, or another input shape.
    """
    from flax import errors as flax_errors

    try:
        yield
    except InputError:
        raise
    except (flax_errors.ModifyScopeVariableError, flax_errors.TraceContextError) as error:
        raise InputError(_CHANGES_STATE.format(_first_line(error))) from None
    except flax_errors.InvalidRngError as error:
        raise InputError(
            f"the module draws random numbers when it is called ({_first_line(error)}); "
            "make it deterministic, as for evaluation"
        ) from None
    except jax.errors.UnexpectedTracerError:
        raise InputError(
            "the call of the module is jitted, so its layers cannot be seen from outside; take its output "
            "(layer=None), or a module whose call is not jitted"
        ) from None
    except TypeError as error:
        missing = re.search(r"missing .*required .*arguments?: (.+)", str(error))
        if missing is None:
            raise InputError(_CANNOT_CALL.format(shape, _first_line(error))) from None
        raise InputError(
            f"the call of the module also needs {missing.group(1)}; pass them, such as "
            "call_arguments={'train': False}"
        ) from None
    except Exception as error:  # whatever code that is not ours may raise
        raise InputError(_CANNOT_CALL.format(shape, _first_line(error))) from None


_CANNOT_CALL = "the module cannot be called on inputs of shape {} ({}); pass the input_shape it was made for"
_CHANGES_STATE = (
    "the state of the module changes when it is called ({}); use its evaluation mode "
    "(use_running_average=True or module.eval())"
)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200].rstrip(".")


# First parts of the names of a linen module's variables.
_COLLECTIONS = ("params", "batch_stats")


def _purify_linen(module: Any, variables: Any, layer: str | None, arguments: dict[str, Any]) -> Pure:
    from flax.traverse_util import flatten_dict, unflatten_dict

    def run(flat: Parameters, x: Array, wanted: Callable[[Any, str], bool]) -> tuple[Any, dict[str, Any]]:
        tree = unflatten_dict(flat, sep="/")
        output, caught = module.apply(
            tree, x, capture_intermediates=wanted, mutable=["intermediates"], rngs=None, **arguments
        )
        inner: dict[Any, Any] = flatten_dict(caught.get("intermediates", {}))
        return output, {"/".join(path[:-1]): v[-1] for path, v in inner.items() if path[-1] == "__call__"}

    def call(flat: Parameters, x: Array) -> Any:
        if layer is None:
            return module.apply(unflatten_dict(flat, sep="/"), x, **arguments)
        return run(flat, x, lambda m, method: method == "__call__" and "/".join(m.path) == layer)[1][layer]

    def layers(x: Array) -> list[str]:
        found: list[str] = []

        def all_layers(flat: Parameters, x: Array) -> None:
            found.extend(run(flat, x, lambda m, method: method == "__call__")[1])

        jax.eval_shape(all_layers, parameters, x)
        return [name for name in found if name]

    try:
        parameters = {name: _host(value) for name, value in flatten_dict(dict(variables), sep="/").items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"variables is not a tree of arrays ({_first_line(error)}); pass what module.init returns"
        ) from None
    # A checkpoint often holds the collection "params" alone: its names then lack that first part.
    if parameters and not any("/" in name and name.split("/")[0] in _COLLECTIONS for name in parameters):
        parameters = {f"params/{name}": value for name, value in parameters.items()}
    trained = tuple(name for name in parameters if name.startswith("params/"))
    return Pure(parameters, trained, call, layers, "linen")


def _purify_nnx(module: Any, layer: str | None, shape: tuple[int, ...], arguments: dict[str, Any]) -> Pure:
    from flax import nnx

    def split(m: Any) -> tuple[Any, Any, Any]:
        graph, random, _, rest = nnx.split(m, nnx.RngState, nnx.Intermediate, ...)
        return graph, random, rest

    graph, random, rest = split(module)
    paths, structure = jax.tree_util.tree_flatten_with_path(rest)
    names = [_name(path) for path, _ in paths]

    def writes_values_back() -> bool:
        """Whether a call leaves every number as it was: a jitted call writes all state, changed or not."""
        m = nnx.merge(*jax.tree.map(lambda leaf: leaf, (graph, random, rest)))
        m(np.sin(np.arange(2 * math.prod(shape), dtype=np.float32)).reshape(2, *shape), **arguments)
        _, random_after, after = split(m)
        pairs = zip(jax.tree.leaves((random, rest)), jax.tree.leaves((random_after, after)), strict=True)
        return all(np.array_equal(_numbers(a), _numbers(b)) for a, b in pairs)

    checked: list[bool] = []

    def run(flat: Parameters, x: Array, taps: dict[str, list[Any]]) -> Any:
        values = [flat[name] for name in names]
        m = nnx.merge(graph, random, jax.tree.unflatten(structure, values))
        with _tapped(m, taps):
            output = m(x, **arguments)
        _, random_after, after = split(m)
        changed = [
            *_changed(names, values, jax.tree.leaves(after)),
            *_changed(["random numbers"] * 9, jax.tree.leaves(random), jax.tree.leaves(random_after)),
        ]
        if changed and not checked:
            with jax.ensure_compile_time_eval():
                checked.append(writes_values_back())
        if changed and not checked[0]:
            raise InputError(_CHANGES_STATE.format(", ".join(sorted(set(changed))[:3])))
        return output

    def call(flat: Parameters, x: Array) -> Any:
        taps: dict[str, list[Any]] = {} if layer is None else {layer: []}
        output = run(flat, x, taps)
        return output if layer is None else taps[layer][-1]

    def layers(x: Array) -> list[str]:
        taps = {path: [] for path, _ in _submodules(module)}
        jax.eval_shape(lambda flat, x: run(flat, x, taps) is None or None, parameters, x)
        return [name for name, caught in taps.items() if caught]

    parameters = {name: _host(leaf) for name, (_, leaf) in zip(names, paths, strict=True)}
    trained = tuple(_name(path) for path, _ in jax.tree.leaves_with_path(nnx.filter_state(rest, nnx.Param)))
    return Pure(parameters, trained, call, layers, "nnx")


def _host(value: Any) -> np.ndarray:
    """A copy that nobody else can train further; shorter floats as float32, which NumPy can store."""
    array = np.array(value)
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4:
        return array.astype(np.float32)
    if array.dtype == object:
        raise TypeError(f"a leaf is a {type(value).__name__}")
    return array


def _numbers(leaf: Any) -> np.ndarray:
    """A leaf of a module's state as numbers, keys too."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _name(path: Any) -> str:
    """Path of a leaf as text, without the attribute in which a variable keeps its array."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def _changed(names: list[str], before: list[Any], after: list[Any]) -> list[str]:
    """Names of leaves that are no longer the very same array: under tracing every write makes another."""
    if len(before) != len(after):
        return ["new variables"]
    return [name for name, a, b in zip(names, before, after, strict=False) if a is not b]


def _submodules(module: Any) -> list[tuple[str, Any]]:
    from flax import nnx

    found = [("/".join(map(str, path)), m) for path, m in nnx.iter_modules(module)]
    return [(name, m) for name, m in found if name and callable(m)]


@contextmanager
def _tapped(module: Any, taps: dict[str, list[Any]]) -> Iterator[None]:
    """Let submodules put what they return into lists, by name, while the context lasts."""
    chosen = [(taps[name], m) for name, m in _submodules(module) if name in taps] if taps else []
    for caught, m in chosen:
        object.__setattr__(m, "__class__", _recording(type(m)))
        _CAUGHT[id(m)] = caught
    try:
        yield
    finally:
        for _, m in chosen:
            object.__setattr__(m, "__class__", type(m).__mro__[1])
            del _CAUGHT[id(m)]


_CAUGHT: dict[int, list[Any]] = {}


@cache
def _recording(kind: type) -> type:
    """The same class, whose calls are recorded; another class, so that no other instance is touched."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = kind.__call__(self, *args, **kwargs)
        if id(self) in _CAUGHT:  # a jitted call works on a copy, whose output nobody outside can have
            _CAUGHT[id(self)].append(output)
        return output

    return type(kind)(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})


def describe_class(module: Any) -> str:
    """Where a module's code is, for a person who has to find it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
