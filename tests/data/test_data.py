import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.data.datasets import CLASS_NAMES, Dataset, _stratified_split, load_dataset, one_hot
from jaxdistill.errors import DatasetError, InputError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("JAXDISTILL_DATA_DIR", raising=False)


def keras_arrays(n=12, m=6, shape=(4, 5, 3), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "y_train": (np.arange(n) % classes).astype(np.uint8),
        "x_test": rng.integers(0, 256, (m, *shape), dtype=np.uint8),
        "y_test": (np.arange(m) % classes).astype(np.uint8),
    }


def saved(folder: Path, name="some", **changes) -> str:
    arrays = {key: value for key, value in (keras_arrays() | changes).items() if value is not None}
    np.savez(folder / f"{name}.npz", **arrays)
    return str(folder / f"{name}.npz")


# Digits


def test_digits_are_those_of_scikit_learn_read_without_importing_it():
    code = (
        "import sys; from jaxdistill.data.datasets import load_dataset\n"
        "data = load_dataset('digits')\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('sklearn', 'scipy.sparse')]\n"
        "print(data.x_train.shape)"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert run.stdout == "(1438, 8, 8, 1)\n", run.stderr
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    expected = _stratified_split((pixels / 16.0).astype(np.float32).reshape(-1, 8, 8, 1), labels)
    data = load_dataset("digits")
    for found, wanted in zip((data.x_train, data.y_train, data.x_test, data.y_test), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), (b"1,2,3", "cannot be read"), ("gone", "install")]
)
def test_digits_that_cannot_be_read(monkeypatch, tmp_path, content, words):
    data = tmp_path / "datasets" / "data"
    data.mkdir(parents=True)
    if isinstance(content, bytes):
        (data / "digits.csv.gz").write_bytes(content)
    spec = None if content == "gone" else SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(DatasetError, match=words):
        load_dataset("digits")


def test_digits_split_is_fixed_stratified_and_complete():
    data, again = load_dataset("digits"), load_dataset("digits")
    assert isinstance(data, Dataset) and data.is_classification
    assert (data.num_classes, data.example_shape) == (10, (8, 8, 1))
    assert data.class_names == tuple("0123456789")
    np.testing.assert_array_equal(data.x_train, again.x_train)
    np.testing.assert_array_equal(data.y_test, again.y_test)
    assert len(data.x_train) + len(data.x_test) == 1797
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    share = np.bincount(data.y_test) / (np.bincount(data.y_test) + np.bincount(data.y_train))
    np.testing.assert_allclose(share, 0.2, atol=0.003)
    # The split must not change from one release of NumPy to the next.
    assert data.y_test[:8].tolist() == [5, 9, 2, 4, 6, 7, 9, 3]
    assert float(data.x_test.sum(dtype=np.float64)) == 6993.125


# Files


def test_npz_images_become_float32_in_unit_range(tmp_path):
    data = load_dataset(saved(tmp_path))
    assert data.name == "some" and data.class_names == ("0", "1", "2")
    assert data.x_train.dtype == np.float32 and data.y_train.dtype == np.int64
    np.testing.assert_array_equal(
        data.x_train, keras_arrays()["x_train"].astype(np.float32) / np.float32(255)
    )


def test_npz_grey_images_and_column_labels(tmp_path):
    changes = keras_arrays(shape=(4, 5))
    changes["y_train"] = changes["y_train"][:, None].astype(np.int64)
    changes["y_test"] = changes["y_test"][:, None].astype(np.int64)
    data = load_dataset(saved(tmp_path, **changes))
    assert data.x_train.shape == (12, 4, 5, 1) and data.y_train.shape == (12,)


def test_npz_float_images_are_kept(tmp_path):
    images = np.linspace(0, 1, 12 * 16).reshape(12, 4, 4)
    data = load_dataset(saved(tmp_path, x_train=images, x_test=images[:6]))
    np.testing.assert_array_equal(data.x_train[..., 0], images.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64, bool])
