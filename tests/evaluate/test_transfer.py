"""Other features and kernels trained on a set, against scikit-learn's kernel ridge regression."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

import jaxdistill as jd
from jaxdistill import kernels
from jaxdistill.errors import InputError, KernelError, PenaltyError
from jaxdistill.kernels.tiles import kernel_matrix
from jaxdistill.numerics.linalg import in_float64

KEY = jax.random.key(3)
LENGTHSCALE = 4.0


@pytest.fixture(scope="module")
def sets(problem, maps):
    """A set of a feature map with self-conditioned labels, one with class rows, and one of a kernel."""
    x, y = problem["x"], problem["y"]
    model = jd.fit_ridge(maps["network"], x, y, lam=0.1)
    real = {"realistic": "closest", "reference": (x, y), "key": KEY}
    trained = jd.fit_kernel_ridge(kernels.Matern32(LENGTHSCALE), x, y, lam=0.1)
    return {
        "features": jd.distill(model, ipc=4, **real),
        "classes": jd.distill(model, ipc=4, labels="hard", lam_s="max", key=KEY),
        "kernel": jd.distill_kernel(trained, x, y, ipc=4, key=KEY),
    }


apply = jax.jit(lambda phi, x: phi(x))


def features_of(phi, x):
    return in_float64(apply, phi, np.float64(x))


def own_of(small):
    """What a set trains to, by scikit-learn: a function of inputs."""
    if isinstance(small, jd.DistilledSet):
        model = KernelRidge(alpha=small.lam, kernel="linear").fit(
            features_of(small.features, small.x), small.y
        )
        return lambda x: model.predict(features_of(small.features, x))
    gram = kernel_matrix(small.kernel, small.x, dtype=np.float64)
    model = KernelRidge(alpha=small.lam, kernel="precomputed").fit(gram, small.y)
    return lambda x: model.predict(kernel_matrix(small.kernel, np.float64(x), np.float64(small.x)))


def rows_of(small, labels):
    soft = own_of(small)(small.x)
    classes = small.y if small.recipe["labels"] == "hard" else soft
    return {"soft": soft, "hard": np.eye(3)[classes.argmax(axis=1)], "own": small.y}[labels]


def target_of(name, maps):
    """A target, scikit-learn's words for it, and the features that it is linear in."""
    if name == "rbf":
        return kernels.RBF(LENGTHSCALE), {"kernel": "rbf", "gamma": 1 / (2 * LENGTHSCALE**2)}, np.float64
    if name == "polynomial":
        return kernels.Polynomial(3), {"kernel": "poly", "degree": 3, "gamma": 1 / 12, "coef0": 1}, np.float64
    phi = maps[name]
    return phi, {"kernel": "linear"}, lambda x: features_of(phi, x)


@pytest.mark.parametrize("made", ["features", "classes", "kernel"])
@pytest.mark.parametrize("name", ["rbf", "polynomial", "fourier", "linear"])
@pytest.mark.parametrize(("labels", "lam"), [("soft", None), ("hard", 0.3), ("own", 0.3)])
def test_scores_are_those_of_scikit_learn(sets, maps, problem, made, name, labels, lam):
    small, (target, words, seen) = sets[made], target_of(name, maps)
    x, y = problem["x_test"], np.eye(3)[problem["y_test"]]
    found = jd.transfer(small, target, x, y, labels=labels, lam=lam)
    points = seen(small.x)
    kernel = KernelRidge(**words)._get_kernel(points)
    scale = np.trace(kernel) / len(points)
    expected = 0.1 * scale if lam is None else lam
    np.testing.assert_allclose([found.lam, found.relative_lam], [expected, expected / scale], rtol=1e-6)
    model = KernelRidge(alpha=expected, **words).fit(points, rows_of(small, labels))
    outputs, own = model.predict(seen(x)), own_of(small)(x)
    np.testing.assert_allclose(found.squared_error, np.mean((outputs - y) ** 2), rtol=1e-4)
    np.testing.assert_allclose(found.squared_error_own, np.mean((own - y) ** 2), rtol=1e-4)
    named = [f.argmax(axis=1) for f in (outputs, own)]
    assert found.accuracy == np.mean(named[0] == problem["y_test"])
    assert found.accuracy_own == np.mean(named[1] == problem["y_test"])
    assert found.agreement == np.mean(named[0] == named[1])
    assert (found.size, found.num_test, found.features) == (12, 60, target.kind)
    assert found.lam_chosen_by == ("usual" if lam is None else "given")


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_the_penalty_of_leave_one_out_is_that_of_leaving_one_out(sets, maps, problem, labels):
    small = sets["features"]
    found = jd.transfer(small, kernels.RBF(LENGTHSCALE), problem["x_test"], labels=labels, lam="auto")
    _, words, _ = target_of("rbf", maps)
    rows, keep = rows_of(small, labels), ~np.eye(12, dtype=bool)
    scores = []
    for relative in 10.0 ** np.arange(-6.0, 3.25, 0.5):  # of tr(K) / m, which is 1 for this kernel
        fits = (KernelRidge(alpha=relative, **words).fit(small.x[k], rows[k]) for k in keep)
        left = np.concatenate([fit.predict(small.x[~k]) for fit, k in zip(fits, keep, strict=True)])
        wrong = np.mean(left.argmax(axis=1) != rows.argmax(axis=1)) if labels == "hard" else 0.0
        scores.append((wrong, np.mean((left - rows) ** 2), relative))
    np.testing.assert_allclose(found.relative_lam, min(scores)[2])
    assert found.lam_chosen_by == "leave-one-out" and found.accuracy is None and found.agreement is not None


