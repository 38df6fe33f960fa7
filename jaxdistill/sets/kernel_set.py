"""The distilled set of a kernel without a finite feature map, in the same kind of file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self, final

import jax
import numpy as np
from jaxtyping import Float

from jaxdistill.data.preprocess import AbstractPreprocess
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.kernels.base import AbstractKernel, parts_of
from jaxdistill.kernels.stored import rebuild
from jaxdistill.numerics.files import File
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.sets.artifact import AbstractSet, DistilledSet, arrays_under, common_fields, read_set
from jaxdistill.sets.checks import check_code, check_examples, check_parameters, understood


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class KernelSet(AbstractSet):
    """A handful of examples that train to a function near the full model, and what is needed to say how near.

    A pytree, as a :class:`~jaxdistill.DistilledSet` is.

    In place of weights it keeps the values of the full model f at the examples and its squared norm: the
    distance of any ``f_s = k(., Xs) b`` in the kernel's space follows from them,
    ``|f - f_s|^2 = |f|^2 - 2 tr(b^T f(Xs)) + tr(b^T K_ss b)``.

    Args:
        x: Inputs as the model sees them, shape (m, d).
        y: Labels, shape (m, k), float64.
        lam: Penalty lam_s to train with.
        kernel: Kernel k.
        values: f(Xs), shape (m, k), float64.
        squared_norm: ``|f|^2``.
        resolution: What rounding of the full model may have changed in ``|f|^2``, relative to it.
        recipe: How the set was made, in types that JSON keeps.
        preprocess: Transform from images to inputs, or None where inputs are the data themselves.
        class_names: Names of the k outputs, or None.
        certificate: The certificate that was computed on this very set, or None.
        intercept: b of the full model, shape (k,); None of a model without. Values and norm are those of
            f - b, and the set is to be trained on with an intercept.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 5)))
        >>> y = jd.one_hot(np.arange(60) % 3, 3)
        >>> model = jd.fit_kernel_ridge(jd.kernels.NTK(), x, y, lam=1.0)
        >>> small = jd.distill_kernel(model, x, y, ipc=2, key=jax.random.key(1))
        >>> small.x.shape, small.y.shape
        ((6, 5), (6, 3))
    """

    of_kernel = True
    x: Float[np.ndarray, "m d"] | Any
    y: Float[np.ndarray, "m k"] | Any
    lam: float | Any
    kernel: AbstractKernel
    values: Float[np.ndarray, "m k"] | Any
    squared_norm: float | Any
    resolution: float | Any
    recipe: dict[str, Any] = field(default_factory=dict, metadata={"dropped": True})
    preprocess: AbstractPreprocess | None = field(default=None, metadata={"static": True})
    class_names: tuple[str, ...] | None = field(default=None, metadata={"static": True})
    certificate: dict[str, Any] | None = field(default=None, metadata={"dropped": True})
    intercept: Float[np.ndarray, " k"] | Any | None = None

    def _map_arrays(self) -> dict[str, np.ndarray]:
        return self.kernel.arrays()

    def _own_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays = {f"kernel/{name}": value for name, value in self.kernel.arrays().items()}
        told = {"values": self.values, "squared_norm": np.float64(self.squared_norm)}
        return told | arrays, {"kernel": parts_of(self.kernel), "resolution": float(self.resolution)}

    @classmethod
    def assembled(
        cls, path: File, arrays: dict[str, np.ndarray], meta: dict[str, Any], code: dict[str, Any]
    ) -> Self:
        """The set that a file's parts make, as :meth:`AbstractSet.assembled` has it."""
        with understood(path):
            check_examples(path, arrays, meta, ("values", "squared_norm"))
            kernel = rebuild(meta["kernel"], arrays_under("kernel/", arrays), **code)
            maps = jax.tree.leaves(kernel, is_leaf=lambda part: isinstance(part, AbstractFeatureMap))
            maps = [part for part in maps if isinstance(part, AbstractFeatureMap)]
            check_code(path, f"the kernel {kernel.kind!r:.60}, which needs", code, maps)
            made = cls(
                kernel=kernel,
                values=arrays["values"],
                squared_norm=float(arrays["squared_norm"]),
                resolution=float(meta["resolution"]),
                **common_fields(path, arrays, meta),
            )
            check_parameters(path, kernel.arrays(), arrays_under("kernel/", arrays))
            return made


def load_set(
    path: File,
    *,
    module: Any | None = None,
    variables: Any | None = None,
    features: Any | None = None,
) -> DistilledSet | KernelSet:
    """Read a saved set, of a feature map or of a kernel.

    Args:
        path: A file that ``save`` of either wrote, by its path or open in binary mode.
        module: The flax module, where the set is of one whose code is not the package's own.
        variables: Variables of a linen module, where the file keeps only their hash.
        features: The feature map itself, in place of the module; of a function the only way.

    Raises:
        ArtifactError: as :meth:`DistilledSet.load`.

    Example:
        >>> load_set("no.npz")
        Traceback (most recent call last):
        jaxdistill.errors.ArtifactError: no.npz does not exist; make one with: jaxdistill distill --out DIR
    """
    arrays, meta = read_set(path)
    kind = KernelSet if "kernel" in meta else DistilledSet
    return kind.assembled(
        path, arrays, meta, {"module": module, "variables": variables, "features": features}
    )
