"""neural-tangents on today's JAX, without TensorFlow; and its kernels as ours.

Release 0.6.5, the newest, stops at its import with ``ImportError: cannot import name 'Jaxpr' from
'jax.core'``, ``No module named 'jax.util'`` or ``module 'jax.interpreters.ad' has no attribute
'zeros_like_p'``: names that JAX has moved. They are lent to it while it is imported, and taken back. This is
the only file that imports neural-tangents.
"""

from __future__ import annotations

import importlib
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.interpreters import ad
from jaxtyping import Array, Float

from jaxdistill.errors import ArtifactError, InputError, MemoryBudgetError
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.blocks import WORKSPACE, in_blocks, largest_array
from jaxdistill.kernels.checks import check_rows
from jaxdistill.kernels.convolve import convolve
from jaxdistill.numerics.memory import available_bytes, format_bytes
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import float64_scope
from jaxdistill.numerics.pytrees import register_pytree

NAME = "neural_tangents"
TESTED = ("0.6.5",)
TESTED_JAX = ((0, 10), (0, 12))  # oldest and newest
GETS = ("ntk", "nngp")

# Entries of a diagonal at once.
_DIAGONAL_ROWS = 16
# Inputs on each side with which the size of an entry is measured; few enough to trace fast, and many enough
# that what is kept once a row does not count as if it were kept once an entry.
_PROBE = 32
# What is alive at once, relative to the largest array: measured with Myrtle-5, 5.1 to 8.1.
_ALIVE = 8
_CORE_NAMES = (
    *("Jaxpr", "JaxprEqn", "Literal", "Var", "Primitive", "Value", "AbstractValue", "ShapedArray"),
    "eval_context",
)
_lock = threading.Lock()


def import_neural_tangents() -> types.ModuleType:
    """Import neural-tangents where ``import neural_tangents`` fails, and return the module.

    Afterwards ``import neural_tangents as nt`` works too, in the whole process. JAX's own namespaces are
    as they were. ``nt.experimental``, which would load TensorFlow, is left empty. Everything else works but
    ``NtkImplementation.STRUCTURED_DERIVATIVES`` of empirical kernels. Tested with neural-tangents 0.6.5 on
    JAX 0.10.2 and 0.12.0; other versions get a warning.

    Returns:
        The module ``neural_tangents``.

    Raises:
        InputError: neural-tangents is not installed.

    Example:
        >>> nt = import_neural_tangents()
        >>> kernel_fn = nt.stax.serial(nt.stax.Dense(1), nt.stax.Relu(), nt.stax.Dense(1))[2]
        >>> kernel_fn(jax.numpy.ones((2, 3)), None, "nngp").shape
        (2, 2)
    """
    with _lock:
        loaded = sys.modules.get(NAME)
        if loaded is not None:
            return loaded
        _check_versions()
        # An import that failed before leaves parts behind, which hold on to what was missing.
        for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
            del sys.modules[name]
        experimental = types.ModuleType(f"{NAME}.experimental", "Left empty: it would import TensorFlow.")
        sys.modules[experimental.__name__] = experimental
        try:
            with _lent_names(), jax.numpy_dtype_promotion("standard"):
                module = importlib.import_module(NAME)
        except BaseException:
            del sys.modules[experimental.__name__]
            raise
        _keep_names(module)
        return module


def _check_versions() -> None:
    try:
        installed = metadata.version("neural-tangents")
    except metadata.PackageNotFoundError:
        raise InputError(
            "neural-tangents is not installed; install it with: python -m pip install neural-tangents"
        ) from None
    oldest, newest = TESTED_JAX
    if installed not in TESTED or not oldest <= jax.__version_info__[:2] <= newest:
        tested = ", ".join(TESTED)
        span = " to ".join(".".join(map(str, version)) for version in TESTED_JAX)
        warnings.warn(
            f"neural-tangents {installed} on JAX {jax.__version__} is untested: {tested} on JAX {span} was; "
            "compare its kernels with jaxdistill.kernels.NTK before you rely on them",
            stacklevel=4,
        )


