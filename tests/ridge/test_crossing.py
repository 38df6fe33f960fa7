"""What crosses to an accelerator: images in uint8, each row once, and the bits of the ordinary way.

A device of the CPU stands for the accelerator.
"""

import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill import pipeline
from jaxdistill.data.pixels import Pixels
from jaxdistill.data.preprocess import Identity
from jaxdistill.errors import InputError
from jaxdistill.numerics.placement import Side, device_scope
from jaxdistill.pipeline import prepare, prepare_rows
from jaxdistill.ridge import crossing as module
from jaxdistill.ridge.crossing import Crossing, Kept

N, SHAPE, D = 700, (4, 5, 3), 60
PHI = jd.features.Linear(D)


@pytest.fixture(autouse=True)
def chunks_of_256_rows(monkeypatch):
    """The smallest: three of all rows, two and one where 210 are held out."""
    monkeypatch.setattr("jaxdistill.ridge.source.CHUNK_BYTES", 2**16)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    y = np.arange(N) % 3
    centres = rng.uniform(60, 190, (3, *SHAPE))
    x = np.clip(centres[y] + 40 * rng.standard_normal((N, *SHAPE)), 0, 255).astype(np.uint8)
    return x, y


@pytest.fixture(scope="module")
def rows(images):
    """Inputs as images in uint8, the floats that the host makes of them, and targets."""
    x, y = images
    pixels = Pixels(x, jd.Standardize.fit(np.divide(x, 255, dtype=np.float32)))
    return pixels, pixels.preprocess.forward(np.divide(x, 255, dtype=np.float32)), jd.one_hot(y, 3)


class Sent:
    """What crosses: rows and bytes a row of every chunk of inputs that the host sends."""

    def __init__(self, monkeypatch, room=2**30):
        self.chunks, ordinary = [], Side.by_row
        monkeypatch.setattr(Side, "far", property(lambda side: True))
        monkeypatch.setattr(module, "device_bytes", lambda device: room)

        def by_row(side, tree):
            widths = {leaf.shape[1:]: leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray)}
            if (D,) in widths:
                self.chunks.append((len(widths[D,]), widths[D,].nbytes / len(widths[D,])))
            return ordinary(side, tree)

        monkeypatch.setattr(Side, "by_row", by_row)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", [jd.Standardize, Identity])
def test_an_accelerator_prepares_images_to_the_bit_of_the_host(images, monkeypatch, kind, wide):
    pixels = Pixels(images[0], kind.fit(Pixels(images[0])))
    monkeypatch.setattr(Side, "far", property(lambda side: True))
    for dtype in (np.float32, np.float64) if wide else (np.float32,):
        with device_scope(dtype, wide_sums=wide) as side:
            found = np.asarray(Crossing(side, dtype, pixels.preprocess)(pixels.bytes))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.asarray(pixels).astype(dtype))


@pytest.mark.parametrize(
    ("validation", "dtype"), [("leave-one-out", "float32"), ("leave-one-out", "float64"), (0.3, "float32")]
)
def test_a_row_of_images_crosses_once_in_bytes_and_the_model_is_the_same(
    rows, monkeypatch, validation, dtype
):
    pixels, floats, y = rows
    told = {"validation": validation, "key": jax.random.key(0), "dtype": dtype}
    expected = jd.fit_ridge(PHI, floats, y, **told)
    outputs = expected.predict(floats)
    sent = Sent(monkeypatch)
    found = jd.fit_ridge(PHI, pixels, y, **told)
    assert sent.chunks == 3 * [(256, D)]
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.selection.squared_errors, expected.selection.squared_errors)
    np.testing.assert_array_equal(found.predict(pixels), outputs)
    assert sent.chunks == 6 * [(256, D)]


def test_floats_stay_floats_and_cross_once_too(rows, monkeypatch):
    _, floats, y = rows
    expected = jd.fit_ridge(PHI, floats, y, dtype="float64")
    sent = Sent(monkeypatch)
    found = jd.fit_ridge(PHI, floats, y, dtype="float64")
    assert sent.chunks == 3 * [(256, 4 * D)]  # widened there
    np.testing.assert_array_equal(found.weights, expected.weights)


