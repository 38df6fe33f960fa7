"""KIP: losses and gradients, what runs reach, batches, seeds, optimisers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative
from hypothesis import given
from hypothesis import strategies as st
from kip_runs import KEY, rbf, run, setting_of

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.errors import InputError
from jaxdistill.kip.objective import Quadratic, moments_loss, ridge_coefficients
from jaxdistill.kip.prepare import prepare
from jaxdistill.kip.steps import coefficients, finish, run_block
from jaxdistill.kip.targets import TargetRows, balanced_counts, batch_order
from jaxdistill.numerics.linalg import in_float64


@pytest.fixture(scope="module")
def setting(problem, maps):
    return setting_of(problem, maps["network"])


def embed(setting, x):
    return np.asarray(setting["phi"](jnp.asarray(x)))


def losses(setting, model, x, config):
    """Value and gradient of a run's loss at given inputs, in float64."""
    with jax.enable_x64(True):
        made = prepare(model, setting["x"], setting["y"], config, None, None, jax.random.key_data(KEY), False)
        labels = jnp.asarray(setting["y"][: len(x)], jnp.float64)
        params = {"x": jnp.asarray(x, jnp.float64)}
        if config.labels == "learned":
            params["y"] = labels
        loss = partial(made.problem.loss, labels=labels, context=made.context, key=KEY)
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return float(value), jax.tree.map(np.asarray, gradient), lambda p: float(loss(p))


# --- the objective ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "targets"),
    [("solved", "data"), ("solved", "model"), ("fixed", "data"), ("learned", "model")],
)
def test_moments_form_equals_the_plain_form_on_all_targets(setting, labels, targets):
    x = setting["x"][:5].astype(np.float64)
    settings = {"size": 5, "labels": labels, "targets": targets, "dtype": "float64", "reg": 1e-3}
    found = {
        form: losses(setting, setting["model"], x, kip.KipConfig(form=form, **settings))[:2]
        for form in ("moments", "plain")
    }
    (value, gradient), (expected, expected_gradient) = found["moments"], found["plain"]
    assert abs(value - expected) <= 1e-12 * expected + 1e-14
    for name, part in gradient.items():
        assert relative(part, expected_gradient[name]) < 1e-10


@pytest.mark.parametrize("kernel", ["map", "function"])
@pytest.mark.parametrize("labels", ["solved", "fixed", "learned"])
def test_gradients_are_those_of_finite_differences(setting, labels, kernel):
    model = setting["model"] if kernel == "map" else rbf
    x = setting["x"][:4].astype(np.float64)
    config = kip.KipConfig(size=4, labels=labels, form="plain", dtype="float64", reg=1e-2)
    _, gradient, loss = losses(setting, model, x, config)
    rng = np.random.default_rng(0)
    parts = {"x": x} | ({"y": setting["y"][:4].astype(np.float64)} if labels == "learned" else {})
    direction = {name: rng.standard_normal(value.shape) for name, value in parts.items()}
    step = 1e-5
    with jax.enable_x64(True):
        up, down = (
            loss({name: jnp.asarray(parts[name] + sign * step * direction[name]) for name in parts})
            for sign in (1, -1)
        )
    slope = sum(np.vdot(gradient[name], direction[name]) for name in parts)
    assert abs((up - down) / (2 * step) - slope) < 1e-7 * max(1, abs(slope))


@given(seed=st.integers(0, 2**16), m=st.integers(1, 4))
def test_solved_loss_is_that_of_least_squares_and_no_labels_do_better(seed, m):
    rng = np.random.default_rng(seed)
    phi, y, phis = (rng.standard_normal(shape) for shape in ((30, 6), (30, 3), (m, 6)))
    data = Quadratic(phi.T @ phi / 30, phi.T @ y / 30, np.sum(y**2) / 30)
    solved = float(in_float64(moments_loss, phis, data))
    residual = y - phi @ phis.T @ np.linalg.lstsq(phi @ phis.T, y)[0]
    np.testing.assert_allclose(solved, np.sum(residual**2) / 60, rtol=1e-9)
    a = in_float64(partial(ridge_coefficients, reg=0.1), phis @ phis.T, rng.standard_normal((m, 3)))
    assert float(in_float64(data.__class__.loss, data, phis.T @ a)) >= solved - 1e-12


def test_dependent_examples_give_nan_and_a_stated_ridge_does_not():
    features = np.ones((2, 3))
    data = Quadratic(np.eye(3), np.ones((3, 1)), np.float64(3))
    assert np.isnan(in_float64(moments_loss, features, data))
    assert np.isfinite(in_float64(partial(moments_loss, ridge=1e-10), features, data))


# --- batches ---------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), data=st.data())
def test_batches_are_balanced_and_split_everything(sizes, data):
    batch = data.draw(st.integers(1, sum(sizes)))
    counts = balanced_counts(sizes, batch)
    assert sum(counts) == batch and all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))
    unfilled = [c for c, s in zip(counts, sizes, strict=True) if c < s]
    assert not unfilled or max(counts) - min(unfilled) <= 1


