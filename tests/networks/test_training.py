"""Finite networks on small sets: seeds, labels, losses, augmentation, encoders, refusals."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.data.augment import Augmentation
from jaxdistill.evaluate.finite_networks import evaluate_images, evaluate_set
from jaxdistill.features.trained import train_encoder
from jaxdistill.networks import training
from jaxdistill.networks.config import TrainConfig
from jaxdistill.networks.standard import make_network
from jaxdistill.networks.training import train_networks

KEY = jax.random.key(0)
SHAPE = (4, 4, 1)
NET = make_network("mlp", widths=(12,), num_outputs=3)
QUICK = TrainConfig(steps=80, learning_rate=0.02)


@pytest.fixture(scope="module")
def images():
    """Three classes that a network tells apart easily, 16 pixels."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 16))
    labels = np.arange(300) % 3
    x = (centres[labels] + 0.3 * rng.standard_normal((300, 16))).astype(np.float32)
    return {"x": x[:150], "y": jd.one_hot(labels[:150], 3), "x_test": x[150:], "y_test": labels[150:]}


@pytest.fixture(scope="module")
def small(images):
    model = jd.fit_ridge(jd.features.Linear(16), images["x"], images["y"], lam=1.0)
    reference = (images["x"], images["y"])
    return jd.distill(model, ipc=3, realistic="closest", reference=reference, key=KEY)


def scores(small, images, **settings):
    arguments = {"network": NET, "image_shape": SHAPE, "config": QUICK, "seeds": 3, "key": KEY}
    return evaluate_set(small, images["x_test"], images["y_test"], **(arguments | settings))


def test_labels_are_what_they_are_called(small, images, monkeypatch):
    caught = []
    monkeypatch.setattr(
        "jaxdistill.evaluate.finite_networks.evaluate_images", lambda x, y, *rest, **named: caught.append(y)
    )
    for labels in ("hard", "soft", "own"):
        scores(small, images, labels=labels)
    answers = small.x @ small.weights
    np.testing.assert_array_equal(caught[0], np.eye(3)[answers.argmax(axis=1)])
    np.testing.assert_allclose(caught[1], answers, atol=1e-10)
    np.testing.assert_array_equal(caught[2], small.y)
    hard = jd.distill(jd.fit_ridge(jd.features.Linear(16), images["x"], images["y"]), ipc=2, key=KEY)
    scores(hard, images, labels="hard")
    np.testing.assert_array_equal(caught[3], hard.y)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_networks_learn_the_task_from_a_set(small, images, labels):
    found = scores(small, images, labels=labels)
    assert len(found.accuracies) == 3 and found.num_train == 9 and found.num_test == 150
    assert found.mean > 0.9
    assert found.mean == pytest.approx(np.mean(found.accuracies))
    assert found.deviation == pytest.approx(np.std(found.accuracies, ddof=1))
    assert found.to_dict()["config"]["steps"] == QUICK.steps