def test_npz_table_keeps_its_units(tmp_path, dtype):
    table = (np.arange(48).reshape(12, 4) * 7 % 256).astype(dtype)
    data = load_dataset(saved(tmp_path, x_train=table, x_test=table[:6]))
    np.testing.assert_array_equal(data.x_train, table.astype(np.float32))
    assert data.example_shape == (4,) and data.x_train.dtype == np.float64


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [("f4", "f4", "f4"), ("f2", "f4", "f4"), ("f4", "f8", "f8"), (">i8", "i4", "f8"), (">f8", ">f4", "f8")],
)
def test_npz_table_keeps_its_precision_in_both_parts(tmp_path, train, test, expected):
    table = np.arange(48).reshape(12, 4)
    data = load_dataset(saved(tmp_path, x_train=table.astype(train), x_test=table[:6].astype(test)))
    assert data.x_train.dtype == data.x_test.dtype == np.dtype(expected)
    assert data.x_train.dtype.isnative
    np.testing.assert_array_equal(data.x_train, table)
    np.testing.assert_array_equal(data.x_test, table[:6])


def test_npz_regression(tmp_path):
    y = np.linspace(-1, 1, 12, dtype=np.float32)
    data = load_dataset(saved(tmp_path, y_train=y, y_test=y[:6]))
    assert data.y_train.shape == (12, 1) and data.y_train.dtype == np.float64
    assert not data.is_classification and data.class_names is None
    with pytest.raises(DatasetError, match="no classes"):
        _ = data.num_classes


def test_npz_class_names(tmp_path):
    names = np.array(["cat", "dog", "owl"])
    assert load_dataset(saved(tmp_path, class_names=names)).class_names == ("cat", "dog", "owl")
    ten = keras_arrays(n=20, m=10, classes=10)
    assert load_dataset(saved(tmp_path, "cifar10", **ten)).class_names == CLASS_NAMES["cifar10"]
    assert load_dataset(saved(tmp_path, "mnist")).class_names == ("0", "1", "2")


def test_npz_compressed_and_fortran_order(tmp_path):
    arrays = keras_arrays()
    arrays["x_train"] = np.asfortranarray(arrays["x_train"])
    np.savez_compressed(tmp_path / "some.npz", **arrays)
    data = load_dataset(str(tmp_path / "some.npz"))
    assert data.x_train.flags.c_contiguous
    np.testing.assert_array_equal(data.x_train * 255, arrays["x_train"])


def changed(key, index, value, dtype=None):
    array = keras_arrays()[key]
    array = array if dtype is None else (array / 255).astype(dtype)
    array[index] = value
    return {key: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": np.zeros((11, 4, 5, 3), np.uint8)}, "same first axis"),
        ({"x_test": np.zeros((6, 4, 4, 3), np.uint8)}, r"\(4, 5, 3\) in x_train and \(4, 4, 3\)"),
        ({"x_train": np.zeros((12, 0, 5, 3), np.uint8)}, "at least one example"),
        ({"x_train": np.uint8(3)}, "shape"),
        ({"x_train": np.zeros(12)}, r"images \(n,H,W,C\)"),
        ({"x_train": np.zeros((12, 4, 5, 3), np.int32)}, "type int32.*uint8"),
        ({"x_train": np.zeros((12, 3, 5, 6), np.uint8)}, r"channels come last.*\(12, 5, 6, 3\)"),
        ({"x_train": np.zeros((12, 1, 28, 28))}, r"channels come last.*\(12, 28, 28, 1\)"),
        ({"x_train": np.full((12, 4), "a")}, "numeric table"),
        (changed("x_train", (3, 0, 1, 2), np.nan, np.float32), r"x_train\[3, 0, 1, 2\] is nan"),
        (changed("x_test", (5, 1, 0, 0), -np.inf, np.float64), r"x_test\[5, 1, 0, 0\] is -inf"),
        (changed("x_train", (0, 0, 0, 0), 255.0, np.float32), r"range from 0 to 255.*rescale"),
        (changed("x_train", (0, 0, 0, 0), -1.0, np.float32), r"range from -1"),
        ({"x_train": np.full((12, 4), np.inf), "x_test": np.zeros((6, 4))}, r"\[0, 0\] is inf"),
        ({"y_train": np.array([np.inf] * 12), "y_test": np.zeros(6)}, r"y_train\[0, 0\] is inf"),
        ({"y_test": np.zeros(6)}, "both must be classes"),
        ({"y_train": np.zeros((12, 2)), "y_test": np.zeros((6, 3))}, "same width"),
        ({"y_train": np.zeros((12, 3), int)}, "integer classes"),
        ({"y_train": np.full(12, "a")}, "integer classes"),
        ({"y_train": np.arange(12) % 3 * 2}, "class 1 has no training example"),
        ({"y_train": np.arange(12) % 3 + 10**12}, "class 0 has no training example"),
        ({"y_train": np.arange(12) % 3 - 1}, "y_train has the label -1"),
        ({"y_test": np.array([0, 1, 2, 3, 0, 1])}, r"y_test has the label 3, outside 0..2"),
        ({"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}, "single class"),
        ({"class_names": np.array(list("abcd"))}, r"class 3 \(d\) has no training example"),
        ({"class_names": np.array(list("ab"))}, r"label 2, outside 0..1"),
        ({"class_names": np.arange(3)}, "vector of strings"),
        (
            {"class_names": np.array(["a"]), "y_train": np.zeros(12), "y_test": np.zeros(6)},
            "class names, but float labels",
        ),
        ({"x_train": np.array([{}] * 12, object)}, "pickled objects"),
        ({"class_names": np.array(["a", None], object)}, "pickled objects"),
    ],
)
def test_npz_errors_name_cause_and_cure(tmp_path, changes, message):
    path = saved(tmp_path, **changes)
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def damaged_file(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no array at all")
    elif how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "flipped":
        path.write_bytes(whole[:500] + bytes(255 - byte for byte in whole[500:600]) + whole[600:])
    else:
        with path.open("wb") as file:
            np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "cannot be read"),
        ("text", "pickled objects"),
        ("truncated", "cannot be read"),
        ("flipped", "cannot be read"),
        ("npy", "single array"),
    ],
)
def test_damaged_files(tmp_path, how, message):
    path = saved(tmp_path)
    damaged_file(Path(path), how)
    with pytest.raises(DatasetError, match=message):
        load_dataset(path)


