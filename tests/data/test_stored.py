"""Rows of arrays in files: the same numbers as NumPy reads, from any row on, and damage that is named."""

import itertools
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdistill.data import stored
from jaxdistill.data.rows import ChunkRows
from jaxdistill.data.stored import StoredArray, open_rows
from jaxdistill.errors import DatasetError, InputError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(stored, "_PIECE_BYTES", 512)


def data(n=57, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3, 4)).astype(np.float32), rng.integers(0, 5, n)


def write(folder, kind, x, y):
    """Save in one of the ways, and open."""
    if kind in ("npy", "fortran", "big-endian"):
        change = {"fortran": np.asfortranarray, "big-endian": lambda a: a.astype(">f4")}.get(kind, np.asarray)
        np.save(folder / "x.npy", change(x))
        np.save(folder / "y.npy", y)
        return open_rows(folder / "x.npy", folder / "y.npy")
    if kind == "pieces":
        for i, part in enumerate(np.array_split(np.arange(len(x)), 4)):
            (np.savez_compressed if i % 2 else np.savez)(folder / f"{i}.npz", x=x[part], y=y[part])
        return open_rows(folder)
    save = np.savez_compressed if kind == "compressed" else np.savez
    save(folder / "all.npz", other=np.arange(9.0), images=x, labels=y)
    return open_rows(folder / "all.npz", x="images", y="labels")


