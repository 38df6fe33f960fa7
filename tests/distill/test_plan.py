"""What a request gets, and requests that cannot be met: the parts that test_distill leaves out."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import relative

import jaxdistill as jd
from jaxdistill.distill import Construction, LabelKind
from jaxdistill.errors import InputError, InverseError, JaxDistillError, PenaltyError, RankError

KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def model(problem):
    return jd.fit_ridge(jd.features.Linear(12), problem["x"], problem["y"], lam=1.0)


@pytest.fixture(scope="module")
def real(problem):
    y = np.random.default_rng(0).standard_normal((150, 3))
    return jd.fit_ridge(jd.features.Linear(12), problem["x"], y, lam=1.0)


@pytest.mark.parametrize(
    ("request_", "construction", "labels", "lam_s"),
    [
        ({"ipc": 1}, Construction.EXACT, LabelKind.HARD, 0.0),
        ({"ipc": 2, "lam_s": "max"}, Construction.EXACT, LabelKind.HARD, "max"),
        ({"size": 2}, Construction.REDUCED, LabelKind.ROWS, 0.0),
        ({"size": 4, "labels": "soft"}, Construction.EXACT, LabelKind.SOFT, "auto"),
        ({"size": 4, "labels": np.eye(4)[:, :3]}, Construction.EXACT, LabelKind.GIVEN, 0.0),
        ({"ipc": 1, "realistic": "closest"}, Construction.SPANNING, LabelKind.SOFT, "auto"),
        (
            {"ipc": 1, "realistic": "closest", "boxed": True},
            Construction.EQUATIONS,
            LabelKind.SOFT,
            "auto",
        ),
        ({"ipc": 1, "realistic": "inverse", "lam_s": 0.5}, Construction.INVERSE, LabelKind.SOFT, 0.5),
        (
            {"ipc": 1, "realistic": "fixed", "labels": "weighted"},
            Construction.FIXED,
            LabelKind.WEIGHTED,
            "auto",
        ),
    ],
)
def test_the_plan_says_what_will_be_done(model, request_, construction, labels, lam_s):
    plan = jd.plan_distillation(model, **request_)
    assert (plan.construction, plan.labels, plan.lam_s) == (construction, labels, lam_s)
    assert plan.rank == 3 and plan.size == request_.get("size", 3 * request_.get("ipc", 0))


def test_real_targets_get_rows_that_span_or_soft_labels(real):
    assert jd.plan_distillation(real, size=3).labels is LabelKind.ROWS
    assert jd.plan_distillation(real, size=3, labels="soft").labels is LabelKind.SOFT


@pytest.mark.parametrize("size", [1, 2])
def test_the_share_that_is_lost_below_the_rank_is_that_of_the_predictions(model, problem, size):
    small = jd.distill(model, size=size, key=KEY)
    cert = jd.certify(model, small, problem["x"].astype(np.float64))
    assert np.isclose(cert.prediction_error**2, small.recipe["lost"], rtol=1e-6)
    energies = np.linalg.svd(problem["x"] @ model.weights, compute_uv=False) ** 2
    assert np.isclose(small.recipe["lost"], energies[size:].sum() / energies.sum(), rtol=1e-6)


@pytest.mark.parametrize("root", [False, [True, False, True, False, True, False]], ids=["smaller", "mixed"])
def test_either_root_gives_an_exact_set(model, root):
    most = jd.distill(model, ipc=2, lam_s="max", key=KEY).lam
    small = jd.distill(model, ipc=2, lam_s=0.5 * most, larger_root=root, key=KEY)
    other = jd.distill(model, ipc=2, lam_s=0.5 * most, key=KEY)
    assert jd.certify(model, small).exact and relative(small.x, other.x) > 1e-3


def test_a_scale_multiplies_examples_and_labels_and_leaves_the_model(model):
    one, ten = (jd.distill(model, ipc=2, scale=c, key=KEY) for c in (1.0, 10.0))
    np.testing.assert_allclose(ten.x, 10 * one.x, rtol=1e-13)
    np.testing.assert_allclose(ten.y, 10 * one.y, rtol=1e-13)
    assert jd.certify(model, ten).exact


def test_bounded_features_use_nine_tenths_of_their_range(problem, maps):
    model = jd.fit_ridge(maps["fourier"], problem["x"], problem["y"], lam=1.0)
    small = jd.distill(model, ipc=2, key=KEY)
    phi = model.features
    largest = np.abs(np.asarray(jax.jit(phi)(jax.numpy.asarray(small.x, np.float32)))).max()
    assert np.isclose(largest, 0.9 * phi.feature_bound, rtol=1e-4)
    assert relative(small.y, np.eye(3)[np.arange(6) % 3] * small.recipe["scale"]) < 1e-12


def test_noise_and_sharpness_do_what_they_say(model, problem):
    quiet, loud = (jd.distill(model, ipc=3, noise=s, key=KEY) for s in (1e-3, 10.0))
    assert relative(quiet.x, loud.x) > 0.1
    reference = (problem["x"], problem["y"])
    rows = jd.distill(model, ipc=2, realistic="fixed", reference=reference, key=KEY).x
    changes = [
        np.linalg.norm(
            jd.distill(model, ipc=2, realistic="closest", reference=reference, sharpness=c, key=KEY).x - rows
        )
        for c in (10.0, 1000.0)
    ]
    limit = np.sqrt(np.sum(np.linalg.svd(rows, compute_uv=False)[-3:] ** 2))
    for change, c in zip(changes, (10.0, 1000.0), strict=True):
        assert abs(change / limit - 1) < np.sqrt(3) / c


def test_reference_examples_are_balanced_in_the_order_of_the_classes(model, problem):
    small = jd.distill(model, ipc=2, realistic="fixed", reference=(problem["x"], problem["y"]), key=KEY)
    index = [int(np.flatnonzero((problem["x"] == row).all(1))[0]) for row in small.x.astype(np.float32)]
    assert len(set(index)) == 6
    assert problem["y"][index].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_are_computed_from_inputs_as_they_are_stored(model, problem):
    small = jd.distill(model, ipc=2, labels="soft", dtype="float32", key=KEY)
    phis = small.x.astype(np.float64)
    again = phis.T @ np.linalg.solve(phis @ phis.T + small.lam * np.eye(6), small.y)
    # The rounded inputs no longer span the weights quite; nothing they can train to is nearer than this.
    projection = np.linalg.pinv(phis) @ phis @ model.weights
    assert relative(again, projection) < 1e-12 < relative(projection, model.weights) < 1e-6


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        ({"ipc": True}, InputError, "whole number"),
        ({"size": 2.5}, InputError, "whole number"),
        ({"size": -1}, InputError, ">= 1"),
        ({"ipc": 1, "lam_s": "big"}, PenaltyError, "big"),
        ({"ipc": 1, "lam_s": np.nan}, PenaltyError, "finite"),
        ({"ipc": 1, "lam_s": 1e12}, PenaltyError, "largest"),
        ({"ipc": 1, "labels": "weighted"}, InputError, "fixed"),
        ({"size": 4, "labels": np.eye(3)}, InputError, r"expected \(4, 3\)"),
        ({"size": 2, "labels": np.eye(3)[:2]}, RankError, "size >= 3"),
        ({"ipc": 1, "noise": np.nan}, InputError, "noise"),
        ({"ipc": 1, "sharpness": 0.0}, InputError, "sharpness"),
        ({"ipc": 1, "scale": np.inf}, InputError, "scale"),
        ({"ipc": 1, "dtype": "int8"}, InputError, "int8"),
        ({"ipc": 1, "realistic": "fixed"}, InputError, "reference"),
        ({"ipc": 1, "realistic": "closest", "labels": "hard"}, InputError, "own labels"),
    ],
)
def test_more_requests_that_make_no_sense(model, request_, error, says):
    with pytest.raises(error, match=says):
        jd.distill(model, key=KEY, **request_)


def test_hard_labels_of_real_targets_are_refused(real):
    with pytest.raises(InputError, match="hard"):
        jd.distill(real, size=3, labels="hard", key=KEY)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: [x, y], "pair"),
        (lambda x, y: (x,), "pair"),
        (lambda x, y: (x[:, :3], y), r"expected \(n, 12\)"),
        (lambda x, y: (x, y[:, :2]), r"\(n, 3\)"),
        (lambda x, y: (x[:2], y[:2]), "2"),
        (lambda x, y: (x * np.nan, y), "x holds"),
        (lambda x, y: (x, np.where(y > 0, np.inf, y)), "y holds"),
    ],
)
def test_reference_examples_that_do_not_fit_are_refused(model, problem, change, says):
    with pytest.raises(InputError, match=says):
        jd.distill(model, ipc=1, realistic="closest", reference=change(problem["x"], problem["y"]), key=KEY)


def test_weights_of_zero_and_inverses_that_do_not_exist_are_refused(problem):
    nothing = jd.fit_ridge(jd.features.Linear(12), problem["x"], 0 * problem["y"], lam=1.0)
    with pytest.raises(RankError, match="zero"):
        jd.distill(nothing, size=1, key=KEY)
    wide = jd.features.RandomFourier.create(12, 13, lengthscale=4.0, key=KEY)
    model = jd.fit_ridge(wide, problem["x"], problem["y"], lam=1.0)
    for realistic in ("inverse", "features"):
        with pytest.raises(InverseError, match="at most 12"):
            jd.distill(model, ipc=1, realistic=realistic, reference=(problem["x"], problem["y"]), key=KEY)
    fixed = jd.distill(model, ipc=5, realistic="fixed", reference=(problem["x"], problem["y"]), key=KEY)
    assert jd.certify(model, fixed).exact  # new labels need no inverse


def test_every_error_is_a_value_error_of_one_line(model):
    assert issubclass(JaxDistillError, ValueError)
    with pytest.raises(JaxDistillError) as caught:
        jd.distill(model, key=KEY)
    assert "\n" not in str(caught.value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.lam = 2.0


def test_real_examples_of_a_linear_map_stay_in_a_box(model, problem):
    x, y = problem["x"], problem["y"]
    low, high = np.quantile(x, (0.02, 0.98), axis=0)
    free = jd.distill(model, ipc=2, realistic="closest", reference=(x, y), key=KEY)
    boxed = jd.distill(model, ipc=2, realistic="closest", reference=(x, y), box=(low, high), key=KEY)
    assert not np.all((free.x >= low) & (free.x <= high))
    assert np.all((boxed.x >= low) & (boxed.x <= high))
    assert jd.certify(model, boxed, x, problem["y"].argmax(axis=1)).exact
