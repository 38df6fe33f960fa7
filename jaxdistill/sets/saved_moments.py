"""Moments as a file: collected in one pass that may be killed, merged, and fitted from without the data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any, Self, final

import numpy as np

from jaxdistill.data.preprocess import AbstractPreprocess, Identity
from jaxdistill.data.transforms import rebuild_preprocess
from jaxdistill.errors import ArtifactError, InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.features.stored import parts_of, rebuild
from jaxdistill.numerics.files import check_folder, write_atomically
from jaxdistill.numerics.products import products_of
from jaxdistill.ridge.moments import Moments, accumulate_moments
from jaxdistill.ridge.moments_source import MomentsSource
from jaxdistill.ridge.source import AbstractSource
from jaxdistill.ridge.stream import StreamSource, source_of
from jaxdistill.ridge.targets import TargetKind
from jaxdistill.sets.archive import digest_arrays, read_archive, read_json
from jaxdistill.sets.artifact import arrays_under
from jaxdistill.sets.checks import check_parameters, understood

# What the file says it is, and the number of its format.
_PROGRAM, _FORMAT = "jaxdistill moments", 2


@final
@dataclass(frozen=True, eq=False)
class SavedMoments:
    """Moments with what they belong to; made by :func:`collect_moments` or :meth:`load`.

    Args:
        moments: Of features and targets, about a point within the first chunk.
        features: The feature map.
        preprocess: What inputs went through before it, or None.
        class_names: Names of the classes, or None.
        target_kind: What the targets of the rows read so far are.
        product_dtype: Precision of the products.
        data_dtype: The coarsest type that holds the inputs.
        chunk_size: Rows in a chunk.
        whole: Whether all rows were read.
        parts: Fingerprints of the first chunk of every part that was merged.
    """

    moments: Moments
    features: AbstractFeatureMap
    preprocess: AbstractPreprocess | None
    class_names: tuple[str, ...] | None
    target_kind: TargetKind
    product_dtype: str
    data_dtype: str
    chunk_size: int
    whole: bool
    parts: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows that were read."""
        return int(self.moments.count)

    def source(self) -> MomentsSource:
        """What :func:`~jaxdistill.fit_ridge` takes in place of examples.

        Raises:
            InputError: not all rows were read.
        """
        if not self.whole:
            raise InputError(
                f"these moments are of the first {self.num_rows} rows of a pass that was not finished; call "
                "collect_moments again with the same data and file"
            )
        return MomentsSource(
            self.moments,
            self.features.num_inputs,
            self.target_kind,
            products_of(self.product_dtype),
            np.dtype(self.data_dtype),
            self.chunk_size,
        )

    def belongings(self) -> dict[str, str]:
        """Fingerprints of what moments must share to be added, by what a person calls it."""
        transform = self.preprocess
        return {
            "feature map": digest_arrays(
                {"parts": np.array(json.dumps(parts_of(self.features), sort_keys=True))}
                | self.features.arrays()
            ),
            "preprocessing": ""
            if transform is None or isinstance(transform, Identity)
            else digest_arrays(
                {"kind": np.array(transform.kind), "settings": np.array(json.dumps(transform.settings()))}
                | transform.arrays()
            ),
            "number of targets": str(self.moments.cross.shape[1]),
            "kind of targets": self.target_kind.value,
            "class names": json.dumps(self.class_names),
            "precision of products": self.product_dtype,
        }

    def check_alike(self, other: SavedMoments, what: str) -> None:
        """Raise unless other moments belong to the same.

        Raises:
            InputError: names what differs.
        """
        own, others = self.belongings(), other.belongings()
        different = [name for name in own if own[name] != others[name]]
        if different:
            raise InputError(f"{what} differ in {', '.join(different)}; collect both in the same way")

    def merge(self, other: SavedMoments) -> SavedMoments:
        """The moments of both, of different examples.

        Raises:
            InputError: they do not belong to the same, are not finished, or hold the same examples.
        """
        self.check_alike(other, "the two files of moments")
        for one in (self, other):
            one.source()  # raises where rows are missing
        if set(self.parts) & set(other.parts):
            raise InputError(
                "the two files of moments hold the same examples, which would count twice; merge parts of "
                "different rows"
            )
        coarse = max(self.data_dtype, other.data_dtype, key=lambda name: np.dtype(name).itemsize)
        return replace(
            self,
            moments=self.moments.merge(other.moments),
            data_dtype=coarse,
            parts=(*self.parts, *other.parts),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one .npz, beside its target first and then renamed.

        Raises:
            OutputError: it cannot be written there.
        """
        transform = self.preprocess
        meta = {
            "program": _PROGRAM,
            "format": _FORMAT,
            "features": parts_of(self.features),
            "preprocess": None
            if transform is None
            else {"kind": transform.kind, "settings": transform.settings()},
            "class_names": self.class_names,
            "targets": self.target_kind.value,
            "product_dtype": self.product_dtype,
            "data_dtype": self.data_dtype,
            "chunk_size": self.chunk_size,
            "whole": self.whole,
            "parts": self.parts,
        }
        arrays = {field.name: np.asarray(getattr(self.moments, field.name)) for field in fields(Moments)}
        arrays |= {f"features/{name}": value for name, value in self.features.arrays().items()}
        if transform is not None:
            arrays |= {f"preprocess/{name}": value for name, value in transform.arrays().items()}
        arrays["meta"] = np.array(json.dumps(meta, sort_keys=True))
        arrays["digest"] = np.array(digest_arrays(arrays))
        return write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str], **code: Any) -> Self:
        """Read moments back, after checking every byte.

        Args:
            path: A file of :meth:`save`.
            **code: What no file holds of a feature map of your own, as for
                :meth:`~jaxdistill.DistilledSet.load`.

        Raises:
            ArtifactError: it is missing, cut off, altered, or no file of moments.
        """
        path = Path(path)
        if not path.is_file():
            problem = "is no file" if path.exists() else "does not exist"
            raise ArtifactError(f"{path} {problem}; make one with: jaxdistill moments fit")
        with path.open("rb") as file:
            arrays = read_archive(file, path)
        with understood(path):
            told = read_json(str(arrays["meta"])) if "meta" in arrays else {}
            if not isinstance(told, dict) or told.get("program") != _PROGRAM or told.get("format") != _FORMAT:
                raise ArtifactError(
                    f"{path} is no file of moments that this version reads; make one with collect_moments"
                )
            rest = {name: value for name, value in arrays.items() if name != "digest"}
            if str(arrays["digest"]) != digest_arrays(rest):
                raise ArtifactError(f"{path} was altered after it was written; get the original")
            return cls._of_parts(path, arrays, told, code)

    @classmethod
    def _of_parts(
        cls, path: Path, arrays: dict[str, np.ndarray], told: dict[str, Any], code: dict[str, Any]
    ) -> Self:
        own, before = (arrays_under(prefix, arrays) for prefix in ("features/", "preprocess/"))
        phi = rebuild(told["features"], own, **code)
        check_parameters(path, phi.arrays(), own)
        transform = told["preprocess"]
        moments = Moments(*(arrays[field.name] for field in fields(Moments)))
        p, k = moments.cross.shape
        shapes = [moments.gram.shape, moments.target_gram.shape, moments.feature_sum.shape]
        if phi.num_features != p or shapes != [(p, p), (k, k), (p,)]:
            raise ArtifactError(f"{path} has sums of shapes that do not go together; get the original")
        return cls(
            moments,
            phi,
            None
            if transform is None
            else rebuild_preprocess(transform["kind"], transform["settings"], before),
            None if told["class_names"] is None else tuple(map(str, told["class_names"])),
            TargetKind(told["targets"]),
            products_of(told["product_dtype"]).name,
            np.dtype(told["data_dtype"]).name,
            int(told["chunk_size"]),
            bool(told["whole"]),
            tuple(map(str, told["parts"])),
        )


def collect_moments(
    features: AbstractFeatureMap,
    x: Any,
    y: Any = None,
    *,
    path: str | os.PathLike[str],
    preprocess: AbstractPreprocess | None = None,
    class_names: Sequence[str] | None = None,
    dtype: Any = None,
    every: float = 60.0,
    progress: bool = False,
) -> SavedMoments:
    """Moments of a data set, in a file that grows with the pass: killed, it goes on where it was.

    Called again with the same data and file, it reads only the rows that are missing, and ends with the same
    moments: bit for bit, or on devices without float64 to the last of their 48 bits. A file that is whole is
    returned as it is.

    Args:
        features: Feature map phi.
        x: Inputs or a stream, as for :func:`~jaxdistill.fit_ridge`.
        y: Targets; None with a stream.
        path: The file.
        preprocess: What the inputs went through, for the record.
        class_names: Names of the classes, for the record.
        dtype: Precision of features and products, as for :func:`~jaxdistill.fit_ridge`; default that of the
            inputs.
        every: Seconds between two times that the file is written.
        progress: Whether to show a bar.

    Returns:
        The moments.

    Raises:
        InputError: examples that do not fit, or a file of other data, features, or settings.
        ArtifactError: a file that is damaged or something else.
        OutputError: it cannot be written.

    Example:
        >>> import tempfile
        >>> import jaxdistill as jd
        >>> x, y = np.random.default_rng(0).standard_normal((2, 90, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = collect_moments(jd.features.Linear(3), x, y, path=Path(folder) / "moments.npz")
        ...     jd.fit_ridge(saved.features, saved.source(), lam=1.0).weights.shape
        (3, 3)
    """
    check_folder(path)
    source = source_of(x, y, num_inputs=features.num_inputs, breadth=features.breadth)
    p, k = features.num_features, source.num_targets
    start = SavedMoments(
        Moments.without_sums(np.zeros((p, p)), np.zeros((p, k)), np.zeros((k, k)), np.float64(0)),
        features,
        preprocess,
        None if class_names is None else tuple(class_names),
        source.target_kind,
        products_of(source.dtype if dtype is None else dtype).name,
        source.data_dtype.name,
        source.chunk_size,
        False,
        _first_chunk(source),
    )
    begin = _earlier(start, path)
    if begin is not None:
        if begin.whole:
            return begin
        if isinstance(source, StreamSource):
            source.seen.kinds.add(begin.target_kind)
    last = monotonic()

    def save(moments: Moments, whole: bool) -> SavedMoments:
        found = replace(start, moments=moments, target_kind=source.target_kind, whole=whole)
        found.save(path)
        return found

    def each(so_far: Callable[[], Moments]) -> None:
        nonlocal last
        if monotonic() - last >= every:
            save(so_far(), False)
            last = monotonic()

    moments = accumulate_moments(
        features,
        source,
        dtype=start.product_dtype,
        shifted=True,
        begin=None if begin is None else begin.moments,
        each=each,
        progress=progress,
    )
    return save(moments, True)


def _first_chunk(source: AbstractSource) -> tuple[str, ...]:
    """Fingerprint of the first chunk; none of an iterator, which nobody can begin again."""
    if isinstance(source, StreamSource) and source.rows.once:
        return ()
    x, y = next(source.chunks())
    return (digest_arrays({"x": x, "y": y}),)


def _earlier(start: SavedMoments, path: str | os.PathLike[str]) -> SavedMoments | None:
    """What an earlier call left in the file, if it was the same pass.

    Raises:
        InputError: it was another one; names what differs.
    """
    if not Path(path).exists():
        return None
    code = {name: start.features for name in start.features.code if name == "features"}
    found = SavedMoments.load(path, **code)
    ours = replace(start, target_kind=found.target_kind)
    ours.check_alike(found, f"{path} and what is asked for")
    if (found.parts, found.chunk_size) != (start.parts, start.chunk_size):
        raise InputError(
            f"{path} holds moments of other examples, or of chunks of another size; name another file, or "
            "delete it"
        )
    return found