def test_seeds_together_are_seeds_one_by_one(images):
    x = images["x"].reshape(-1, *SHAPE)
    runs = [
        train_networks(NET, x, images["y"], TrainConfig(steps=5, batch=32), seeds=2, together=t, key=KEY)
        for t in (True, False)
    ]
    for a, b in zip(jax.tree.leaves(runs[0].variables), jax.tree.leaves(runs[1].variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=1e-5)
    first, second = (run for run in runs[0].predict(x))
    assert np.abs(first - second).max() > 1e-3  # other starts, other networks


def test_same_key_same_networks_bit_for_bit(small, images):
    assert scores(small, images).accuracies == scores(small, images).accuracies
    assert scores(small, images, key=jax.random.key(1)).accuracies is not None


def test_prediction_in_batches_is_that_of_all_at_once(images, monkeypatch):
    x = images["x"].reshape(-1, *SHAPE)
    trained = train_networks(NET, x, images["y"], TrainConfig(steps=3), key=KEY)
    together = trained.predict(x)
    monkeypatch.setattr("jaxdistill.networks.training._BATCH_BYTES", 4 * 16 * 64)
    np.testing.assert_allclose(trained.predict(x), together, rtol=1e-5, atol=1e-6)


def test_a_step_is_that_of_the_formula():
    """One step of plain gradient descent on a linear network, by hand."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal((6, 2)).astype(np.float32)
    net = nn.Dense(2, use_bias=False, kernel_init=nn.initializers.ones)
    config = TrainConfig(steps=1, optimiser="sgd", learning_rate=0.1, weight_decay=0.01)
    trained = train_networks(net, x, y, config, key=KEY)
    start = np.ones((4, 2))
    gradient = x.T @ (x @ start - y) / 6 + 0.01 * start
    np.testing.assert_allclose(trained.variables[0]["params"]["kernel"], start - 0.1 * gradient, rtol=1e-5)
    loss = 0.5 * np.mean(np.sum((x @ start - y) ** 2, axis=1))
    np.testing.assert_allclose(trained.losses[0], loss, rtol=1e-5)


def test_class_rows_are_trained_by_cross_entropy_and_others_by_squares(images):
    x = images["x"][:9]
    outputs = np.zeros((9, 3))  # of a network that starts at zero
    net = nn.Dense(3, kernel_init=nn.initializers.zeros)
    hard = train_networks(net, x, images["y"][:9], TrainConfig(steps=1), key=KEY).losses[0, 0]
    assert hard == pytest.approx(np.log(3), rel=1e-6)
    rows = np.full((9, 3), 0.5)
    soft = train_networks(net, x, rows, TrainConfig(steps=1), key=KEY).losses[0, 0]
    assert soft == pytest.approx(0.5 * np.sum((outputs[0] - 0.5) ** 2), rel=1e-6)
    chosen = train_networks(net, x, images["y"][:9], TrainConfig(steps=1, loss="squared"), key=KEY)
    assert chosen.losses[0, 0] == pytest.approx(0.5, rel=1e-6)


def test_augmentation_changes_what_is_learnt(small, images):
    found = scores(small, images, config=TrainConfig(steps=20, augment=Augmentation(shift=1)))
    assert found.config["augment"] == {"flip": False, "shift": 1, "rotation": 0.0}
    plain = scores(small, images, config=TrainConfig(steps=20))
    assert found.accuracies != plain.accuracies


@pytest.mark.parametrize("name", ["convnet", "resnet", "encoder"])
def test_convolutional_networks_train(images, name):
    settings = {
        "convnet": {"width": 4, "depth": 1},
        "resnet": {"widths": (4,)},
        "encoder": {"channels": (4,)},
    }
    net = make_network(name, num_outputs=3, **settings[name])
    trained = train_networks(
        net, images["x"].reshape(-1, *SHAPE), images["y"], TrainConfig(steps=40, learning_rate=0.03), key=KEY
    )
    assert trained.losses[0, 1] < 0.8 * trained.losses[0, 0]


def test_a_trained_encoder_is_a_better_feature_map_than_an_untrained_one(images):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2000, 16)).astype(np.float32)
    y = jd.one_hot((np.abs(x[:, 0]) > 0.67).astype(int), 2)  # nothing linear in it
    phi = train_encoder(
        x[:1600],
        y[:1600],
        image_shape=SHAPE,
        network="mlp",
        widths=(32, 8),
        activation="tanh",
        config=TrainConfig(steps=300, learning_rate=0.02),
        key=KEY,
    )
    model = jd.fit_ridge(phi, x[:1600], y[:1600], lam=1.0)
    linear = jd.fit_ridge(jd.features.Linear(16), x[:1600], y[:1600], lam=1.0)

    def accuracy(m):
        return np.mean(m.predict(x[1600:]).argmax(axis=1) == y[1600:].argmax(axis=1))

    assert phi.num_features == 8
    assert accuracy(model) > accuracy(linear) + 0.15


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch": 2.0}, "batch is 2.0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"optimiser": "adamm"}, "did you mean 'adam'"),
        ({"loss": "square"}, "did you mean 'squared'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(errors.InputError, match=says):
        TrainConfig(**settings)


def test_inputs_that_make_no_sense_are_refused(small, images):
    for settings, says in (
        ({"network": "convnt"}, "did you mean 'convnet'"),
        ({"labels": "firm"}, "unknown labels"),
        ({"image_shape": None}, "pass image_shape"),
        ({"image_shape": (3, 3, 1)}, "expected rows of 9"),
        ({"seeds": 0}, "seeds is 0"),
        ({"network": make_network("mlp", num_outputs=4)}, "num_outputs=3"),
    ):
        with pytest.raises(errors.InputError, match=says):
            scores(small, images, **settings)
    rows = np.eye(3)[images["y_test"]]
    for y_test, says in ((rows + 0.1 * rows[::-1], "holds real values"), (rows[1:], "y_test has shape")):
        with pytest.raises(errors.InputError, match=says):
            evaluate_set(small, images["x_test"], y_test, network=NET, image_shape=SHAPE, key=KEY)
    with pytest.raises(errors.InputError, match="at least two"):
        evaluate_images(
            images["x"],
            images["y"][:, :1],
            images["x_test"],
            images["y_test"],
            network=NET,
            image_shape=SHAPE,
            key=KEY,
        )
    with pytest.raises(errors.InputError, match="images holds 16 values"):
        train_networks(NET, np.full((1, 16), np.nan), np.eye(3)[:1], QUICK, key=KEY)
    with pytest.raises(errors.InputError, match="augmentation needs"):
        config = TrainConfig(augment=Augmentation(shift=1))
        train_networks(NET, images["x"], images["y"], config, key=KEY)
    with pytest.raises(errors.InputError, match="leave them out"):
        train_encoder(images["x"], images["y"], image_shape=SHAPE, network=NET, widths=(3,), key=KEY)


def test_a_run_that_diverges_keeps_what_it_has(images):
    config = TrainConfig(steps=30, optimiser="sgd", learning_rate=1e6, loss="squared")
    with pytest.raises(errors.DivergenceError, match="lower learning_rate than 1000000") as caught:
        train_networks(NET, images["x"], images["y"], config, key=KEY)
    assert len(caught.value.result.variables) == 1


def test_images_that_a_device_has_no_room_for_are_told_in_one_line(images, monkeypatch):
    def full(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes.")

    monkeypatch.setattr(training, "_start", full)
    with pytest.raises(errors.MemoryBudgetError, match=r"no room for 4.0 GiB; use fewer features"):
        train_networks(NET, images["x"], images["y"], QUICK, key=KEY)
