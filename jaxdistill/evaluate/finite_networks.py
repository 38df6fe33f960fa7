"""What finite networks learn from a small set: the field's way to judge one, beside the certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError
from jaxdistill.evaluate.scores import read_test_targets
from jaxdistill.networks.config import TrainConfig
from jaxdistill.networks.standard import make_network, name_of, settings_of
from jaxdistill.networks.training import train_networks
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.names import check_choice
from jaxdistill.ridge.model import predict
from jaxdistill.sets.artifact import DistilledSet

LABELS = ("hard", "soft", "own")


@dataclass(frozen=True)
class NetworkScores:
    """Test accuracies of networks trained on one set.

    Args:
        network: Name of the architecture.
        settings: Its settings.
        labels: What they were trained towards.
        accuracies: Test accuracy of each seed, in [0, 1].
        mean: Mean of the accuracies.
        deviation: Their standard deviation (with n - 1; 0 for one seed).
        train_accuracy: Mean share of the set's own examples that are named right.
        num_train: Number of examples trained on.
        num_test: Number of test examples.
        seconds: Training and testing of all seeds, compilation included.
        config: Settings of the training.
    """

    network: str
    settings: dict[str, Any]
    labels: str
    accuracies: tuple[float, ...]
    mean: float
    deviation: float
    train_accuracy: float
    num_train: int
    num_test: int
    seconds: float
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps."""
        return asdict(self)


def evaluate_set(
    small: DistilledSet,
    x_test: Any,
    y_test: Any,
    *,
    network: str | nn.Module = "convnet",
    labels: str = "hard",
    image_shape: Sequence[int] | None = None,
    config: TrainConfig | None = None,
    seeds: int = 5,
    key: Array,
    progress: bool = False,
) -> NetworkScores:
    """Train finite networks on a distilled set and test them.

    The networks see the inputs as the ridge model does (``small.x``, after preprocessing), in the shape of
    the images.

    Args:
        small: Any distilled set of a classification task.
        x_test: Test inputs, shape (t, d), as the model sees them.
        y_test: Test classes, shape (t,).
        network: "convnet" (three blocks of width 128), "mlp", "resnet", or a linen module.
        labels: "hard", the class of each example: that of its label where labels are class rows, and the full
            model's answer where they are not; "soft", the full model's predictions, by squared error;
            "own", the labels of the set as they are. Soft labels of a set hold, beside the predictions, what
            only ridge regression with their penalty undoes.
        image_shape: (H, W, C); default that of the set's preprocessing.
        config: Settings of the training.
        seeds: Number of networks.
        key: Random key.
        progress: Whether to show bars.

    Returns:
        Accuracies, their mean and deviation.

    Raises:
        InputError: an unknown network or labels, shapes that do not fit, or no classes.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 16)))
        >>> classes = (x[:, 0] > 0).astype(int)
        >>> model = jd.fit_ridge(jd.features.Linear(16), x, jd.one_hot(classes, 2), lam=1.0)
        >>> small = jd.distill(model, ipc=2, key=jax.random.key(1))
        >>> quick = TrainConfig(steps=20)
        >>> net = make_network("mlp", widths=(8,), num_outputs=2)
        >>> found = evaluate_set(small, x, classes, network=net, image_shape=(4, 4, 1), config=quick,
        ...                      seeds=2, key=jax.random.key(2))
        >>> len(found.accuracies)
        2

    Source: the protocol of Zhao, Mopuri and Bilen 2021.
    """
    check_choice("labels", labels, LABELS)
    if image_shape is None:
        if small.preprocess is None:
            raise InputError("the set does not know the shape of its images; pass image_shape=(H, W, C)")
        image_shape = small.preprocess.shape
    rows = np.asarray(small.y)
    if labels == "soft" or (labels == "hard" and small.recipe.get("labels") != "hard"):
        rows = predict(small.features, small.weights, small.x, intercept=small.intercept)
    if labels == "hard":
        rows = np.eye(rows.shape[1])[rows.argmax(axis=1)]
    return evaluate_images(
        small.x,
        rows,
        x_test,
        y_test,
        network=network,
        labels=labels,
        image_shape=image_shape,
        config=config,
        seeds=seeds,
        key=key,
        progress=progress,
    )


def evaluate_images(
    x: Any,
    y: Any,
    x_test: Any,
    y_test: Any,
    *,
    network: str | nn.Module = "convnet",
    labels: str = "given",
    image_shape: Sequence[int],
    config: TrainConfig | None = None,
    seeds: int = 5,
    key: Array,
    progress: bool = False,
) -> NetworkScores:
    """Train finite networks on any examples and test them; arguments as for :func:`evaluate_set`.

    Args:
        x: Inputs, shape (m, d), as the ridge model sees them.
        y: Rows to train towards, shape (m, k).
        x_test: Test inputs, shape (t, d).
        y_test: Test classes, shape (t,).
        network: As for :func:`evaluate_set`.
        labels: How the rows are called in the result.
        image_shape: (H, W, C).
        config: Settings of the training.
        seeds: Number of networks.
        key: Random key.
        progress: Whether to show bars.
    """
    x, y, x_test = as_floats("x", x), as_floats("y", y), as_floats("x_test", x_test)
    shape = tuple(image_shape)
    size = int(np.prod(shape))
    if x.ndim != 2 or x_test.ndim != 2 or x.shape[1] != size or x_test.shape[1] != size:
        raise InputError(
            f"inputs have shapes {x.shape} and {x_test.shape}, expected rows of {size} for images of {shape}"
        )
    if y.ndim != 2 or y.shape[1] < 2:
        raise InputError(f"labels have shape {y.shape}; networks are tested on classes, at least two")
    classes = read_test_targets(y_test, len(x_test), y.shape[1], real=False).classes
    if classes is None:
        raise InputError("y_test holds real values; networks are tested on classes (t,), or one-hot rows")
    made = make_network(network, num_outputs=y.shape[1]) if isinstance(network, str) else network
    start = perf_counter()
    images = x.reshape(-1, *shape)
    trained = train_networks(
        made, images, y, config or TrainConfig(), seeds=seeds, key=key, progress=progress
    )
    own = trained.predict(images).argmax(axis=-1) == y.argmax(axis=1)
    right = trained.predict(x_test.reshape(-1, *shape)).argmax(axis=-1) == classes
    accuracies = right.mean(axis=1)
    name = name_of(made)
    return NetworkScores(
        network=name or type(made).__name__,
        settings={} if name is None else settings_of(made),
        labels=labels,
        accuracies=tuple(float(a) for a in accuracies),
        mean=float(accuracies.mean()),
        deviation=float(accuracies.std(ddof=1)) if seeds > 1 else 0.0,
        train_accuracy=float(own.mean()),
        num_train=len(x),
        num_test=len(x_test),
        seconds=perf_counter() - start,
        config=(config or TrainConfig()).describe(),
    )
