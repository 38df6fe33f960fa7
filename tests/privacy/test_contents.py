"""A private file holds nothing that was not paid for, and every name in it is accounted for."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.errors import BudgetError
from jaxdistill.privacy.budget import Budget
from jaxdistill.privacy.contents import list_contents
from jaxdistill.privacy.mechanism import fit_private_ridge

KEY = jax.random.key(0)


@pytest.fixture
def private(problem, maps):
    return fit_private_ridge(
        maps["fourier"],
        problem["x"],
        problem["y"],
        budget=Budget(4.0, 1e-3),
        preprocess=jd.Identity((12,)),
        clip=1.0,
    )


@pytest.fixture
def small(private):
    made = private.distill(ipc=1, key=KEY)
    return made.with_context(made.preprocess, ("a", "b", "c")).with_certificate(
        jd.certify(private.model, made)
    )


def test_every_array_and_every_word_is_accounted_for(small, private, tmp_path):
    path = small.save(tmp_path / "s.npz")
    told = list_contents(path)
    with np.load(path) as file:
        assert set(file.files) - {"meta"} <= set(told)
    assert told["meta/certificate/num_test"] == "no test example: always 0"
    assert told["weights"] == told["inputs"] == told["meta/recipe/num_train"] == "the noisy moments"
    assert {"meta/recipe/privacy/epsilon", "meta/recipe/privacy/public/features"} <= set(told)
    # The moments, which were paid for, stay behind all the same.
    held = {name.split("/")[0] for name in told} - {"meta", "features", "preprocess", "class_names"}
    assert held == {"images", "inputs", "labels", "lam", "weights", "digest"}


def test_the_weights_in_the_file_are_those_that_were_paid_for(small, private, tmp_path):
    again = jd.DistilledSet.load(small.save(tmp_path / "s.npz"))
    np.testing.assert_array_equal(again.weights, private.model.weights)


def test_a_score_on_data_is_found(small, private, problem, tmp_path):
    scored = small.with_certificate(jd.certify(private.model, small, problem["x_test"], problem["y_test"]))
    with pytest.raises(BudgetError, match="a score on data that nobody paid for"):
        list_contents(scored.save(tmp_path / "s.npz"))


def test_a_word_that_nobody_knows_is_found(small, tmp_path):
    more = dataclasses.replace(small, recipe=small.recipe | {"validation": 0.97})
    with pytest.raises(BudgetError, match="holds meta/recipe/validation, of which nobody can say"):
        list_contents(more.save(tmp_path / "s.npz"))


def test_a_set_without_a_promise_is_refused(problem, maps, tmp_path):
    model = jd.fit_ridge(maps["linear"], problem["x"], problem["y"], lam=1.0)
    with pytest.raises(BudgetError, match="makes no promise"):
        list_contents(jd.distill(model, ipc=1, key=KEY).save(tmp_path / "s.npz"))
