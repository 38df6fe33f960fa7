"""Streams: the model of the arrays whatever the pieces, bad chunks named, threads that end."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.data.rows import ChunkRows
from jaxdistill.data.stored import open_rows
from jaxdistill.errors import InputError
from jaxdistill.ridge.source import ArraySource
from jaxdistill.ridge.stream import StreamSource, prefetched, source_of
from jaxdistill.ridge.targets import TargetKind


def problem(n=300, d=6, k=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(dtype)
    return x, jd.one_hot(np.argmax(x[:, :k], axis=1), k)


def cut(x, y, *ends):
    return [(a, b) for a, b in zip(np.split(x, ends), np.split(y, ends), strict=True)]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 300), max_size=6), st.integers(0, 2))
def test_chunks_are_equal_whatever_the_pieces_and_begin_anywhere(ends, begin):
    x, y = problem()
    source = StreamSource.of(cut(x, y, *sorted(ends)), num_inputs=6, breadth=2**21)
    assert source.chunk_size == 256  # the smallest
    chunks = list(source.chunks(256 * begin))
    assert [len(a) for a, _ in chunks] == [256, 44][begin:]
    for found, expected in zip(zip(*chunks, strict=True), (x, y), strict=False):
        np.testing.assert_array_equal(np.concatenate(found), expected[256 * begin :])


def test_chunks_of_wide_inputs_are_no_larger_than_those_of_wide_features():
    x = np.zeros((600, 2**14), np.float32)
    source = StreamSource.of(cut(x, np.ones((600, 1))), num_inputs=None, breadth=8)
    assert source.chunk_size == 256  # 16 MB


@pytest.mark.parametrize("lam", (0.0, 0.3, "auto"))
@pytest.mark.parametrize("intercept", (False, True))
def test_a_stream_trains_to_the_model_of_the_arrays(lam, intercept):
    x, y = problem()
    phi = jd.features.Linear(6)
    expected = jd.fit_ridge(phi, x, y, lam=lam, intercept=intercept, dtype="float64")
    found = jd.fit_ridge(phi, lambda: iter(cut(x, y, 7, 200)), lam=lam, intercept=intercept, dtype="float64")
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-10, atol=1e-12)
    assert (found.lam, found.rank, found.target_kind) == (expected.lam, 6, TargetKind.ONE_HOT)
    assert (found.data_dtype, found.moments.count) == ("float64", 300)
    if lam == "auto":
        np.testing.assert_allclose(
            found.selection.squared_errors, expected.selection.squared_errors, rtol=1e-10
        )


def test_fewer_examples_than_features_and_columns_of_any_unit_are_served():
    x, y = problem(n=20, d=40)
    few = jd.fit_ridge(jd.features.Linear(40), cut(x, y, 3), lam=0.1)
    np.testing.assert_allclose(few.weights, x.T @ np.linalg.solve(x @ x.T + 0.1 * np.eye(20), y), atol=1e-9)
    x, y = problem()
    x = x * np.array([1e8, 1, 1, 1, 1, 1])
    scaled = jd.fit_ridge(jd.features.Linear(6), cut(x, y, 100), lam=0.0)
    expected = np.linalg.lstsq(x / np.array([1e8, 1, 1, 1, 1, 1]), y, rcond=None)[0]
    np.testing.assert_allclose(
        scaled.weights * np.array([[1e8], [1], [1], [1], [1], [1]]), expected, rtol=1e-9
    )


def test_validation_data_beside_a_stream(tmp_path):
    x, y = problem()
    np.savez(tmp_path / "a.npz", x=x[:200], y=y[:200])
    held = x[200:], y[200:]
    found = jd.fit_ridge(jd.features.Linear(6), open_rows(tmp_path / "a.npz"), validation=held)
    expected = jd.fit_ridge(jd.features.Linear(6), x[:200], y[:200], validation=held)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-10)
    with pytest.raises(InputError, match="a stream cannot hold rows out"):
        jd.fit_ridge(jd.features.Linear(6), open_rows(tmp_path / "a.npz"), validation=0.2)


@pytest.mark.parametrize("kind", ("one-hot", "centred one-hot", "real-valued"))
def test_targets_are_what_all_chunks_say(kind):
    x, y = problem()
    y = {"centred one-hot": y - 1 / 3}.get(kind, y).copy()
    if kind == "real-valued":
        y[-1] = 0.5
    assert jd.fit_ridge(jd.features.Linear(6), cut(x, y, 50, 299), lam=1.0).target_kind.value == kind


def test_an_iterator_serves_one_pass_and_says_so_where_two_are_needed():
    x, y = problem()
    once = jd.fit_ridge(jd.features.Linear(6), iter(cut(x, y, 10, 20)), lam=1.0)
    np.testing.assert_allclose(once.weights, np.linalg.solve(x.T @ x + np.eye(6), x.T @ y), rtol=1e-9)
    with pytest.raises(InputError, match="the iterator is used up, and the data are needed once more"):
        jd.fit_ridge(jd.features.Linear(6), iter(cut(x, y, 10)), lam="auto")
    same = iter(cut(x, y, 10))
    with pytest.raises(InputError, match=r"ends after .* rows, and .* were expected.*fresh iterator"):
        jd.fit_ridge(jd.features.Linear(6), lambda: same, lam="auto")


def spoiled(part, row, column, value):
    x, y = problem()
    pieces = cut(x, y, 100, 250)
    (pieces[1][0] if part == "inputs" else pieces[1][1])[row, column] = value
    return pieces


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        (
            spoiled("inputs", 7, 4, np.nan),
            "chunk 1 has nan in column 4 of the inputs, in its row 7, row 107 of",
        ),
        (
            spoiled("targets", 0, 1, np.inf),
            "chunk 1 has inf in column 1 of the targets, in its row 0, row 100",
        ),
        ([*cut(*problem(), 100), problem(5, d=7)], r"chunk 2, from row 300 on, has inputs of shape \(5, 7\)"),
        ([*cut(*problem()), problem(5, k=2)], r"chunk 1, from row 300 on, has targets of shape \(5, 2\)"),
        ([*cut(*problem()), problem(5, dtype=np.float32)], "type float32 and the first chunk float64"),
        (
            [*cut(*problem()), (np.ones((5, 6)), np.ones((5, 3), np.float32))],
            "chunk 1, from row 300 on, has targets of type float32 and the first chunk float64",
        ),
        ([*cut(*problem()), (np.ones((2, 6), int), np.ones((2, 3)))], "chunk 1, inputs: has type int64"),
        ([(np.ones((2, 6)), np.ones((2, 3), int))], "chunk 0, targets: has type int64; turn class numbers"),
        ([problem(5, d=7)], r"chunk 0 has inputs of shape \(5, 7\), expected \(rows, 6\)"),
        ([(np.ones((2, 6)), np.ones(2))], r"chunk 0 has targets of shape \(2,\)"),
        ([], "holds no chunk"),
        ([(np.ones((0, 6)), np.ones((0, 3)))] * 2, "holds no chunk with rows"),
        (3, "chunks of .* not from int"),
    ],
)
def test_a_bad_chunk_is_named(chunks, told):
    with pytest.raises(InputError, match=told):
        jd.fit_ridge(jd.features.Linear(6), chunks, lam=1.0)


def test_chunks_without_rows_say_nothing_of_the_rest():
    x, y = problem()
    none = np.zeros((0, 6), np.float32), np.zeros((0, 3), np.float32)
    for chunks in ([none, *cut(x, y, 10), none], iter([none, *cut(x, y, 10), none])):
        model = jd.fit_ridge(jd.features.Linear(6), chunks, lam=1.0)
        assert (model.data_dtype, model.moments.count) == ("float64", 300)


def test_a_stream_that_ends_early_says_after_which_row():
    rows = ChunkRows(cut(*problem(), 100), num_rows=301)
    with pytest.raises(InputError, match="ends after 300 rows, and 301 were expected"):
        jd.fit_ridge(jd.features.Linear(6), rows, lam=1.0)


def test_arrays_and_streams_are_told_apart():
    x, y = problem()
    assert isinstance(source_of(x.tolist(), y.tolist(), num_inputs=6, breadth=6), ArraySource)
    with pytest.raises(InputError, match="x is an array, and y is missing"):
        jd.fit_ridge(jd.features.Linear(6), x)
    with pytest.raises(InputError, match="leave y out"):
        jd.fit_ridge(jd.features.Linear(6), lambda: [(x, y)], y)


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "jaxdistill-read-ahead"]


def test_reading_ahead_is_bounded_and_ends_with_its_reader():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    reader = prefetched(items(), 2)
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    for _ in range(200):
        if len(made) >= 6:
            break
        threading.Event().wait(0.01)
    assert len(made) <= 6  # three read, two waiting, one in hand
    reader.close()
    assert not readers()


def test_an_error_of_the_reader_comes_out_where_its_item_would():
    def items():
        yield 1
        raise KeyError("gone")

    reader = prefetched(items(), 4)
    assert next(reader) == 1
    with pytest.raises(KeyError, match="gone"):
        next(reader)
    assert not readers()
    with pytest.raises(InputError):
        jd.fit_ridge(jd.features.Linear(6), spoiled("inputs", 0, 0, np.nan), lam=1.0)
    assert not readers()