def test_soft_labels_are_what_the_full_model_predicts_where_the_set_is_exact(sets, maps, problem):
    small, phi = sets["features"], maps["network"]
    plain = dataclasses.replace(small, y=features_of(phi, small.x) @ small.weights)
    x, y = problem["x_test"], np.eye(3)[problem["y_test"]]
    soft = jd.transfer(small, kernels.NTK(), x, y)
    given = jd.transfer(plain, kernels.NTK(), x, y, labels="own")
    np.testing.assert_allclose(soft.squared_error, given.squared_error, rtol=1e-8)


@pytest.mark.parametrize("made", ["features", "kernel"])
def test_a_set_transfers_to_itself_without_loss(sets, problem, made):
    small = sets[made]
    source = small.features if made == "features" else small.kernel
    x, y = problem["x_test"], np.eye(3)[problem["y_test"]]
    found = jd.transfer(small, source, x, y, labels="own", lam=small.lam)
    assert found.agreement == 1.0 and found.features == found.made_for
    np.testing.assert_allclose(found.squared_error, found.squared_error_own, rtol=1e-9)


def test_real_targets_have_errors_and_no_classes(problem):
    x = problem["x"]
    y = np.float64(x[:, :1])
    small = jd.distill(jd.fit_ridge(jd.features.Linear(12), x, y, lam=0.1), size=3, key=KEY)
    found = jd.transfer(small, kernels.RBF(LENGTHSCALE), x, y)
    assert found.squared_error is not None and found.accuracy is None and found.agreement is None
    with pytest.raises(InputError, match="no hard labels"):
        jd.transfer(small, kernels.RBF(LENGTHSCALE), x, y, labels="hard")


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"labels": "sofd"}, InputError, "did you mean 'soft'"),
        ({"lam": -1.0}, PenaltyError, ">= 0"),
        ({"lam": 0.0, "features": kernels.Linear()}, KernelError, "larger lam"),
        ({"features": "ntk"}, InputError, "pass a feature map or a kernel"),
        ({"features": jd.features.Linear(5)}, InputError, "take 5 inputs, the set has 12"),
        ({"x_test": np.zeros((4, 5), np.float32)}, InputError, r"expected \(n, 12\)"),
        ({"x_test": np.full((60, 12), np.nan)}, InputError, "not finite"),
        ({"y_test": np.zeros(4, int)}, InputError, "y_test has shape"),
    ],
)
def test_bad_input_is_refused_with_the_cure(sets, problem, settings, error, says):
    given = {"features": kernels.RBF(LENGTHSCALE), "x_test": problem["x_test"], "y_test": problem["y_test"]}
    one = sets["kernel"]
    twice = {name: np.tile(getattr(one, name), (2, 1)) for name in ("x", "y", "values")}
    many = dataclasses.replace(one, **twice)
    with pytest.raises(error, match=says):
        jd.transfer(many, **(given | settings))
