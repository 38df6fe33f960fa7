"""What every feature map offers to the rest of the package."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError, InverseError
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.numerics.placement import float64_scope, moving_arrays


class AbstractFeatureMap(abc.ABC):
    """A map phi from inputs (..., d) to features (..., p); a frozen pytree, compared by identity.

    It is called on one input or on any batch of them, in the precision of the input: parameters are
    cast to it, so that float64 inputs get float64 features and no promotion happens in silence.
    ``pull_back`` is pure algebra and safe under jit, vmap and grad; :meth:`inverse` is the checked
    door to it.
    """

    kind: ClassVar[str]
    # What :meth:`from_parts` takes beside the file, where the map is code that no file holds.
    code: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def num_inputs(self) -> int:
        """Length d of an input."""

    @property
    @abc.abstractmethod
    def num_features(self) -> int:
        """Length p of a feature vector."""

    @property
    def breadth(self) -> int:
        """Numbers that one input becomes at most on the way to its features: chunks of rows are as large."""
        return self.num_features

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features of one input or of a batch."""

    @property
    def precision(self) -> str:
        """What float64 inputs are computed in: "float64", or "float32" where the map is made so."""
        return "float64"

    @property
    def feature_bound(self) -> float | None:
        """Largest magnitude that a single feature can take, or None where there is no bound."""
        return None

    @property
    @abc.abstractmethod
    def inverse_obstacle(self) -> str | None:
        """Why there is no closed-form inverse (and what to do instead), or None where there is."""

    @property
    def construction_obstacle(self) -> str | None:
        """Why features of any sign, scaled within :attr:`feature_bound`, cannot all be inverted, or None.

        It is named wherever :attr:`inverse_obstacle` is, and where an inverse has too small a domain for
        the closed-form constructions.
        """
        return self.inverse_obstacle

    @abc.abstractmethod
    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Closed-form pre-image nearest to ``reference``; meaningful on the domain of the inverse."""

    def domain_violation(self, features: np.ndarray) -> str | None:
        """Why these features lie outside the range of phi, or None where they do not."""
        del features
        return None

    def within_span(self, weights: Float[np.ndarray, "p k"]) -> Float[np.ndarray, "p k"]:
        """Weights without what lies outside the span of all features, where that span is known.

        Ridge weights lie in it; what a fit leaves outside is rounding, divided by the penalty.
        """
        return weights

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that JSON can hold; with :meth:`arrays` they rebuild the map."""

    @abc.abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, as stored in an artifact."""

    @classmethod
    @abc.abstractmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild the map from what :meth:`settings` and :meth:`arrays` returned."""

    @moving_arrays()
    def inverse(self, features: Any, reference: Any | None = None) -> np.ndarray:
        """Inputs whose features are the given ones: the solution nearest to a reference, in float64.

        Args:
            features: Target features, shape (m, p).
            reference: Inputs to stay close to, shape (m, d): where the inverse has branches or a
                null space, the solution nearest to the reference is taken. Default: the origin.

        Returns:
            Inputs of shape (m, d), float64.

        Raises:
            InverseError: the map has no closed-form inverse, or the features lie outside its range,
                at once or inside a layer.
            InputError: a shape does not fit.
        """
        if self.inverse_obstacle is not None:
            raise InverseError(self.inverse_obstacle)
        target = np.asarray(features, np.float64)
        if target.ndim != 2 or target.shape[1] != self.num_features:
            raise InputError(f"features have shape {target.shape}, expected (m, {self.num_features})")
        violation = self.domain_violation(target)
        if violation is not None:
            raise InverseError(violation)
        start = (
            np.zeros((target.shape[0], self.num_inputs))
            if reference is None
            else np.asarray(reference, np.float64)
        )
        if start.shape != (target.shape[0], self.num_inputs):
            raise InputError(
                f"reference has shape {start.shape}, expected ({target.shape[0]}, {self.num_inputs})"
            )
        found = in_float64(_pull_back, self, target, start)
        if not np.all(np.isfinite(found)):
            raise InverseError(
                "the features have no pre-image: a layer would have to take values outside the range of its "
                "activation; choose features nearer to reached ones, or an activation onto all numbers"
            )
        return found


@jax.jit
def _pull_back(phi: AbstractFeatureMap, features: Array, reference: Array) -> Array:
    return phi.pull_back(features, reference)


def check_inputs(x: Array, num_inputs: int) -> None:
    """Raise if ``x`` is not floating point with rows of length ``num_inputs``.

    Raises:
        InputError: names the shape or the type that was expected.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"inputs have type {x.dtype}; convert them to float32 or float64")
    if x.ndim == 0 or x.shape[-1] != num_inputs:
        raise InputError(f"inputs have shape {x.shape}, expected (..., {num_inputs}); flatten images first")


def check_num_features(phi: Callable[[Array], Array], num_inputs: int, expected: int, whose: str) -> None:
    """Raise if a map does not have as many features as what is given along with it.

    Raises:
        InputError: names both numbers.
    """
    with float64_scope():
        found = jax.eval_shape(phi, jax.ShapeDtypeStruct((1, num_inputs), jnp.float64)).shape[-1]
    if found != expected:
        raise InputError(f"the map has {found} features, {whose} {expected}; give what belongs to this map")
