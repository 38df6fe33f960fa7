"""Float64 on the host: whole runs on forced devices, and every program that runs on the device side.

Where the compiler refuses float64, as on a TPU, no program on the devices may hold any. ``jax.export`` lowers
for platforms that are not there, and a guard reads what is compiled for which device.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

# What XLA itself knows on a TPU, and the libraries of CUDA that JAX calls.
ON_TPU = {"Eigh", "Qr", "ProductOfElementaryHouseholderReflectors"}
ON_CUDA = {f"cusolver_{name}_ffi" for name in ("geqrf", "gesvdj", "orgqr", "potrf", "syevd")}
# The device side. A new compiled function belongs here if it runs there, and else to `in_float64`.
DEVICE_SIDE = {
    "evaluate.certify._retrain",
    "evaluate.certify_kernel._coefficients",
    "features.random_matrix.orthogonal_rows",
    "kernels.tiles._add_product",
    "kernels.tiles._diagonal",
    "kernels.tiles._entries",
    "kernels.tiles._place",
    "kernels.tiles._rows",
    "kernels.tiles._symmetric",
    "kip.prepare._embed",
    "kip.problem.coefficients",
    "kip.problem.predict",
    "kip.steps.run_block",
    "networks.training._one_step",
    "networks.training._predict",
    "networks.training._start",
    "networks.training._step_together",
    "numerics.keys.split_key",
    "ridge.crossing._prepare",
    "ridge.model._predict_chunk",
    "ridge.moments._add_chunk_in_two",
    "ridge.moments._middle",
    "ridge.selection._score_chunk",
    "solve.covering._slopes",
    "solve.invert._changes",
    "solve.near_copies._jacobian",
    "solve.projection._descend",
    "solve.spanning_step.find_directions",
    "solve.spanning_walk.walk_on",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out, here = tmp_path_factory.mktemp("placed"), Path(__file__).parent
    told = {"PYTHONPATH": str(here.parent), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    flags = os.environ.get("XLA_FLAGS", "")
    told["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=3"
    command = [sys.executable, "-W", "error", str(here / "placed_runs.py"), str(out)]
    subprocess.run(command, env=os.environ | told, check=True)
    found = json.loads((out / "report.json").read_text())
    for platform in ("tpu", "cuda"):
        print(f"{platform}: program, numbers in float64, custom calls")
        for name, count, calls in sorted(map(tuple_of, found[platform])):
            print(f"  {name:<44} {count:>5}  {', '.join(calls)}")
    return found


def tuple_of(row):
    return row[0], row[1], tuple(row[2])


def test_no_program_for_a_tpu_holds_float64_or_a_call_that_it_lacks(report):
    assert {name for name, _, _ in report["tpu"]} == DEVICE_SIDE
    assert [row for row in report["tpu"] if row[1] > 0 or not set(row[2]) <= ON_TPU] == []


def test_no_program_for_cuda_holds_a_call_that_it_lacks(report):
    assert any(count > 0 for _, count, _ in report["cuda"])  # there, algebra is in float64 on the device
    assert [row for row in report["cuda"] if not set(row[2]) <= ON_CUDA] == []


def test_no_float64_reaches_a_device_that_must_not_have_it(report):
    assert "on the host (cpu:2)" in report["placement"].lower().replace("tfrt_cpu_", "cpu:")
    assert report["programs"] > 100  # the guard saw what was compiled
    assert report["offences"] == []


def test_work_on_the_devices_within_algebra_on_the_host_is_there(report):
    """And not where the algebra is, to which JAX would bring whatever is not held on a device."""
    assert report["nested"]


def test_results_are_those_of_the_ordinary_placement(report):
    placed, ordinary = report["placed"], report["ordinary"]
    assert placed.keys() == ordinary.keys()
    for name in ("linear", "fourier", "network", "encoder"):
        assert placed[name]["exact"] and ordinary[name]["exact"], name
        for word in ("accuracy_full", "accuracy_distilled", "lam"):
            assert placed[name][word] == ordinary[name][word], (name, word)
    assert placed["ntk"] == ordinary["ntk"]
    for name in ("spanning DIRECT", "spanning MATRIX_FREE", "pre-images", "near copies"):
        assert placed[name]["exact"] and ordinary[name]["exact"], name
        # Steps in float32 cost a few more steps and no accuracy.
        assert placed[name]["steps"] <= 1.2 * ordinary[name]["steps"] + 2
    assert report["several steps at a time"]["exact"]
    for name in ("projection", "centred moments"):
        for word, value in ordinary[name].items():
            assert abs(placed[name][word] - value) <= 1e-5 * value
    for name in (n for n in ordinary if n.startswith("kip")):
        # Where labels are solved, the steps have a ridge that the ordinary ones have not.
        assert abs(placed[name]["loss"] - ordinary[name]["loss"]) <= 0.02 * ordinary[name]["loss"], name
        assert abs(placed[name]["accuracy_distilled"] - ordinary[name]["accuracy_distilled"]) <= 0.02, name