def _core_names() -> dict[str, Any]:
    inner = importlib.import_module("jax._src.core")  # here only: no part of JAX's promises
    return {name: getattr(inner, name) for name in _CORE_NAMES}


@contextmanager
def _lent_names() -> Iterator[None]:
    """Put what the import needs into JAX's namespaces, and take it back."""
    names = _core_names()
    lent = [(core, name, value) for name, value in names.items()]
    lent.append((ad, "zeros_like_p", names["Primitive"]("zeros_like")))
    util = types.ModuleType("jax.util")
    inner = importlib.import_module("jax._src.util")
    for name in ("safe_map", "safe_zip"):
        setattr(util, name, getattr(inner, name))
    # What is there in plain sight stays; a deprecated name would warn when it is asked for.
    added = [(module, name) for module, name, value in lent if name not in vars(module)]
    own_util = "jax.util" not in sys.modules
    try:
        for module, name, value in lent:
            if (module, name) in added:
                setattr(module, name, value)
        if own_util:
            sys.modules["jax.util"] = util
        yield
    finally:
        for module, name in added:
            delattr(module, name)
        if own_util:
            del sys.modules["jax.util"]


class _View(types.ModuleType):
    """A module as neural-tangents knows it: some names of its own, everything else from the real one."""

    def __init__(self, real: types.ModuleType, names: dict[str, Any]) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def _keep_names(package: types.ModuleType) -> None:
    """Leave the lent names with neural-tangents alone, which asks for some of them when it is used."""
    own = _View(core, _core_names())
    view = _View(jax, {"core": own})
    replaced: list[tuple[str, Any, Any]] = [("core", core, own), ("jax", jax, view)]
    if jax.__version_info__ < (0, 11):
        replaced.append(("lax", jax.lax, _View(jax.lax, {"conv_general_dilated": convolve})))
    for name, module in list(sys.modules.items()):
        if name.startswith(package.__name__ + "."):
            for attribute, real, replacement in replaced:
                if vars(module).get(attribute) is real:
                    setattr(module, attribute, replacement)


