"""From a model with an intercept to a set that returns both, by scikit-learn and from the file alone."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

import jaxdistill as jd
from jaxdistill.distill import plan_distillation
from jaxdistill.distill.baselines import BASELINES, baseline
from jaxdistill.distill.options import SolverOptions
from jaxdistill.errors import InputError, RankError
from jaxdistill.evaluate.transfer import transfer
from jaxdistill.solve.spanning import spanning_count

KEY = jax.random.key(0)
DIGITS, CLASSES = load_digits(return_X_y=True)
X = DIGITS / 16
Y = jd.one_hot(CLASSES, 10)
REFERENCE = (X, Y)
MODEL = jd.fit_ridge(jd.features.Linear(64), X, Y, lam=1.0, intercept=True)
REAL = np.random.default_rng(0).standard_normal((50, 6)) + 4
TARGETS = REAL @ np.random.default_rng(1).standard_normal((6, 2)) + 30
REGRESSION = jd.fit_ridge(jd.features.Linear(6), REAL, TARGETS, lam=0.1, intercept=True)


def by_scikit_learn(small):
    """Weights and intercept of scikit-learn's ridge on the set alone."""
    fitted = (LinearRegression() if small.lam == 0 else Ridge(alpha=small.lam)).fit(small.x, small.y)
    return fitted.coef_.T, fitted.intercept_


def check_exact(model, small):
    certificate = jd.certify(model, small)
    assert certificate.exact, certificate
    weights, intercept = by_scikit_learn(small)
    assert relative(weights, model.weights) < 1e-9
    assert relative(intercept, model.intercept) < 1e-9
    return certificate