@pytest.mark.parametrize("kind", ("npy", "fortran", "big-endian", "npz", "compressed", "pieces"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(start=st.integers(0, 57))
def test_rows_are_those_of_the_arrays_from_any_row_on(tmp_path, kind, start):
    x, y = data()
    rows = write(tmp_path, kind, x, y)
    assert rows.num_rows == 57 and not rows.once
    pieces = list(rows.pieces(start))
    assert start == 57 or len(pieces) > 1 or start > 40
    for found, expected in zip(zip(*pieces, strict=True), (x, y), strict=False):
        np.testing.assert_array_equal(np.concatenate(found), expected[start:])


def test_a_piece_is_a_copy_and_reading_holds_no_more_than_that(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_PIECE_BYTES", 2**15)
    x = np.zeros((20_000, 50), np.float32)
    rows = write(tmp_path, "npz", x, np.zeros((20_000, 1)))
    tracemalloc.start()
    for one, _ in rows.pieces():
        assert type(one) is np.ndarray and one.flags.owndata
    assert tracemalloc.get_traced_memory()[1] < x.nbytes / 20
    tracemalloc.stop()


def test_rows_are_mapped_as_they_are_read(tmp_path):
    x, y = data()
    mapped = write(tmp_path, "npz", x, y).map(
        inputs=lambda a: a.reshape(len(a), -1) / 2, targets=lambda b: np.eye(5)[b]
    )
    found = [np.concatenate(part) for part in zip(*mapped.pieces(9), strict=True)]
    np.testing.assert_array_equal(found[0], x[9:].reshape(-1, 12) / 2)
    np.testing.assert_array_equal(found[1], np.eye(5)[y[9:]])
    assert mapped.num_rows == 57 and not mapped.once


@pytest.mark.parametrize("kind", ("npy", "npz", "compressed"))
@pytest.mark.parametrize("share", (0.2, 0.6, 0.95))
def test_a_file_that_was_cut_off_is_found_when_it_is_opened(tmp_path, kind, share):
    x, y = data()
    write(tmp_path, kind, x, y)
    file = tmp_path / ("x.npy" if kind == "npy" else "all.npz")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DatasetError, match=r"copy it again"):
        open_rows(file, tmp_path / "y.npy") if kind == "npy" else open_rows(file, x="images", y="labels")


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    x, y = data()
    write(tmp_path, "npz", x, y)
    content = (tmp_path / "all.npz").read_bytes()
    assert content.count(b"(57, 3, 4)") == 1
    (tmp_path / "all.npz").write_bytes(content.replace(b"(57, 3, 4)", b"(99, 3, 4)"))
    with pytest.raises(DatasetError, match=r"declares shape \(99, 3, 4\)|damaged"):
        open_rows(tmp_path / "all.npz", x="images", y="labels")


def test_damage_inside_compressed_rows_is_found_when_they_are_read(tmp_path):
    x, y = data(900)
    rows = write(tmp_path, "compressed", x, y)
    content = bytearray((tmp_path / "all.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "all.npz") as archive:
        info = archive.getinfo("images.npy")
    middle = info.header_offset + info.compress_size // 2
    content[middle : middle + 40] = bytes(40)
    (tmp_path / "all.npz").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read any more"):
        list(rows.pieces())


def objects(folder):
    np.savez(folder / "o.npz", x=np.array([{}], object), y=np.ones(1))
    return open_rows(folder / "o.npz")


def uneven(folder):
    np.savez(folder / "o.npz", x=np.ones((3, 2)), y=np.ones((4, 1)))
    return open_rows(folder / "o.npz")


def unlike(folder):
    for i in (2, 3):
        np.savez(folder / f"{i}.npz", x=np.ones((3, i)), y=np.ones((3, 1)))
    return open_rows(folder)


def scalar(folder):
    np.savez(folder / "o.npz", x=np.float64(1), y=np.ones(1))
    return open_rows(folder / "o.npz")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (objects, "Python objects"),
        (uneven, "has 3 inputs and .* 4 targets"),
        (unlike, r"inputs of shape \(3,\).*save all pieces alike"),
        (scalar, "a single number"),
        (lambda folder: open_rows(folder), "holds no .npz"),
        (lambda folder: open_rows(folder / "no.npz"), "does not exist"),
        (lambda folder: open_rows(folder / "no.npy"), "name the .npy of the targets too"),
    ],
)
def test_what_is_no_pair_of_arrays_is_named(tmp_path, make, told):
    with pytest.raises(DatasetError, match=told):
        make(tmp_path)


def test_a_name_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    write(tmp_path, "npz", *data())
    with pytest.raises(DatasetError, match="has no array 'x'; it has images, labels, other"):
        open_rows(tmp_path / "all.npz")


def test_the_member_may_carry_more_in_its_header_than_numpy_writes(tmp_path):
    """Another program's archive: an extra field before the array moves its numbers."""
    x, y = data()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in (("x", x), ("y", y)):
            np.save(tmp_path / "one.npy", array)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.extra = b"\x99\x99\x04\x00abcd"
            archive.writestr(info, (tmp_path / "one.npy").read_bytes())
    assert StoredArray.open(tmp_path / "a.npz", "x").offset is not None
    found, _ = zip(*open_rows(tmp_path / "a.npz").pieces(), strict=True)
    np.testing.assert_array_equal(np.concatenate(found), x)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        (3, "not from int"),
        ("data.npz", "not from str; files are opened by jaxdistill.data.stored.open_rows"),
        (Path("data.npz"), "not from PosixPath; files are opened"),
        (lambda: 3, "returned int, and no iterable"),
        ([{"x": 1}], "chunk 0 is a dict; give pairs"),
        (
            [(np.ones((2, 1)), np.ones((2, 1))), (np.ones((2, 1)), np.ones((3, 1)))],
            "chunk 1 has 2 inputs and 3",
        ),
        ([(1.0, 2.0)], "chunk 0 has None inputs"),
    ],
)
def test_chunks_are_pairs(chunks, told):
    with pytest.raises(InputError, match=told):
        list(ChunkRows(chunks).pieces())


@given(st.lists(st.integers(0, 4), max_size=6), st.integers(0, 25))
def test_chunks_begin_anywhere(sizes, start):
    ends = np.cumsum([0, *sizes])
    x = np.arange(float(ends[-1]))[:, None]
    rows = ChunkRows([(x[a:b], x[a:b]) for a, b in itertools.pairwise(ends)])
    found = [part for part, _ in rows.pieces(start)]
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, 1)), *found]), x[start:])
