"""Image classification sets of tensorflow-datasets, read into plain arrays.

A set prepared as array_record is read without TensorFlow. One prepared as tfrecord, which is what
most people have on disk, can only be read with it. Nothing here is imported before it is needed:
tensorflow-datasets when ``read`` is called, TensorFlow when a tfrecord file is read, and when a set
is prepared, since tensorflow-datasets encodes images with it.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from tqdm import tqdm

from jaxdistill.data.rows import AbstractRows, Pair
from jaxdistill.errors import DatasetError

BATCH_SIZE = 1024
# NAME, NAME/CONFIG, NAME:1.0.0 and NAME/CONFIG:1.0.0. tensorflow-datasets takes more, such as
# builder arguments and Hugging Face names, which do not lead to a folder of ours.
_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w\-.]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Splits(NamedTuple):
    """Images and labels as stored: (n,H,W,C) and (n,); no test split is None."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray] | None
    class_names: tuple[str, ...]


def read(name: str, data_dir: Path | None, *, progress: bool) -> Splits:
    """Read a data set from where it is prepared, or download and prepare it.

    Args:
        name: ``"mnist"``, ``"name/config"``, ``"name:1.0.0"``, ...
        data_dir: Folder that is searched before the default one of tensorflow-datasets, and where
            a download goes; None for the default one alone.
        progress: Show a progress bar on stderr.

    Returns:
        The training split and the test (or else the validation) split.

    Raises:
        DatasetError: The name is unknown, the set has no images of one size with one label each,
            its files are damaged, or it is not on disk and cannot be downloaded.

    Source:
        https://www.tensorflow.org/datasets/data_source
    """
    train, test = open_parts(name, data_dir)
    return Splits(
        _read_all(train, progress=progress),
        None if test is None else _read_all(test, progress=progress),
        train.class_names,
    )


def open_parts(name: str, data_dir: Path | None) -> tuple[TfdsRows, TfdsRows | None]:
    """The training split, and the test (or else the validation) split, where there is one.

    Args:
        name: As for :func:`read`.
        data_dir: As for :func:`read`.

    Raises:
        DatasetError: As :func:`read`.
    """
    found = {rows.split: rows for rows in _open_splits(name, data_dir)}
    if "train" not in found:
        raise DatasetError(
            f"{name} has no split 'train' (it has {', '.join(sorted(found)) or 'none'}); "
            f"save the parts you want as {name.split(':')[0].split('/')[0]}.npz"
        )
    held_out = next((split for split in ("test", "validation") if split in found), None)
    return found["train"], None if held_out is None else found[held_out]


def open_split(name: str, split: str = "train", *, data_dir: Path | None = None) -> TfdsRows:
    """Images and class numbers of one split, read where they are prepared and never all at once.

    Args:
        name: As for :func:`read`.
        split: Its name.
        data_dir: As for :func:`read`.

    Returns:
        Rows, images in the type they are stored in:
        :meth:`~jaxdistill.data.rows.AbstractRows.map` makes inputs and targets of them.

    Raises:
        DatasetError: As :func:`read`, or a split that is not there.
    """
    found = {rows.split: rows for rows in _open_splits(name, data_dir)}
    if split not in found:
        raise DatasetError(f"{name} has no split {split!r}; it has {', '.join(sorted(found)) or 'none'}")
    return found[split]


