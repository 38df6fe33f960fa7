"""Transforms fitted from streams: the bits of the fit in memory, whatever the pieces; bad pieces named."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdistill.data import preprocess, zca
from jaxdistill.data.preprocess import Identity, Standardize
from jaxdistill.data.rows import ChunkRows
from jaxdistill.data.transforms import fit_preprocess, rows_to_inputs, to_inputs
from jaxdistill.data.zca import ZCA
from jaxdistill.errors import InputError, RankError


def examples(shape, dtype, n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, *shape)) * rng.uniform(0.1, 9, shape) + 5
    x[..., 0] = np.where(np.arange(n).reshape(-1, *[1] * (len(shape) - 1)) < n, 0.1, 0)  # a constant channel
    return x.astype(dtype)


def rows_of(x, ends=()):
    """A stream that can be read again, cut at these rows."""
    return ChunkRows([(part, np.zeros((len(part), 1))) for part in np.split(x, sorted(ends))])


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(preprocess, "_CACHED_ELEMENTS", 77)
    monkeypatch.setattr(zca, "PRODUCT_ELEMENTS", 130)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(("none", "standardize", "zca")),
    shape=st.sampled_from([(7,), (2, 3, 2)]),
    dtype=st.sampled_from([np.float32, np.float64]),
    ends=st.lists(st.integers(0, 60), max_size=5),
)
def test_a_stream_fits_the_transform_of_the_array_bit_for_bit(small_blocks, kind, shape, dtype, ends):
    x = examples(shape, dtype)
    found, expected = fit_preprocess(kind, rows_of(x, ends)), fit_preprocess(kind, x)
    assert found.settings() == expected.settings()
    for name, value in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], value)
    inputs = [part for part, _ in rows_to_inputs(found, rows_of(x, ends), name="x").pieces()]
    assert {part.dtype for part in inputs} == {np.dtype(np.float32)}
    wanted = to_inputs(expected, x, name="x", training=True)
    np.testing.assert_allclose(np.concatenate(inputs), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_sums_of_blocks_are_the_moments_of_all(small_blocks):
    x = np.sort(examples((6,), np.float64, n=200), axis=0)  # the first block says little of the rest
    scaled, whitened = Standardize.fit(rows_of(x, (3, 50))), ZCA.fit(rows_of(x, (9,)))
    np.testing.assert_allclose(scaled.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(scaled.std[1:], x.std(axis=0)[1:], rtol=1e-13)
    assert scaled.constant_channels == (0,) and scaled.mean[0] == 0.1
    covariance = np.cov(x.T, bias=True)
    floor = 0.1 * np.trace(covariance) / 6
    own = (whitened.eigenvectors * (whitened.scale**2 - floor)) @ whitened.eigenvectors.T
    np.testing.assert_allclose(own, covariance, atol=1e-13 * np.abs(covariance).max())


def test_a_channel_that_changes_in_the_last_row_alone_is_not_constant(small_blocks):
    x = examples((7,), np.float32)
    x[-1, 0] += 1
    assert Standardize.fit(rows_of(x, (10,))).constant_channels == ()


@pytest.mark.parametrize("kind", ("standardize", "zca"))
def test_a_bad_piece_is_named(kind):
    x = examples((4,), np.float64)
    spoiled = x.copy()
    spoiled[31, 2] = np.nan
    pieces = [(x[:20], x[:20]), (x[20:].astype(np.float32), x[20:])]
    wider = [(x[:20], x[:20]), (np.ones((3, 5)), x[:3])]
    for rows, told in (
        (rows_of(spoiled, (30,)), "chunk 1 has nan in column 2 of the inputs, in its row 1, row 31 of all"),
        (ChunkRows(pieces), "chunk 1, from row 20 on, has examples of shape .* and type float32"),
        (ChunkRows(wider), r"chunk 1, from row 20 on, has examples of shape \(5,\)"),
        (ChunkRows([(np.ones((3, 4), int), x[:3])]), "chunk 0, inputs: has type int64"),
        (ChunkRows([]), "no examples to fit on"),
    ):
        with pytest.raises(InputError, match=told):
            fit_preprocess(kind, rows)
    with pytest.raises(RankError, match="the 60 examples are all the same"):
        ZCA.fit(rows_of(np.full((60, 3), 0.1), (7,)))


def test_a_streamed_table_that_float32_does_not_hold_is_named():
    stamps = 1_700_000_000 + np.arange(60.0)[:, None]
    rows = rows_of(stamps, (25,))
    with pytest.raises(InputError, match="x_train: column 0 loses its values in float32"):
        rows_to_inputs(Identity.fit(rows), rows, name="x_train")
    x, y = next(rows_to_inputs(Standardize.fit(rows), rows, name="x_train").pieces())
    assert len(np.unique(x)) == 25 == len(y)
    large = rows_of(np.vstack([stamps, [[1e300]]]), (25,))
    constants = Standardize.from_constants([0.0], [1.0], (1,))
    with pytest.raises(InputError, match=r"column 0 is 1e\+300 in row 35 of its chunk"):
        list(rows_to_inputs(constants, large, name="x_train").pieces())
