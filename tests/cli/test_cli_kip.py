"""``jaxdistill kip`` and ``jaxdistill compare``: the same reports, files and refusals."""

import json

import pytest

from jaxdistill.cli.main import main


def test_kip_prints_the_same_keys_and_evaluate_reads_its_file(capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["kip", "--steps", "60", "--patience", "3", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["construction"] == "kip" and not report["exact"]
    assert report["kip"]["last_loss"][0] < report["kip"]["first_loss"][0]
    assert main(["evaluate", str(out / "distilled.npz"), "--dataset", "digits", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["accuracy_distilled"] == report["accuracy_distilled"] > 0.8


def test_compare_puts_every_method_at_the_same_budget(capsys):
    assert main(["compare", "--steps", "20", "--ipc", "1", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) >= {"analytic", "kip", "random", "means", "kmeans", "herding", "label distillation"}
    assert {row["m"] for row in rows.values()} == {10}
    assert rows["analytic"]["exact"] and not rows["random"]["exact"]
    assert rows["analytic"]["agreement"] == 1.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--labels", "fixd"), "fixed"),
        (("--optimiser", "adan2"), "adan"),
        (("--batch", "5000"), "5000"),
        (("--ipc", "500", "--labels", "fixed"), "give more or ask for fewer"),
        (("--steps", "0"), ">= 1"),
        (("--start", "nothing.npz"), "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, tmp_path, words, says):
    assert main(["kip", *words, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err
    assert list(tmp_path.iterdir()) == []
