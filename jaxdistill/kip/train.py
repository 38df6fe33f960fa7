"""The training loop: a compiled block of steps, and a host that looks on between blocks."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401 - jaxlib's LAPACK is scipy's: only what is loaded can be limited
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from jaxdistill.data.preprocess import AbstractPreprocess
from jaxdistill.errors import DivergenceError, InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.kernels import AbstractKernel
from jaxdistill.kip.checkpoint import Checkpoints
from jaxdistill.kip.config import KipConfig
from jaxdistill.kip.prepare import Model, Prepared, prepare
from jaxdistill.kip.result import History, KipResult
from jaxdistill.kip.start import starting_points
from jaxdistill.kip.steps import State, coefficients, finish, predict, run_block
from jaxdistill.numerics.files import write_atomically
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.mesh import SAME, mesh_of
from jaxdistill.numerics.pace import Pace
from jaxdistill.numerics.placement import chosen_mesh, device_scope, float64_scope, moving_arrays, over
from jaxdistill.numerics.processes import refuse_shares
from jaxdistill.ridge.kernel_fit import KernelModel
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.residual import recorded
from jaxdistill.ridge.targets import detect_targets
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.kernel_set import KernelSet


@moving_arrays()
def train(
    model: Model,
    x: Any,
    y: Any,
    config: KipConfig,
    *,
    key: Array,
    validation: float | tuple[Any, Any] | None = None,
    preprocess: AbstractPreprocess | None = None,
    class_names: tuple[str, ...] | None = None,
    checkpoint: str | Path | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> KipResult:
    """Train a small set by gradient descent on its inputs: kernel inducing points (KIP).

    Minimises ``1/2n |k(X, Xs) (K_ss + reg tr(K_ss)/m I)^-1 Ys - Y|^2`` over Xs, on all targets or on
    class-balanced batches, with labels fixed, learned or solved. With finitely many features and all
    targets it runs on their moments, exactly, at a cost per step that does not depend on n. For a model
    with an intercept the set's ridge regression has one too.

    Args:
        model: A ridge model, whose features are used and whose weights the set is compared with; or a
            feature map; or a kernel model, or a kernel of :mod:`jaxdistill.kernels`, or any function
            ``k(X, X')``, shapes (a, d) and (b, d) to (a, b).
        x: Training inputs, shape (n, d).
        y: Training targets, shape (n, k): the model's, where it is one.
        config: Everything else about the run.
        key: Random key.
        validation: Data to judge by: a fraction of the training data, which is then not trained on, or
            ``(x, y)``; default none. Never test data.
        preprocess: Transform that made x from images: for augmentation, and kept in the sets.
        class_names: Names of the k outputs, kept in the sets.
        checkpoint: Folder of checkpoints. A run that finds its own there goes on from it, and ends bit
            for bit as if it had never stopped.
        mesh: Devices that share every step, as of :func:`~jaxdistill.make_mesh`: all of them, whatever its
            axes, the columns of features and moments, or else the rows of the targets. Default: one device,
            since a step is short, and what several say to each other takes longer than a small one.
        progress: Whether to show bars.

    Returns:
        The trained sets with their labels, penalties and history.

    Raises:
        InputError: settings or data that make no sense.
        CheckpointError: the checkpoint is of another run, and in what, or damaged.
        DivergenceError: the loss is not finite; names the step, and keeps the last good state.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> from jaxdistill import kip
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (90, 6)))
        >>> y = jd.one_hot(np.arange(90) % 3, 3, centred=True)
        >>> model = jd.fit_ridge(jd.features.Linear(6), x, y, lam=1.0)
        >>> config = kip.KipConfig(ipc=1, steps=50)
        >>> result = kip.train(model, x, y, config, key=jax.random.key(1))
        >>> bool(result.history.loss[-1, 0] < result.history.loss[0, 0])
        True

    Source: Nguyen, Chen and Lee, 2021 (KIP, Label Solve); the moments form is this package's.
    """
    known = (RidgeModel, AbstractFeatureMap, KernelModel, AbstractKernel)
    if not isinstance(model, known) and not callable(model):
        raise InputError(f"model is a {type(model).__name__}; pass a ridge model, a feature map or a kernel")
    if jnp.issubdtype(checked_key(key).dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    key_data, key_start, key_steps = jax.random.split(key, 3)
    numbers = range(config.seeds)
    start_keys = [jax.random.fold_in(key_start, s) for s in numbers]
    step_keys = jnp.stack([jax.random.fold_in(key_steps, s) for s in numbers])
    with over(mesh), device_scope(config.dtype, wide_sums=True) as side:
        refuse_shares("a KIP run")
        several = chosen_mesh() is not None and len(side.devices) > 1
        shared = mesh_of(side.devices) if several else None
        prepared = prepare(model, x, y, config, validation, preprocess, key_data, progress, shared)
        if config.labels == "solved" and config.ridge == 0 and prepared.context.phi is not None:
            _check_solvable(config, prepared)
        level = prepared.problem.intercept
        points = starting_points(config, prepared.x, prepared.y, prepared.classes, start_keys, level)
        run = _Run(prepared, config, points, step_keys, side.wide)
        identity = config.describe() | prepared.identity | {"key": np.asarray(key).tolist()}
        if not side.wide:
            identity["factorisations"] = "float32"
        if shared is not None:  # sums of other parts differ in their last bits
            identity["devices"] = shared.size
        saving = nullcontext() if checkpoint is None else Checkpoints(checkpoint, identity)
        # Two pools of threads fight for the same cores: on a busy machine a Cholesky factor of 500 x 500 took
        # 230 ms by OpenBLAS with two threads, and 3 ms with one. JAX's own products keep all cores.
        with saving as checkpoints, threadpool_limits(1, user_api="blas"):
            state = run.go(checkpoints, progress, partial(_result, run, model, preprocess, class_names))
        return _result(run, model, preprocess, class_names, state)


def _check_solvable(config: KipConfig, prepared: Prepared) -> None:
    size = config.size or (config.ipc or 0) * prepared.y.shape[1]
    assert prepared.context.phi is not None
    if size > prepared.context.phi.num_features:
        raise InputError(
            f"{size} examples have dependent features ({prepared.context.phi.num_features} of them), so the "
            "best labels are not unique; state a ridge such as ridge=1e-10, or use fixed or learned labels"
        )


class _Run:
    """One run: what is compiled once, and the loop around it."""

    def __init__(self, prepared: Prepared, config: KipConfig, points: Any, keys: Array, wide: bool) -> None:
        self.prepared, self.config, self.keys = prepared, config, keys
        self.problem, self.context, self.wide = prepared.problem, prepared.context, wide
        params, labels = points
        self.labels = jnp.asarray(labels)
        self.params = jax.tree.map(jnp.asarray, params)

    def initial(self) -> State:
        """The state before the first step, in NumPy: what a checkpoint holds."""
        steps, seeds = self.config.steps, self.config.seeds
        evaluations = -(-steps // self.config.evaluate_every)
        params = jax.tree.map(np.asarray, self.params)
        start_optimiser = jax.vmap(self.config.transformation().init)
        device = {
            "step": np.int32(0),
            "params": params,
            "optimiser": jax.tree.map(np.asarray, start_optimiser(self.params)),
            "good": params,
            "fine": np.ones(seeds, bool),
            "losses": np.full((steps, seeds), np.inf),
        }
        host = {
            "best": params,
            "best_score": np.full(seeds, -np.inf),
            "waited": np.int64(0),
            "evaluations": np.int64(0),
            "evaluated_at": np.zeros(evaluations, np.int64),
            "accuracy": np.full((evaluations, seeds), np.nan),
            "validation_loss": np.full((evaluations, seeds), np.nan),
            "seconds": np.zeros(evaluations),
            "total_seconds": np.float64(0),
            "compile_seconds": np.float64(0),
        }
        return {"device": device, "host": host}

    def advance(self, device: State, stop: int) -> State:
        """The state at a later step; takes the memory of the one that is given."""
        fixed = (self.labels, self.keys, self.context)
        return jax.block_until_ready(run_block(self.problem, self.config, device, np.int32(stop), *fixed))

    def go(
        self, checkpoints: Checkpoints | None, progress: bool, to_result: Callable[[State], KipResult]
    ) -> State:
        """Train from the newest checkpoint, or from the start, to the end."""
        config = self.config
        state = self.initial()
        if checkpoints is not None:
            state = checkpoints.restore(state) or state
        host = state["host"]
        # Copies: the block is given its memory, and an optimiser's state may share that of the inputs.
        device = jax.tree.map(lambda a: jnp.array(a, copy=True), state["device"])
        if self.problem.mesh is not None:
            device = jax.device_put(device, NamedSharding(self.problem.mesh, SAME))
        step = int(state["device"]["step"])
        begun = perf_counter()
        device = self.advance(device, step)  # no step: compilation, which is kept for the next run like it
        host["compile_seconds"] = np.float64(perf_counter() - begun)
        stopped = config.patience is not None and host["waited"] >= config.patience
        pace = Pace()
        with tqdm(total=config.steps, initial=step, disable=not progress, desc="kip") as bar:
            while step < config.steps and not stopped:
                stop = self._next_stop(step, pace.steps)
                begun = perf_counter()
                device = self.advance(device, stop)
                took = perf_counter() - begun
                pace.took(stop - step, took)
                host["total_seconds"] = host["total_seconds"] + took
                self._check(device, host, checkpoints, to_result)
                bar.update(stop - step)
                step = stop
                if self._due(step, config.evaluate_every):
                    host = self._evaluate(device, host)
                    stopped = config.patience is not None and host["waited"] >= config.patience
                if progress:  # or nothing of the losses is read before the end
                    told = {"loss": f"{np.mean(device['losses'][step - 1]):.4g}"}
                    if self.prepared.held_out is not None and host["evaluations"]:
                        told["val"] = f"{np.mean(host['accuracy'][host['evaluations'] - 1]):.4f}"
                    bar.set_postfix(told)
                if checkpoints is not None and (self._due(step, config.checkpoint_every) or stopped):
                    checkpoints.save(step, {"device": jax.device_get(device), "host": host})
        return {"device": jax.device_get(device), "host": host}

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.steps

    def _next_stop(self, step: int, pace: int) -> int:
        every = (self.config.block or pace, self.config.evaluate_every, self.config.checkpoint_every)
        return min(self.config.steps, *((step // e + 1) * e for e in every))

    def seed(self, params: Any, number: int) -> tuple[Any, Array]:
        """Parameters and labels of one run."""
        return jax.tree.map(lambda a: jnp.asarray(a[number]), params), self.labels[number]

    def _evaluate(self, device: State, host: State) -> State:
        """The host's part of the state after one more look at the validation data."""
        at = int(host["evaluations"])
        host = {name: value if name == "best" else np.array(value) for name, value in host.items()}
        host["evaluations"] += 1
        host["evaluated_at"][at] = device["step"]
        host["seconds"][at] = host["total_seconds"]
        if self.prepared.held_out is None:
            return host
        rows, y = self.prepared.held_out
        for number in range(self.config.seeds):
            params, labels = self.seed(device["params"], number)
            found = coefficients(self.problem, params, labels, self.context)
            f = np.asarray(predict(self.problem, params, found, self.context, rows))
            host["validation_loss"][at, number] = np.sum((f - y) ** 2) / (2 * len(y))
            if self.prepared.classes and y.shape[1] > 1:
                host["accuracy"][at, number] = np.mean(f.argmax(axis=1) == y.argmax(axis=1))
        score = host["accuracy"][at]
        score = np.where(np.isnan(score), -host["validation_loss"][at], score)
        better = score > host["best_score"]
        host["best_score"] = np.where(better, score, host["best_score"])
        host["waited"] = np.int64(0 if better.any() else host["waited"] + 1)
        if better.any():
            host["best"] = jax.tree.map(
                lambda new, old: np.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old),
                jax.device_get(device["params"]),
                host["best"],
            )
        return host

    def _check(
        self,
        device: State,
        host: State,
        checkpoints: Checkpoints | None,
        to_result: Callable[[State], KipResult],
    ) -> None:
        """Raise where the loss left the finite numbers, after saving the last good state."""
        if np.all(device["fine"]):
            return
        losses = np.asarray(device["losses"])[: int(device["step"])]
        first, number = (int(i) for i in np.argwhere(~np.isfinite(losses))[0])
        which = f" of seed {number}" if self.config.seeds > 1 else ""
        why = f"the loss{which} is not finite at step {first}"
        if first == 0:
            raise DivergenceError(
                f"{why}, the first: the examples to start from are dependent or too large; state a ridge, a "
                "larger reg, or start elsewhere"
            )
        good = {**jax.device_get(device), "params": jax.device_get(device["good"])}
        result = to_result({"device": {**good, "step": np.int32(first)}, "host": host})
        kept = "the error's result"
        if checkpoints is not None:
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, inputs=result.x, labels=result.y, lam=result.lam)
            kept = str(write_atomically(checkpoints.folder / "last_good.npz", content.getvalue()))
        raise DivergenceError(
            f"{why}; the last good state, of step {first - 1}, is in {kept}; use a smaller learning_rate, a "
            "larger reg, or dtype='float64'",
            result,
        )


