"""Any linear head is a model: scikit-learn's heads come back from ridge on ten examples; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.cli.report import describe, text_of
from jaxdistill.distill.baselines import baseline
from jaxdistill.distill.options import SolverOptions
from jaxdistill.features import DeepLinear, Function, Linear, RandomNetwork

KEY = jax.random.key(0)
from_weights = jd.RidgeModel.from_weights


@pytest.fixture(scope="module")
def digits():
    data = jd.load_dataset("digits")
    prepare = jd.Standardize.fit(data.x_train)
    return {
        "x": prepare.forward(data.x_train),
        "y": data.y_train,
        "x_test": prepare.forward(data.x_test),
        "y_test": data.y_test,
    }


HEADS = {
    "logistic regression": lambda: LogisticRegression(fit_intercept=False, max_iter=2000),
    "support vectors": lambda: LinearSVC(fit_intercept=False, dual=False),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])  # scikit-learn's: its rows sum to zero as far
def test_ten_examples_train_ridge_to_a_head_of_scikit_learn(digits, name, dtype):
    head = HEADS[name]().fit(digits["x"].astype(dtype), digits["y"])
    model = from_weights(Linear(64), head.coef_.T)
    small = jd.distill(model, ipc=1, key=KEY)
    cert = jd.certify(model, small, digits["x_test"], digits["y_test"])
    assert len(small.x) == 10 and cert.exact and cert.agreement == 1.0
    # The oracle: scikit-learn's ridge on the ten examples alone.
    again = Ridge(alpha=max(small.lam, 1e-13), fit_intercept=False, solver="svd").fit(small.x, small.y)
    assert relative(again.coef_, head.coef_) < 1e-6
    np.testing.assert_array_equal(again.predict(digits["x_test"]).argmax(1), head.predict(digits["x_test"]))
    assert cert.accuracy_full == head.score(digits["x_test"], digits["y_test"])


def test_an_intercept_is_a_row_of_the_weights_for_a_constant_feature(digits):
    head = LogisticRegression(max_iter=2000).fit(digits["x"], digits["y"])

    def with_one(parameters, x):
        return jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)

    model = from_weights(Function(with_one, {}, (64,)), np.vstack([head.coef_.T, head.intercept_]))
    real = digits["x"], jd.one_hot(digits["y"], 10)
    small = jd.distill(model, ipc=1, reference=real, key=KEY)
    cert = jd.certify(model, small, digits["x_test"], digits["y_test"])
    assert cert.exact and cert.relative_weight_error < 1e-10 and small.x.shape == (10, 64)
    assert cert.accuracy_distilled == head.score(digits["x_test"], digits["y_test"])


def test_a_binary_head_is_distilled_to_one_example(digits):
    two = digits["y"] < 2
    head = LinearSVC(fit_intercept=False, dual=False).fit(digits["x"][two], digits["y"][two])
    model = from_weights(Linear(64), head.coef_.T)
    small = jd.distill(model, size=1, key=KEY)
    found = small.x.T @ np.linalg.solve(small.x @ small.x.T + small.lam * np.eye(1), small.y)
    assert small.x.shape == (1, 64) and relative(found.T, head.coef_) < 1e-12
    assert abs(np.linalg.norm(small.y) - 1) < 1e-12  # labels of size one, without data to follow
    with pytest.raises(errors.InputError, match="no classes; give size"):
        jd.distill(model, ipc=1, key=KEY)


RNG = np.random.default_rng(0)
B = RNG.standard_normal((12, 3))


def test_every_exact_construction_serves_a_model_without_data(tmp_path, problem):
    wide = RandomNetwork.create(12, widths=(30,), activation="gelu", key=KEY)
    real = problem["x"], problem["y"]
    requests = [
        (Linear(12), B, {"ipc": 2, "lam_s": "max"}),
        (Linear(12), B, {"ipc": 2, "labels": "soft"}),
        (Linear(12), B, {"ipc": 3, "realistic": "closest", "reference": real}),
        (Linear(12), B, {"ipc": 3, "realistic": "inverse", "reference": real}),
        (Linear(12), B, {"size": 20, "realistic": "fixed", "reference": real}),
        (wide, RNG.standard_normal((30, 3)), {"ipc": 3, "reference": real}),
    ]
    for phi, weights, request in requests:
        model = from_weights(phi, weights)
        small = jd.distill(model, key=KEY, **request)
        assert jd.certify(model, small).exact, request
    path = small.save(tmp_path / "set.npz")
    again = jd.load_set(path)
    report = describe("problem", again, jd.certify(again, again, problem["x_test"]).to_dict())
    assert "network, p = 30, given weights\n" in text_of(report | {"seconds": {}})
    prediction = from_weights(Linear(12), B).predict(problem["x_test"])
    np.testing.assert_allclose(prediction, problem["x_test"] @ B, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("phi", "request_"),
    [
        ("linear", {"size": 2}),
        ("linear", {"size": 2, "realistic": "closest"}),
        ("linear", {"size": 5, "realistic": "fixed", "labels": "weighted"}),
        ("wide", {"size": 3}),
        ("wide", {"size": 20, "solver": SolverOptions(start="preimages")}),
    ],
)
def test_what_needs_moments_says_so_and_names_the_cure(phi, request_, problem):
    wide = RandomNetwork.create(12, widths=(100,), activation="gelu", key=KEY)
    model = (
        from_weights(Linear(12), B)
        if phi == "linear"
        else from_weights(wide, np.random.default_rng(0).standard_normal((100, 3)))
    )
    with pytest.raises(errors.InputError, match=r"needs moments of data.*fit_ridge"):
        jd.distill(model, reference=(problem["x"], problem["y"]), key=KEY, **request_)


@pytest.mark.parametrize("labels", ["solved", "hard"])
def test_baselines_need_moments_but_for_label_distillation(labels, problem):
    model, pool = from_weights(Linear(12), B), (problem["x"], problem["y"])
    with pytest.raises(errors.InputError, match=r"needs moments of data.*fit_ridge"):
        baseline("random", model, *pool, ipc=2, labels=labels, key=KEY)
    assert len(baseline("label distillation", model, *pool, ipc=2, key=KEY).x) == 6


def test_kip_takes_its_moments_from_the_data_it_is_given(problem):
    from jaxdistill import kip

    model = from_weights(Linear(12), B)
    config = kip.KipConfig(size=6, steps=3, batch="all", labels="learned")
    result = kip.train(model, problem["x"], problem["y"], config, key=KEY)
    assert result.sets[0].recipe["lam"] is None and np.isfinite(result.history.loss).all()


def test_weights_outside_the_range_of_a_deep_linear_map_are_refused():
    phi = DeepLinear((RNG.standard_normal((20, 12)),))
    with pytest.raises(errors.RankError, match="outside the range"):
        jd.distill(from_weights(phi, RNG.standard_normal((20, 3))), ipc=1, key=KEY)
    model = from_weights(phi, phi.weights[0] @ B)
    assert jd.certify(model, jd.distill(model, ipc=1, key=KEY)).exact


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((Linear(12), B.T), r"shape \(3, 12\).*expected \(12, k\); pass weights\.T"),
        ((Linear(12), B[:5]), r"shape \(5, 3\).*one row a feature"),
        ((Linear(12), B[:, 0]), r"shape \(12,\).*one column an output"),
        ((Linear(12), B[:, :0]), r"shape \(12, 0\)"),
        ((Linear(12), B.astype(str)), "type <U"),
        ((Linear(12), np.where(B > 2, np.nan, B) * np.inf), "not finite"),
        ((12, B), "features is a int; pass a feature map"),
        ((Linear(12), B, "class"), "unknown targets 'class'; did you mean 'classes'"),
        ((Linear(12), B[:, :1], "classes"), "a single output names no classes"),
    ],
)
def test_weights_that_do_not_fit_are_refused(arguments, says):
    phi, weights, *targets = arguments
    with pytest.raises(errors.InputError, match=says):
        from_weights(phi, weights, **({"targets": targets[0]} if targets else {}))
