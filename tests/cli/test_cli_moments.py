"""``jaxdistill moments``: files of two machines merge to that of one, and what does not fit is refused."""

import json

import numpy as np
import pytest
from helpers import relative

import jaxdistill as jd
from jaxdistill.cli.main import main
from jaxdistill.pipeline import FeatureOptions, make_features, prepare, split_keys
from jaxdistill.sets.saved_moments import SavedMoments, collect_moments

LINEAR = ("--preprocess", "none", "--dataset")


def run(capsys, *words):
    try:
        status = main(["moments", *words])
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("halves"), jd.load_dataset("digits")
    for name, rows in {"a": slice(0, 700), "b": slice(700, None), "all": slice(None)}.items():
        train = {"x_train": data.x_train[rows], "y_train": data.y_train[rows]}
        np.savez(folder / f"{name}.npz", **train, x_test=data.x_test, y_test=data.y_test)
    return folder


def test_two_halves_merge_to_the_whole(capsys, halves, tmp_path):
    for name in ("a", "b", "all"):
        status, out, error = run(
            capsys, "fit", *LINEAR, str(halves / f"{name}.npz"), "-o", str(tmp_path / name)
        )
        assert (status, error) == (0, "") and "linear, p = 64, k = 10" in out
    words = (str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "c"), "--json")
    status, out, _ = run(capsys, "merge", *words)
    assert status == 0 and json.loads(out)["n"] == 1438
    data = jd.load_dataset("digits")
    x, y = data.x_train.reshape(1438, -1).astype(np.float64), jd.one_hot(data.y_train, 10)
    for name in ("c", "all"):
        found = SavedMoments.load(tmp_path / name).moments.about(0.0, 0.0)
        assert found.count == 1438 and relative(found.gram, x.T @ x) < 1e-6
        assert relative(found.cross, x.T @ y) < 1e-6


def test_data_are_streamed_to_what_they_give_in_memory(capsys, halves, tmp_path, monkeypatch):
    file, found = str(halves / "a.npz"), tmp_path / "m.npz"
    task = prepare(file, preprocess="zca")
    phi = make_features(FeatureOptions("fourier"), task.x, split_keys(3)[0])
    expected = collect_moments(
        phi,
        task.x,
        task.y,
        path=tmp_path / "expected.npz",
        preprocess=task.preprocess,
        class_names=task.class_names,
    )
    monkeypatch.setattr("jaxdistill.pipeline.load_dataset", None)
    words = ("--preprocess", "zca", "--features", "fourier", "--seed", "3", "-o", str(found))
    assert run(capsys, "fit", "--dataset", file, *words)[::2] == (0, "")
    saved = SavedMoments.load(found)
    assert saved.belongings() == expected.belongings() and saved.class_names == tuple("0123456789")
    assert relative(saved.moments.gram, expected.moments.gram) < 1e-6


def test_a_folder_of_pieces_is_read(capsys, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 2))
    for i, part in enumerate((slice(0, 30), slice(30, None))):
        np.savez(tmp_path / f"{i}.npz", x=x[part], y=y[part])
    (tmp_path / "out").mkdir()
    words = ("fit", "--preprocess", "none", "--dataset", str(tmp_path), "-o", str(tmp_path / "out" / "m"))
    assert run(capsys, *words)[::2] == (0, "")
    found = SavedMoments.load(tmp_path / "out" / "m")
    assert relative(found.moments.about(0.0, 0.0).cross, x.T @ y) < 1e-5
    assert (found.class_names, found.target_kind.value) == (None, "real-valued")


def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(capsys, halves, tmp_path):
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert run(capsys, "fit", *LINEAR, str(halves / "a.npz"), "-o", a)[0] == 0
    assert run(capsys, "fit", "--dataset", str(halves / "b.npz"), "-o", b)[0] == 0
    for words, told in (
        (("merge", a, b, "-o", c), "differ in preprocessing"),
        (("merge", a, a, "-o", c), "hold the same examples"),
        (("merge", a, "-o", c), "name two or more"),
        (("merge", a, str(tmp_path / "no"), "-o", c), "does not exist"),
        (("merge", a, b, "-o", str(tmp_path / "a" / "c")), "not a folder"),
        (("fit", "--features", "ntk", "-o", c), "ntk has no moments"),
        (("fit", *LINEAR, str(halves / "b.npz"), "-o", a), "moments of other examples"),
        (("fit",), "-o/--output"),
    ):
        status, out, error = run(capsys, *words)
        assert status == 2 and out == "" and error.count("\n") == 1 and told in error, error
    assert not (tmp_path / "c").exists()