def test_windows_hold_no_example_twice_and_reach_every_one():
    classes = np.repeat([0, 1, 2], [7, 20, 5])
    order = batch_order(classes, 12, jax.random.key(0))
    rows = jnp.asarray(order.rows, jnp.int32)[:, None]
    source = TargetRows(rows, rows, order.weight, order.starts, order.sizes, order.counts)
    batches = np.asarray(jax.vmap(lambda k: source.batch(k)[0])(jax.random.split(KEY, 300)))[..., 0]
    assert all(len(set(batch)) == 12 for batch in batches)
    assert all(np.bincount(classes[batch]).tolist() == [4, 4, 4] for batch in batches)
    seen = np.bincount(batches.ravel(), minlength=32) / 300
    np.testing.assert_allclose(seen, 4 / np.array([7, 20, 5])[classes], atol=0.15)
    once = np.asarray(source.fold(lambda r, v, w: jnp.sum(w), jnp.zeros(())))
    assert once == 32


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "form"),
    [("solved", "moments"), ("solved", "plain"), ("fixed", "moments"), ("learned", "plain")],
)
def test_a_run_descends_and_its_set_is_its_predictor(setting, tmp_path, labels, form):
    batch = {"batch": 60} if form == "plain" else {}
    result = run(setting, labels=labels, form=form, steps=60, reg=1e-2, **batch)
    history, small = result.history, result.small
    assert history.loss.shape == (60, 1) and history.loss[-1] < 0.95 * history.loss[0]
    assert small.recipe["construction"] == "kip" and small.x.dtype == np.float32
    phis = embed(setting, small.x)
    lam = 1e-2 * np.sum(phis.astype(np.float64) ** 2) / len(phis)
    np.testing.assert_allclose(small.lam, lam, rtol=1e-5)
    # What ridge regression makes of the set predicts as the run did: no worse than its last loss.
    weights = phis.T @ np.linalg.solve(phis @ phis.T + lam * np.eye(len(phis)), small.y)
    errors = embed(setting, setting["x"]) @ weights - setting["y"]
    found = np.sum(errors**2) / (2 * len(errors))
    assert found <= history.loss[-1, 0] * (1.3 if batch else 1.001)
    cert = jd.certify(setting["model"], small, setting["x_test"], setting["y_test"])
    assert cert.accuracy_distilled is not None and cert.accuracy_distilled > 0.5
    path = small.with_certificate(cert).save(tmp_path / "kip.npz")
    back = jd.DistilledSet.load(path)
    assert back.digest == small.digest and back.recipe["config"]["labels"] == labels


def test_a_kernel_function_trains_alone_and_has_no_set_to_certify(setting):
    for settings in ({"batch": 50}, {"labels": "fixed"}, {"labels": "learned", "seeds": 2}):
        result = run(setting, model=rbf, reg=1e-3, **settings)
        assert np.all(result.history.loss[-1] < result.history.loss[0])
    with pytest.raises(InputError, match="fit_ridge"):
        _ = result.small


def test_a_feature_map_is_the_kernel_of_its_features(setting):
    def inner(a, b):
        return setting["phi"](a) @ setting["phi"](b).T

    settings = {"dtype": "float64", "batch": 30, "labels": "learned", "reg": 1e-3}
    by_map, by_kernel = (run(setting, model=m, **settings) for m in (setting["phi"], inner))
    np.testing.assert_allclose(by_map.history.loss, by_kernel.history.loss, rtol=1e-6)


def test_several_seeds_at_once_are_several_runs(setting):
    settings = {"batch": 50, "labels": "learned"}
    both = run(setting, seeds=2, dtype="float64", **settings)
    one = run(setting, seeds=1, dtype="float64", **settings)
    np.testing.assert_allclose(both.history.loss[:, 0], one.history.loss[:, 0], rtol=1e-6)
    assert not np.allclose(both.x[0], both.x[1]) and len(both.sets) == 2


def test_a_second_run_like_the_first_compiles_nothing(setting):
    run(setting, steps=3)
    before = [f._cache_size() for f in (run_block, coefficients, finish)]
    run({**setting, "x": setting["x"] * np.float32(1.1)}, steps=3, key=jax.random.key(9))
    assert [f._cache_size() for f in (run_block, coefficients, finish)] == before


def test_the_same_key_gives_the_same_bits_whatever_the_blocks(setting):
    first = run(setting, batch=50, block=30)
    second = run(setting, batch=50, block=7, evaluate_every=11, checkpoint_every=4)
    assert first.x.tobytes() == second.x.tobytes() and first.y.tobytes() == second.y.tobytes()
    assert run(setting, batch=50, key=jax.random.key(4)).x.tobytes() != first.x.tobytes()


