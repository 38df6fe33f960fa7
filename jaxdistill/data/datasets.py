"""Data sets as plain arrays: scikit-learn's digits, ``.npz`` files, tensorflow-datasets names.

A data set is loaded once, checked once, and from then on it is four NumPy arrays. Everything that
could spread silently (NaN, wrong ranges, empty classes, lengths that disagree) is an error here.
"""

import gzip
import importlib.util
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from jaxdistill.data.pixels import Pixels, in_unit_range
from jaxdistill.data.preprocess import channels_first
from jaxdistill.errors import DatasetError, InputError
from jaxdistill.numerics.arrays import as_array

KEYS = ("x_train", "y_train", "x_test", "y_test")
DATA_DIR_VARIABLE = "JAXDISTILL_DATA_DIR"
TEST_FRACTION = 0.2
# The split is part of the data set's definition, so its seed is a constant and no argument.
SPLIT_SEED = 0

# Names that the well-known .npz files do not carry themselves.
CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set, checked, in memory.

    Attributes:
        name: What was asked for; of a file, its name without ``.npz``.
        x_train: Images (n,H,W,C) in [0,1], float32; or a table (n,d) in its own units, float64 unless it was
            saved in float32 or less. Images in uint8 stay so where it is asked for, and NumPy reads the same.
        y_train: Classes (n,), numbered from 0; or real targets (n,t) for regression.
        x_test: As ``x_train``.
        y_test: As ``y_train``.
        class_names: One name per class, or None for regression.

    Example:
        >>> data = load_dataset("digits")
        >>> data.x_train.shape, data.num_classes, data.example_shape
        ((1438, 8, 8, 1), 10, (8, 8, 1))
    """

    name: str
    x_train: Float32[np.ndarray, "n_train *shape"] | Float64[np.ndarray, "n_train d"] | Pixels
    y_train: Int64[np.ndarray, " n_train"] | Float64[np.ndarray, "n_train t"]
    x_test: Float32[np.ndarray, "n_test *shape"] | Float64[np.ndarray, "n_test d"] | Pixels
    y_test: Int64[np.ndarray, " n_test"] | Float64[np.ndarray, "n_test t"]
    class_names: tuple[str, ...] | None

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes."""
        return self.class_names is not None

    @property
    def num_classes(self) -> int:
        """Number of classes; a DatasetError for regression."""
        if self.class_names is None:
            raise DatasetError(
                f"{self.name} has real-valued targets and no classes; "
                "use is_classification to tell, or integer labels to classify"
            )
        return len(self.class_names)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example: (H,W,C) for images, (d,) for a table."""
        return self.x_train.shape[1:]


def load_dataset(name: str | os.PathLike[str], *, progress: bool = False, pixels: bool = False) -> Dataset:
    """Load a data set by name or from a file.

    Images become float32 (n,H,W,C) in [0,1]: uint8 is divided by 255, float must be in [0,1]
    already, grey images (n,H,W) gain a channel axis. Tables (n,d) keep their units and their precision:
    float64 and integer tables become float64. Integer labels are classes, float labels are regression
    targets.

    Args:
        name: One of

            - ``"digits"``: the 8x8 digits embedded in scikit-learn, always available;
            - a path ending in ``.npz`` with Keras's keys x_train, y_train, x_test, y_test, and
              optionally class_names (an array of strings);
            - the name of a tensorflow-datasets image classification set, as ``"mnist"``,
              ``"cifar10"``, ``"name/config"``, ``"name:1.0.0"``. The folder that the environment
              variable JAXDISTILL_DATA_DIR names is searched for NAME.npz and then for a prepared
              tensorflow-datasets folder, after it the default tensorflow-datasets folder; what is
              found nowhere is downloaded.
        progress: Show a progress bar on stderr while examples are read one by one.
        pixels: Keep images that are uint8 so, for an accelerator: NumPy reads the same numbers.

    Returns:
        The data set. Without a test split the validation split takes its place, and without
        both a fixed, stratified fifth of the training split.

    Raises:
        DatasetError: The data set is unknown, unreadable, or its contents are not usable.

    Example:
        >>> data = load_dataset("digits")
        >>> data.x_train.dtype, float(data.x_train.max()), data.y_train.dtype
        (dtype('float32'), 1.0, dtype('int64'))
    """
    name = os.fspath(name)
    if name == "digits":
        return _load_digits()
    if name.endswith(".npz"):
        return _load_npz(Path(name).expanduser(), pixels)
    folder = data_folder()
    if folder is not None and (folder / f"{name}.npz").is_file():
        return _load_npz(folder / f"{name}.npz", pixels)

    from jaxdistill.data import tfds_source

    splits = tfds_source.read(name, folder, progress=progress)
    train, test, class_names = splits.train, splits.test, splits.class_names
    del splits  # so that the images as they were read go as soon as they are converted
    arrays = _stratified_split(*train) if test is None else [*train, *test]
    del train, test
    return _assemble(name, arrays, class_names, pixels)


def one_hot(labels: np.ndarray, num_classes: int, *, centred: bool = False) -> Float64[np.ndarray, "n k"]:
    """One-hot rows, or one-hot rows that sum to zero.

    ``Y[i,j] = [labels[i] = j] - (1/k if centred else 0)``

    Args:
        labels: Classes (n,), 0 to ``num_classes - 1``.
        num_classes: Number of columns k.
        centred: Subtract 1/k, which makes every row sum to zero.

    Returns:
        Float64 rows (n,k).

    Raises:
        InputError: The labels are not a vector of integers in range.

    Example:
        >>> one_hot(np.array([1, 0]), 2, centred=True)
        array([[-0.5,  0.5],
               [ 0.5, -0.5]])
    """
    labels = as_array("labels", labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"labels must be integers of shape (n,), got {labels.dtype} of shape {labels.shape}")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise InputError(
            f"labels[{outside[0]}] is {labels[outside[0]]}, outside 0..{num_classes - 1}; "
            "number the classes from 0 or give a larger num_classes"
        )
    rows = np.zeros((labels.size, num_classes))
    rows[np.arange(labels.size), labels] = 1.0
    return rows - 1.0 / num_classes if centred else rows


def data_folder() -> Path | None:
    """The folder that JAXDISTILL_DATA_DIR names, or None when it is unset or empty."""
    setting = os.environ.get(DATA_DIR_VARIABLE)
    if not setting:
        return None
    folder = Path(setting).expanduser()
    if not folder.is_dir():
        raise DatasetError(
            f"{DATA_DIR_VARIABLE} is {setting!r}, which is not a folder; create it or unset it"
        )
    return folder


def _load_digits() -> Dataset:
    """The digits that come with scikit-learn, 8x8 pixels of 0 to 16, in a fixed split.

    Read from its own data file: importing scikit-learn takes longer than all that a short run computes.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DatasetError(
            "the digits are a file of scikit-learn, which is not installed; install scikit-learn"
        )
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        text = gzip.decompress(path.read_bytes()).decode()
        table = np.array(text.replace("\n", ",").rstrip(",").split(","), np.float64).reshape(-1, 65)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetError(
            f"the digits cannot be read from {path} ({error}); reinstall scikit-learn"
        ) from None
    images = (table[:, :-1] / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    return _assemble("digits", _stratified_split(images, table[:, -1].astype(int)), tuple("0123456789"))


def held_out_rows(y: np.ndarray) -> np.ndarray:
    """Which rows are for testing, where no part of a data set is: a fifth of every class."""
    rng = np.random.default_rng(SPLIT_SEED)
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        held_out[members[: round(TEST_FRACTION * members.size)]] = True
    return held_out


def _stratified_split(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """x_train, y_train, x_test, y_test, in the order of x."""
    held_out = held_out_rows(y)
    return [x[~held_out], y[~held_out], x[held_out], y[held_out]]


def _load_npz(path: Path, pixels: bool) -> Dataset:
    """Read Keras's four keys, and class_names where present, without ever unpickling."""
    try:
        # Opened here, since np.load leaves the file open when it turns out to be damaged.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DatasetError(f"{path} is a single array; save {', '.join(KEYS)} in one .npz")
            missing = [key for key in KEYS if key not in file]
            if missing:
                raise DatasetError(
                    f"{path} lacks {', '.join(missing)} (it has {', '.join(file) or 'nothing'}); "
                    f"save it with np.savez(path, {', '.join(f'{key}=...' for key in KEYS)})"
                )
            arrays = [as_array(key, file[key]) for key in KEYS]
            names = np.asarray(file["class_names"]) if "class_names" in file else None
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist; check the path") from None
    except DatasetError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(_why_unreadable(path, error)) from error
    return _assemble(path.stem, arrays, None if names is None else checked_names(path, names), pixels)


def _why_unreadable(path: Path, error: Exception) -> str:
    """Tell pickled objects, which are refused, from a damaged file."""
    if "pickle" in str(error):
        return (
            f"{path} holds pickled objects, which are never loaded because they can run code; "
            "save plain arrays of numbers with np.savez"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} cannot be read as an .npz file ({reason}); make or copy it again"


def checked_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    """Class names as a file has them."""
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DatasetError(
            f"class_names in {path} must be a vector of strings, got {names.dtype} of shape {names.shape}"
        )
    return tuple(names.tolist())


def _assemble(
    name: str, arrays: list[np.ndarray], class_names: tuple[str, ...] | None, pixels: bool = False
) -> Dataset:
    """Check and convert x_train, y_train, x_test, y_test; empties the list on the way."""
    raw: dict[str, np.ndarray] = dict(zip(KEYS, arrays, strict=True))
    arrays.clear()  # this frame holds the only reference left, and drops it after conversion
    for split in ("train", "test"):
        x, y = raw[f"x_{split}"], raw[f"y_{split}"]
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or x.size == 0:
            raise DatasetError(
                f"{name}: x_{split} has shape {x.shape} and y_{split} {y.shape}; "
                "both need the same first axis, with at least one example"
            )
    del x, y
    x_train: Any = checked_inputs(name, "x_train", raw.pop("x_train"), pixels=pixels)
    x_test: Any = checked_inputs(name, "x_test", raw.pop("x_test"), pixels=pixels)
    if x_train.dtype != x_test.dtype:  # tables alone: one part in float32, the other in float64
        x_train, x_test = x_train.astype(np.float64), x_test.astype(np.float64)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DatasetError(
            f"{name}: one example has shape {x_train.shape[1:]} in x_train "
            f"and {x_test.shape[1:]} in x_test; both must be the same"
        )
    y_train = checked_targets(name, "y_train", raw["y_train"])
    y_test = checked_targets(name, "y_test", raw["y_test"])
    if y_train.dtype != y_test.dtype or y_train.shape[1:] != y_test.shape[1:]:
        raise DatasetError(
            f"{name}: y_train is {y_train.dtype} {y_train.shape} and y_test {y_test.dtype} "
            f"{y_test.shape}; both must be classes, or targets of the same width"
        )
    if y_train.dtype == np.int64:
        class_names = checked_classes(name, {"y_train": y_train, "y_test": y_test}, class_names)
    elif class_names is not None:
        raise DatasetError(
            f"{name} has class names, but float labels; save y_train and y_test as integers, "
            "or leave the class names out for regression"
        )
    return Dataset(name, x_train, y_train, x_test, y_test, class_names)


def checked_inputs(
    name: str, key: str, x: np.ndarray, first: int = 0, *, pixels: bool = False
) -> Float32[np.ndarray, "n *shape"] | Float64[np.ndarray, "n d"] | Pixels:
    """Float32 images (n,H,W,C) in [0,1], or a table (n,d) in its own units and precision.

    ``first`` is the number of the first row, where these are not all; with ``pixels``, uint8 images stay so.
    """
    if x.ndim not in (2, 3, 4):
        raise DatasetError(
            f"{name}: {key} has shape {x.shape}; give images (n,H,W,C) or (n,H,W), or a table (n,d)"
        )
    if cure := channels_first(x.shape):
        raise DatasetError(f"{name}: {key} has shape {x.shape}; {cure}")
    if x.ndim > 2 and x.dtype == np.uint8:
        images = x[..., None] if x.ndim == 3 else x
        return Pixels(images) if pixels else in_unit_range(images)
    if x.dtype.kind not in ("biuf" if x.ndim == 2 else "f"):
        raise DatasetError(
            f"{name}: {key} has type {x.dtype}; give uint8 images of 0 to 255, "
            "float images in [0,1], or a numeric table"
        )
    # Time stamps differ in digits that float32 does not have: a table is standardised before it is rounded.
    narrow = x.ndim > 2 or (x.dtype.kind == "f" and x.dtype.itemsize <= 4)
    with np.errstate(over="ignore"):  # what the type cannot hold is infinite, and named below
        x = np.ascontiguousarray(x, dtype=np.float32 if narrow else np.float64)
    # A NaN carries over into the minimum, and no array of flags is needed to find it.
    low, high = float(x.min()), float(x.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DatasetError(_not_finite(name, key, x, first))
    if x.ndim == 2:
        return x
    if low < 0 or high > 1:
        raise DatasetError(
            f"{name}: the float images in {key} range from {low:g} to {high:g}, not within [0,1]; "
            "rescale them, or save them as uint8 of 0 to 255"
        )
    return x[..., None] if x.ndim == 3 else x


def checked_targets(
    name: str, key: str, y: np.ndarray, first: int = 0
) -> Int64[np.ndarray, " n"] | Float64[np.ndarray, "n t"]:
    """Integers as classes (n,), floats as regression targets (n,t); ``first`` as for inputs."""
    if y.dtype.kind == "f":
        y = np.ascontiguousarray(y, dtype=np.float64).reshape(len(y), -1)
        if not np.isfinite(y).all():
            raise DatasetError(_not_finite(name, key, y, first))
        return y
    if y.dtype.kind not in "iu" or y.size != len(y):
        raise DatasetError(
            f"{name}: {key} is {y.dtype} of shape {y.shape}; give integer classes (n,) or (n,1), "
            "or float targets (n,t)"
        )
    return y.reshape(-1).astype(np.int64)


def checked_classes(
    name: str, labels: dict[str, Int64[np.ndarray, " n"]], class_names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The class names; an error unless the training labels are 0 to k-1, each at least once."""
    present = np.unique(labels["y_train"])
    count = int(present[-1]) + 1 if class_names is None else len(class_names)
    for key, values in labels.items():
        found = np.unique(values)
        outside = found[(found < 0) | (found >= count)]
        if outside.size:
            raise DatasetError(
                f"{name}: {key} has the label {outside[0]}, outside 0..{max(count, 1) - 1}; "
                "number the classes of the training set from 0"
            )
    if present.size < count:
        empty = int(np.setdiff1d(np.arange(present.size + 1), present)[0])
        called = "" if class_names is None else f" ({class_names[empty]})"
        raise DatasetError(
            f"{name}: class {empty}{called} has no training example; "
            "number the classes 0..k-1 without gaps, or add examples"
        )
    if count < 2:
        raise DatasetError(f"{name} has a single class; give at least two")
    if class_names is not None:
        return class_names
    known = CLASS_NAMES.get(name, ())
    return known if len(known) == count else tuple(map(str, range(count)))


def _not_finite(name: str, key: str, values: np.ndarray, first: int) -> str:
    place = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
    where = ", ".join(map(str, (first + place[0], *place[1:])))
    return f"{name}: {key}[{where}] is {values[place]}; remove or replace values that are not finite"
