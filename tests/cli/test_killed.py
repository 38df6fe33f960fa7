"""A program that is killed, by the script that kills the real ones fifty times each."""

import killed
import numpy as np
import pytest

SCRIPT = """
import pathlib, time
from jaxdistill.numerics.files import write_atomically
folder = pathlib.Path("results")
folder.mkdir(exist_ok=True)
for number in range(20):
    write_atomically(folder / f"{number}.txt", bytes([number]) * 1000)
    time.sleep(0.01)
"""


def test_files_are_whole_or_absent_and_the_end_is_that_of_an_unbroken_run(tmp_path):
    program = killed.Program(("-c", SCRIPT), "results/*", "results/*", killed.same)
    unbroken = {f"results/{number}.txt": bytes([number]) * 1000 for number in range(20)}
    rng = np.random.default_rng(21)
    assert rng.integers(1, 4) == 1 and rng.random() > 0.5  # one kill, just after it began to write
    counts = killed.trial(program, tmp_path, np.random.default_rng(21), unbroken, 10.0)
    assert counts["kills"] == counts["with results"] == counts["identical"] == 1


def test_what_is_not_whole_would_be_found():
    program = killed.PROGRAMS["experiment"]
    rows = b'{"a": 1, "seconds": 2}\n{"a": 2}\n'
    whole = {"quick/rows.jsonl": rows, "quick/table.md": b"table"}
    killed.check_whole(program, {"quick/rows.jsonl": b'{"a": 1, "seconds": 3}\n'}, whole)
    for broken in (
        {"quick/rows.jsonl": b'{"a": 2}\n'},
        {"quick/table.md": b"tab"},
        {"quick/other.md": b""},
    ):
        with pytest.raises(AssertionError, match=r"not whole|is left"):
            killed.check_whole(program, broken, whole)
    with pytest.raises(ValueError, match="Expecting"):
        killed.check_whole(program, {"quick/rows.jsonl": rows[:5]}, whole)
