"""Feature maps by name: the newer kinds, their defaults and refusals, and the command line with them."""

import json

import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.cli.main import main
from jaxdistill.networks.config import TrainConfig
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.pipeline import FeatureOptions, make_features

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 64)).astype(np.float32)
Y = jd.one_hot(np.arange(40) % 3, 3)


@pytest.mark.parametrize(
    ("options", "p"),
    [
        (FeatureOptions("conv"), 2 * 2 * 32),
        (FeatureOptions("conv", 48, depth=1, activation="gelu"), 48),
        (FeatureOptions("deep-linear", 100), 100),
        (FeatureOptions("invertible", depth=1), 64),
        (FeatureOptions("encoder", 24, activation="tanh"), 24),
        (FeatureOptions("network", 90, activation="softplus"), 90),
    ],
)
def test_maps_are_made_by_name_and_the_same_key_makes_the_same(options, p, monkeypatch):
    monkeypatch.setattr("jaxdistill.features.trained._DEFAULT", TrainConfig(steps=2))
    one, two = (make_features(options, X, KEY, shape=(8, 8, 1), y=Y) for _ in range(2))
    assert one.kind == options.kind and one.num_inputs == 64 and one.num_features == p
    np.testing.assert_array_equal(in_float64(one, X), in_float64(two, X))


@pytest.mark.parametrize(
    ("options", "given", "says"),
    [
        (FeatureOptions("conv"), {"shape": (64,)}, "are for images"),
        (FeatureOptions("encoder"), {}, "are for images"),
        (FeatureOptions("encoder"), {"shape": (8, 8, 1)}, "give their targets"),
        (FeatureOptions("conv", 50), {"shape": (8, 8, 1)}, "multiples of 4, not 50"),
        (FeatureOptions("conv", 50, depth=4), {"shape": (8, 8, 1)}, "leave 0 positions"),
        (FeatureOptions("invertible", 50), {}, "64, not 50"),
        (FeatureOptions("network", activation="gellu"), {}, "did you mean 'gelu'"),
        (FeatureOptions("deep-linear", depth=0), {}, "at least one layer"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, given, says):
    with pytest.raises(errors.InputError, match=says):
        make_features(options, X, KEY, **given)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--features", "deep-linear", "--num-features", "90"),
        ("--features", "invertible"),
        ("--features", "network", "--activation", "tanh"),
    ],
)
def test_the_command_line_makes_exact_sets_of_them(arguments, tmp_path, capsys):
    assert main(["distill", *arguments, "--lam", "10", "--json", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["features"] == arguments[1] and report["agreement"] == 1.0
    assert report["relative_weight_error"] < 1e-3
    assert main(["evaluate", str(tmp_path / "distilled.npz"), "--dataset", "digits", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["relative_weight_error"] == report["relative_weight_error"]
