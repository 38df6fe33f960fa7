import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.data import tfds_source
from jaxdistill.data.datasets import load_dataset
from jaxdistill.data.opened import open_training
from jaxdistill.errors import DatasetError

# Everything is prepared for real, and without a network.

PREPARE = '''
import os, sys
from pathlib import Path
import numpy as np
import tensorflow_datasets as tfds
from jaxdistill.data.datasets import load_dataset

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
        "import sys; from jaxdistill.data.datasets import load_dataset; data = load_dataset('tiny');"
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


@pytest.mark.parametrize("start", (0, 3, 10, 29, 30))
def test_a_split_is_streamed_from_any_row_on(prepared, monkeypatch, start):
    monkeypatch.setattr(tfds_source, "BATCH_SIZE", 7)
    rows = tfds_source.open_split("tiny", data_dir=prepared / "array_record")
    whole, _, names = tfds_source.read("tiny", prepared / "array_record", progress=False)
    pieces = list(rows.pieces(start))
    assert (rows.num_rows, rows.class_names, names) == (30, ("cat", "dog", "owl"), rows.class_names)
    assert [len(y) for _, y in pieces] == [7] * ((30 - start) // 7) + [(30 - start) % 7] * (
        (30 - start) % 7 > 0
    )
    for i, part in enumerate(whole):
        found = np.concatenate([part[:0], *(piece[i] for piece in pieces)])
        assert found.dtype == part.dtype
        np.testing.assert_array_equal(found, part[start:])


def test_a_split_streamed_into_a_fit_gives_the_model_of_its_arrays(prepared):
    folder = prepared / "array_record"
    rows = tfds_source.open_split("tiny", data_dir=folder).map(
        inputs=lambda x: x.reshape(len(x), -1) / np.float32(255), targets=lambda y: jd.one_hot(y, 3)
    )
    (x, y), _, _ = tfds_source.read("tiny", folder, progress=False)
    found = jd.fit_ridge(jd.features.Linear(60), rows, lam=0.1)
    inputs = x.reshape(30, -1).astype(np.float64) / 255
    expected = inputs.T @ np.linalg.solve(inputs @ inputs.T + 0.1 * np.eye(30), np.eye(3)[y])
    np.testing.assert_allclose(found.weights, expected, atol=1e-5)


@pytest.mark.parametrize("name", ("tiny", "tiny_validation", "tiny_train", "tiny_plain"))
def test_the_training_part_is_opened_as_it_is_loaded(prepared, monkeypatch, name):
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(prepared / "array_record"))
    monkeypatch.setattr(tfds_source, "BATCH_SIZE", 7)
    found, expected = open_training(name), load_dataset(name)
    assert (found.name, found.class_names) == (name, expected.class_names)
    assert found.rows.num_rows == len(expected.y_train)
    for start in (0, 8):
        x, y = (np.concatenate(part) for part in zip(*found.rows.pieces(start), strict=True))
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(x, expected.x_train[start:])
        np.testing.assert_array_equal(y, expected.y_train[start:])


@pytest.mark.long
def test_tfrecord_is_streamed_from_any_row_on(prepared):
    code = (
        "import sys; import numpy as np; from pathlib import Path;"
        "from jaxdistill.data import tfds_source as t;"
        "t.BATCH_SIZE = 7; one, two = (t.open_split('tiny', data_dir=Path(sys.argv[1]) / kind) "
        "for kind in ('tfrecord', 'array_record'));"
        "print(all(np.array_equal(a, b) for s in (0, 9) for p, q in zip(one.pieces(s), two.pieces(s), "
        "strict=True) for a, b in zip(p, q, strict=True)) and np.array_equal(one.labels(), two.labels()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(prepared)], capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "True\n", run.stderr


def test_a_split_that_is_not_there_is_answered_with_those_that_are(prepared):
    with pytest.raises(DatasetError, match="has no split 'valid'; it has test, train"):
        tfds_source.open_split("tiny", "valid", data_dir=prepared / "array_record")


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
    np.savez(own_copy.parent / "house.npz", x_train=np.zeros(3))
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