@final
@dataclass(frozen=True, eq=False)
class TfdsRows(AbstractRows):
    """One split of a prepared set; made by :func:`open_split`.

    Array_record is read by index, so from any row on at once; of tfrecord the rows before are read too.

    Args:
        builder: The builder of tensorflow-datasets.
        split: Name of the split.
        image_key: Where an example keeps its image.
        label_key: Where it keeps its class.
    """

    builder: Any
    split: str
    image_key: str
    label_key: str
    once = False

    @property
    def num_rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - known here
        """Number of examples."""
        return self.builder.info.splits[self.split].num_examples

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.builder.info.features[self.label_key].names)

    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Images (b, H, W, C) and class numbers (b,) of consecutive rows, from row ``start`` on."""
        for rows in self._read((self.image_key, self.label_key), start):
            yield rows[self.image_key], rows[self.label_key].astype(np.int64)

    def labels(self) -> np.ndarray:
        """Class numbers of all rows, shape (n,); no image is decoded."""
        parts = [rows[self.label_key].astype(np.int64) for rows in self._read((self.label_key,), 0)]
        return np.concatenate(parts)

    def _read(self, keys: tuple[str, ...], start: int) -> Iterator[dict[str, np.ndarray]]:
        """These features of consecutive rows, by name, from row ``start`` on."""
        by_index = str(self.builder.info.file_format.value) == "array_record"
        row = start
        try:
            for rows in self._by_index(keys, start) if by_index else self._in_order(keys, start):
                yield rows
                row += len(rows[keys[0]])
        except ImportError as error:
            raise DatasetError(
                f"{self.builder.data_dir} is prepared as tfrecord, which only TensorFlow reads "
                f"({_one_line(error)}); install tensorflow, or prepare the set as array_record"
            ) from error
        except Exception as error:  # each reader has its own errors for a damaged or missing file
            raise DatasetError(_damaged(self.builder.data_dir, error)) from error
        if row != max(self.num_rows, start):
            raise DatasetError(
                f"{self.builder.data_dir} holds {row} of {self.num_rows} examples of {self.split}; "
                "delete it, so that it is prepared again"
            )

    def _by_index(self, keys: tuple[str, ...], start: int) -> Iterator[dict[str, np.ndarray]]:
        import tensorflow_datasets as tfds

        # Its reader by index knows no partial decoding.
        skipped = {} if self.image_key in keys else {self.image_key: tfds.decode.SkipDecoding()}
        source = self.builder.as_data_source(split=self.split, decoders=skipped or None)
        for first in range(start, len(source), BATCH_SIZE):
            rows = source.__getitems__(range(first, min(first + BATCH_SIZE, len(source))))
            yield {key: np.stack([row[key] for row in rows]) for key in keys}

    def _in_order(self, keys: tuple[str, ...], start: int) -> Iterator[dict[str, np.ndarray]]:
        import tensorflow_datasets as tfds

        dataset = self.builder.as_dataset(
            split=self.split,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(keys, True)),
            # One file after the other, in the order of array_record; and no second copy in memory.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        yield from tfds.as_numpy(dataset.skip(start).batch(BATCH_SIZE))


def _open_splits(name: str, data_dir: Path | None) -> list[TfdsRows]:
    """The splits of a set that hold examples, from where it is prepared; or it is downloaded and prepared."""
    from tensorflow_datasets.core import constants

    parts = _NAME.fullmatch(name)
    if parts is None:
        raise DatasetError(_unknown(name, data_dir))
    roots = [Path(constants.DATA_DIR).expanduser()]
    if data_dir is not None:
        roots.insert(0, data_dir)
    folder = next(filter(None, (_prepared_folder(root, parts) for root in roots)), None)
    builder = _prepare(name, roots[0], data_dir) if folder is None else _open(folder)
    keys = _supervised_keys(name, builder.info)
    return [
        TfdsRows(builder, split, *keys) for split, info in builder.info.splits.items() if info.num_examples
    ]


def _prepared_folder(root: Path, parts: re.Match[str]) -> Path | None:
    """The newest prepared version below a data folder, or None."""
    base = root / parts["set"]
    if parts["config"] is not None:
        return _newest_version(base / parts["config"], parts["version"])
    found = _newest_version(base, parts["version"])
    if found is not None or not base.is_dir():
        return found
    configs = {
        folder.name: version
        for folder in sorted(base.iterdir())
        if folder.is_dir() and (version := _newest_version(folder, parts["version"]))
    }
    if len(configs) > 1:
        raise DatasetError(
            f"{base} holds several configurations; name one: "
            + ", ".join(f"{parts['set']}/{config}" for config in configs)
        )
    return next(iter(configs.values()), None)


def _newest_version(folder: Path, wanted: str | None) -> Path | None:
    if not folder.is_dir():
        return None
    versions = [
        child
        for child in folder.iterdir()
        if _VERSION.fullmatch(child.name)
        and wanted in (None, child.name)
        and (child / "features.json").is_file()
        and (child / "dataset_info.json").is_file()
    ]
    return max(versions, key=lambda child: tuple(map(int, child.name.split("."))), default=None)


def _open(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # damaged metadata surfaces as whatever the parser trips over
        raise DatasetError(_damaged(folder, error)) from error


def _prepare(name: str, root: Path, data_dir: Path | None) -> Any:
    """Download a data set and prepare it as array_record below root."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise DatasetError(_unknown(name, data_dir)) from None
    except Exception as error:  # an unknown configuration or version, or a missing package
        raise DatasetError(
            f"tensorflow-datasets cannot set up {name!r} ({_one_line(error)}); "
            "check the configuration and the version"
        ) from error
    _supervised_keys(name, builder.info)  # what cannot be used is not downloaded
    cure = (
        f"connect to the network, or put a prepared data set or {builder.name}.npz with the keys "
        "x_train, y_train, x_test, y_test into the folder that JAXDISTILL_DATA_DIR names"
    )
    problem = f"{name} is not below {root} and must be downloaded, which failed"
    try:
        if host := _unreachable_host(builder):
            raise DatasetError(f"{problem} (no connection to {host}); {cure}")
        # tensorflow-datasets announces downloads on stdout, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except DatasetError:
        raise
    except ImportError as error:  # tensorflow-datasets leaves many of its needs undeclared
        raise DatasetError(
            f"{name} is not below {root}, and preparing it needs a package that is not installed: "
            f"{error.name or _one_line(error)}; install it with pip"
        ) from error
    except Exception as error:  # the network, the disk, checksums, or the set's own script
        raise DatasetError(f"{problem} ({_one_line(error)}); {cure}") from error
    return builder


