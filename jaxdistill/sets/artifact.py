"""The distilled set, and the one .npz file that holds all that anyone needs to use it."""

from __future__ import annotations

import abc
import io
import json
import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self, final, overload

import jax
import numpy as np
from jaxtyping import Float

from jaxdistill.data.preprocess import AbstractPreprocess
from jaxdistill.data.transforms import rebuild_preprocess
from jaxdistill.errors import ArtifactError, InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.features.stored import parts_of, rebuild
from jaxdistill.numerics.files import File, path_of, write_file
from jaxdistill.numerics.placement import placement
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.sets.archive import digest_arrays, read_archive, read_json
from jaxdistill.sets.checks import check_code, check_examples, check_parameters, understood

FORMAT = 1
_MAGIC = "jaxdistill"
_REQUIRED = ("meta", "digest", "inputs", "labels", "lam")


class AbstractSet(abc.ABC):
    """A handful of examples to train on, of a feature map or of a kernel: one .npz, with its certificate."""

    of_kernel: ClassVar[bool]
    x: np.ndarray
    y: np.ndarray
    lam: float
    recipe: dict[str, Any]
    preprocess: AbstractPreprocess | None
    class_names: tuple[str, ...] | None
    certificate: dict[str, Any] | None
    intercept: np.ndarray | None

    @property
    def images(self) -> np.ndarray:
        """The examples in the data's own units and shape, (m, H, W, C) or (m, d).

        Those of a table are float64: its units may need the digits, as seconds since 1970 do.
        """
        if self.preprocess is None:
            return self.x
        table = len(self.preprocess.shape) == 1
        return self.preprocess.inverse(self.x.astype(np.float64) if table else self.x)

    @property
    def digest(self) -> str:
        """Fingerprint of what training sees: inputs, labels, penalty, map or kernel, and any intercept."""
        told = {"inputs": self.x, "labels": self.y, "lam": np.float64(self.lam)}
        if self.intercept is not None:
            told["trains_intercept"] = np.True_
        return digest_arrays(told | self._map_arrays())

    @abc.abstractmethod
    def _map_arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the feature map or of the kernel."""

    @abc.abstractmethod
    def _own_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a file keeps of the feature map or kernel and of the full model: arrays, and metadata."""

    def with_context(
        self,
        preprocess: AbstractPreprocess | None,
        class_names: tuple[str, ...] | None,
    ) -> Self:
        """The same set, with its way back to images and the names of its classes."""
        if preprocess is not None and preprocess.num_inputs != self.x.shape[1]:
            raise InputError(
                f"preprocess makes rows of {preprocess.num_inputs}, the set has {self.x.shape[1]}; "
                "pass the transform that the model's inputs came from"
            )
        return replace(self, preprocess=preprocess, class_names=class_names)  # pyright: ignore[reportArgumentType]

    def with_certificate(self, certificate: Any) -> Self:
        """The same set, certified.

        Raises:
            ArtifactError: the certificate was computed on another set.
        """
        report = certificate.to_dict()
        if report["digest"] != self.digest:
            raise ArtifactError("the certificate was computed on another set; certify the set that is saved")
        return replace(self, certificate=report)  # pyright: ignore[reportArgumentType]

    @classmethod
    def load(
        cls,
        path: File,
        *,
        module: Any | None = None,
        variables: Any | None = None,
        features: Any | None = None,
    ) -> Self:
        """Read a set back; nothing in the file is ever executed.

        Args:
            path: A file that :meth:`save` wrote, by its path or open in binary mode.
            module: The flax module of an :class:`~jaxdistill.features.Encoder`, or of a kernel, whose code
                is not the package's own; it is checked to be the same function.
            variables: Variables of a linen module, where the file keeps only their hash.
            features: The feature map itself, in place of the module; of a
                :class:`~jaxdistill.features.Function` the only way, since no file holds its code.

        Returns:
            The set.

        Raises:
            ArtifactError: the file is missing, damaged, altered, pickled, foreign or of another format, or a
                set of the other kind; or it needs a module that is missing, or another one.
        """
        arrays, meta = read_set(path)
        if ("kernel" in meta) != cls.of_kernel:
            whose = "for a kernel" if "kernel" in meta else "of a feature map"
            raise ArtifactError(f"{path} is a set {whose}; read it with jaxdistill.load_set")
        return cls.assembled(
            path, arrays, meta, {"module": module, "variables": variables, "features": features}
        )

    @classmethod
    @abc.abstractmethod
    def assembled(
        cls, path: File, arrays: dict[str, np.ndarray], meta: dict[str, Any], code: dict[str, Any]
    ) -> Self:
        """The set that a file's parts make.

        Args:
            path: What to call the file in errors.
            arrays: Arrays, from :func:`read_set`.
            meta: Metadata, from :func:`read_set`.
            code: What no file holds, by the names of arguments of :meth:`load`.

        Raises:
            ArtifactError: parts that do not fit, or code that is missing, another, or not needed.
        """

    @overload
    def save(self, path: str | os.PathLike[str]) -> Path: ...

    @overload
    def save(self, path: BinaryIO) -> BinaryIO: ...

    def save(self, path: File) -> Path | BinaryIO:
        """Write the set as one .npz file, beside the target first and then renamed.

        The file opens with ``numpy.load`` alone: ``images``, ``inputs``, ``labels``, ``lam``, what tells the
        full model (``weights`` B; of a kernel ``values`` and ``squared_norm``), ``intercept`` b where it has
        one (ridge regression on the set is then one with an intercept), ``class_names``, the arrays
        of the feature map or kernel and of the preprocessing under ``features/``, ``kernel/`` and
        ``preprocess/``, and ``meta``, a JSON text with everything else.

        Args:
            path: Where to write: a path, or a file that is open in binary mode.

        Returns:
            The path, or the file.

        Raises:
            OutputError: the file cannot be written there.
            ArtifactError: the kernel is code that no file can hold.
        """
        own, meta = self._own_parts()
        transform = self.preprocess
        meta |= {
            "program": _MAGIC,
            "format": FORMAT,
            "preprocess": None
            if transform is None
            else {"kind": transform.kind, "settings": transform.settings()},
            "recipe": self.recipe,
            "certificate": self.certificate,
            "versions": {
                "python": platform.python_version(),
                "jax": jax.__version__,
                "numpy": np.__version__,
            },
            "placement": placement().to_dict(),
        }
        arrays = {
            "images": self.images,
            "inputs": self.x,
            "labels": self.y,
            "lam": np.float64(self.lam),
            "meta": np.array(json.dumps(meta, sort_keys=True)),
        } | own
        if self.intercept is not None:
            arrays["intercept"] = self.intercept
        if self.class_names is not None:
            arrays["class_names"] = np.array(self.class_names)
        if transform is not None:
            arrays |= {f"preprocess/{name}": value for name, value in transform.arrays().items()}
        arrays["digest"] = np.array(digest_arrays(arrays))
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return write_file(path, buffer.getvalue())


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class DistilledSet(AbstractSet):
    """A handful of examples that train to the full model, and what is needed to check it.

    A pytree: it goes through jit, vmap and ``jax.tree.map``. What comes out is another set, without recipe
    and certificate, which tell of this very one; its labels are float32 outside :func:`jax.enable_x64`.

    Args:
        x: Inputs as the model sees them, shape (m, d).
        y: Labels, shape (m, k), float64.
        lam: Penalty lam_s to train with.
        features: Feature map phi.
        weights: B of the full model, shape (p, k), float64: what retraining is compared with.
        recipe: How the set was made, in types that JSON keeps.
        preprocess: Transform from images to inputs, or None where inputs are the data themselves.
        class_names: Names of the k outputs, or None.
        certificate: The certificate that was computed on this very set, or None.
        intercept: b of the full model, shape (k,), float64; None of a model without. The set is then to be
            trained on with an intercept that no penalty holds down.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (40, 5)))
        >>> y = jd.one_hot(np.arange(40) % 3, 3)
        >>> model = jd.fit_ridge(jd.features.Linear(5), x, y, lam=1.0)
        >>> small = jd.distill(model, ipc=1, key=jax.random.key(1))
        >>> small.x.shape, small.y.shape, small.lam
        ((3, 5), (3, 3), 0.0)
    """

    of_kernel = False
    x: Float[np.ndarray, "m d"] | Any
    y: Float[np.ndarray, "m k"] | Any
    lam: float | Any
    features: AbstractFeatureMap
    weights: Float[np.ndarray, "p k"] | Any
    recipe: dict[str, Any] = field(default_factory=dict, metadata={"dropped": True})
    preprocess: AbstractPreprocess | None = field(default=None, metadata={"static": True})
    class_names: tuple[str, ...] | None = field(default=None, metadata={"static": True})
    certificate: dict[str, Any] | None = field(default=None, metadata={"dropped": True})
    intercept: Float[np.ndarray, " k"] | Any | None = None

    def _map_arrays(self) -> dict[str, np.ndarray]:
        return self.features.arrays()

    def _own_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays = {f"features/{name}": value for name, value in self.features.arrays().items()}
        return {"weights": self.weights} | arrays, {"features": parts_of(self.features)}

    @classmethod
    def assembled(
        cls, path: File, arrays: dict[str, np.ndarray], meta: dict[str, Any], code: dict[str, Any]
    ) -> Self:
        """The set that a file's parts make, as :meth:`AbstractSet.assembled` has it."""
        with understood(path):
            check_examples(path, arrays, meta, ("weights",))
            parts = arrays_under("features/", arrays)
            phi = rebuild(meta["features"], parts, **code)
            check_code(path, f"{phi.kind} features, which need", code, [phi])
            made = cls(
                features=phi,
                weights=arrays["weights"],
                **common_fields(path, arrays, meta),
            )
            found, wanted = (phi.num_inputs, phi.num_features), (made.x.shape[1], len(made.weights))
            if found != wanted:
                raise ArtifactError(
                    f"{path} has features of another (d, p) than its set, {wanted}; get the original"
                )
            check_parameters(path, phi.arrays(), parts)
            return made