@pytest.mark.parametrize(("room", "crossings"), [(0, 6), (4 * 400 * D, 5), (4 * 600 * D, 4), (None, 6)])
def test_what_has_no_room_in_a_quarter_crosses_in_every_pass(rows, monkeypatch, room, crossings):
    sent = Sent(monkeypatch, room)
    jd.fit_ridge(PHI, rows[0], rows[2], dtype="float32")
    assert len(sent.chunks) == crossings


def test_what_is_kept_in_one_type_does_not_serve_another(rows, monkeypatch):
    Sent(monkeypatch)
    wide, kept = rows[1].astype(np.float64) + 1e-12, Kept()
    with device_scope(np.float64) as side:
        Crossing(side, np.float32, None, kept)(wide)
        np.testing.assert_array_equal(np.asarray(Crossing(side, np.float64, None, kept)(wide)), wide)


def test_on_the_cpu_rows_of_images_are_prepared_by_the_host(rows):
    pixels, floats, y = rows
    expected = jd.fit_ridge(PHI, floats, y, lam=1.0, intercept=True)
    np.testing.assert_array_equal(
        jd.fit_ridge(PHI, pixels, y, lam=1.0, intercept=True).weights, expected.weights
    )
    np.testing.assert_array_equal(expected.predict(pixels), expected.predict(floats))


@pytest.fixture
def stored(images, tmp_path):
    (x, y), path = images, tmp_path / "colours.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:90], y_test=y[:90])
    return str(path)


@pytest.mark.parametrize("preprocess", ["standardize", "none", "zca"])
def test_data_sets_by_name_stay_in_bytes_for_an_accelerator(stored, monkeypatch, preprocess):
    expected = prepare(stored, preprocess=preprocess)
    streamed = [np.concatenate(part) for part in zip(*prepare_rows(stored).rows.pieces(), strict=True)]
    monkeypatch.setattr(pipeline, "on_accelerator", lambda: True)
    task = prepare(stored, preprocess=preprocess)
    elementwise = preprocess != "zca"
    for found, rows in ((task.x, expected.x), (task.x_test, expected.x_test)):
        assert isinstance(found, Pixels if elementwise else np.ndarray)
        assert found.shape == rows.shape and found.dtype == rows.dtype and len(found) == len(rows)
        np.testing.assert_array_equal(np.asarray(found), rows)
        np.testing.assert_array_equal(found[[3, 5]], rows[[3, 5]])
    again = prepare_rows(stored, preprocess=preprocess).rows.pieces()
    assert all(isinstance(x, Pixels) == elementwise for x, _ in again)
    if preprocess == "standardize":
        found = [np.concatenate(part) for part in zip(*prepare_rows(stored).rows.pieces(), strict=True)]
        for one, other in zip(found, streamed, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_stream_of_images_crosses_once_in_bytes(stored, monkeypatch):
    task = prepare(stored)
    expected = jd.fit_ridge(PHI, task.x, task.y, dtype="float32")
    sent = Sent(monkeypatch)
    monkeypatch.setattr(pipeline, "on_accelerator", lambda: True)
    found = jd.fit_ridge(PHI, prepare_rows(stored).rows, dtype="float32")
    assert sent.chunks == 3 * [(256, D)]
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert found.selection.lam == expected.selection.lam


def test_pieces_that_are_prepared_in_two_ways_are_named(images):
    x, y = images[0][:20], jd.one_hot(images[1][:20], 3)
    pre = Identity(SHAPE)
    pieces = [(Pixels(x, pre), y), (np.asarray(Pixels(x, pre)), y)]
    with pytest.raises(InputError, match="chunk 1, from row 20 on, is prepared in another way"):
        jd.fit_ridge(PHI, pieces, lam=1.0)
