"""Data sets read as they are needed: what ``load_dataset`` has, and its errors, with the row of all."""

import numpy as np
import pytest

from jaxdistill.data import stored
from jaxdistill.data.datasets import load_dataset
from jaxdistill.data.opened import open_training
from jaxdistill.errors import DatasetError


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.integers(0, 256, (30, 4, 5, 3), dtype=np.uint8),
        "y_train": np.arange(30, dtype=np.uint8)[:, None] % 3,
        "x_test": rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def table(dtype):
    return np.random.default_rng(1).standard_normal((30, 4)).astype(dtype)


CASES = {
    "images": {},
    "grey": {"x_train": arrays()["x_train"][..., 0], "x_test": arrays()["x_test"][..., 0]},
    "half": {"x_train": table("f2"), "x_test": table("f4")[:6]},
    "big endian": {"x_train": table(">f8"), "x_test": table("f8")[:6]},
    "integers": {"x_train": (9 * table("f8")).astype(">i2"), "x_test": table("f8")[:6]},
    "named": {"class_names": np.array(["cat", "dog", "owl"])},
    "real": {"y_train": table("f4")[:, :2], "y_test": table("f4")[:6, :2]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("save", (np.savez, np.savez_compressed))
def test_a_file_is_opened_as_it_is_loaded(tmp_path, monkeypatch, case, save):
    monkeypatch.setattr(stored, "_PIECE_BYTES", 50)
    save(tmp_path / "some.npz", **arrays(**CASES[case]))
    found, expected = open_training(tmp_path / "some.npz"), load_dataset(tmp_path / "some.npz")
    assert (found.name, found.class_names, found.rows.num_rows) == ("some", expected.class_names, 30)
    for start in (0, 17):
        pieces = list(found.rows.pieces(start))
        assert len(pieces) > 1
        x, y = (np.concatenate(part) for part in zip(*pieces, strict=True))
        assert (x.dtype, y.dtype) == (expected.x_train.dtype, expected.y_train.dtype)
        np.testing.assert_array_equal(x, expected.x_train[start:])
        np.testing.assert_array_equal(y, expected.y_train[start:])


def test_a_folder_of_pieces_and_the_data_folder(tmp_path, monkeypatch):
    made = arrays(x_test=None, y_test=None)  # which no training needs
    for i, part in enumerate((slice(0, 11), slice(11, None))):
        np.savez(tmp_path / f"{i}.npz", x=made["x_train"][part], y=made["y_train"][part])
    found = open_training(tmp_path)
    x, y = (np.concatenate(part) for part in zip(*found.rows.pieces(), strict=True))
    assert found.name == tmp_path.name and found.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(x * 255, made["x_train"])
    np.testing.assert_array_equal(y, made["y_train"].ravel())
    (tmp_path / "named").mkdir()
    np.savez(tmp_path / "named" / "own.npz", **made)
    monkeypatch.setenv("JAXDISTILL_DATA_DIR", str(tmp_path / "named"))
    assert open_training("own").rows.num_rows == 30


def spoiled(value, dtype="f4"):
    x = table(dtype)
    x[21, 3] = value
    return x


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"y_train": None}, "has no array 'y_train'; it has x_test, x_train"),
        ({"x_train": spoiled(np.nan)}, r"some: x_train\[21, 3\] is nan"),
        ({"y_train": spoiled(-np.inf)}, r"some: y_train\[21, 3\] is -inf"),
        ({"y_train": np.arange(30) % 3 + 1}, "class 0 has no training example"),
        ({"y_train": np.zeros(30, int)}, "a single class"),
        ({"y_train": np.arange(29)}, "30 inputs and .* 29 targets"),
        ({"x_train": np.zeros((30, 3, 9, 9), np.uint8)}, "channels come last"),
        ({"x_train": np.full((30, 2, 2, 1), 2.0)}, r"range from 2 to 2, not within \[0,1\]"),
        ({"class_names": np.array(["a", "b", "c"]), "y_train": table("f4")}, "class names, but float labels"),
        ({"class_names": np.array(["a", "b"])}, "label 2, outside 0..1"),
        ({"x_train": np.zeros((0, 4)), "y_train": np.zeros(0, int)}, "no training example"),
        ({"x_train": np.full((30, 2), "a")}, "numeric table"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr(stored, "_PIECE_BYTES", 100)
    np.savez(tmp_path / "some.npz", **arrays(**changes))
    with pytest.raises(DatasetError, match=told):
        list(open_training(tmp_path / "some.npz").rows.pieces())
