"""The command that writes a set as PNG files, and what it says of rounding."""

import json

import pytest

from jaxdistill.cli.main import main
from jaxdistill.sets.pictures import load_pictures


def run(capsys, *words):
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def near_real(tmp_path_factory):
    """A set of real digits with new labels: pixels in [0, 1]; a few that are rarely inked stay unspanned."""
    folder = tmp_path_factory.mktemp("set")
    assert main(["distill", "--realistic", "fixed", "--ipc", "30", "--out", str(folder), "--json"]) == 0
    return folder / "distilled.npz"


def test_a_set_is_exported_with_its_certificate(near_real, capsys, tmp_path):
    words = ("export", str(near_real), "--dataset", "digits", "--out", str(tmp_path / "png"))
    status, text, _ = run(capsys, *words, "--bits", "16", "--json")
    report = json.loads(text)
    assert status == 0 and report["agreement"] == 1.0 and report["rounded"] == {"bits": 16, "rounds": 0}
    found = load_pictures(tmp_path / "png")
    assert found.images.shape == (300, 8, 8, 1) and found.lam == report["lam_s"]
    certificate = json.loads((tmp_path / "png" / "certificate.json").read_text())
    assert certificate["relative_weight_error"] == report["relative_weight_error"]
    words = ("evaluate", str(near_real), "--dataset", "digits", "--pictures", str(tmp_path / "png"), "--json")
    again = json.loads(run(capsys, *words)[1])
    assert again["relative_weight_error"] == report["relative_weight_error"]
    own = json.loads((near_real.parent / "certificate.json").read_text())["relative_weight_error"]
    assert report["relative_weight_error"] == pytest.approx(own, rel=0.01)  # 16 bits are as good as none lost
    assert run(capsys, *words[:-1])[1].count("test accuracy") == 1
    status, _, error = run(capsys, *words, "--features", "linear")
    assert status == 2 and "--pictures" in error


def test_pixels_outside_and_an_unknown_depth_are_one_line(capsys, tmp_path):
    out = str(tmp_path / "set")
    assert run(capsys, "distill", "--out", out, "--json")[0] == 0
    file = f"{out}/distilled.npz"
    status, _, error = run(capsys, "export", file, "--dataset", "digits", "--out", str(tmp_path / "png"))
    assert status == 2 and "--box 0 1" in error and error.count("\n") == 1 and not (tmp_path / "png").exists()
    status, _, error = run(capsys, "export", file, "--dataset", "digits", "--bits", "12")
    assert status == 2 and "8 or 16" in error
