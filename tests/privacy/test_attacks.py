"""Attacks on whole sets: memories are found, copies are recognised, labels of another kind are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.errors import InputError
from jaxdistill.privacy.attacks import attack_set
from jaxdistill.privacy.budget import Budget
from jaxdistill.privacy.mechanism import fit_private_ridge
from jaxdistill.privacy.reconstruction import invert_moments, nearest_examples

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def memory():
    """Random classes: nothing to learn, so that all that a model knows is who was there."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((240, 60)), jd.one_hot(rng.integers(0, 3, 240), 3)
    members, others = (x[:120], y[:120]), (x[120:], y[120:])
    return members, others, jd.fit_ridge(jd.features.Linear(60), *members, lam=1.0)


def test_an_exact_set_gives_away_what_its_model_remembers(memory):
    members, others, model = memory
    small = jd.distill(model, ipc=1, key=KEY)
    found = attack_set(small, members, others, key=KEY)
    assert found.likelihood_ratio.auc.value > found.loss.auc.value and found.loss.auc.low > 0.8
    assert found.label.advantage > 0.3 and found.label.low > 0
    # Noise looks like nobody.
    assert found.reconstruction.psnr_members < 30 and found.promised is None
    assert json.loads(json.dumps(found.to_dict()))["loss"]["num_others"] == 120


def test_a_private_set_of_the_same_data_gives_next_to_nothing_away(memory):
    members, others, _ = memory
    private = fit_private_ridge(jd.features.Linear(60), *members, budget=Budget(0.5, 1e-5), clip=1.0)
    found = attack_set(private.distill(ipc=1, key=KEY), members, others, key=KEY)
    assert found.loss.auc.value < 0.65 and found.likelihood_ratio.auc.value < 0.65
    assert found.promised["epsilon"] == 0.5


def test_real_images_are_recognised(memory):
    members, others, model = memory
    small = jd.distill(model, ipc=2, realistic="fixed", reference=members, key=KEY)
    found = attack_set(small, members, others, shadows=0, key=KEY).reconstruction
    assert found.psnr_members == np.inf and found.nearer_to_members.value == 1.0
    assert found.psnr_others < 30 and found.chance == 0.5


@pytest.mark.parametrize("kind", ("integers", "centred", "real", "two classes"))
def test_labels_of_another_kind_are_refused(memory, kind):
    members, others, model = memory
    small = dataclasses.replace(jd.distill(model, ipc=1, key=KEY), certificate=None)
    x, y = members
    wrong = {
        "integers": y.argmax(axis=1),
        "centred": y - 1 / 3,
        "real": y * 2.5,
        "two classes": jd.one_hot(np.arange(120) % 2, 2),
    }[kind]
    with pytest.raises(InputError, match="members"):
        attack_set(small, (x, wrong), others, key=KEY)


def test_a_set_of_a_kernel_is_refused(problem):
    data = problem["x"], problem["y"]
    model = jd.fit_kernel_ridge(jd.kernels.RBF(4.0), *data, lam=1.0)
    small = jd.distill_kernel(model, *data, ipc=1, key=KEY)
    with pytest.raises(InputError, match="this set is of a kernel"):
        attack_set(small, data, data, key=KEY)


def test_the_nearest_example_is_the_nearest():
    rng = np.random.default_rng(0)
    pool, images = rng.random((5000, 3, 2, 1)), rng.random((4, 3, 2, 1))
    found = nearest_examples(images, pool)
    distance = np.sqrt(np.mean((images[:, None] - pool) ** 2, axis=(2, 3, 4)))
    np.testing.assert_array_equal(found.rows, distance.argmin(axis=1))
    np.testing.assert_allclose(found.distance, distance.min(axis=1))
    with pytest.raises(InputError, match="images have 6 pixels"):
        nearest_examples(images, pool[:, :2])


def test_exact_moments_give_the_last_example_away_and_noisy_ones_do_not(memory):
    (x, y), _, _ = memory
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    known = x[1:].T @ x[1:], x[1:].T @ y[1:]
    left = invert_moments(x.T @ x, x.T @ y, *known)
    np.testing.assert_allclose(left.features, x[0], atol=1e-7)
    np.testing.assert_allclose(left.targets, y[0], atol=1e-7)
    assert left.share > 0.999
    private = fit_private_ridge(jd.features.Linear(60), x, y, budget=Budget(1.0, 1e-5), clip=1.0)
    blurred = invert_moments(private.noisy.gram, private.noisy.cross, *known)
    assert abs(blurred.features @ x[0]) / np.linalg.norm(blurred.features) < 0.6
    assert blurred.share < 0.2