def _unreachable_host(builder: Any) -> str | None:
    """The first host of the downloads whose name does not resolve, or None.

    Without a network, tensorflow-datasets retries for several minutes before it gives up.
    """
    if urllib.request.getproxies():
        return None  # the proxy resolves names, and this machine may be unable to
    hosts = {urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()}
    for host in sorted(filter(None, hosts)):
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            return host
    return None


def _supervised_keys(name: str, info: Any) -> tuple[str, str]:
    """The keys of the image and of its class."""
    import tensorflow_datasets as tfds

    named = isinstance(info.features, tfds.features.FeaturesDict)
    features: dict[str, Any] = dict(info.features.items()) if named else {}
    images = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    pair = info.supervised_keys or ()
    if len(pair) >= 2 and pair[0] in images and pair[1] in labels:
        image_key, label_key = pair[0], pair[1]
    elif len(images) == 1 and len(labels) == 1:
        image_key, label_key = images[0], labels[0]
    else:
        raise DatasetError(
            f"{name} is not an image classification set: it has {len(images)} image and "
            f"{len(labels)} class features, not one of each; choose another, or save x and y "
            "as an .npz file"
        )
    shape = features[image_key].shape
    if None in shape:
        raise DatasetError(
            f"the images of {name} differ in size {shape}; "
            "resize them to one size and save them as an .npz file"
        )
    return image_key, label_key


def _read_all(rows: TfdsRows, *, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fill one array of images, in the type they are stored in, and one of labels."""
    count, feature = rows.num_rows, rows.builder.info.features[rows.image_key]
    images = np.empty((count, *feature.shape), feature.np_dtype)
    labels = np.empty(count, np.int64)
    position = 0
    with tqdm(total=count, desc=f"{rows.builder.name} {rows.split}", disable=not progress) as bar:
        for batch_images, batch_labels in rows.pieces():
            end = position + len(batch_labels)
            images[position:end], labels[position:end] = batch_images, batch_labels
            bar.update(end - position)
            position = end
    return images, labels


def _unknown(name: str, data_dir: Path | None) -> str:
    """Say that a name is unknown, and which known one is the nearest."""
    import tensorflow_datasets as tfds

    known = {"digits", *tfds.list_builders(with_community_datasets=False)}
    if data_dir is not None:
        known.update(file.stem for file in data_dir.glob("*.npz"))
        known.update(path.parents[1].name for path in data_dir.glob("*/*/features.json"))
    near = difflib.get_close_matches(name, sorted(known), n=1)
    cure = f"did you mean {near[0]!r}?" if near else "give 'digits' or a tensorflow-datasets name."
    return f"unknown data set {name!r}; {cure} A file is given by its path, ending in .npz"


def _damaged(folder: Path | str, error: Exception) -> str:
    return f"{folder} cannot be read ({_one_line(error)}); delete it, so that it is prepared again"


def _one_line(error: Exception) -> str:
    """The kind of an error and the beginning of its message, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
