"""Memory: asked for before it is taken, and named in bytes where there is not enough."""

import platform

import jax
import numpy as np
import psutil
import pytest

import jaxdistill as jd
from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.numerics.memory import (
    LIMIT_VARIABLE,
    available_bytes,
    format_bytes,
    require_memory,
    return_freed_memory,
)
from jaxdistill.ridge import source


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**52, "4096.0 TiB")],
)
def test_sizes_are_readable(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize("limit", ["8g", "8G", "8GB", "8GiB", " 8 G ", "8192M", str(2**33), "8589934592B"])
def test_the_limit_is_read_in_all_usual_ways(monkeypatch, limit):
    class Free:
        available = 2**40

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    monkeypatch.setenv(LIMIT_VARIABLE, limit)
    used = psutil.Process().memory_info().rss
    assert abs(available_bytes() - (2**33 - used)) < 2**26


def test_a_limit_never_adds_memory_and_none_is_all_that_is_free(monkeypatch):
    class Free:
        available = 12345

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    monkeypatch.setenv(LIMIT_VARIABLE, "900T")
    assert available_bytes() == 12345
    monkeypatch.delenv(LIMIT_VARIABLE)
    assert available_bytes() == 12345
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    assert available_bytes() == 0


@pytest.mark.parametrize("limit", ["lots", "2Q", "G", "-", "1e", "two G"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch, limit):
    monkeypatch.setenv(LIMIT_VARIABLE, limit)
    with pytest.raises(InputError, match=LIMIT_VARIABLE):
        available_bytes()


def test_the_message_holds_task_bytes_and_cure(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "1M")
    with pytest.raises(MemoryBudgetError, match=r"^thinking needs about 3\.0 KiB \(3072 bytes\) .*; rest$"):
        require_memory(3072, "thinking", "rest")
    require_memory(0, "nothing", "")


def test_fit_and_distill_ask_first_and_work_again_afterwards(monkeypatch, problem):
    phi = jd.features.Linear(12)
    model = jd.fit_ridge(phi, problem["x"], problem["y"], lam=1.0)
    monkeypatch.setenv(LIMIT_VARIABLE, "1M")
    with pytest.raises(MemoryBudgetError, match=r"factorising .*\(\d+ bytes\)"):
        jd.fit_ridge(phi, problem["x"], problem["y"], lam=1.0)
    with pytest.raises(MemoryBudgetError, match=r"constructing 3 examples .*\(\d+ bytes\)"):
        jd.distill(model, ipc=1, key=jax.random.key(0))
    monkeypatch.delenv(LIMIT_VARIABLE)
    again = jd.fit_ridge(phi, problem["x"], problem["y"], lam=1.0)
    np.testing.assert_array_equal(again.weights, model.weights)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the C library of Linux")
def test_what_was_freed_is_handed_back():
    held = [np.ones(2**13) for _ in range(400)]  # 64 KB each: the library's own heap
    last = held.pop()  # which pins the end of the heap, so that nothing is handed back by itself
    held.clear()
    before = psutil.Process().memory_info().rss
    return_freed_memory()
    assert before - psutil.Process().memory_info().rss > 10 * 2**20 and last.sum() == 2**13


def test_chunks_are_a_share_of_the_memory_of_an_accelerator_and_never_of_what_is_free(monkeypatch):
    told = {}

    class Device:
        def memory_stats(self):
            return told or None

    class Where:
        devices = (Device(),)

    monkeypatch.setattr(source, "placement", Where)
    p = 2**14
    assert source.chunk_bytes(p) == source.CHUNK_BYTES and source.chunk_rows(1024, 10**6) == 4096
    for limit, rows in ((2**30, 512), (2**34, 1024), (80 * 2**30, 2048)):  # of 64 KiB each
        for used in (0, limit // 2):
            told |= {"bytes_limit": limit, "bytes_in_use": used}
            assert source.chunk_bytes(p) == rows * 4 * p and source.chunk_rows(p, 10**6) == rows
            assert source.chunk_bytes(64) == 2**25 and source.chunk_rows(64, 10**6) == 2**15
