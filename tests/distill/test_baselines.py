import jax
import numpy as np
import pytest
from helpers import relative

import jaxdistill as jd
from jaxdistill.distill.baselines import BASELINES, baseline
from jaxdistill.errors import InputError

KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def setting(problem, maps):
    model = jd.fit_ridge(maps["network"], problem["x"], problem["y"], lam=0.1)
    return {**problem, "model": model}


def make(setting, name, **settings):
    settings = {"ipc": 2, "labels": "solved", "key": KEY, **settings}
    return baseline(name, setting["model"], setting["x"], setting["y"], **settings)


@pytest.mark.parametrize("labels", ["solved", "hard"])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_a_set_like_any_other(setting, tmp_path, name, labels):
    small = make(setting, name, labels=labels)
    assert small.x.shape == (6, 12) and small.y.shape == (6, 3) and small.lam > 0
    assert small.recipe["construction"] == name
    assert small.x.dtype == setting["x"].dtype == np.float32
    cert = jd.certify(setting["model"], small, setting["x_test"], setting["y_test"])
    back = jd.DistilledSet.load(small.with_certificate(cert).save(tmp_path / "set.npz"))
    assert back.digest == small.digest and back.recipe == small.recipe
    assert make(setting, name, labels=labels).digest == small.digest


def test_points_are_what_their_names_say(setting):
    x, named = setting["x"], setting["y"].argmax(axis=1)
    for name in ("random", "herding", "label distillation"):
        for c, point in enumerate(make(setting, name).x):
            assert named[np.flatnonzero((x == point.astype(np.float32)).all(axis=1))].tolist() == [c % 3]
    means = np.stack([x[named == c].mean(axis=0) for c in range(3)])
    for name in ("means", "kmeans"):
        np.testing.assert_allclose(make(setting, name, ipc=1).x, means, atol=1e-5)
    # Of equal parts, the mean of the means is the mean.
    halves = make(setting, "means").x
    np.testing.assert_allclose((halves[:3] + halves[3:]) / 2, means, atol=1e-5)


def test_herding_follows_the_mean_feature_better_than_chance(setting):
    phi = setting["model"].features

    def distance(name, key):
        small = make(setting, name, ipc=8, key=key)
        mean = np.asarray(phi(jax.numpy.asarray(small.x, np.float32))).mean(axis=0)
        return relative(mean, np.asarray(phi(jax.numpy.asarray(setting["x"]))).mean(axis=0))

    chance = [distance("random", jax.random.key(i)) for i in range(5)]
    assert distance("herding", KEY) < 0.5 * np.mean(chance)
    assert len(np.unique(make(setting, "herding", ipc=8).x, axis=0)) == 24


def test_solved_labels_and_the_best_penalty_leave_no_better_choice(setting):
    model, y = setting["model"], setting["y"]
    phi = np.asarray(model.features(jax.numpy.asarray(setting["x"])), np.float64)

    def error(small, target, labels=None, lam=None):
        phis = np.asarray(small.features(jax.numpy.asarray(small.x, np.float32)), np.float64)
        lam = small.lam if lam is None else lam
        a = np.linalg.solve(phis @ phis.T + lam * np.eye(6), small.y if labels is None else labels)
        return np.sum((phi @ phis.T @ a - target) ** 2)

    solved, hard = make(setting, "random"), make(setting, "random", labels="hard")
    teacher = phi @ model.weights
    rng = np.random.default_rng(0)
    for _ in range(5):
        changed = solved.y + 1e-3 * rng.standard_normal(solved.y.shape)
        assert error(solved, teacher) <= error(solved, teacher, changed)
    assert all(error(hard, y) <= error(hard, y, lam=factor * hard.lam) * 1.001 for factor in (0.1, 10))


def test_real_targets(problem):
    y = problem["x"] @ np.ones((12, 2), np.float32)
    model = jd.fit_ridge(jd.features.Linear(12), problem["x"], y, lam=0.1)
    for name in BASELINES:
        assert baseline(name, model, problem["x"], y, size=4, key=KEY).x.shape == (4, 12)
    with pytest.raises(InputError, match="no hard labels"):
        baseline("random", model, problem["x"], y, size=4, labels="hard", key=KEY)


def test_refusals(setting):
    with pytest.raises(InputError, match="unknown baseline 'kmean'; did you mean 'kmeans'"):
        make(setting, "kmean")
    with pytest.raises(InputError, match="unknown labels 'sloved'; did you mean 'solved'"):
        make(setting, "random", labels="sloved")
    with pytest.raises(InputError, match="either ipc"):
        make(setting, "random", size=3)
    with pytest.raises(InputError, match="real examples"):
        make(setting, "means", ipc=60)
