"""The training loop: one compiled step, for one seed or for all at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import trange

from jaxdistill.errors import DivergenceError, InputError
from jaxdistill.networks.config import TrainConfig
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.linalg import check_finite
from jaxdistill.numerics.placement import device_scope, moving_arrays

# Bytes of images that are predicted at once.
_BATCH_BYTES = 2**21


@dataclass(frozen=True, eq=False)
class Trained:
    """Networks of one architecture, one a seed.

    Args:
        network: The architecture.
        variables: Variables of each seed.
        losses: Training loss before the first step, and at the last, shape (s, 2).
    """

    network: nn.Module
    variables: tuple[Any, ...]
    losses: Float[np.ndarray, "s 2"]

    @moving_arrays()
    @device_scope(np.float32)
    def predict(self, images: Any) -> Float[np.ndarray, "s n k"]:
        """Outputs of every seed's network for any number of images, in batches.

        Args:
            images: Images as in training, shape (n, ...).
        """
        images = np.asarray(images, np.float32)
        size = max(1, _BATCH_BYTES // (4 * int(np.prod(images.shape[1:]))))
        if len(images) < size:
            size = len(images)
        outputs = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            missing = size - len(batch)  # the last batch is filled up: one shape, one compilation
            padded = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.float32)])
            rows = [_predict(self.network, v, padded)[: len(batch)] for v in self.variables]
            outputs.append(np.stack([np.asarray(row) for row in rows]))
        return np.concatenate(outputs, axis=1)


@moving_arrays()
@device_scope(np.float32)
def train_networks(
    network: nn.Module,
    images: Any,
    targets: Any,
    config: TrainConfig,
    *,
    seeds: int = 1,
    together: bool | None = None,
    key: Array,
    progress: bool = False,
) -> Trained:
    """Train one architecture from several random starts.

    Args:
        network: A linen module that maps images (n, ...) to outputs (n, k) and keeps no other state.
        images: Training images in the shape that the network takes, (n, ...).
        targets: Rows to train towards, shape (n, k).
        config: Settings.
        seeds: Number of starts; each draws its own initial weights, batches and augmentations.
        together: Whether all seeds take their steps in one vectorised program. Default: on accelerators. On
            a CPU convolutions whose kernels differ from seed to seed are several times slower
            together than one after the other; it is compiled once in either case.
        key: Random key.
        progress: Whether to show a bar.

    Returns:
        The trained networks.

    Raises:
        InputError: arrays that do not fit, or values that are not finite.
        DivergenceError: the loss of a seed is not finite at the end.
        MemoryBudgetError: the device has no room for the images.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.networks import make_network
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (20, 3)))
        >>> y = np.eye(2, dtype=np.float32)[(x[:, 0] > 0).astype(int)]
        >>> net = make_network("mlp", widths=(8,), num_outputs=2)
        >>> config = TrainConfig(steps=60, learning_rate=0.05)
        >>> trained = train_networks(net, x, y, config, seeds=2, key=jax.random.key(1))
        >>> trained.predict(x).shape, bool((trained.losses[:, 1] < trained.losses[:, 0]).all())
        ((2, 20, 2), True)
    """
    images, targets = np.asarray(images, np.float32), np.asarray(targets, np.float32)
    if images.ndim < 2 or targets.ndim != 2 or len(images) != len(targets) or len(images) == 0:
        raise InputError(
            f"images have shape {images.shape} and targets {targets.shape}; expected (n, ...) and (n, k)"
        )
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds is {seeds!r}; it must be a whole number >= 1")
    check_finite("images", images)
    check_finite("targets", targets)
    if config.augment is not None and images.ndim != 4:
        raise InputError(f"images have shape {images.shape}; augmentation needs (n, H, W, C)")
    squared = config.loss == "squared" or (config.loss == "auto" and not _are_classes(targets))
    if together is None:
        together = jax.default_backend() != "cpu"
    keys = jax.random.split(checked_key(key), seeds)
    static = (network, config, squared)
    states = [_start(*static, k, images[:1]) for k in keys]
    _check_outputs(network, states[0], images, targets)
    if together:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        stacked, losses = _run(_step_together, static, stacked, keys, images, targets, config.steps, progress)
        states = [jax.tree.map(lambda leaf, s=s: leaf[s], stacked) for s in range(seeds)]
    else:
        starts = zip(states, keys, strict=True)
        runs = [_run(_step, static, s, k, images, targets, config.steps, progress) for s, k in starts]
        states, losses = [run[0] for run in runs], np.stack([run[1] for run in runs])
    trained = Trained(network, tuple(state[0] for state in states), np.asarray(losses))
    if not np.all(np.isfinite(losses[:, 1])):
        raise DivergenceError(
            f"the loss is not finite after {config.steps} steps; use a lower learning_rate than "
            f"{config.learning_rate}",
            trained,
        )
    return trained


def _are_classes(targets: np.ndarray) -> bool:
    return bool(np.all((targets == 0) | (targets == 1)) and np.all(targets.sum(axis=1) == 1))


def _check_outputs(network: nn.Module, state: Any, images: np.ndarray, targets: np.ndarray) -> None:
    found = jax.eval_shape(partial(_predict, network), state[0], images[:2]).shape
    if found != (len(images[:2]), targets.shape[1]):
        raise InputError(
            f"the network has outputs of shape {found[1:]}, the targets {targets.shape[1]} columns; make it "
            f"with num_outputs={targets.shape[1]}"
        )


def _run(
    step: Any,
    static: tuple[Any, ...],
    state: Any,
    key: Array,
    images: Any,
    targets: Any,
    steps: int,
    bar: bool,
) -> tuple[Any, np.ndarray]:
    """Take all steps; a loop on the host, since XLA's CPU convolutions are slow inside a compiled loop."""
    images, targets = jnp.asarray(images), jnp.asarray(targets)
    first = last = jnp.zeros(())
    for number in trange(steps, desc="training", disable=not bar):
        state, last = step(*static, state, key, jnp.int32(number), images, targets)
        first = last if number == 0 else first
    return state, np.stack([np.asarray(first), np.asarray(last)], axis=-1)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _start(network: nn.Module, config: TrainConfig, squared: bool, key: Array, image: Array) -> Any:
    del squared
    with jax.numpy_dtype_promotion("standard"):
        variables = network.init(jax.random.fold_in(key, 0), image)
        return variables, config.transformation().init(variables)


