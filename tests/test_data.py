import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill import tfds_source
from jaxdistill.data import CLASS_NAMES, Dataset, load_dataset, one_hot
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
    assert data.example_shape == (4,)


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
        ({"x_train": np.full((12, 4), "a")}, "numeric table"),
        (changed("x_train", (3, 0, 1, 2), np.nan, np.float32), r"x_train\[3, 0, 1, 2\] is nan"),
        (changed("x_test", (5, 1, 0, 0), -np.inf, np.float64), r"x_test\[5, 1, 0, 0\] is -inf"),
        (changed("x_train", (0, 0, 0, 0), 255.0, np.float32), r"range from 0 to 255.*rescale"),
        (changed("x_train", (0, 0, 0, 0), -1.0, np.float32), r"range from -1"),
        ({"x_train": np.full((12, 4), 1e300), "x_test": np.zeros((6, 4))}, r"\[0, 0\] is inf"),
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


# tensorflow-datasets, prepared for real and without a network

PREPARE = '''
import os, sys
from pathlib import Path
import numpy as np
import tensorflow_datasets as tfds
from jaxdistill.data import load_dataset

class Tiny(tfds.core.GeneratorBasedBuilder):
    """A few random images in three classes."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": 30, "test": 9}

    def _info(self):
        return self.dataset_info_from_features(tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(4, 5, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
            "note": tfds.features.Text(),
        }))

    def dataset_info_from_features(self, features):
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, manager):
        return {name: self._images(count) for name, count in self.SPLITS.items()}

    def _generate_examples(self):
        raise NotImplementedError

    def _images(self, count):
        rng = np.random.default_rng(count)
        for i in range(count):
            image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            yield i, {"image": image, "label": i % 3, "note": str(i)}

class TinyValidation(Tiny):
    SPLITS = {"train": 30, "validation": 9}

class TinyTrain(Tiny):
    SPLITS = {"train": 30}

class TinyTest(Tiny):
    SPLITS = {"test": 9}

class TinyPlain(Tiny):
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "picture": tfds.features.Image(shape=(4, 5, 3)),
            "kind": tfds.features.ClassLabel(num_classes=3),
        }))

    def _images(self, count):
        for i, row in super()._images(count):
            yield i, {"picture": row["image"], "kind": row["label"]}

class TinyTable(Tiny):
    def _info(self):
        return self.dataset_info_from_features(tfds.features.FeaturesDict({
            "image": tfds.features.Tensor(shape=(4, 5, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=3),
            "note": tfds.features.Text(),
        }))

class TinyRagged(Tiny):
    def _info(self):
        return self.dataset_info_from_features(tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
            "note": tfds.features.Text(),
        }))

root = Path(sys.argv[1])
for folder in ("tfrecord", "array_record"):
    (root / folder).mkdir()
Tiny(data_dir=root / "tfrecord", file_format="tfrecord").download_and_prepare()
for cls in (TinyValidation, TinyTrain, TinyTest, TinyPlain):
    cls(data_dir=root / "array_record", file_format="array_record").download_and_prepare()

# What follows is the loader's own work: it prepares, and it reads tfrecord.
sys.stdout.flush()
sys.stdout = open(root / "stdout.txt", "w")
os.environ["JAXDISTILL_DATA_DIR"] = str(root / "array_record")
prepared = load_dataset("tiny")
for name in ("tiny_table", "tiny_ragged", "tiny_test"):
    try:
        load_dataset(name)
    except Exception as error:
        (root / name).write_text(f"{type(error).__name__}: {error}")
os.environ["JAXDISTILL_DATA_DIR"] = str(root / "tfrecord")
data = load_dataset("tiny")
np.savez(root / "read.npz", x_train=data.x_train, y_train=data.y_train, x_test=data.x_test,
         y_test=data.y_test, class_names=np.array(data.class_names),
         same=all(np.array_equal(getattr(data, key), getattr(prepared, key))
                  for key in ("x_train", "y_train", "x_test", "y_test")))
sys.stdout.flush()
'''


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Folders that another process prepared, so that no builder class is registered in this one."""
    root = tmp_path_factory.mktemp("tfds")
    run = subprocess.run(
        [sys.executable, "-c", PREPARE, str(root)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return root


def expected(count):
    rng = np.random.default_rng(count)
    images = np.stack([rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(count)])
    return images.astype(np.float32) / np.float32(255), np.arange(count) % 3


def assert_same_examples(x, y, count):
    """tensorflow-datasets shuffles when it prepares, so compare as sets."""
    images, labels = expected(count)
    assert sorted(zip(x.reshape(count, -1).tolist(), y.tolist(), strict=True)) == sorted(
        zip(images.reshape(count, -1).tolist(), labels.tolist(), strict=True)
    )


def test_array_record_is_read_without_tensorflow(prepared):
    code = (
        "import sys; from jaxdistill.data import load_dataset; data = load_dataset('tiny');"
        "assert 'tensorflow' not in sys.modules; print(len(data.x_train), data.class_names)"
    )
    environment = os.environ | {"JAXDISTILL_DATA_DIR": str(prepared / "array_record")}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert run.stdout == "30 ('cat', 'dog', 'owl')\n", run.stderr


def test_importing_the_module_is_light():
    code = (
        "import sys, jaxdistill.data;"
        "print({'tensorflow', 'tensorflow_datasets', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "set()\n", run.stderr


def test_array_record_contents(prepared, monkeypatch, capsys):
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(prepared / "array_record"))
    data = load_dataset("tiny", progress=True)
    assert "tiny train" in capsys.readouterr().err
    assert data.class_names == ("cat", "dog", "owl") and data.example_shape == (4, 5, 3)
    assert_same_examples(data.x_train, data.y_train, 30)
    assert_same_examples(data.x_test, data.y_test, 9)
    assert len(load_dataset("tiny:1.0.0").x_train) == 30
    assert "tiny train" not in capsys.readouterr().err


def test_tfrecord_and_array_record_agree(prepared):
    with np.load(prepared / "read.npz") as read:
        assert bool(read["same"]) and read["class_names"].tolist() == ["cat", "dog", "owl"]
        assert_same_examples(read["x_train"], read["y_train"], 30)
        assert_same_examples(read["x_test"], read["y_test"], 9)


def test_preparing_leaves_stdout_alone(prepared):
    assert (prepared / "stdout.txt").read_text() == ""
    info = json.loads((prepared / "array_record/tiny/1.0.0/dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"


def test_validation_takes_the_place_of_test(prepared, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(prepared / "array_record"))
    data = load_dataset("tiny_validation")
    assert_same_examples(data.x_test, data.y_test, 9)


def test_training_split_is_divided_when_there_is_no_other(prepared, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(prepared / "array_record"))
    data, again = load_dataset("tiny_train"), load_dataset("tiny_train")
    assert np.bincount(data.y_train).tolist() == [8, 8, 8]
    np.testing.assert_array_equal(data.x_test, again.x_test)
    assert_same_examples(
        np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test]), 30
    )


def test_features_are_found_without_supervised_keys(prepared, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(prepared / "array_record"))
    assert load_dataset("tiny_plain").class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_table", "0 image and 1 class features"),
        ("tiny_ragged", "differ in size"),
        ("tiny_test", "no split 'train' (it has test)"),
    ],
)
def test_unsuitable_sets(prepared, name, message):
    text = (prepared / name).read_text()
    assert text.startswith("DatasetError: ") and message in text
    assert not (prepared / "array_record" / "tiny_table").exists()  # refused before the download


@pytest.fixture
def own_copy(prepared, tmp_path, monkeypatch) -> Path:
    shutil.copytree(prepared / "array_record" / "tiny", tmp_path / "tiny")
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(tmp_path))
    return tmp_path / "tiny"


def test_newest_version_and_configurations(own_copy):
    shutil.copytree(own_copy / "1.0.0", own_copy / "0.9.0")
    (own_copy / "10.0.0").mkdir()  # not a prepared set
    found = tfds_source._newest_version(own_copy, None)
    assert found is not None and found.name == "1.0.0"
    shutil.copytree(own_copy / "1.0.0", own_copy / "small/1.0.0")
    shutil.rmtree(own_copy / "1.0.0")
    shutil.rmtree(own_copy / "0.9.0")
    assert len(load_dataset("tiny").x_train) == 30
    shutil.copytree(own_copy / "small", own_copy / "large")
    with pytest.raises(DatasetError, match="name one: tiny/large, tiny/small"):
        load_dataset("tiny")
    assert len(load_dataset("tiny/small").x_train) == 30


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json", "*train*"])
def test_damaged_folder(own_copy, file):
    (path,) = (own_copy / "1.0.0").glob(file)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DatasetError, match="cannot be read") as caught:
        load_dataset("tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "did you mean 'mnist'"),
        ("digit", "did you mean 'digits'"),
        ("hoose", "did you mean 'house'"),
        ("tinny", "did you mean 'tiny'"),
        ("x y z", "unknown data set 'x y z'; give"),
        ("huggingface:mnist", "unknown data set"),
        ("iris", "not an image classification set"),
        ("cats_vs_dogs", "differ in size"),
        ("emnist/absent", "check the configuration"),
    ],
)
def test_names_that_cannot_be_loaded(own_copy, name, message):
    saved(own_copy.parent, "house")
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(name)
    assert "\n" not in str(caught.value)


def test_download_needs_a_network(own_copy, monkeypatch):
    pytest.importorskip("importlib_resources")  # tensorflow-datasets needs it for its checksums
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)

    def no_network(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(DatasetError, match=r"must be downloaded.*no connection to.*connect to"):
        load_dataset("mnist")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("disk\nfull"), r"must be downloaded, which failed \(OSError: disk full\)"),
        (ModuleNotFoundError("no such", name="gone"), "not installed: gone; install it with pip"),
    ],
)
def test_download_fails(own_copy, monkeypatch, error, message):
    import tensorflow_datasets as tfds

    def fail(_self):
        raise error

    monkeypatch.setattr(tfds_source, "_unreachable_host", lambda _builder: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(DatasetError, match=message):
        load_dataset("mnist")


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
