"""The certificate covers the original: a model that is not the ridge solution is never called exact."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.cli.report import _verdict, text_of
from jaxdistill.errors import InputError

KEY = jax.random.key(7)


def on_the_data(model, x, y):
    """The residual from the data, in float64, by NumPy alone; for linear features."""
    residual = x.T @ (y - x @ model.weights) - model.lam * model.weights
    return np.max(np.linalg.norm(residual, axis=1) / np.linalg.norm(x, axis=0)) / np.linalg.norm(y)


@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_residual_bounds_that_of_the_data(problem, dtype, lam):
    x, y = problem["x"], problem["y"]
    model = jd.fit_ridge(jd.features.Linear(12), x, y, lam=lam, dtype=dtype)
    true = on_the_data(model, x.astype(np.float64), y)
    assert true <= model.residual < 1e5 * np.finfo(dtype).eps
    assert model.solution.solved and model.product_dtype == dtype and model.dropped == 0


@given(
    seed=st.integers(0, 2**20),
    lam=st.floats(-8, 3).map(lambda e: 10.0**e),
    dtype=st.sampled_from(["float32", "float64"]),
    units=st.sampled_from([0.0, 3.0]),
)
def test_weights_off_by_a_thousandth_are_never_exact(seed, lam, dtype, units):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 5)) * 10.0 ** rng.uniform(-units, units, 5)
    y = np.eye(3)[np.arange(40) % 3] if seed % 2 else rng.standard_normal((40, 3))
    model = jd.fit_ridge(jd.features.Linear(5), x, y, lam=lam, dtype=dtype)
    wrong = dataclasses.replace(
        model, weights=model.weights * (1 + 1e-3 * rng.standard_normal(model.weights.shape))
    )
    assert model.solution.solved and not wrong.solution.solved
    assert wrong.residual > 10 * wrong.solution.tolerance or dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_set_that_trains_to_a_wrong_model_is_not_exact_and_its_file_says_so(problem, dtype, tmp_path):
    model = jd.fit_ridge(jd.features.Linear(12), problem["x"], problem["y"], lam=1.0, dtype=dtype)
    noise = 1 + 1e-3 * np.random.default_rng(0).standard_normal(model.weights.shape)
    wrong = dataclasses.replace(model, weights=model.weights * noise)
    for full, exact in ((model, True), (wrong, False)):
        small = jd.distill(full, ipc=1, key=KEY)
        cert = jd.certify(full, small)
        # What comes back is the model either way: the set is not what is wrong.
        assert cert.relative_weight_error <= cert.tolerance
        assert cert.exact is exact and cert.solved_full is exact
        small.with_certificate(cert).save(tmp_path / "small.npz")
        again = jd.DistilledSet.load(tmp_path / "small.npz")
        alone = jd.certify(again, again)
        assert alone == cert and json.loads(json.dumps(again.certificate)) == cert.to_dict()


def test_a_model_that_lost_a_column_is_found_out():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 4)) * np.array([1e6, 1, 1, 1])
    y = x @ np.array([[1e-6], [1.0], [1.0], [1.0]])
    model = jd.fit_ridge(jd.features.Linear(4), x, y, lam=1e-6)
    lost = model.weights.copy()
    lost[1:] = 0  # what an eigendecomposition of the Gram matrix would return at a wider ratio still
    wrong = dataclasses.replace(model, weights=lost)
    assert model.residual < 1e-13 and wrong.residual > 0.1 and not wrong.solution.solved


def test_rank_and_what_it_dropped_stand_in_the_certificate():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6))
    x[:, 5] = x[:, 0] + x[:, 1]
    model = jd.fit_ridge(jd.features.Linear(6), x, rng.standard_normal((40, 2)), lam=0.0)
    cert = jd.certify(model, jd.distill(model, size=2, key=KEY))
    assert cert.rank_full == 5 and cert.dropped_full < 1e-12 and cert.exact


def test_kernels_say_how_well_they_were_solved(problem, tmp_path):
    x, y = problem["x"][:40], problem["y"][:40]
    exact = jd.fit_kernel_ridge(jd.kernels.RBF(3.0), x, y, lam=1.0)
    rough = jd.fit_kernel_ridge(jd.kernels.RBF(3.0), x, y, lam=1.0, solver="cg", tolerance=1e-2, key=KEY)
    assert exact.solution.solved and not rough.solution.solved
    for model in (exact, rough):
        small = jd.distill_kernel(model, x, y, size=40, labels="projected", key=KEY)
        cert = jd.certify(model, small)
        assert cert.residual_full == model.residual and cert.solved_full is model.solution.solved
        assert not cert.exact or model is exact
        small.save(tmp_path / "small.npz")
        again = jd.load_set(tmp_path / "small.npz")
        assert jd.certify(again, again).residual_full == model.residual


def test_a_float32_table_standardised_by_hand_gets_a_set_that_float32_can_train_on():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 400)
    x = rng.standard_normal((3, 10))[classes] + 0.7 * rng.standard_normal((400, 10))
    x = (x * 10 ** rng.uniform(-2, 2, 10) + rng.uniform(-5, 5, 10)).astype(np.float32)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    for data in (x, x.astype(np.float64)):  # the second is no better known than the first
        model = jd.fit_ridge(jd.features.Linear(10), data, jd.one_hot(classes, 3), lam=1.0)
        assert model.data_dtype == "float32"
        for stored in ("float32", "float64"):
            small = jd.distill(model, ipc=1, dtype=stored, key=KEY)
            cert = jd.certify(model, small, data, classes)
            assert cert.exact and cert.condition < 1.1 and small.recipe["labels"] == "soft"
            assert cert.relative_weight_error_float32 < 100 * np.finfo(np.float32).eps
            assert cert.accuracy_distilled_float32 == cert.accuracy_full
    uneven = x.astype(np.float64) + 1e-3 * rng.standard_normal(x.shape)
    assert (
        jd.fit_ridge(jd.features.Linear(10), uneven, jd.one_hot(classes, 3), lam=1.0).data_dtype == "float64"
    )


def told(model, small, problem):
    from jaxdistill.cli.report import describe

    cert = jd.certify(model, small, problem["x_test"], problem["y_test"])
    return describe("some", small, cert.to_dict()) | {"seconds": {"total": 1.0}}


def test_the_report_says_how_the_full_model_was_solved_and_what_float32_makes_of_the_set(problem):
    x = problem["x"] - problem["x"].mean(axis=0, dtype=np.float64).astype(np.float32)
    model = jd.fit_ridge(jd.features.Linear(12), x, problem["y"], lam=1.0)
    good = told(model, jd.distill(model, ipc=1, key=KEY), problem)
    line = text_of(good).splitlines()[2]
    assert line.startswith("full model   solved to ") and line.endswith(", rank 12 of 12")
    assert len(_verdict(good)) == 1 and "exact:" in _verdict(good)[0]
    bad = told(model, jd.distill(model, ipc=1, labels="hard", key=KEY), problem)
    assert bad["condition"] > 1e6
    assert (
        _verdict(bad)[1].startswith("in float32   another model") and "train in float64" in _verdict(bad)[1]
    )
    nan = good | {"relative_weight_error_float32": float("nan")}
    assert len(_verdict(nan)) == 2
    wrong = dataclasses.replace(model, weights=1.001 * model.weights)
    report = told(wrong, jd.distill(wrong, ipc=1, key=KEY), problem)
    assert "not exact: the full model itself is not the ridge solution" in _verdict(report)[0]


@pytest.mark.parametrize("lam", [1e60, 1e160, 1e300, 1e307])
@pytest.mark.filterwarnings("ignore::jaxdistill.errors.ConditioningWarning")  # subnormal weights, at 1e307
def test_huge_penalties_are_exact_or_refused_in_one_line(problem, lam):
    model = jd.fit_ridge(jd.features.Linear(12), problem["x"], problem["y"], lam=lam)
    if lam == 1e60:
        assert jd.certify(model, jd.distill(model, ipc=1, key=KEY)).exact
        with pytest.raises(InputError, match="float32 cannot hold"):
            jd.distill(model, ipc=1, dtype="float32", key=KEY)
        return
    with pytest.raises(InputError, match="square float64 cannot hold"):
        jd.distill(model, ipc=1, key=KEY)


class Shifting(nn.Module):
    """A layer whose outputs nearly cancel, as those of a batch norm with a large running mean do."""

    @nn.compact
    def __call__(self, x):
        shift = self.param("shift", nn.initializers.constant(3e4), (x.shape[-1],))
        mean = self.param("mean", nn.initializers.constant(3e4), (x.shape[-1],))
        return jnp.tanh(0.3 * x + shift - mean)


@pytest.mark.long
def test_the_tolerance_counts_the_rounding_that_a_map_makes_itself(problem):
    module = Shifting()
    variables = module.init(KEY, jnp.zeros((1, 12)))
    phi = jd.features.Encoder.of(module, variables=variables, input_shape=(12,))
    plain = jd.features.Encoder.of(
        module,
        variables=jax.tree.map(jnp.zeros_like, variables),  # the same function without the cancellation
        input_shape=(12,),
    )
    certificates = {}
    for name, features in (("plain", plain), ("shifted", phi)):
        model = jd.fit_ridge(features, problem["x"], problem["y"], lam=1.0)
        small = jd.distill(model, ipc=1, reference=(problem["x"], problem["y"]), key=KEY)
        certificates[name] = jd.certify(model, small)
    plain_one, shifted = certificates["plain"], certificates["shifted"]
    assert plain_one.exact and shifted.exact
    # A relative change of the inputs is not what costs digits here: 3e4 beside features of size one is.
    growth = shifted.tolerance / shifted.condition / (plain_one.tolerance / plain_one.condition)
    assert 1e3 < growth < 1e6
