"""KIP for models with an intercept: what is descended is the squared error of what the set trains to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from jax.test_util import check_grads

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.errors import InputError
from jaxdistill.kip.prepare import prepare

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 6)) + 2
T = np.tanh(X[:, :2]) + X[:, 2:4] + 9
PHI = jd.features.RandomNetwork.create(6, widths=(12,), activation="tanh", key=KEY)
MAP = jd.fit_ridge(PHI, X, T, lam=0.1, intercept=True)
FORMS = ("moments", "plain")
KERNEL = jd.fit_kernel_ridge(jd.kernels.RBF(3.0), X, T, lam=0.1, intercept=True)


def train(model, **settings):
    usual = {"size": 5, "steps": 3, "dtype": "float64", "reg": 1e-3}
    return kip.train(model, X, T, kip.KipConfig(**usual | settings), key=KEY)


@pytest.mark.parametrize("labels", ["fixed", "learned", "solved"])
@pytest.mark.parametrize("form", ["moments", "plain", "kernel"])
def test_the_loss_is_the_error_of_the_trained_set(labels, form):
    model = KERNEL if form == "kernel" else MAP
    told = {} if form == "kernel" else {"form": form}
    small = train(model, labels=labels, **told).small
    found = jd.certify(model, small, X, T)
    # The first loss of a run that starts from the set is half the summed squared error of its model.
    again = train(model, labels=labels, start=small, **told).history.loss[0, 0]
    np.testing.assert_allclose(again * 2 / T.shape[1], found.squared_error_distilled, rtol=1e-6)


def test_moments_and_rows_walk_the_same_way():
    runs = [train(MAP, labels=labels, form=form).x for labels in ("learned", "solved") for form in FORMS]
    assert relative(runs[0], runs[1]) < 1e-8
    assert relative(runs[2], runs[3]) < 1e-8


def test_gradients_follow_the_loss():
    config = kip.KipConfig(size=5, steps=1, dtype="float64", labels="learned", reg=1e-2)
    with jax.enable_x64(True):
        ready = prepare(MAP, X, T, config, None, None, jax.random.key_data(KEY), False)
        params = {"x": jnp.asarray(X[:5]), "y": jnp.asarray(T[:5])}

        @jax.jit
        def loss(p):
            return ready.problem.loss(p, params["y"], ready.context, KEY)

        check_grads(loss, (params,), 1, ("rev",), rtol=1e-5)


def test_the_models_outputs_as_targets():
    found = [train(MAP, targets="model", form=form, labels="solved").history.loss for form in FORMS]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-7)


def test_a_start_without_an_intercept_is_refused():
    plain = jd.fit_ridge(PHI, X, T, lam=0.1)
    start = jd.distill(plain, size=5, reference=(X, T), key=KEY)
    with pytest.raises(InputError, match="made for no intercept"):
        train(MAP, start=start)
    exact = jd.distill(MAP, size=12, reference=(X, T), key=KEY)
    with pytest.raises(InputError, match="made for an intercept"):
        train(plain, start=exact, size=12)
