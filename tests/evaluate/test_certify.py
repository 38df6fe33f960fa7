"""The certificate: its numbers against plain NumPy, and the verdict only where it is deserved."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import EPS, relative

import jaxdistill as jd
from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import in_float64

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model(problem, maps):
    return jd.fit_ridge(maps["network"], problem["x"], problem["y"], lam=1.0)


@pytest.fixture(scope="module")
def below(model):
    """A set below the rank, so that nothing agrees by itself."""
    return jd.distill(model, size=2, labels="soft", lam_s=0.1, key=KEY)


def test_every_number_is_that_of_plain_numpy(model, below, problem):
    x, classes = problem["x_test"], problem["y_test"]
    y = np.eye(3)[classes]
    cert = jd.certify(model, below, x.astype(np.float64), y)
    phis, phi = in_float64(model.features, below.x), in_float64(model.features, x)
    again = phis.T @ np.linalg.solve(phis @ phis.T + below.lam * np.eye(2), below.y)
    full, distilled = phi @ model.weights, phi @ again
    named = full.argmax(1)
    assert 0 < np.mean(distilled.argmax(1) == named) < 1  # otherwise this test would show nothing
    expected = {
        "relative_weight_error": relative(again, model.weights),
        "cosine": np.vdot(again, model.weights) / np.linalg.norm(again) / np.linalg.norm(model.weights),
        "condition": np.linalg.cond(phis),
        "agreement": np.mean(distilled.argmax(1) == named),
        "accuracy_full": np.mean(named == classes),
        "accuracy_distilled": np.mean(distilled.argmax(1) == classes),
        "prediction_error": relative(distilled, full),
        "squared_error_full": np.mean((full - y) ** 2),
        "squared_error_distilled": np.mean((distilled - y) ** 2),
    }
    found = cert.to_dict()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
    assert (cert.size, cert.rank, cert.num_test, cert.stored) == (2, 3, 60, "float64")
    assert not cert.exact and cert.digest == below.digest


def test_the_float32_fields_are_of_a_retraining_in_float32(model, problem):
    small = jd.distill(model, ipc=2, key=KEY)
    cert = jd.certify(model, small, problem["x_test"], problem["y_test"])
    assert cert.relative_weight_error < 1e4 * EPS[np.float64]
    assert cert.relative_weight_error_float32 > EPS[np.float32] / 10
    assert cert.relative_weight_error_float32 < 100 * EPS[np.float32] * cert.condition
    assert cert.accuracy_distilled_float32 is not None and cert.agreement_float32 is not None


@pytest.mark.parametrize("labels", ["classes", "one-hot", "centred"])
def test_test_targets_may_be_classes_or_rows(model, below, problem, labels):
    classes = problem["y_test"]
    y = {"classes": classes, "one-hot": np.eye(3)[classes], "centred": np.eye(3)[classes] - 1 / 3}[labels]
    cert = jd.certify(model, below, problem["x_test"], y)
    assert cert.accuracy_full == np.mean(model.predict(problem["x_test"]).argmax(1) == classes)
    assert (cert.squared_error_full is None) == (labels == "classes")


def test_real_targets_have_no_accuracy(model, below, problem):
    y = np.random.default_rng(0).standard_normal((60, 3))
    cert = jd.certify(model, below, problem["x_test"], y)
    assert cert.accuracy_full is None and cert.squared_error_full is not None
    single = jd.fit_ridge(
        jd.features.Linear(12), problem["x"], problem["y"][:, :1] + problem["x"][:, :1], lam=1.0
    )
    cert = jd.certify(single, jd.distill(single, size=1, key=KEY), problem["x_test"], y[:, :1])
    assert cert.exact and cert.agreement is None and cert.accuracy_distilled is None


def test_without_test_data_there_is_a_verdict_and_no_more(model):
    cert = jd.certify(model, jd.distill(model, ipc=1, key=KEY))
    assert cert.exact and cert.num_test == 0
    assert cert.agreement is None and cert.prediction_error is None and cert.accuracy_full is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", ["x", "y"])
def test_inputs_or_labels_off_by_a_thousandth_are_not_exact(model, dtype, what):
    small = jd.distill(model, ipc=2, dtype=dtype, key=KEY)
    value = getattr(small, what)
    noise = 1 + 1e-3 * np.random.default_rng(0).standard_normal(value.shape)
    changed = dataclasses.replace(small, **{what: (value * noise).astype(value.dtype)})
    assert jd.certify(model, small).exact
    assert not jd.certify(model, changed).exact


def test_another_penalty_is_not_exact(model):
    small = jd.distill(model, ipc=2, lam_s="max", key=KEY)
    assert jd.certify(model, small).exact
    assert not jd.certify(model, dataclasses.replace(small, lam=0.9 * small.lam)).exact


def test_a_set_that_trains_to_nothing_is_judged_all_the_same(model, problem):
    small = jd.distill(model, ipc=1, labels="soft", key=KEY)
    cert = jd.certify(model, dataclasses.replace(small, y=np.zeros_like(small.y)), problem["x_test"])
    assert cert.cosine == 0.0 and cert.relative_weight_error == 1.0 and not cert.exact


def test_the_tolerance_grows_with_rounding_and_is_never_generous(model):
    for dtype in (np.float32, np.float64):
        small = jd.distill(model, ipc=2, dtype=dtype, key=KEY)
        cert = jd.certify(model, small)
        assert 100 * EPS[dtype] * cert.condition <= cert.tolerance <= np.sqrt(EPS[dtype])


def test_a_certificate_survives_json(model, below, problem):
    cert = jd.certify(model, below, problem["x_test"], problem["y_test"])
    assert jd.Certificate(**json.loads(json.dumps(cert.to_dict()))) == cert


def nan_in(x):
    x = np.array(x, np.float64)
    x.flat[5] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (nan_in(x), y), "x_test holds"),
        (lambda x, y: (x, nan_in(np.eye(3)[y])), "y_test holds"),
        (lambda x, y: (x[0], y), "x_test has shape"),
        (lambda x, y: (x[:0], y[:0]), "t > 0"),
        (lambda x, y: (x, y[:-1]), "y_test has shape"),
        (lambda x, y: (x, np.eye(4)[y]), "y_test has shape"),
    ],
)
def test_test_data_that_does_not_fit_is_refused(model, below, problem, change, says):
    with pytest.raises(InputError, match=says):
        jd.certify(model, below, *change(problem["x_test"], problem["y_test"]))
