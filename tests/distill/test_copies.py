"""``realistic="copies"``, end to end: exact sets of real images and near copies of them, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.distill import plan_distillation
from jaxdistill.distill.options import SolverOptions
from jaxdistill.features import RandomFourier, RandomNetwork

KEY, CLASSES, INPUTS = jax.random.key(0), 3, 30


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % CLASSES
    x = rng.standard_normal((CLASSES, INPUTS))[labels] + rng.standard_normal((240, INPUTS))
    return x.astype(np.float32), jd.one_hot(labels, CLASSES)


@pytest.fixture(scope="module")
def models(task):
    maps = {
        "relu": RandomNetwork.create(INPUTS, widths=(20,), activation="relu", key=KEY),
        "tanh": RandomNetwork.create(INPUTS, widths=(25, 20), activation="tanh", key=KEY),
        "fourier": RandomFourier.create(INPUTS, 20, lengthscale=5.0, key=KEY),
        "linear": jd.features.Linear(INPUTS),
    }
    return {
        (name, level): jd.fit_ridge(phi, *task, lam=1.0, intercept=level)
        for name, phi in maps.items()
        for level in (False, True)
    }


@pytest.mark.parametrize("level", [False, True])
@pytest.mark.parametrize("name", ["relu", "tanh", "fourier", "linear"])
def test_every_map_gets_an_exact_set_of_float32_inputs(models, task, name, level):
    model = models[name, level]
    ipc = 8 if name == "relu" else 3
    small = jd.distill(model, ipc=ipc, realistic="copies", reference=task, dtype=np.float32, key=KEY)
    assert small.x.shape == (ipc * CLASSES, INPUTS) and small.x.dtype == np.float32
    report = small.recipe["solver"]
    rank = CLASSES - level
    assert report["copies"] == rank and report["images"] == ipc * CLASSES // (rank + 1)
    certificate = jd.certify(model, small, *task)
    assert certificate.exact and certificate.agreement == 1.0
    # The first are real images, class by class, and every other is next to one of them.
    real = small.x[: len(small.x) - rank * report["images"]]
    rows = np.array([np.flatnonzero((task[0] == one).all(axis=1)) for one in real]).ravel()
    assert len(set(rows)) == len(real)
    classes = task[1].argmax(axis=1)[rows]
    whole = len(real) // CLASSES * CLASSES
    assert classes[:whole].tolist() == [*range(CLASSES)] * (whole // CLASSES)
    distances = np.sqrt(np.mean((small.x[:, None] - real) ** 2, axis=2)).min(axis=1)
    assert distances.max() < 0.1


def test_in_float64_they_are_exact_to_its_rounding(models, task):
    small = jd.distill(models["tanh", True], ipc=3, realistic="copies", reference=task, key=KEY)
    certificate = jd.certify(models["tanh", True], small)
    assert certificate.exact and certificate.relative_weight_error < 1e-10


def test_real_valued_targets_and_streams_have_copies_too(task):
    x, y = task
    targets = (y @ np.array([[1.0, 0.2], [0.0, 1.0], [2.0, 0.5]])).astype(np.float64)
    phi = RandomNetwork.create(INPUTS, widths=(20,), activation="tanh", key=KEY)
    model = jd.fit_ridge(phi, x, targets, lam=1.0)

    def chunks():
        return ((x[i : i + 50], targets[i : i + 50]) for i in range(0, len(x), 50))

    for reference in ((x, targets), chunks):
        small = jd.distill(model, size=7, realistic="copies", reference=reference, exact=True, key=KEY)
        assert jd.certify(model, small).relative_weight_error < 1e-8


def test_images_of_ones_own_have_the_copies_and_need_no_reference(models):
    images = np.random.default_rng(1).standard_normal((2, INPUTS)).astype(np.float32)
    solver = SolverOptions(start=images)
    told = {"size": 6, "realistic": "copies", "solver": solver, "dtype": np.float32, "key": KEY}
    small = jd.distill(models["tanh", True], **told)
    np.testing.assert_array_equal(small.x[:2], images)
    assert jd.certify(models["tanh", True], small).exact


def test_an_image_of_one_value_has_copies_too(models):
    told = {"size": 3, "realistic": "copies", "dtype": np.float32, "key": KEY}
    solver = SolverOptions(start=np.zeros((1, INPUTS)))
    assert jd.certify(models["tanh", True], jd.distill(models["tanh", True], solver=solver, **told)).exact


def test_pixels_stay_in_their_box(models, task):
    x, y = task
    told = {"ipc": 4, "realistic": "copies", "dtype": np.float32, "key": KEY}
    small = jd.distill(models["tanh", True], reference=(x, y), box=(-1.0, 1.0), **told)
    assert np.abs(small.x).max() <= 1.0 < np.abs(x).max()
    assert jd.certify(models["tanh", True], small).exact


def test_the_count_is_that_of_the_images_that_reach_every_feature(models, task):
    wide = RandomNetwork.create(INPUTS, widths=(70,), activation="tanh", key=KEY)
    model = jd.fit_ridge(wide, *task, lam=1.0, intercept=True)
    assert plan_distillation(model, ipc=3, realistic="copies").count == 3 * 3
    with pytest.raises(errors.RankError, match="m\\* = 9"):
        jd.distill(model, size=8, realistic="copies", reference=task, exact=True, key=KEY)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        ({"size": 2}, errors.RankError, "size >= 3"),
        ({"size": 6, "reference": None}, errors.InputError, "needs real examples"),
        ({"size": 6, "labels": "hard"}, errors.InputError, "own labels"),
        ({"size": 6, "solver": SolverOptions(starts=3)}, errors.InputError, "no settings of a solver"),
        ({"size": 6, "solver": SolverOptions(start="noise")}, errors.InputError, "real images"),
        ({"size": 7, "solver": SolverOptions(start=np.zeros((2, INPUTS)))}, errors.InputError, "1 more"),
        ({"size": 900}, errors.InputError, "240 real examples, 300 are asked for"),
        ({"size": 6, "box": (0.0, 1e-9)}, errors.InputError, "no near copies fit"),
    ],
)
def test_requests_that_make_no_sense_are_refused(models, task, request_, error, says):
    with pytest.raises(error, match=says):
        jd.distill(models["tanh", True], **{"realistic": "copies", "reference": task, "key": KEY} | request_)


def test_a_unit_that_wakes_in_one_image_of_thousands_has_it_in_the_set():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3000, INPUTS)).astype(np.float32)
    x[:, 0] = -np.abs(x[:, 0])
    rare = 1234
    x[rare, 0] = 3.0
    y = jd.one_hot(np.arange(3000) % CLASSES, CLASSES)
    first = np.eye(INPUTS)[:1]  # a unit that sees x_0 alone
    weights = np.concatenate([first, rng.standard_normal((8, INPUTS))]).astype(np.float32)
    phi = RandomNetwork((jnp.asarray(weights),), 0.0, "relu")
    model = jd.fit_ridge(phi, x, y, lam=1.0, intercept=True)
    small = jd.distill(model, size=15, realistic="copies", reference=(x, y), dtype=np.float32, key=KEY)
    assert (small.x == x[rare]).all(axis=1).any()
    assert jd.certify(model, small).exact


def test_images_that_leave_a_feature_asleep_are_not_called_exact(task):
    phi = RandomNetwork.create(INPUTS, widths=(20,), activation="relu", key=KEY)
    model = jd.fit_ridge(phi, *task, lam=1.0, intercept=True)
    told = {"size": 3, "realistic": "copies", "reference": task, "dtype": np.float32, "key": KEY}
    with pytest.raises(errors.ConvergenceError, match="wake every feature") as caught:
        jd.distill(model, exact=True, **told)
    small = jd.distill(model, **told)
    np.testing.assert_array_equal(small.x, caught.value.result.x.astype(np.float32))
    assert not small.recipe["solver"]["reached"] and not jd.certify(model, small).exact
