"""The cache of compiled programs: kept, shared, refused, damaged; and never in the way of a result."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import platformdirs
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxdistill.cli import cache
from jaxdistill.cli.main import main

SMALL = ["distill", "--features", "linear"]
LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"  # the other tests keep less than commands do


def start(folder, *more, **variables):
    """A process of the command line, in a folder of its own."""
    environment = os.environ | {cache.VARIABLE: str(folder), LEAST: "0"} | variables
    command = [sys.executable, "-W", "error", "-m", "jaxdistill", *SMALL, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def kept(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*-cache")}


@pytest.mark.long
def test_two_processes_share_an_empty_folder_and_a_third_finds_everything(tmp_path):
    folder = tmp_path / "programs"
    both = [start(folder, "--out", str(tmp_path / name)) for name in "ab"]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and "certificate  exact" in out and err == ""
    programs = kept(folder)
    assert len(programs) >= 5
    third = start(folder, "--out", str(tmp_path / "c"))
    assert third.communicate(timeout=300)[1] == "" and third.returncode == 0
    assert kept(folder) == programs  # nothing was compiled again
    sets = [(tmp_path / name / "distilled.npz").read_bytes() for name in "abc"]
    assert sets[0] == sets[1] == sets[2]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command line in this process, with the package's own folder under the test's."""
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.delenv(LEAST, raising=False)
    own = tmp_path / "caches"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name, appauthor: own / name)

    def go(*more):
        jax.clear_caches()  # as in a process of its own, whose cache is not open yet
        compilation_cache.reset_cache()
        status = main([*SMALL, "--out", str(tmp_path / "out"), *more])
        return status, *capsys.readouterr()

    return own / "jaxdistill" / "programs", go


def test_programs_are_kept_in_the_platforms_place_and_jax_is_left_as_it_was(run):
    folder, go = run
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    assert go("--no-cache")[0] == 0 and not folder.exists()
    assert go()[0] == 0 and len(kept(folder)) >= 5
    assert (jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache) == before


def test_a_cache_that_is_open_already_lends_neither_folder_nor_programs(run, tmp_path):
    folder, other = run[0], tmp_path / "other"
    settings = {"jax_compilation_cache_dir": str(other), LEAST.lower(): 0}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.jit(lambda x: x + 1)(1.0)  # opens it
        found = kept(other)
        assert found
        jax.clear_caches()
        assert main([*SMALL, "--out", str(tmp_path / "out")]) == 0
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert kept(other) == found and len(kept(folder)) >= 5


def test_damaged_programs_cost_one_line_and_are_kept_anew(run):
    folder, go = run
    go()
    programs = kept(folder)
    for name, content in programs.items():
        (folder / name).write_bytes(content[: len(content) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, out, err = go()
    assert status == 0 and "certificate  exact" in out
    assert err.count("\n") == 1 and "damaged" in err
    assert kept(folder) == {}
    assert go()[2] == "" and kept(folder).keys() == programs.keys()


def test_a_folder_that_cannot_be_written_costs_one_line(run, monkeypatch):
    folder, go = run

    def full(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache.tempfile, "TemporaryFile", full)
    status, out, err = go()
    assert status == 0 and "certificate  exact" in out
    assert err.count("\n") == 1 and "Read-only file system" in err and "--no-cache" in err
    assert kept(folder) == {}


@pytest.mark.parametrize("inner", ["", "below/it"])
def test_a_folder_that_is_a_file_is_refused(run, monkeypatch, tmp_path, inner):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / inner))
    status, out, err = run[1]()
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "is a file" in err and "--no-cache" in err and not (tmp_path / "out").exists()
    assert run[1]("--no-cache")[0] == 0


def test_a_variable_set_to_nothing_keeps_nothing(run, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "")
    assert run[1]()[::2] == (0, "") and not run[0].exists()


def test_a_large_folder_loses_its_older_half(tmp_path):
    for age in range(10):
        path = tmp_path / f"{age}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "another file").write_bytes(bytes(1000))
    cache._tidy(tmp_path, 1000)
    assert len(kept(tmp_path)) == 10
    cache._tidy(tmp_path, 900)
    assert sorted(kept(tmp_path)) == [f"{age}-cache" for age in range(4)]
    assert (tmp_path / "another file").exists()
