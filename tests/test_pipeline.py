"""From names to arrays: what commands and experiments share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from jaxdistill.data.datasets import load_dataset
from jaxdistill.errors import InputError
from jaxdistill.features import KINDS
from jaxdistill.pipeline import (
    FeatureOptions,
    Stopwatch,
    make_features,
    parse_validation,
    prepare,
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
