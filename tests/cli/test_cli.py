"""The command line, in process and as a fresh one: reports, files, refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxdistill.cli import distill as cli_distill
from jaxdistill.cli.main import main
from jaxdistill.distill import options, plan

CONTRACT = {
    *("dataset", "features", "n", "d", "p", "k", "m", "lam", "lam_s", "relative_weight_error", "cosine"),
    *("agreement", "accuracy_full", "accuracy_distilled", "seconds"),
}


def run(capsys, *words):
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_distill_writes_three_files_and_evaluate_agrees_in_a_fresh_process(capsys, tmp_path):
    out = tmp_path / "out"
    status, text, _ = run(capsys, "distill", "--features", "network", "--out", str(out), "--json")
    report = json.loads(text)
    assert status == 0 and set(report) >= CONTRACT and report["exact"]
    assert set(report["seconds"]) >= {"load", "fit", "distill", "certify", "total"}
    assert sorted(p.name for p in out.iterdir()) == ["certificate.json", "distilled.npz", "images.png"]
    fresh = subprocess.run(
        [
            sys.executable,
            "-m",
            "jaxdistill",
            "evaluate",
            str(out / "distilled.npz"),
            "--dataset",
            "digits",
            "--json",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    again = json.loads(fresh.stdout)
    for name in ("relative_weight_error", "agreement", "accuracy_full", "accuracy_distilled", "exact"):
        assert again[name] == report[name]
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["relative_weight_error"] == report["relative_weight_error"]


@pytest.mark.parametrize(
    "words",
    [
        ("--features", "fourier", "--lam-s", "max"),
        ("--labels", "soft", "--ipc", "2"),
        ("--targets", "centred", "--size", "9"),
        ("--realistic", "closest", "--ipc", "5"),
        ("--preprocess", "zca", "--lam", "1"),
    ],
)
def test_variants_are_exact_and_said_to_be(capsys, tmp_path, words):
    status, text, _ = run(capsys, "distill", *words, "--out", str(tmp_path / "out"))
    assert status == 0 and "certificate  exact" in text and "test accuracy" in text


def test_below_the_rank_the_report_says_what_is_lost(capsys, tmp_path):
    words = ("distill", "--targets", "centred", "--size", "8", "--out", str(tmp_path / "o"), "--json")
    report = json.loads(run(capsys, *words)[1])
    assert not report["exact"] and report["lost"] > 0


def save(path, **changes):
    rng = np.random.default_rng(0)
    data = {
        "x_train": rng.random((60, 5, 5, 3), np.float32),
        "y_train": np.arange(60) % 3,
        "x_test": rng.random((12, 5, 5, 3), np.float32),
        "y_test": np.arange(12) % 3,
    }
    np.savez(path, **(data | changes))
    return str(path)


def test_colour_images_tables_and_regression_from_files(capsys, tmp_path):
    rng = np.random.default_rng(1)
    table = {"x_train": rng.standard_normal((60, 7)), "x_test": rng.standard_normal((12, 7))}
    real = table | {"y_train": rng.standard_normal(60), "y_test": rng.standard_normal(12)}
    for i, changes in enumerate(({}, table, real)):
        name = save(tmp_path / f"{i}.npz", **changes)
        size = ("--size", "2") if changes is real else ("--ipc", "1")
        words = ("distill", "--dataset", name, *size, "--out", str(tmp_path / f"o{i}"), "--json")
        status, text, _ = run(capsys, *words)
        assert status == 0 and json.loads(text)["exact"]
        assert (tmp_path / f"o{i}" / "images.png").stat().st_size > 1000


BAD = [
    (("--dataset", "digit"), "digits"),
    (("--features", "netwrok"), "network"),
    (("--preprocess", "zcaa"), "zca"),
    (("--lam", "-1"), ">= 0"),
    (("--lam", "abc"), "auto"),
    (("--lam-s", "1e9"), "largest"),
    (("--lam-s", "auto"), "soft"),
    (("--size", "5", "--labels", "hard"), "every class"),
    (("--features", "network", "--num-features", "100", "--realistic", "inverse"), "do not increase"),
    (("--features", "network", "--num-features", "300", "--ipc", "1", "--exact"), "m* = 41"),
    (("--features", "network", "--box", "1", "0", "--realistic", "closest"), "low must be below high"),
    (("--box", "0", "1"), "closed form"),
    (("--features", "network", "--num-features", "100", "--starts", "0"), "starts"),
    (("--features", "fourier", "--scale", "100"), "at most"),
    (("--ipc", "0"), ">= 1"),
    (("--validation", "often"), "fraction"),
    (("--features", "network", "--depth", "0"), "at least one layer"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, tmp_path, words, says):
    status, out, err = run(capsys, "distill", *words, "--out", str(tmp_path / "out"))
    assert status == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("jaxdistill") and says in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_train": np.full((60, 5, 5, 3), np.nan, np.float32)}, "x_train"),
        ({"y_train": np.arange(60) % 2 * 2}, "class 1"),
        ({"y_train": np.arange(60) % 3 - 1}, "y_train"),
        ({"y_train": np.arange(50) % 3}, "y_train"),
    ],
)
def test_bad_data_is_one_line(capsys, tmp_path, changes, says):
    name = save(tmp_path / "bad.npz", **changes)
    status, out, err = run(capsys, "distill", "--dataset", name, "--out", str(tmp_path / "out"))
    assert status == 2 and out == "" and err.count("\n") == 1 and says in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [("distil",), ("distill", "--bogus"), (), ("distill", "--ipc", "1", "--size", "2")]
)
def test_wrong_usage_is_one_line(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_an_unwritable_folder_and_too_little_memory(capsys, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    status, _, err = run(capsys, "distill", "--out", str(blocked / "out"))
    assert status == 2 and "cannot write" in err
    monkeypatch.setenv("JAXDISTILL_MEMORY_LIMIT", "1M")
    status, _, err = run(capsys, "distill", "--out", str(tmp_path / "out"))
    assert status == 2 and "bytes" in err and err.count("\n") == 1


def test_info_names_versions_and_devices(capsys):
    report = json.loads(run(capsys, "info", "--json")[1])
    assert report["versions"]["jax"] and report["devices"]
    assert "jaxlib" in run(capsys, "info")[1]


def test_the_command_offers_what_the_package_takes():
    assert cli_distill.REALISTIC == plan.REALISTIC
    assert cli_distill.STARTS == options.START_NAMES


def test_importing_the_package_stays_light():
    heavy = "tensorflow neural_tangents tensorflow_datasets sklearn matplotlib flax optax orbax"
    code = f"import sys, jaxdistill; print([m for m in '{heavy}'.split() if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_a_table_of_time_stamps_comes_back_in_its_own_units(capsys, tmp_path):
    """Seconds since 1970: float32 would put them two minutes apart."""
    rng = np.random.default_rng(2)
    x = np.stack([1.7e9 + np.arange(72.0), rng.standard_normal(72)], axis=1)
    y = (x[:, 0] - 1.7e9) / 72
    name = save(tmp_path / "t.npz", x_train=x[:60], x_test=x[60:], y_train=y[:60], y_test=y[60:])
    words = ("distill", "--dataset", name, "--size", "2", "--out", str(tmp_path / "o"), "--json")
    status, text, err = run(capsys, *words)
    assert status == 0, err
    with np.load(tmp_path / "o" / "distilled.npz") as file:
        images, inputs = file["images"], file["inputs"]
    assert images.dtype == np.float64 and inputs.dtype == np.float32
    again = (images - x[:60].mean(0)) / x[:60].std(0)
    np.testing.assert_allclose(again, inputs, rtol=1e-5, atol=1e-6)
    found = json.loads(
        run(capsys, "evaluate", str(tmp_path / "o" / "distilled.npz"), "--dataset", name, "--json")[1]
    )
    assert found["squared_error_full"] == json.loads(text)["squared_error_full"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda classes: np.sqrt(classes + 0.5), "save y as integers"),
        (lambda classes: np.eye(3)[classes], "one-hot rows of 3 classes: save y.argmax(axis=1)"),
        (lambda classes: classes.astype(np.float32), "0., 1., ... 2.: save y.astype(int)"),
    ],
)
@pytest.mark.parametrize("command", ["distill", "kip"])
def test_real_targets_without_a_size_say_what_they_look_like(capsys, tmp_path, command, make, says):
    name = save(tmp_path / "r.npz", y_train=make(np.arange(60) % 3), y_test=make(np.arange(12) % 3))
    status, out, err = run(capsys, command, "--dataset", name, "--out", str(tmp_path / "out"))
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "give --size N; to classify" in err and says in err


def test_a_picture_that_fails_costs_one_line_and_not_the_set(capsys, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr("jaxdistill.plots.draw_rows", broken)
    status, text, err = run(capsys, "distill", "--out", str(tmp_path / "o"), "--json")
    assert status == 0 and err.count("\n") == 1 and "images.png was not drawn (RuntimeError: no fonts)" in err
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["certificate.json", "distilled.npz"]
    assert len(json.loads(text)["files"]) == 2
