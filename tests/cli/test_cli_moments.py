"""``jaxdistill moments``: files of two machines merge to that of one, and what does not fit is refused."""

import json

import numpy as np
import pytest
from helpers import relative

import jaxdistill as jd
from jaxdistill.cli.main import main
from jaxdistill.cli.report import text_of
from jaxdistill.pipeline import FeatureOptions, make_features, prepare, split_keys
from jaxdistill.sets.saved_moments import SavedMoments, collect_moments

LINEAR = ("--preprocess", "none", "--dataset")


def run(capsys, *words, command="moments"):
    try:
        status = main([command, *words])
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


@pytest.fixture(scope="module")
def saved(halves):
    path = halves / "moments"
    assert main(["moments", "fit", "--dataset", str(halves / "a.npz"), "-o", str(path), "--json"]) == 0
    return path


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


def test_a_part_is_prepared_as_another_and_merges_with_it(capsys, halves, saved, tmp_path):
    b, c = str(tmp_path / "b"), str(tmp_path / "c")
    words = ("fit", "--like", str(saved), "--dataset", str(halves / "b.npz"), "-o", b)
    assert run(capsys, *words)[::2] == (0, "")
    assert run(capsys, "merge", str(saved), b, "-o", c)[::2] == (0, "")
    merged, first = SavedMoments.load(c), SavedMoments.load(saved)
    rows = first.preprocess.forward(jd.load_dataset("digits").x_train.astype(np.float64))
    assert merged.num_rows == 1438 and relative(merged.moments.about(0.0, 0.0).gram, rows.T @ rows) < 1e-5
    status, out, error = run(capsys, *words, "--preprocess", "zca")
    assert (status, out) == (2, "") and "--preprocess is decided by the file of --like" in error


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


def test_a_set_of_moments_is_that_of_the_examples_and_says_what_nobody_measured(
    capsys, halves, saved, tmp_path
):
    words = ("--moments", str(saved), "--lam", "30", "--json", "--out", str(tmp_path / "out"))
    status, out, error = run(capsys, *words, command="distill")
    assert (status, error) == (0, "")
    found, task = json.loads(out), prepare(str(halves / "a.npz"))
    assert (found["exact"], found["n"], found["m"], found["lam_chosen_by"]) == (True, 700, 10, "given")
    assert found["num_test"] == 0 and found["accuracy_full"] is None and found["agreement"] is None
    assert found["not_measured"] == ["test accuracy", "agreement", "prediction error"]
    small = jd.DistilledSet.load(tmp_path / "out" / "distilled.npz")
    x, y = task.x.astype(np.float64), task.y
    expected = np.linalg.solve(x.T @ x + 30 * np.eye(64), x.T @ y)
    assert relative(small.weights, expected) < 1e-4  # of products in float32
    assert small.class_names == task.class_names
    np.testing.assert_array_equal(small.preprocess.std, task.preprocess.std)
    assert (tmp_path / "out" / "images.png").stat().st_size > 0
    text = text_of(found)
    assert "700 training and no test examples" in text and "\ntest accuracy" not in text
    assert "not measured test accuracy, agreement, prediction error: there are no test examples" in text


def test_what_needs_examples_is_refused_with_moments(capsys, saved, tmp_path):
    real = tmp_path / "real"
    phi, rng = jd.features.Linear(3), np.random.default_rng(0)
    collect_moments(phi, rng.standard_normal((9, 3)), rng.standard_normal((9, 2)), path=real)
    for words, told in (
        (("--dataset", "mnist"), "--dataset is for examples, and --moments stands for them"),
        (("--features", "network"), "--features is for examples"),
        (("--num-features", "3"), "--num-features is for examples"),
        (("--validation", "0.1"), "--validation is for examples"),
        (("--realistic", "closest"), "--realistic begins with real examples"),
        (("--start", "real"), "--start real begins with real examples"),
        (("--epsilon", "1", "--delta", "1e-5"), "--epsilon clips examples one by one"),
        (("--moments", str(tmp_path / "no")), "does not exist"),
        (("--moments", str(real)), "real-valued targets: give --size N"),
        (("--support", "balanced"), "--support is for kernels"),
    ):
        out = ("--out", str(tmp_path / "out"))
        status, text, error = run(capsys, "--moments", str(saved), *out, *words, command="distill")
        assert status == 2 and text == "" and error.count("\n") == 1 and told in error, error
    assert not (tmp_path / "out").exists()
    words = ("--moments", str(real), "--size", "3", "--out", str(tmp_path / "out"), "--json")
    status, out, _ = run(capsys, *words, command="distill")
    assert status == 0 and json.loads(out)["intercept"] and json.loads(out)["exact"]
    assert json.loads(out)["lam_chosen_by"] == "generalised cross-validation"
