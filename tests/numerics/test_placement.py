"""Where float64 lives: what a machine can follow, the two scopes, and devices that are full."""

import ast
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdistill
from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.numerics import placement as module
from jaxdistill.numerics.linalg import in_float32, in_float64
from jaxdistill.numerics.placement import VARIABLE, device_scope, float64_on, float64_scope, placement

PACKAGE = Path(jaxdistill.__file__).parent


def device(platform, number=0):
    return SimpleNamespace(platform=platform, device_kind=platform, id=number, memory_stats=lambda: None)


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine: its accelerators, and whether JAX sees the CPU beside them."""

    def pretend(platform, cpu=True):
        def local_devices(backend=None):
            if backend == "cpu" and not cpu:
                raise RuntimeError("Unknown backend cpu")
            return [device("cpu")] if backend == "cpu" else [device(platform), device(platform, 1)]

        monkeypatch.setattr(module.jax, "local_devices", local_devices)

    return pretend


def test_a_gpu_does_its_own_algebra_and_a_tpu_leaves_it_to_the_host(machine):
    machine("gpu")
    assert placement().native and placement().algebra.platform == "gpu"
    machine("tpu")
    where = placement()
    assert not where.native and where.algebra.platform == "cpu" and len(where.devices) == 2


def test_a_gpu_leaves_algebra_to_the_host_where_the_user_says_so(machine, monkeypatch):
    machine("gpu")
    monkeypatch.setenv(VARIABLE, "host")
    assert placement().algebra.platform == "cpu" and not placement().native


@pytest.mark.parametrize(
    ("platform", "cpu", "setting", "told"),
    [
        ("tpu", True, "device", f"float64 has no place on tpu.*{VARIABLE}=auto or host"),
        ("tpu", False, "auto", "JAX sees only tpu; add the CPU: JAX_PLATFORMS=tpu,cpu$"),
        ("gpu", False, "host", f"JAX_PLATFORMS=gpu,cpu, or choose {VARIABLE}=auto or device"),
        ("cpu", True, "hots", "did you mean 'host'"),
    ],
)
def test_what_a_machine_cannot_follow_is_told_with_what_it_can(
    machine, monkeypatch, platform, cpu, setting, told
):
    machine(platform, cpu)
    monkeypatch.setenv(VARIABLE, setting)
    with pytest.raises(InputError, match=told):
        placement()


@pytest.mark.parametrize("enter", [float64_scope, lambda: device_scope(np.float64)])
def test_float64_inputs_have_no_place_without_a_cpu(machine, enter):
    machine("tpu", cpu=False)
    with pytest.raises(InputError, match="float64 is to be on the host"), enter():
        pass


def test_a_choice_that_fails_leaves_the_one_before(machine):
    machine("tpu")
    with pytest.raises(InputError), float64_on("device"):
        pass
    assert not placement().native


def test_scopes_say_what_exists_in_them():
    with float64_scope():
        assert jnp.ones(2).dtype == np.float64
        with device_scope(np.float32):
            assert jnp.ones(2).dtype == np.float32
        with device_scope(np.float32, wide_sums=True) as side:
            assert side.wide and jnp.ones(2).dtype == np.float64
    with device_scope(np.float64) as side:
        assert side.wide and jnp.ones(2).dtype == np.float64
    assert jnp.ones(2).dtype == np.float32


def test_the_doors_convert_both_ways():
    assert in_float64(jnp.sum, np.ones(3, np.float32)).dtype == np.float64
    assert in_float32(jnp.sum, np.ones(3)).dtype == np.float32


def test_nothing_else_opens_float64():
    words = ("enable_x64", "jax_enable_x64")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in words
    }
    assert found == {"numerics/placement.py"}


@pytest.mark.parametrize("enter", [float64_scope, lambda: device_scope(np.float32)])
def test_a_device_without_room_is_told_in_one_line(enter):
    with (
        pytest.raises(MemoryBudgetError, match=r"has no room for \d+\.\d TiB; use fewer features") as caught,
        enter(),
    ):
        jnp.zeros(2**46, jnp.float32).block_until_ready()
    assert "\n" not in str(caught.value) and "RESOURCE_EXHAUSTED" not in str(caught.value)


def test_a_full_accelerator_is_told_what_it_has_and_of_the_host(monkeypatch):
    full = device("gpu")
    full.memory_stats = lambda: {"bytes_limit": 2**34, "bytes_in_use": 2**34 - 2**30}
    text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.00GiB."
    with (
        pytest.raises(MemoryBudgetError, match=rf"12.00GiB, and 1.0 GiB for this .*{VARIABLE}=host"),
        module._room_told(full),
    ):
        raise jax.errors.JaxRuntimeError(text)


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), float64_scope():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
