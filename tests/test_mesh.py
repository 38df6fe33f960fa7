"""Many devices and several processes: the same model, the work divided evenly, a message if one is lost."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).parent


def environment(**more):
    quick = {"PYTHONPATH": str(HERE.parent), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    return os.environ | quick | more


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesh")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-W", "error", str(HERE / "meshed_runs.py"), str(out)]
    subprocess.run(command, env=environment(XLA_FLAGS=flags), check=True)
    return json.loads((out / "report.json").read_text())


def test_eight_devices_find_the_model_that_one_finds(eight):
    assert eight["same"].pop("lam") == 0
    assert max(eight["same"].values()) < 1e-10
    assert eight["far"] < 1e-9


def test_eight_devices_share_the_work_evenly(eight):
    report = eight["evenly"]
    assert report["error against NumPy"] < 1e-14
    rows, both = report["8 x 1"], report["4 x 2"]
    assert max(part[name] for part in (rows, both) for name in ("error", "asymmetry")) < 1e-14
    assert rows["work"] < 1.1 / 8
    assert both["work"] < 1.1 / 8 and both["memory"] == 0.5  # G of split features is formed whole


def test_devices_without_float64_sum_in_parts_too(eight):
    assert eight["short"] < 5e-7


def test_eight_devices_share_the_tiles_of_a_kernel_evenly(eight):
    report = eight["kernels"]
    assert report["devices"] == 8 and max(report["products"]) < 1e-10
    assert max(report["errors"]) < 1e-10 and report["asymmetry"] == 0
    triangle, rows = report["work"]
    assert triangle < 0.6 / 8  # the one device takes it in a single tile, and both of its halves
    assert rows < 1.1 / 8


def test_eight_devices_share_the_steps_of_kip_evenly(eight):
    for report in eight["descents"].values():
        assert report["error"] < 1e-10
        assert report["work"] < 1.25 / 8  # what is m x m is the same on all, and columns are filled up


def test_a_mesh_that_cannot_be_is_refused_in_one_line(eight):
    told = eight["refused"]
    assert "takes 9 devices, and there are 8 (cpu); ask for fewer" in told["more"]
    assert "give numbers from 1 on" in told["none"]
    assert "name them 'data' and" in told["axes"]
    assert "5 features cannot be split evenly over the 2 devices" in told["uneven"]
    assert "pass a jax.sharding.Mesh" in told["no mesh"]
    assert "leave cpu:7 out of the mesh" in told["host"].lower().replace("tfrt_cpu_", "cpu:")
    assert not any("\n" in line for line in told.values())


def test_two_processes_find_the_same_bits_and_one_that_dies_is_told_of(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-W", "error", str(HERE / "process_runs.py"), port]
    pair = [subprocess.Popen([*command, str(i), str(tmp_path)], env=environment()) for i in (0, 1)]
    try:
        codes = [one.wait(timeout=300) for one in pair]
    finally:
        for one in pair:
            one.kill()
    assert codes == [3, -9]  # told, and killed
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1))
    assert first == second  # bit for bit
    assert first["devices"] == 2
    for name in ("plain", "scaled"):
        assert first[name]["error"] < 1e-10 and first[name]["lam"] == 0
    assert first["other targets"].startswith("the processes read examples with [1, 2] targets")
    for name in ("a kernel fit", "a KIP run"):
        assert first[name].startswith(f"{name} needs all examples in one process") and "\n" not in first[name]
    message = (tmp_path / "message.txt").read_text()
    assert message.startswith("another process of the job does not answer any more") and "\n" not in message