def _result(
    run: _Run,
    model: Model,
    preprocess: AbstractPreprocess | None,
    class_names: tuple[str, ...] | None,
    state: State,
) -> KipResult:
    """Labels and penalties from the inputs as they are stored, and the sets."""
    device, host, config = state["device"], state["host"], run.config
    done = int(device["step"])
    chosen = host["best"] if config.patience is not None and host["evaluations"] else device["params"]
    found = []
    with float64_scope() as where:
        problem, context = run.problem, run.context
        if not run.wide:  # the host alone
            problem = replace(problem, mesh=None)
            context = jax.device_put(run.prepared.given, where.home)
        for number in range(config.seeds):
            x = np.asarray(chosen["x"][number])
            exact = {name: jnp.asarray(value[number], jnp.float64) for name, value in chosen.items()}
            y, lam = finish(problem, exact, np.asarray(run.labels[number]), context)
            found.append((x, np.asarray(y), float(lam)))
            if not np.all(np.isfinite(found[-1][1])):
                raise DivergenceError(
                    f"the labels of step {done} are not finite: the examples became dependent; use a smaller "
                    "learning_rate or state a ridge"
                )
    last = int(host["evaluations"])
    history = History(
        loss=np.asarray(device["losses"], np.float64)[:done],
        evaluated_at=host["evaluated_at"][:last],
        accuracy=host["accuracy"][:last],
        validation_loss=host["validation_loss"][:last],
        seconds=host["seconds"][:last],
        compile_seconds=float(host["compile_seconds"]),
        total_seconds=float(host["total_seconds"]),
    )
    sets: tuple[DistilledSet | KernelSet, ...] = ()
    if isinstance(model, (RidgeModel, KernelModel)):
        trained = model.weights if isinstance(model, RidgeModel) else model.alpha
        recipe = {
            "construction": "kip",
            "labels": config.labels,
            "targets": detect_targets(run.prepared.y).value,
            "rank": int(np.linalg.matrix_rank(trained)),
            "lam": model.lam,
            "lam_s": config.penalty,
            "num_train": len(run.prepared.x),
            "full_model": recorded(model.solution),
            "steps": done,
            "config": config.describe(),
        }
        if isinstance(model, KernelModel):
            recipe |= {"num_train": len(model.x), "num_targets": len(run.prepared.x)}
        make = _kernel_set if isinstance(model, KernelModel) else _feature_set
        sets = tuple(
            make(model, x, y, lam, {**recipe, "seed": number}).with_context(preprocess, class_names)
            for number, (x, y, lam) in enumerate(found)
        )
    xs, ys, lams = zip(*found, strict=True)
    return KipResult(np.stack(xs), np.stack(ys), np.array(lams), done, history, sets)


def _feature_set(
    model: Any, x: np.ndarray, y: np.ndarray, lam: float, recipe: dict[str, Any]
) -> DistilledSet:
    return DistilledSet(
        x=x,
        y=y,
        lam=lam,
        features=model.features,
        weights=np.asarray(model.weights, np.float64),
        intercept=model.intercept,
        recipe=recipe,
    )


def _kernel_set(model: Any, x: np.ndarray, y: np.ndarray, lam: float, recipe: dict[str, Any]) -> KernelSet:
    values = model.predict(x, dtype=np.float64)
    if model.intercept is not None:
        values = values - model.intercept
    return KernelSet(
        x=x,
        y=y,
        lam=lam,
        kernel=model.kernel,
        values=values,
        squared_norm=model.squared_norm,
        resolution=model.resolution,
        intercept=model.intercept,
        recipe=recipe,
    )