@pytest.mark.parametrize(
    "request_",
    [
        {"ipc": 1},
        {"ipc": 3},
        {"ipc": 1, "lam_s": "max"},
        {"ipc": 3, "lam_s": "max"},
        {"ipc": 3, "lam_s": 1e-3, "larger_root": False},
        {"ipc": 1, "labels": "soft"},
        {"size": 12, "realistic": "closest", "reference": REFERENCE},
        {"ipc": 2, "realistic": "inverse", "reference": REFERENCE},
        {"ipc": 2, "realistic": "inverse", "labels": "hard", "reference": REFERENCE},
        {"size": 70, "realistic": "fixed", "reference": (X[CLASSES < 10], Y)},
    ],
    ids=str,
)
def test_classes_have_their_model_back(request_):
    if request_.get("realistic") == "fixed":
        model = jd.fit_ridge(jd.features.Linear(6), REAL, jd.one_hot(np.arange(50) % 2, 2), intercept=True)
        pool = REAL, jd.one_hot(np.arange(50) % 2, 2)
        check_exact(model, jd.distill(model, size=20, realistic="fixed", reference=pool, key=KEY))
        return
    small = jd.distill(MODEL, **request_, key=KEY)
    check_exact(MODEL, small)
    if request_ == {"ipc": 1}:
        np.testing.assert_array_equal(small.y, np.eye(10))  # one a class, hard labels, as without intercept


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), extra=st.sampled_from([0, 4]), soft=st.booleans())
def test_real_values_take_one_example_more_than_their_rank(seed, extra, soft):
    key = jax.random.key(seed)
    labels = "soft" if soft else None
    small = jd.distill(REGRESSION, size=3 + extra, labels=labels, key=key)
    check_exact(REGRESSION, small)
    if not soft:
        np.testing.assert_allclose(small.y.mean(axis=0), TARGETS.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(small.x.mean(axis=0), REAL.mean(axis=0), rtol=1e-6)


def test_fewer_examples_hold_the_best_model_of_their_rank():
    plan = plan_distillation(MODEL, size=6)
    assert (plan.rank, plan.count, plan.construction.name) == (9, 10, "REDUCED")
    small = jd.distill(MODEL, size=6, key=KEY)
    weights, intercept = by_scikit_learn(small)
    assert np.linalg.matrix_rank(weights, tol=1e-8) == 5
    centred = (X - X.mean(axis=0)) @ MODEL.weights
    kept = np.linalg.svd(centred, full_matrices=False)[2][:5]
    best = centred @ kept.T @ kept + Y.mean(axis=0)
    np.testing.assert_allclose(X @ weights + intercept, best, atol=1e-9)
    lost = 1 - np.sum((centred @ kept.T) ** 2) / np.sum(centred**2)
    np.testing.assert_allclose(small.recipe["lost"], lost, rtol=1e-8)


@pytest.mark.parametrize("kind", ["network", "fourier", "deep-linear", "wide"])
def test_other_features_than_linear_ones(kind):
    x, y = X[:400, 10:30], Y[:400]
    phi = {
        "network": lambda: jd.features.RandomNetwork.create(20, widths=(20,), key=KEY),
        "fourier": lambda: jd.features.RandomFourier.create(20, 20, lengthscale=3.0, key=KEY),
        "deep-linear": lambda: jd.features.DeepLinear.create(20, widths=(30,), key=KEY),
        "wide": lambda: jd.features.RandomNetwork.create(20, widths=(30,), activation="tanh", key=KEY),
    }[kind]()
    model = jd.fit_ridge(phi, x, y, lam=1.0, intercept=True)
    m = 20 if kind == "wide" else 10
    if kind == "wide":
        assert plan_distillation(model, size=m).count == spanning_count(30, 20, 10, 9, intercept=True) <= m
    small = jd.distill(model, size=m, reference=(x, y), key=KEY)
    certificate = jd.certify(model, small, x, CLASSES[:400])
    assert certificate.exact
    assert certificate.agreement == 1
    assert certificate.intercept_error < 1e-10


@pytest.fixture
def compiled_as_users_do():
    """Without optimisations sums run in one go, and their rounding grows beyond what is explained."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.long
@pytest.mark.usefixtures("compiled_as_users_do")
@pytest.mark.parametrize("start", ["preimages", "noise"])
def test_below_the_count_the_projection_keeps_the_best_intercept(start):
    x, y = REAL, TARGETS
    phi = jd.features.RandomNetwork.create(6, widths=(40,), activation="tanh", key=KEY)
    model = jd.fit_ridge(phi, x, y, lam=0.1, intercept=True)
    options = SolverOptions(start=start, steps=60)
    small = jd.distill(model, size=4, reference=(x, y), solver=options, key=KEY)
    assert small.recipe["construction"] == "projection"
    certificate = jd.certify(model, small, x, y)
    spread = np.sum((model.predict(x) - y.mean(axis=0)) ** 2)
    found = np.sum((_predict(small, x) - model.predict(x)) ** 2)
    np.testing.assert_allclose(found / spread, small.recipe["lost"], rtol=1e-4)
    # Whatever the weights, the mean of the predictions on the training data is right.
    np.testing.assert_allclose(_predict(small, x).mean(axis=0), y.mean(axis=0), rtol=1e-8)
    assert not certificate.exact


def _predict(small, x):
    with jax.enable_x64(True):
        features = np.asarray(small.features(jnp.asarray(small.x, jnp.float64)))
        rows = np.asarray(small.features(jnp.asarray(x, jnp.float64)))
    middle, level = features.mean(axis=0), small.y.mean(axis=0)
    a = np.linalg.lstsq(
        (features - middle) @ (features - middle).T + small.lam * np.eye(len(features)), small.y - level
    )[0]
    return (rows - middle) @ (features - middle).T @ a + level


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("labels", ["solved", "hard"])
def test_baselines_have_an_intercept_too(name, labels):
    small = baseline(name, MODEL, X, Y, ipc=2, labels=labels, key=KEY)
    found = jd.certify(MODEL, small, X, CLASSES)
    assert 0.5 < found.accuracy_distilled <= 1
    if labels == "hard" and name != "label distillation":
        # No other penalty has a smaller squared error on the training data.
        errors = [
            np.sum((Ridge(alpha=factor * small.lam).fit(small.x, small.y).predict(X) - Y) ** 2)
            for factor in (0.2, 1.0, 5.0)
        ]
        assert np.argmin(errors) == 1


def test_solved_labels_are_the_best_that_the_points_can_have():
    small = baseline("random", REGRESSION, REAL, TARGETS, size=5, key=KEY)
    rows = small.x - small.x.mean(axis=0)
    design = np.hstack([REAL @ rows.T, np.ones((50, 1))])
    best = design @ np.linalg.lstsq(design, REGRESSION.predict(REAL))[0]
    weights, intercept = by_scikit_learn(small)
    found = REAL @ weights + intercept
    wanted = REGRESSION.predict(REAL)
    np.testing.assert_allclose(
        np.sum((found - wanted) ** 2), np.sum((best - wanted) ** 2), rtol=1e-6, atol=1e-9
    )


def test_softmax_and_support_vector_heads_need_no_constant_feature():
    fitted = LogisticRegression(max_iter=2000).fit(X, CLASSES)
    head = jd.RidgeModel.from_weights(jd.features.Linear(64), fitted.coef_.T, intercept=fitted.intercept_)
    small = jd.distill(head, ipc=1, key=KEY)
    certificate = check_exact(head, small)
    assert small.recipe["labels"] == "hard"
    assert certificate.relative_weight_error < 1e-12
    other = jd.RidgeModel.from_weights(jd.features.Linear(64), fitted.coef_.T, intercept=np.arange(10.0))
    assert plan_distillation(other, ipc=1).labels.value == "rows"  # class rows have another sum
    check_exact(other, jd.distill(other, ipc=1, key=KEY))
    with pytest.raises(RankError, match="mean of the labels"):
        jd.distill(other, ipc=1, labels="hard", key=KEY)


@pytest.mark.parametrize("model", [MODEL, REGRESSION], ids=["classes", "real"])
def test_the_file_alone_has_the_intercept(model):
    pool = (X, CLASSES) if model is MODEL else (REAL, TARGETS)
    small = jd.distill(model, size=12, dtype=np.float32, key=KEY)
    file = io.BytesIO()
    small.with_certificate(jd.certify(model, small, *pool)).save(file)
    file.seek(0)
    with np.load(file) as plain:
        fitted = LinearRegression().fit(plain["inputs"].astype(np.float64), plain["labels"])
        np.testing.assert_array_equal(plain["intercept"], model.intercept)
        outputs = fitted.predict(pool[0])
    file.seek(0)
    loaded = jd.DistilledSet.load(file)
    found, again = jd.certify(model, small, *pool), jd.certify(loaded, loaded, *pool)
    assert found == again
    assert found.exact
    assert relative(outputs, model.predict(pool[0])) < 1e-5
    none = jd.fit_ridge(model.features, *REFERENCE, lam=1.0) if model is MODEL else None
    if none is not None:
        with pytest.raises(InputError, match="one has an intercept"):
            jd.certify(none, small)


def test_an_intercept_that_is_wrong_is_no_exact_model():
    small = jd.distill(MODEL, ipc=1, key=KEY)
    moved = jd.DistilledSet(**{**small.__dict__, "intercept": small.intercept + 1e-3})
    found = jd.certify(moved, moved)
    assert found.relative_weight_error < 1e-12
    assert not found.exact


def test_predictions_on_the_training_data_are_compared_too():
    """A column of size 1e6 whose small weight is lost moves every prediction, and hardly |B|."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((80, 3)) * np.array([1e6, 1.0, 1.0])
    model = jd.fit_ridge(jd.features.Linear(3), x, x @ np.array([[1e-6], [1.0], [1.0]]), lam=1e-3)
    small = jd.distill(model, size=1, key=KEY)
    found = jd.certify(model, small)
    assert found.exact
    assert found.training_error < 1e-9
    moved = jd.DistilledSet(**{**small.__dict__, "x": small.x * np.array([[0.0, 1.0, 1.0]])})
    found = jd.certify(model, moved)
    assert found.relative_weight_error < 1e-5
    assert found.training_error > 0.1
    assert not found.exact


@pytest.mark.parametrize("labels", ["solved", "projected"])
def test_kernel_sets(labels):
    x, y = REAL / 3, TARGETS
    kernel = jd.kernels.RBF(2.0)
    model = jd.fit_kernel_ridge(kernel, x, y, lam=0.05, intercept=True)
    small = jd.distill_kernel(model, x, y, size=12, labels=labels, key=KEY)
    file = io.BytesIO()
    small.save(file)
    file.seek(0)
    loaded = jd.load_set(file)
    found = jd.certify(model, small, x, y)
    assert found.largest_gap <= found.gap_bound
    alone = jd.certify(loaded, loaded, x, y)
    assert alone.relative_weight_error == found.relative_weight_error
    gram = np.exp(-np.sum((small.x[:, None] - small.x) ** 2, axis=-1) / 8)
    cross = np.exp(-np.sum((x[:, None] - small.x) ** 2, axis=-1) / 8)
    m = len(gram)
    bordered = np.block(
        [[gram + small.lam * np.eye(m), np.ones((m, 1))], [np.ones((1, m)), np.zeros((1, 1))]]
    )
    beta = np.linalg.solve(bordered, np.vstack([small.y, np.zeros((1, 2))]))
    outputs = cross @ beta[:-1] + beta[-1]
    np.testing.assert_allclose(np.mean((outputs - y) ** 2), found.squared_error_distilled, rtol=1e-8)
    design = np.hstack([cross - cross.mean(axis=1, keepdims=True), np.ones((50, 1))])
    best = np.sum((design @ np.linalg.lstsq(design, y)[0] - y) ** 2)
    if labels == "solved":
        np.testing.assert_allclose(np.sum((outputs - y) ** 2), best, rtol=1e-6)
    else:
        np.testing.assert_allclose(found.relative_weight_error, found.best_weight_error, rtol=1e-6)
        np.testing.assert_allclose(beta[-1], model.intercept, rtol=1e-8)
    everything = jd.distill_kernel(model, x, y, size=50, labels="projected", key=KEY)
    assert jd.certify(model, everything).exact


def test_others_that_train_on_the_set_have_an_intercept():
    small = jd.distill(REGRESSION, size=6, key=KEY)
    phi = jd.features.RandomFourier.create(6, 30, lengthscale=4.0, key=KEY)
    for other in (phi, jd.kernels.RBF(4.0)):
        found = transfer(small, other, REAL, TARGETS, lam=1e6)
        # So large a penalty leaves the intercept alone: the mean of the set's labels.
        level = np.mean((np.mean(small.y, axis=0) - TARGETS) ** 2)
        np.testing.assert_allclose(found.squared_error, level, rtol=1e-3)
        assert found.squared_error_own < 1e-3 * level


def test_one_example_is_refused():
    with pytest.raises(RankError, match="one example fixes an intercept"):
        jd.distill(REGRESSION, size=1, key=KEY)
    with pytest.raises(RankError, match=r"size >= 3"):
        jd.distill(REGRESSION, size=2, labels=np.ones((2, 2)), key=KEY)


def test_features_of_one_sign_are_served_at_one_per_class():
    """The intercept shifts them: only their spread about the mean need be small."""
    x, y = X[:400, 10:40], jd.one_hot(CLASSES[:400] % 3, 3)
    phi = jd.features.RandomNetwork.create(30, widths=(12,), activation="softplus", key=KEY)
    model = jd.fit_ridge(phi, x, y, lam=1.0, intercept=True)
    small = jd.distill(model, ipc=1, reference=(x, y), key=KEY)
    assert small.recipe["solver"]["began"] == "small features"
    assert jd.certify(model, small).exact
