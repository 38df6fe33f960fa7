"""Private sets and attacks from the command line: what is written, printed and refused."""

import json

import numpy as np
import pytest

from jaxdistill.cli.main import main
from jaxdistill.privacy.contents import list_contents

BUDGET = ("--epsilon", "4", "--delta", "1e-4")
FOURIER = ("--features", "fourier", "--lengthscale", "2", "--preprocess", "none", "--clip", "1")


def run(capsys, *words):
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_private_set_is_written_without_scores_or_real_images_and_attacked(capsys, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "jaxdistill.plots.draw_rows", lambda rows, names, path, caption: drawn.extend(rows) or path
    )
    out = str(tmp_path / "out")
    status, text, _ = run(capsys, "distill", *BUDGET, *FOURIER, "--out", out, "--json")
    report = json.loads(text)
    assert status == 0 and report["exact"] and report["accuracy_distilled"] > 0.6
    assert report["privacy"]["epsilon"] == 4 and [row.title for row in drawn] == ["distilled"]
    file = tmp_path / "out" / "distilled.npz"
    assert "weights" in list_contents(file)
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["num_test"] == 0 and certificate["accuracy_full"] is None

    words = ("attack", str(file), "--dataset", "digits", "--shadows", "2")
    found = json.loads(run(capsys, *words, "--json")[1])
    assert found["promised"]["epsilon"] == 4 and found["loss"]["auc"]["value"] < 0.6
    shown = run(capsys, *words)[1]
    assert (
        "likelihood ratio" in shown and "promised     epsilon 4, delta 0.0001, for all of this set" in shown
    )


def test_the_promise_is_printed(capsys, tmp_path):
    words = ("distill", *BUDGET, "--neighbours", "replace-one", *FOURIER, "--out", str(tmp_path / "o"))
    status, text, _ = run(capsys, *words)
    assert status == 0 and "promise      epsilon 4, delta 0.0001, replace-one, for all" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--epsilon", "0", "--delta", "1e-5", *FOURIER), "epsilon is 0"),
        (("--epsilon", "1", "--delta", "2", *FOURIER), "delta is 2"),
        (("--epsilon", "1", *FOURIER), "--epsilon needs --delta"),
        (("--delta", "1e-5"), "--delta is for private sets; give --epsilon too"),
        (("--clip", "1"), "--clip is for private sets"),
        (BUDGET, "--preprocess standardize takes constants from private examples; use none, or declare"),
        ((*BUDGET, "--lam", "tuned", "--features", "linear", "--preprocess", "none"), "no bound"),
        (("--lam", "tuned"), "tuned"),
        ((*BUDGET, "--preprocess", "none"), "linear features have no bound"),
        ((*BUDGET, "--features", "fourier"), "the default lengthscale is measured on the data"),
        (
            (*BUDGET, "--features", "encoder", "--preprocess", "none"),
            "--features encoder trains on private examples",
        ),
        (
            (*BUDGET, "--features", "encoder", "--preprocess", "none", "--public", "features"),
            "encoder features have no bound",
        ),
        ((*BUDGET, "--features", "ntk"), "ntk has no moments to make private"),
        ((*BUDGET, *FOURIER, "--realistic", "closest"), "--realistic would start from private examples"),
        ((*BUDGET, *FOURIER, "--start", "real"), "--start would start from private examples"),
        ((*BUDGET, *FOURIER, "--validation", "loo"), "--validation would choose lam by private data"),
    ],
)
def test_what_would_not_be_paid_for_is_refused(capsys, tmp_path, monkeypatch, words, told):
    def trained(*_, **__):
        raise AssertionError("it was trained before it was refused")

    monkeypatch.setattr("jaxdistill.features.trained.train_encoder", trained)
    out = tmp_path / "out"
    status, text, error = run(capsys, "distill", *words, "--out", str(out))
    assert status == 2 and text == "" and error.count("\n") == 1 and told in error and not out.exists()


def test_labels_of_another_kind_are_refused_by_an_attack(capsys, tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "out" / "distilled.npz"
    assert run(capsys, "distill", "--out", str(file.parent))[0] == 0
    x = {"x_train": rng.random((60, 8, 8, 1), np.float32), "x_test": rng.random((12, 8, 8, 1), np.float32)}
    targets = {
        "classes": {"y_train": np.arange(60) % 3, "y_test": np.arange(12) % 3},
        "real": {"y_train": rng.standard_normal(60), "y_test": rng.standard_normal(12)},
    }
    for name, y in targets.items():
        np.savez(tmp_path / f"{name}.npz", **x, **y)
        status, _, error = run(capsys, "attack", str(file), "--dataset", str(tmp_path / f"{name}.npz"))
        assert status == 2 and "the set was made for one-hot targets of 10" in error
