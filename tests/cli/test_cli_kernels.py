"""Kernels on the command line: sets, files, KIP, side by side, and what is refused before any work."""

import json

import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.cli.main import main
from jaxdistill.pipeline import KERNELS, SETTINGS, FeatureOptions, make_kernel, prepare, rms_distance

CONTRACT = {
    *("dataset", "features", "n", "d", "p", "k", "m", "lam", "lam_s", "relative_weight_error", "cosine"),
    *("agreement", "accuracy_full", "accuracy_distilled", "seconds", "files", "lam_chosen_by"),
}
FEW = ("--teacher", "200", "--lam", "0.1")


def run(capsys, *words):
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A set of the NTK, as the command writes it, and its report."""
    out = tmp_path_factory.mktemp("ntk") / "out"
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as text:
        words = ["distill", "--features", "ntk", "--depth", "2", "--ipc", "2", "--out", str(out), "--json"]
        assert main([*words, *FEW]) == 0
    return out, json.loads(text.getvalue())


def test_a_kernel_set_is_reported_in_the_same_words_as_any_other(saved):
    out, report = saved
    assert set(report) >= CONTRACT
    assert report["features"] == "ntk" and report["p"] is None and report["settings"]["depth"] == 2
    assert (report["n"], report["teacher"], report["m"], report["lam"]) == (1438, 200, 20, 0.1)
    assert not report["exact"] and 0 < report["best_weight_error"] <= report["relative_weight_error"]
    assert report["largest_gap"] <= report["gap_bound"]
    assert sorted(p.name for p in out.iterdir()) == ["certificate.json", "distilled.npz", "images.png"]
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["relative_weight_error"] == report["relative_weight_error"]


def test_the_set_is_that_of_the_functions_it_stands_for(saved):
    small, task = jd.load_set(saved[0] / "distilled.npz"), prepare("digits")
    assert isinstance(small, jd.KernelSet) and small.recipe["num_targets"] == len(task.x)
    rows = [np.flatnonzero((task.x == x).all(axis=1)) for x in small.x]
    assert task.y[[r[0] for r in rows]].argmax(axis=1).tolist() == [*range(10)] * 2
    # Label Solve predicts all examples, not only those of the teacher.
    gram = jd.kernels.tiles.kernel_matrix(small.kernel, small.x, dtype=np.float64)
    cross = jd.kernels.tiles.kernel_matrix(small.kernel, task.x, small.x, dtype=np.float64)
    beta = np.linalg.solve(gram + small.lam * np.eye(20), small.y)
    best = np.linalg.lstsq(cross, task.y, rcond=None)[0]
    errors = [np.linalg.norm(cross @ b - task.y) for b in (beta, best)]
    np.testing.assert_allclose(*errors, rtol=1e-5)


def test_the_file_alone_gives_the_same_certificate_without_the_full_model(saved, capsys):
    out, report = saved
    file = str(out / "distilled.npz")
    again = json.loads(run(capsys, "evaluate", file, "--dataset", "digits", "--json")[1])
    for name in ("relative_weight_error", "accuracy_distilled", "gap_bound", "lam_s", "exact", "teacher"):
        assert again[name] == report[name]
    assert again["accuracy_full"] is None and again["agreement"] is None
    text = run(capsys, "evaluate", file, "--dataset", "digits")[1]
    accuracy = f"{100 * report['accuracy_distilled']:.2f} %"
    assert text.split("test accuracy")[1].split("\n")[0].split() == [
        "-",
        *accuracy.split(),
        *accuracy.split(),
    ]


def test_the_text_says_what_a_kernel_set_is_and_is_not(capsys, tmp_path):
    words = ("distill", "--features", "rbf", "--size", "20", *FEW, "--out", str(tmp_path / "o"))
    status, text, _ = run(capsys, *words, "--support", "pivoted", "--labels", "projected")
    scale = rms_distance(prepare("digits").x)
    assert status == 0 and f"rbf (lengthscale {scale:.4g}), trained on 200, lam = 0.1" in text
    assert (
        "relative RKHS distance" in text and "smallest, these points" in text and "bound on that gap" in text
    )
    assert "not exact: without a small feature map no small set is" in text
    assert "pivoted" in text and "projected labels" in text


def test_every_point_of_the_teacher_makes_the_set_exact_and_the_text_says_so(capsys, tmp_path):
    rng = np.random.default_rng(0)
    data = {"x_train": rng.standard_normal((40, 5)), "x_test": rng.standard_normal((10, 5))}
    data |= {"y_train": rng.standard_normal(40), "y_test": rng.standard_normal(10)}
    np.savez(tmp_path / "table.npz", **data)
    words = (
        "--dataset",
        str(tmp_path / "table.npz"),
        "--features",
        "laplace",
        "--size",
        "40",
        "--lam",
        "0.1",
    )
    out = str(tmp_path / "o")
    status, text, _ = run(
        capsys, "distill", *words, "--lam", "0.1", "--labels", "projected", "--dtype", "float64", "--out", out
    )
    assert status == 0 and "certificate  exact" in text and "squared error" in text


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_is_made_from_its_name(name):
    x = np.random.default_rng(1).standard_normal((50, 9)).astype(np.float32)
    kernel = make_kernel(FeatureOptions(name), x)
    assert kernel.kind.replace("_", "-") == name
    settings = kernel.settings()
    if "lengthscale" in settings:
        np.testing.assert_allclose(settings["lengthscale"], rms_distance(x))
        assert make_kernel(FeatureOptions(name, lengthscale=2.0), x).settings()["lengthscale"] == 2.0
    if "depth" in settings:
        told = {"depth": 1, "weight_variance": 2.0, "bias_variance": 0.01, "negative_slope": 0.0}
        assert settings == told
        assert make_kernel(FeatureOptions(name, depth=3, negative_slope=0.2), x).settings()["depth"] == 3
    if "degree" in settings:
        assert make_kernel(FeatureOptions(name, degree=3), x).settings()["degree"] == 3


def test_kip_makes_the_same_kind_of_set_and_starts_from_a_saved_one(saved, capsys, tmp_path):
    file = str(saved[0] / "distilled.npz")
    words = ("kip", "--features", "ntk", "--depth", "2", "--ipc", "2", *FEW, "--start", file, "--steps", "30")
    out = ("--labels", "solved", "--out", str(tmp_path / "o"), "--json")
    status, text, _ = run(capsys, *words, *out)
    report = json.loads(text)
    assert status == 0 and set(report) >= CONTRACT and report["construction"] == "kip"
    assert (report["n"], report["teacher"], report["features"]) == (1438, 200, "ntk")
    assert isinstance(jd.load_set(tmp_path / "o" / "distilled.npz"), jd.KernelSet)
    # Before the first step the loss is that of the saved points with their best labels.
    small, task = jd.load_set(file), prepare("digits")
    cross = jd.kernels.tiles.kernel_matrix(small.kernel, task.x, small.x, dtype=np.float64)
    left = cross @ np.linalg.lstsq(cross, task.y, rcond=None)[0] - task.y
    np.testing.assert_allclose(report["kip"]["first_loss"][0], np.sum(left**2) / 2 / len(left), rtol=1e-4)
    assert report["kip"]["last_loss"][0] < report["kip"]["first_loss"][0]


def test_compare_puts_closed_forms_and_kip_at_the_same_budget(capsys):
    words = ("compare", "--features", "ntk", "--ipc", "2", "--steps", "40", *FEW)
    rows = {row["method"]: row for row in json.loads(run(capsys, *words, "--json")[1])["rows"]}
    assert list(rows) == ["analytic", "kip", "random", "pivoted", "kmeans"]
    assert {row["m"] for row in rows.values()} == {20} and not any(row["exact"] for row in rows.values())
    assert len({row["accuracy_full"] for row in rows.values()}) == 1
    assert rows["kip"]["accuracy_distilled"] > rows["random"]["accuracy_distilled"]
    assert all(row["relative_weight_error"] > 0 for row in rows.values())


BAD = [
    (("--features", "ntkk"), "did you mean 'ntk'"),
    (("--features", "ntk", "--num-features", "9"), "ntk features have no num-features, only depth, negative"),
    (("--features", "ntk", "--lengthscale", "2"), "no lengthscale"),
    (("--features", "rbf", "--depth", "2"), "no depth, only lengthscale"),
    (("--features", "rbf", "--activation", "tanh"), "no activation"),
    (("--features", "linear", "--degree", "2"), "no degree"),
    (("--features", "linear", "--depth", "2"), "no depth"),
    (("--features", "ntk", "--realistic", "closest"), "--realistic is for feature maps, and ntk is a kernel"),
    (("--features", "ntk", "--box", "0", "1"), "--box is for feature maps"),
    (("--features", "ntk", "--noise", "0"), "--noise is for feature maps"),
    (("--features", "ntk", "--start", "real"), "--start is for feature maps"),
    (("--features", "ntk", "--exact"), "--exact is for feature maps"),
    (
        ("--features", "network", "--support", "kmeans"),
        "--support is for kernels, and network is",
    ),
    (("--features", "fourier", "--teacher", "100"), "--teacher is for kernels"),
    (
        ("--features", "ntk", "--labels", "soft"),
        "no soft labels; choose solved, projected, hard",
    ),
    (("--features", "linear", "--labels", "solved"), "choose hard, soft, weighted"),
    (("--features", "ntk", "--lam-s", "max"), "lam_s is 'max'"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_what_does_not_serve_is_refused_before_the_data_are_loaded(capsys, tmp_path, words, says):
    out = ("--dataset", "no such data", "--out", str(tmp_path / "out"))
    status, text, err = run(capsys, "distill", *words, *out)
    assert status == 2 and text == "" and err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["kip", "compare"])
def test_kip_and_compare_refuse_the_same(capsys, command):
    for words, says in (BAD[1], BAD[3], BAD[13]):
        status, text, err = run(capsys, command, *words, "--dataset", "no such data")
        assert status == 2 and text == "" and err.count("\n") == 1 and says in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--teacher", "0"), ">= 1"),
        (("--teacher", "5000"), "1438 real examples, 5000 are asked for"),
        (("--depth", "0"), "depth is 0"),
        (("--negative-slope", "nan"), "finite"),
        (("--lam", "-1", "--teacher", "50"), ">= 0"),
        (("--size", "0", "--teacher", "50"), ">= 1"),
        (("--ipc", "500", "--teacher", "50"), "give more or ask for fewer"),
        (("--validation", "often"), "fraction"),
    ],
)
def test_bad_numbers_are_one_line_and_leave_nothing(capsys, tmp_path, words, says):
    lam = () if "--lam" in words else ("--lam", "1")
    status, text, err = run(
        capsys, "distill", "--features", "ntk", *lam, *words, "--out", str(tmp_path / "out")
    )
    assert status == 2 and text == "" and err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []


def evaluate(capsys, saved, *words):
    file = str(saved[0] / "distilled.npz")
    return run(capsys, "evaluate", file, "--dataset", "digits", *words)


def test_other_features_are_trained_on_the_set_alone(saved, capsys):
    small, task = jd.load_set(saved[0] / "distilled.npz"), prepare("digits")
    # A lengthscale that nobody gives is that of the set, not of the data.
    kernel = jd.kernels.RBF(rms_distance(small.x))
    status, text, _ = evaluate(capsys, saved, "--features", "rbf", "--json")
    report, found = json.loads(text), jd.transfer(small, kernel, task.x_test, task.y_test)
    assert status == 0 and {name: report[name] for name in found.to_dict()} == found.to_dict()
    assert report["settings"] == {"lengthscale": kernel.lengthscale} and report["dataset"] == "digits"
    assert report["accuracy_own"] == saved[1]["accuracy_distilled"] and report["made_for"] == "ntk"
    text = evaluate(capsys, saved, "--features", "rbf", "--labels", "hard", "--lam", "auto")[1]
    scored = jd.transfer(small, kernel, task.x_test, task.y_test, labels="hard", lam="auto")
    assert "made for ntk" in text and "hard labels" in text and "(leave-one-out)" in text
    shown = [f"{100 * share:.2f}" for share in (scored.accuracy_own, scored.accuracy, scored.agreement)]
    numbers = [word for line in text.splitlines()[5:7] for word in line.split() if "." in word]
    assert numbers == shown


def test_features_drawn_at_random_follow_the_seed(saved, capsys):
    words = ("--features", "fourier", "--num-features", "40", "--lam", "0.01", "--json")
    runs = [json.loads(evaluate(capsys, saved, *words, "--seed", seed)[1]) for seed in "0011"]
    scores = [run["accuracy"] for run in runs]
    assert scores[0] == scores[1] != scores[2] == scores[3]
    assert runs[0]["p"] == 40 and runs[0]["seed"] == 0 and runs[0]["lam"] == 0.01


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--depth", "2"), "--depth is for other features than the set's own"),
        (("--lam", "1"), "name them with --features"),
        (("--features", "ntkk"), "did you mean 'ntk'"),
        (("--features", "rbf", "--depth", "2"), "no depth, only lengthscale"),
        (("--features", "encoder"), "on the set alone"),
        (("--features", "ntk", "--lam", "some"), "auto"),
        (("--features", "ntk", "--lam", "-1"), ">= 0"),
    ],
)
def test_a_transfer_that_makes_no_sense_is_one_line(saved, capsys, words, says):
    status, text, err = evaluate(capsys, saved, *words)
    assert status == 2 and text == "" and err.count("\n") == 1 and says in err


def test_all_features_have_their_settings_listed():
    assert set(SETTINGS) == set(jd.features.KINDS) - {"function"} | set(KERNELS)  # code has no name