def read_set(path: File) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and metadata of a saved set, after every check that does not depend on its kind.

    Raises:
        ArtifactError: the file is missing, damaged, altered, pickled, foreign or of another format.
    """
    arrays = _read(path)
    with understood(path):
        return arrays, _read_meta(path, arrays)


def common_fields(path: File, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, Any]:
    """The fields that every set has, from what :func:`read_set` returned."""
    told, stored = meta["preprocess"], arrays_under("preprocess/", arrays)
    transform = None if told is None else rebuild_preprocess(told["kind"], told["settings"], stored)
    check_parameters(path, {} if transform is None else transform.arrays(), stored)
    return {
        "x": arrays["inputs"],
        "y": arrays["labels"],
        "lam": float(arrays["lam"]),
        "recipe": meta["recipe"],
        "preprocess": transform,
        "class_names": tuple(str(name) for name in arrays["class_names"])
        if "class_names" in arrays
        else None,
        "certificate": meta["certificate"],
        "intercept": arrays.get("intercept"),
    }


def arrays_under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _read(path: File) -> dict[str, np.ndarray]:
    file = path_of(path)
    if isinstance(file, Path) and not file.is_file():
        raise ArtifactError(f"{path} does not exist; make one with: jaxdistill distill --out DIR")
    try:
        if isinstance(file, Path):
            with file.open("rb") as stream:
                return read_archive(stream, path)
        return read_archive(file, path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; copy it again") from None


def _read_meta(path: File, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metadata, after the checks that need no knowledge of the format, then the digest."""
    missing = [name for name in _REQUIRED if name not in arrays]
    if "meta" in missing:
        raise ArtifactError(f"{path} is not a distilled set: it has no 'meta'")
    try:
        meta = read_json(str(arrays["meta"]))
        program, version = meta["program"], int(meta["format"])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise ArtifactError(f"{path} has metadata that cannot be read; copy it again") from None
    if program != _MAGIC:
        raise ArtifactError(f"{path} was written by {program!r:.60}, not by {_MAGIC}")
    if version != FORMAT:
        raise ArtifactError(
            f"{path} has format {str(version)[:20]}, this version reads {FORMAT}; upgrade jaxdistill, or "
            "make it again"
        )
    told = ("values", "squared_norm") if "kernel" in meta else ("weights",)
    missing += [name for name in told if name not in arrays]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}; copy it again")
    rest = {name: value for name, value in arrays.items() if name != "digest"}
    if str(arrays["digest"]) != digest_arrays(rest):
        raise ArtifactError(
            f"{path} was altered after it was written: its digest does not match; get the original"
        )
    return meta
