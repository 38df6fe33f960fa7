"""What is left by writers that were killed: deleted by a later one, never that of a writer at work."""

import os
import time

from jaxdistill.numerics.files import write_atomically


def test_only_what_was_abandoned_beside_the_same_target_is_deleted(tmp_path):
    target = tmp_path / "rows[1].jsonl"
    names = {
        ".rows[1].jsonl.abcd_123": 7200,
        ".rows[1].jsonl.abcd_124": 60,
        ".rows1.jsonl.abcd_123": 7200,
        ".rows[1].jsonl.longer_than_8": 7200,
        "rows[1].jsonl.abcd_123": 7200,
    }
    for name, age in names.items():
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_atomically(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert {path.name for path in tmp_path.iterdir()} == {target.name, *list(names)[1:]}