def test_missing_file_and_folder_in_its_place(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        load_dataset(str(tmp_path / "absent.npz"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset(str(tmp_path / "folder.npz"))


def test_data_folder_comes_first(tmp_path, monkeypatch):
    saved(tmp_path, "fashion_mnist", **keras_arrays(n=20, m=10, classes=10))
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(tmp_path))
    data = load_dataset("fashion_mnist")
    assert data.name == "fashion_mnist" and data.class_names == CLASS_NAMES["fashion_mnist"]
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(tmp_path / "absent"))
    with pytest.raises(DatasetError, match="not a folder"):
        load_dataset("fashion_mnist")


# One-hot


@given(st.integers(1, 12).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1)))))
def test_one_hot_rows(case):
    k, values = case
    labels = np.array(values, np.int64)
    rows, centred = one_hot(labels, k), one_hot(labels, k, centred=True)
    assert rows.shape == (len(values), k) and rows.dtype == np.float64
    np.testing.assert_array_equal(rows.sum(1), 1)
    np.testing.assert_allclose(centred.sum(1), 0, atol=1e-14)
    np.testing.assert_array_equal(centred, rows - 1 / k)
    if values:
        np.testing.assert_array_equal(rows.argmax(1), labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 3], r"labels\[1\] is 3"), ([-1], "outside"), ([[0]], "shape"), ([0.0], "integers")],
)
def test_one_hot_errors(labels, message):
    with pytest.raises(InputError, match=message):
        one_hot(np.array(labels), 3)


def test_importing_the_module_is_light():
    code = (
        "import sys, jaxdistill.data;"
        "print({'tensorflow', 'tensorflow_datasets', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "set()\n", run.stderr


# The whole of MNIST, where it is at hand

MNIST_FOLDER = os.environ.get("JAXDISTILL_DATA_DIR", "")


@pytest.mark.skipif(
    not (Path(MNIST_FOLDER) / "mnist.npz").is_file(), reason="no mnist.npz in JAXDISTILL_DATA_DIR"
)
def test_mnist(monkeypatch):
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", MNIST_FOLDER)
    data = load_dataset("mnist")
    assert data.x_train.shape == (60000, 28, 28, 1) and data.x_test.shape == (10000, 28, 28, 1)
    assert data.num_classes == 10 and data.x_train.max() == 1
