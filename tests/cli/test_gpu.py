"""What XLA is told about GPUs: where there are any, if it knows the word, and unless the user has chosen."""

import os

import jax
import pytest

from jaxdistill.cli import gpu

FLAG = "--xla_gpu_enable_triton_gemm=false"


@pytest.mark.parametrize("before", [None, "", "--xla_cpu_enable_fast_math=false"])
@pytest.mark.parametrize("there", [True, False])
def test_the_flag_is_added_for_as_long_as_a_command_runs(monkeypatch, before, there):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(
        gpu, "find_spec", lambda name: object() if there and name == "jax_cuda13_plugin" else None
    )
    with pytest.raises(KeyboardInterrupt), gpu.untuned_products():
        told = os.environ.get("XLA_FLAGS")
        assert told == (f"{before or ''} {FLAG}".strip() if there else before)
        raise KeyboardInterrupt
    assert os.environ.get("XLA_FLAGS") == before


@pytest.mark.parametrize("case", ["chosen", "a later jax"])
def test_nothing_is_said_to_who_has_chosen_or_may_not_know(monkeypatch, case):
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    before = "--xla_gpu_enable_triton_gemm=true" if case == "chosen" else ""
    monkeypatch.setenv("XLA_FLAGS", before)
    if case != "chosen":
        monkeypatch.setattr(jax, "__version_info__", (0, 13, 0))
    with gpu.untuned_products():
        assert os.environ["XLA_FLAGS"] == before


def test_this_xla_knows_the_flag():
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_enable_triton_gem": False})
