"""From names to arrays: what commands and experiments share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from sklearn.preprocessing import StandardScaler

from jaxdistill.data.datasets import load_dataset
from jaxdistill.errors import InputError
from jaxdistill.features import KINDS
from jaxdistill.pipeline import (
    FeatureOptions,
    Stopwatch,
    make_features,
    make_features_of_rows,
    parse_validation,
    prepare,
    prepare_rows,
    rms_distance,
    split_keys,
)

KEY = jax.random.key(0)


@pytest.mark.parametrize("preprocess", ["standardize", "zca", "none"])
def test_a_task_is_the_data_set_through_its_preprocessing(preprocess):
    data, task = load_dataset("digits"), prepare("digits", preprocess=preprocess)
    assert task.x.shape == (len(data.x_train), 64) and task.x_test.shape == (len(data.x_test), 64)
    np.testing.assert_allclose(task.preprocess.inverse(task.x), data.x_train, atol=1e-4)
    np.testing.assert_array_equal(task.y.argmax(axis=1), data.y_train)
    np.testing.assert_array_equal(task.y_test, data.y_test)
    assert task.class_names == data.class_names


def test_targets_are_centred_on_request():
    task = prepare("digits", centred=True)
    np.testing.assert_allclose(task.y.sum(axis=1), 0, atol=1e-15)


def test_real_valued_targets_stay_as_they_are_and_are_not_centred(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{part}_{side}": rng.standard_normal((n, w)).astype(np.float32)
        for side, n in (("train", 40), ("test", 10))
        for part, w in (("x", 5), ("y", 2))
    }
    path = tmp_path / "table.npz"
    np.savez(path, **arrays)
    task = prepare(str(path))
    np.testing.assert_array_equal(task.y, arrays["y_train"])
    assert task.class_names is None
    with pytest.raises(InputError, match="centring is for classes"):
        prepare(str(path), centred=True)


def table_file(path, column, dtype, test=None):
    """A table of one column of interest beside noise, as a file."""
    noise = np.random.default_rng(0).standard_normal(len(column)).round(3) * 1000
    x = np.stack([column, noise], axis=1).astype(dtype)
    y = np.linspace(-1.0, 1.0, len(x))
    np.savez(path, x_train=x, y_train=y, x_test=x[:3] if test is None else test, y_test=y[:3])
    return x


@given(
    offset=st.sampled_from([0, 1e3, 1.7e9, -4e12]),
    step=st.sampled_from([1, 7, 1000]),
    dtype=st.sampled_from(["f8", ">f8", "i8", ">i8", "longdouble"]),
    preprocess=st.sampled_from(["standardize", "zca"]),
)
def test_a_table_is_standardised_before_it_is_rounded(tmp_path_factory, offset, step, dtype, preprocess):
    path = tmp_path_factory.mktemp("table") / "stamps.npz"
    x = table_file(path, offset + step * np.arange(200), dtype)
    task = prepare(str(path), preprocess=preprocess)
    assert task.x.dtype == task.x_test.dtype == np.float32
    assert len(np.unique(task.x[:, 0])) == 200
    if preprocess == "standardize":
        expected = StandardScaler().fit_transform(x.astype("f8"))
        np.testing.assert_allclose(task.x, expected, rtol=0, atol=1e-5)
    # The way back is exact to float32's rounding of inputs, not of the units.
    back = task.preprocess.inverse(task.x.astype(np.float64))
    np.testing.assert_allclose(back, x.astype("f8"), rtol=0, atol=1e-5 * x.astype("f8").std(0).max())


@pytest.mark.parametrize("dtype", ["f8", "i8"])
def test_a_column_that_loses_its_values_is_named(tmp_path, dtype):
    path = tmp_path / "stamps.npz"
    table_file(path, 1_700_000_000 + np.arange(200), dtype)
    with pytest.raises(InputError, match="x_train: column 0 loses its values in float32"):
        prepare(str(path), preprocess="none")
    table_file(path, 2000 + np.arange(200), dtype)  # years
    assert len(np.unique(prepare(str(path), preprocess="none").x[:, 0])) == 200


def test_values_that_float32_cannot_hold_are_named(tmp_path):
    path = tmp_path / "large.npz"
    table_file(path, np.full(200, 1.0), "f8", test=np.array([[1.0, 0.0], [1.0, 0.0], [1e300, 0.0]]))
    with pytest.raises(InputError, match=r"x_test: column 0 is 1e\+300 in row 2"):
        prepare(str(path))


def test_features_of_a_stream_are_those_of_the_data_in_memory(monkeypatch):
    task, streamed = prepare("digits"), prepare_rows("digits")
    for options in (FeatureOptions("fourier"), FeatureOptions("conv", depth=1), FeatureOptions("linear")):
        one = make_features(options, task.x, KEY, shape=task.preprocess.shape)
        two = make_features_of_rows(options, streamed, KEY)
        assert one.settings() == two.settings()
        for name, value in one.arrays().items():
            np.testing.assert_array_equal(value, two.arrays()[name])
    trained = []
    monkeypatch.setattr("jaxdistill.features.trained.train_encoder", lambda *data, **_: trained.extend(data))
    make_features_of_rows(FeatureOptions("encoder"), streamed, KEY)
    for found, expected in zip(trained, (task.x, task.y), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_every_kind_of_features_is_made_from_its_name_and_the_same_from_the_same_key():
    x = np.random.default_rng(1).standard_normal((50, 9)).astype(np.float32)
    for kind in ("linear", "fourier", "network"):
        one, two = (make_features(FeatureOptions(kind), x, KEY) for _ in range(2))
        assert isinstance(one, KINDS[kind]) and one.num_features == 9
        np.testing.assert_array_equal(one(jnp.asarray(x)), two(jnp.asarray(x)))


def test_options_reach_the_features():
    x = np.random.default_rng(1).standard_normal((50, 9)).astype(np.float32)
    network = make_features(FeatureOptions("network", 7, depth=2, negative_slope=0.3), x, KEY)
    assert [w.shape for w in network.weights] == [(7, 9), (7, 7)] and network.negative_slope == 0.3
    fourier = make_features(FeatureOptions("fourier", lengthscale=2.0), x, KEY)
    default = make_features(FeatureOptions("fourier"), x, KEY)
    np.testing.assert_allclose(fourier.frequencies * 2, default.frequencies * rms_distance(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [(FeatureOptions("networc"), "did you mean 'network'"), (FeatureOptions("linear", 5), "9, not 5")],
)
def test_features_that_cannot_be_made_say_why(options, says):
    with pytest.raises(InputError, match=says):
        make_features(options, np.zeros((3, 9), np.float32), KEY)


def test_the_default_lengthscale_is_the_root_mean_square_distance():
    x = np.random.default_rng(2).standard_normal((300, 4))
    np.testing.assert_allclose(rms_distance(x), np.sqrt(np.mean(pairwise_distances(x) ** 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("auto", 10_000, "leave-one-out"),
        ("auto", 10_001, 0.05),
        ("loo", 10**6, "leave-one-out"),
        ("0.2", 9, 0.2),
    ],
)
def test_validation_by_name(text, n, expected):
    assert parse_validation(text, n) == expected


def test_validation_that_is_neither_a_word_nor_a_number():
    with pytest.raises(InputError, match="'auto', 'loo' or a fraction"):
        parse_validation("half", 10)


def test_keys_of_a_seed_differ_from_each_other_and_from_other_seeds():
    keys = [jax.random.key_data(key).tolist() for seed in (0, 1) for key in split_keys(seed)]
    assert len({tuple(key) for key in keys}) == 6


def test_a_stopwatch_times_its_stages_apart():
    watch = Stopwatch()
    with watch.stage("a"):
        sum(range(10**5))
    with watch.stage("b"):
        pass
    assert list(watch.seconds) == ["a", "b"] and watch.seconds["a"] > watch.seconds["b"] >= 0