def _one_step(
    network: nn.Module,
    config: TrainConfig,
    squared: bool,
    state: Any,
    key: Array,
    number: Array,
    images: Array,
    targets: Array,
) -> tuple[Any, Array]:
    key_rows, key_changes = jax.random.split(jax.random.fold_in(key, number + 1))
    if config.batch < len(images):
        rows = jax.random.randint(key_rows, (config.batch,), 0, len(images))
        images, targets = images[rows], targets[rows]
    if config.augment is not None:
        images = config.augment(images, key_changes)

    def loss_of(variables: Any) -> Array:
        outputs: Any = network.apply(variables, images)
        if squared:
            return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1))
        return jnp.mean(optax.softmax_cross_entropy(outputs, targets))

    variables, memory = state
    # flax and optax mix types of numbers, which is their own business.
    with jax.numpy_dtype_promotion("standard"):
        loss, gradient = jax.value_and_grad(loss_of)(variables)
        updates, memory = config.transformation().update(gradient, memory, variables)
        return (optax.apply_updates(variables, updates), memory), loss


_step = jax.jit(_one_step, static_argnums=(0, 1, 2), donate_argnums=3)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _step_together(
    network: nn.Module,
    config: TrainConfig,
    squared: bool,
    state: Any,
    keys: Array,
    number: Array,
    images: Array,
    targets: Array,
) -> tuple[Any, Array]:
    def one(state: Any, key: Array) -> tuple[Any, Array]:
        return _one_step(network, config, squared, state, key, number, images, targets)

    return jax.vmap(one)(state, keys)


@partial(jax.jit, static_argnums=0)
def _predict(network: nn.Module, variables: Any, images: Array) -> Array:
    with jax.numpy_dtype_promotion("standard"):
        outputs: Any = network.apply(variables, images)
    return outputs