@pytest.mark.parametrize("name", kip.optimisers())
def test_every_optimiser_by_name(name):
    """Inside vmap and a loop that keeps types, as the runs use them."""
    config = kip.KipConfig(ipc=1, optimiser=name, learning_rate=1e-2, steps=40, schedule="constant")
    transformation = config.transformation()

    def value_of(x):
        return jnp.sum((x - 1) ** 2)

    def step(_, carry):
        x, state = carry
        value, gradient = jax.value_and_grad(value_of)(x)
        more = {"value": value, "grad": gradient, "value_fn": value_of}
        updates, state = transformation.update(gradient, state, x, **more)
        return optax.apply_updates(x, updates), state

    def descend(x):
        return jax.lax.fori_loop(0, 40, step, (x, transformation.init(x)))[0]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        start = jnp.full((2, 3, 4), 2.0, jnp.float32)
        end = jax.jit(jax.vmap(descend))(start)
        assert end.dtype == jnp.float32 and value_of(end) < value_of(start)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "exponential", "warmup_cosine"])
def test_every_schedule_by_name(schedule):
    config = kip.KipConfig(ipc=1, schedule=schedule, learning_rate=0.5, steps=40, optimiser="sgd")
    transformation = config.transformation()
    state = transformation.init(jnp.zeros(()))
    rates = []
    for _ in range(41):
        with jax.numpy_dtype_promotion("standard"):
            update, state = transformation.update(jnp.ones(()), state)
        rates.append(-float(update))
    assert max(rates) == pytest.approx(0.5) and all(np.diff(rates[3:]) <= 1e-7)


def test_an_optimiser_of_ones_own(setting):
    mine = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3, momentum=0.9))
    result = run(setting, optimiser=mine)
    assert result.history.loss[-1] < result.history.loss[0]
    assert kip.KipConfig(ipc=1, optimiser=optax.sgd(0.1)).describe() != (
        kip.KipConfig(ipc=1, optimiser=optax.sgd(0.2)).describe()
    )


@pytest.mark.long
def test_lbfgs_is_worth_its_line_search(setting):
    adam, lbfgs = (run(setting, ipc=1, optimiser=name, steps=60) for name in ("adam", "lbfgs"))
    assert lbfgs.history.loss[-1] <= adam.history.loss[-1]


@pytest.mark.parametrize("labels", ["solved", "learned"])
def test_starting_from_the_analytic_set_starts_at_the_full_model(setting, labels):
    small = jd.distill(setting["model"], ipc=2, labels="soft", key=KEY)
    result = run(setting, ipc=None, start=small, labels=labels, steps=1, dtype="float64", reg=1e-3)
    f = setting["model"].predict(setting["x"].astype(np.float64))
    own = np.sum((f - setting["y"]) ** 2) / (2 * len(f))
    if labels == "solved":
        assert result.history.loss[0, 0] <= own * (1 + 1e-9)
    else:
        assert result.history.loss[0, 0] == pytest.approx(own, rel=1e-6)


def test_noise_real_targets_and_augmentation(setting, problem):
    assert run(setting, start="noise").history.loss[-1] < 0.3
    rng = np.random.default_rng(0)
    y = problem["x"] @ rng.standard_normal((12, 2)).astype(np.float32)
    real = {
        "x": problem["x"],
        "y": y,
        "model": jd.fit_ridge(jd.features.Linear(12), problem["x"], y, lam=0.1),
    }
    result = run(real, ipc=None, size=4, batch=50)
    assert result.history.loss[-1] < result.history.loss[0]
    images = problem["x"].reshape(-1, 3, 4, 1).astype(np.float32)
    transform = jd.Standardize.fit(images)
    x = transform.forward(images)
    model = jd.fit_ridge(setting["phi"], x, setting["y"], lam=0.1)
    changed = run(
        {**setting, "x": x, "model": model}, batch=60, augment=kip.Augmentation(shift=1), preprocess=transform
    )
    assert changed.small.images.shape == (6, 3, 4, 1) and np.all(np.isfinite(changed.history.loss))


def test_validation_is_held_out_judged_and_stops(setting):
    wild = {"optimiser": "sgd", "learning_rate": 0.0, "evaluate_every": 5, "patience": 2, "steps": 200}
    result = run(setting, validation=0.2, **wild)
    history = result.history
    assert result.steps == 15 and history.evaluated_at.tolist() == [5, 10, 15]
    assert history.accuracy.shape == (3, 1) and np.all(history.accuracy > 0.4)
    assert np.all(np.diff(history.seconds) > 0) and history.compile_seconds > 0
    assert result.small.recipe["num_train"] == 120
    held = (setting["x_test"], jd.one_hot(setting["y_test"], 3, centred=True).astype(np.float32))
    outside = run(setting, validation=held, evaluate_every=10)
    assert outside.small.recipe["num_train"] == 150 and outside.history.accuracy[-1, 0] > 0.5


def test_patience_returns_the_best_and_not_the_last(setting):
    # Great steps without a schedule: after a good start things get worse.
    result = run(
        setting, validation=0.3, batch=50, learning_rate=1.0, schedule="constant", steps=100,
        evaluate_every=1, patience=4,
    )  # fmt: skip
    history = result.history
    assert result.steps < 100 and np.argmax(history.accuracy[:, 0]) == len(history.accuracy) - 5
