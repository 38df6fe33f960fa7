"""The joint guarantee: noise of the promised size, algebra against scikit-learn, words, refusals."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import jaxdistill as jd
from jaxdistill.errors import BudgetError, InputError, PenaltyError
from jaxdistill.features import train_encoder
from jaxdistill.networks.config import TrainConfig
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.privacy.budget import Budget, Neighbours, Spent
from jaxdistill.privacy.clipping import joint_sensitivity
from jaxdistill.privacy.mechanism import fit_private_ridge
from jaxdistill.privacy.spectrum import blind_penalty, mend_spectrum, noise_edge

KEY = jax.random.key(0)
BUDGET = Budget(1.0, 1e-5)


@pytest.fixture
def silence(monkeypatch):
    """The numbers in the middle of the distribution, which are zero: only a test can take the noise away."""
    monkeypatch.setattr("secrets.token_bytes", lambda number: bytes([0] * 7 + [128]) * (number // 8))


def fit(problem, phi, **request):
    return fit_private_ridge(phi, problem["x"], problem["y"], **({"budget": BUDGET, "clip": 1.0} | request))


@pytest.mark.parametrize("name", ("linear", "network", "fourier"))
def test_without_noise_it_is_ridge_on_clipped_rows(problem, maps, silence, name):
    clip = 0.8
    private = fit(problem, maps[name], clip=clip, lam=0.7, spectrum="clip")
    phi = in_float64(jax.jit(maps[name].__call__), np.float64(problem["x"]))
    phi = phi * np.minimum(1, clip / np.linalg.norm(phi, axis=1, keepdims=True))
    expected = Ridge(alpha=0.7, fit_intercept=False).fit(phi, problem["y"]).coef_.T
    np.testing.assert_allclose(private.model.weights, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(private.model.moments.gram, phi.T @ phi, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(private.model.moments.cross, phi.T @ problem["y"], rtol=1e-4, atol=1e-4)
    assert private.model.lam == pytest.approx(0.7)


def test_real_targets_come_back_in_their_own_units(problem, maps, silence):
    y = np.float64(problem["x"][:, :2]) * 30
    request = {"clip": 100.0, "target_clip": 1e3, "lam": 1e-3, "spectrum": "clip"}
    private = fit(problem | {"y": y}, maps["linear"], **request)
    np.testing.assert_allclose(private.model.weights, 30 * np.eye(12, 2), atol=1e-2)


@pytest.mark.parametrize("neighbours", Neighbours)
def test_the_noise_has_the_promised_size(problem, maps, silence, monkeypatch, neighbours):
    budget = Budget(0.7, 1e-6, neighbours)
    clean = fit(problem, maps["linear"], budget=budget)
    monkeypatch.undo()
    draws = [fit(problem, maps["linear"], budget=budget) for _ in range(60)]
    sigma = joint_sensitivity(neighbours) / budget.mu
    assert clean.noise == draws[0].noise == sigma
    gram = np.stack([one.noisy.gram - clean.noisy.gram for one in draws])
    cross = np.stack([one.noisy.cross - clean.noisy.cross for one in draws])
    beside = gram[:, *np.triu_indices(12, 1)]
    # 60 x 12, 60 x 66 and 60 x 36 numbers: six standard errors.
    assert np.diagonal(gram, axis1=1, axis2=2).std() == pytest.approx(sigma, rel=6 / np.sqrt(2 * 720))
    assert beside.std() == pytest.approx(sigma / np.sqrt(2), rel=6 / np.sqrt(2 * 3960))
    assert cross.std() == pytest.approx(sigma, rel=6 / np.sqrt(2 * 2160))
    assert abs(np.corrcoef(beside[:, 0], cross[:, 0, 0])[0, 1]) < 0.8


def test_no_two_runs_are_alike_and_no_key_makes_them(problem, maps):
    one, two = (fit(problem, maps["linear"]) for _ in range(2))
    assert np.abs(one.noisy.gram - two.noisy.gram).min() > 0


def test_what_was_spent_before_makes_the_noise_larger(problem, maps):
    spent = Spent("features", mu=0.6 * BUDGET.mu)
    private = fit(problem, maps["linear"], spent=[spent])
    assert private.noise == pytest.approx(joint_sensitivity(BUDGET.neighbours) / (0.8 * BUDGET.mu))
    assert private.statement["spent"] == [{"what": "features", "epsilon": 0.0, "delta": 0.0, "mu": spent.mu}]
    assert private.statement["public"]["features"] == "made of the data, paid for"


def test_the_penalty_is_chosen_without_the_data(problem, maps):
    other = problem | {"x": problem["x"][:40] * 3, "y": problem["y"][:40]}
    lams = [fit(data, maps["linear"], clip=2.0).model.lam for data in (problem, other)]
    assert lams[0] == lams[1] == pytest.approx(4 * blind_penalty(fit(problem, maps["linear"]).noise, 12))


def test_what_is_not_paid_for_is_not_in_the_moments(problem, maps, silence):
    """The number of examples is theirs to know only where an example is replaced."""
    few = problem | {"x": problem["x"][:90], "y": problem["y"][:90]}
    replaced = fit(few, maps["linear"], budget=Budget(1.0, 1e-5, Neighbours.REPLACE_ONE)).model.moments
    assert replaced.count == 90
    added = fit(few, maps["linear"], clip=1e-3)  # every row is clipped: the trace counts them
    assert added.model.moments.count == 90
    np.testing.assert_allclose(added.model.moments.target_gram, 30 * np.eye(3))


@pytest.mark.parametrize("targets", ("one-hot", "centred"))
@pytest.mark.parametrize("spectrum", ("shrink", "clip"))
def test_the_set_trains_to_the_private_model(problem, maps, targets, spectrum):
    y = problem["y"] - (1 / 3 if targets == "centred" else 0)
    private = fit_private_ridge(
        maps["network"], problem["x"], y, budget=Budget(8.0, 1e-5), clip=1.0, spectrum=spectrum, rank=7
    )
    small = private.distill(ipc=1, key=KEY)
    assert jd.certify(private.model, small).exact
    assert np.linalg.matrix_rank(private.model.moments.gram) <= 7
    assert small.recipe["privacy"]["directions"] == 7
    if targets == "centred":
        np.testing.assert_allclose(private.model.weights.sum(axis=1), 0, atol=1e-12)


def test_the_recipe_says_what_is_promised(problem, maps):
    small = fit(problem, maps["linear"]).distill(ipc=1, key=KEY)
    told = small.recipe["privacy"]
    assert (told["epsilon"], told["delta"], told["neighbours"], told["clip"]) == (
        1.0,
        1e-5,
        "add-or-remove",
        1.0,
    )
    assert told["public"] == {
        "features": "linear, drawn without the data",
        "preprocess": "none, or each example by itself",
    }


def encoder(problem):
    config = TrainConfig(steps=2)
    x = np.pad(problem["x"], ((0, 0), (0, 4)))
    made = train_encoder(
        x, problem["y"], image_shape=(4, 4, 1), config=config, channels=(2,), num_features=5, key=KEY
    )
    return made, problem | {"x": x}


def test_an_encoder_is_refused_unless_it_was_paid_for_or_is_public(problem):
    phi, data = encoder(problem)
    with pytest.raises(BudgetError, match=r"an encoder is trained.*public=.*spent="):
        fit(data, phi)
    assert fit(data, phi, public=["features"]).statement["public"]["features"] == "declared public"
    assert (
        fit(data, phi, spent=[Spent("features", epsilon=0.1)]).noise > fit(data, phi, public="features").noise
    )


def test_fitted_constants_are_refused_unless_they_were_paid_for_or_are_public(problem, maps):
    prepare = jd.Standardize.fit(problem["x"])
    with pytest.raises(BudgetError, match="standardize constants are fitted on data; declare them public"):
        fit(problem, maps["linear"], preprocess=prepare)
    private = fit(problem, maps["linear"], preprocess=prepare, public=["preprocess"])
    assert private.distill(ipc=1, key=KEY).preprocess is prepare
    assert fit(problem, maps["linear"], preprocess=jd.Identity((12,))).preprocess is not None


def test_private_examples_cannot_come_back_as_a_start(problem, maps):
    private = fit(problem, maps["linear"])
    with pytest.raises(BudgetError, match="cannot start from private examples"):
        private.distill(ipc=1, reference=(problem["x"], problem["y"]), key=KEY)
    public = (np.random.default_rng(0).random((30, 12)), jd.one_hot(np.arange(30) % 3, 3))
    small = private.distill(ipc=2, realistic="closest", public_reference=public, key=KEY)
    assert small.recipe["privacy"]["public"]["reference"] == "declared public"


@pytest.mark.parametrize(
    ("request_", "error", "told"),
    [
        ({"clip": None}, InputError, "linear features have no bound"),
        ({"clip": -1.0}, InputError, "clip is -1.0"),
        ({"target_clip": 1.0}, InputError, "leave target_clip out"),
        ({"lam": 0.0}, PenaltyError, "lam is 0, and noisy moments are singular"),
        ({"lam": -1.0}, PenaltyError, "must be finite and >= 0"),
        ({"rank": 0}, InputError, "rank is 0; keep between 1 and 12"),
        ({"rank": 13}, InputError, "rank is 13"),
        ({"spectrum": "shrunk"}, InputError, "did you mean 'shrink'"),
        ({"public": ["feature"]}, InputError, "did you mean 'features'"),
        ({"spent": [Spent("features", epsilon=1.0)]}, BudgetError, "nothing is left"),
    ],
)
def test_requests_that_make_no_sense_are_refused(problem, maps, request_, error, told):
    with pytest.raises(error, match=told):
        fit(problem, maps["linear"], **request_)


def test_shrinking_takes_the_noise_out_of_large_eigenvalues():
    rng = np.random.default_rng(0)
    p, sigma = 400, 1.0
    edge = noise_edge(sigma, p)
    truth = np.array([3.0, 2.0, 1.2]) * edge / 2 * 1.5
    noise = rng.standard_normal((p, p))
    values, _ = np.linalg.eigh(np.diag(np.r_[truth, np.zeros(p - 3)]) + (noise + noise.T) / 2)
    mended = in_float64(jax.jit(mend_spectrum, static_argnums=2), values, edge, "shrink")
    np.testing.assert_allclose(mended[-3:], np.sort(truth), rtol=0.1)
    assert np.all(mended[:-8] == 0) and np.all(values[-3:] - np.sort(truth) > 0)
    clipped = in_float64(jax.jit(mend_spectrum, static_argnums=2), values, edge, "clip")
    np.testing.assert_array_equal(clipped, np.maximum(values, 0))