def from_neural_tangents(
    kernel_fn: Callable[..., Any], get: str = "ntk", *, shape: tuple[int, ...] | None = None
) -> NeuralTangentsKernel:
    """Take a kernel of neural-tangents, of any architecture, as one of ours.

    Args:
        kernel_fn: The third function that ``stax.serial(...)`` returns, or another of ``(x1, x2, get)``, such
            as an empirical one. Not one of ``nt.batch``: matrices are made in blocks here.
        get: "ntk" or "nngp".
        shape: Shape of one example, such as (28, 28, 1) for convolutions; rows are reshaped to it. Default:
            the rows as they are.

    Returns:
        The kernel: matrices, solves, distilled sets and KIP as with every other.

    Raises:
        InputError: an unknown ``get``, or something that is not a function.

    Example:
        >>> stax = import_neural_tangents().stax
        >>> network = stax.serial(stax.Conv(1, (3, 3)), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1))
        >>> kernel = from_neural_tangents(network[2], shape=(4, 4, 1))
        >>> kernel.matrix(jax.numpy.ones((2, 16)), jax.numpy.ones((3, 16))).shape
        (2, 3)

    Source: Novak et al. 2020 (neural-tangents).
    """
    check_choice("get", get, GETS)
    if not callable(kernel_fn):
        raise InputError(
            f"kernel_fn is a {type(kernel_fn).__name__}; pass the third of what stax.serial(...) returns"
        )
    return NeuralTangentsKernel(kernel_fn, get, None if shape is None else tuple(int(side) for side in shape))


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class NeuralTangentsKernel(AbstractKernel):
    """A kernel of neural-tangents; made by :func:`from_neural_tangents`.

    Args:
        kernel_fn: Function of (x1, x2, get).
        get: "ntk" or "nngp".
        shape: Shape of one example, or None.

    Example:
        >>> kernel = NeuralTangentsKernel(lambda x1, x2, get: x1 @ x2.T, "ntk")
        >>> kernel.matrix(jax.numpy.ones((2, 3)), jax.numpy.ones((1, 3))).tolist()
        [[3.0], [3.0]]
    """

    kernel_fn: Callable[..., Any] = field(metadata={"static": True})
    get: str = field(metadata={"static": True})
    shape: tuple[int, ...] | None = field(default=None, metadata={"static": True})
    kind = "neural_tangents"

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The kernel of one pair of inputs."""
        return self.matrix(x[None], x2[None])[0, 0]

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of (n, d) and (m, d) inputs, in blocks where an entry takes much memory.

        Raises:
            InputError: inputs that are not rows of floats of one length, or of another than the examples, or
                of a shape that the architecture does not take.
            MemoryBudgetError: one entry does not fit.
        """
        check_rows(x, z)
        return in_blocks(self._block, x, z, self._most_entries(x))

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Every input with itself, a few at a time."""
        check_rows(x, x)
        one = jax.checkpoint(lambda row: self._block(row[None], row[None])[0, 0])
        return jax.lax.map(one, x, batch_size=min(_DIAGONAL_ROWS, self._most_entries(x)))

    def workspace(self, dim: int, dtype: Any) -> int:
        """Bytes of an entry, from shapes alone: with pooling it holds numbers for all pairs of pixels."""
        del dtype
        return _measure(self.kernel_fn, self.get, self.shape, dim)

    def _block(self, x: Array, z: Array) -> Float[Array, "a b"]:
        examples = self._examples(x), self._examples(z)
        # The library mixes types of numbers, which is its own business.
        with jax.numpy_dtype_promotion("standard"):
            try:
                values = self.kernel_fn(*examples, self.get)
            except (IndexError, TypeError, ValueError) as error:
                cure = "pass shape=(H, W, C) for images" if self.shape is None else "pass their real shape"
                raise InputError(
                    f"the kernel function does not take examples of shape {examples[0].shape[1:]} "
                    f"({str(error).splitlines()[0][:120]}); {cure}"
                ) from error
            return values.astype(x.dtype)

    def _most_entries(self, x: Array) -> int:
        workspace, free = self.workspace(x.shape[1], x.dtype), available_bytes()
        if workspace > free:
            raise MemoryBudgetError(
                f"one entry of this kernel takes about {format_bytes(workspace)} for examples of shape "
                f"{self.shape or x.shape[1:]}, and {format_bytes(free)} are free; pool the images first, or "
                "use an architecture without pooling, which takes pixels and not their pairs"
            )
        return max(1, WORKSPACE // workspace)

    def _examples(self, x: Array) -> Array:
        if self.shape is None:
            return x
        if x.shape[1] != int(np.prod(self.shape)):
            raise InputError(f"rows have length {x.shape[1]}, and examples of shape {self.shape} do not fit")
        return jnp.reshape(x, (x.shape[0], *self.shape))

    def settings(self) -> dict[str, Any]:
        """None that a file could hold.

        Raises:
            ArtifactError: always.
        """
        raise ArtifactError(
            "a kernel of neural-tangents is code, which no file can hold; save x, y and lam of the set with "
            "numpy.savez, or use jaxdistill.kernels.NTK"
        )

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Never: nothing was stored.

        Raises:
            ArtifactError: always.
        """
        raise ArtifactError("a kernel of neural-tangents cannot be read from a file")


@lru_cache(maxsize=64)
def _measure(kernel_fn: Callable[..., Any], get: str, shape: tuple[int, ...] | None, dim: int) -> int:
    """Bytes of an entry in float64, in which the library computes wherever x64 is on."""
    kernel = NeuralTangentsKernel(kernel_fn, get, shape)
    with float64_scope():
        probe = jax.ShapeDtypeStruct((_PROBE, dim), np.dtype(np.float64))
        return max(1, _ALIVE * largest_array(kernel._block, probe, probe) // _PROBE**2)
