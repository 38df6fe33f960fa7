"""What is compiled: a block of steps, and the functions that look at its result.

Compiled once for a problem, a configuration and shapes, and kept: a second run like the first, with other
data or another key, compiles nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array

from jaxdistill.kip.config import KipConfig
from jaxdistill.kip.problem import Context, Problem
from jaxdistill.numerics.mesh import SAME

State = dict[str, Any]

coefficients = jax.jit(Problem.coefficients, static_argnums=0)
predict = jax.jit(Problem.predict, static_argnums=0)
finish = jax.jit(Problem.finish, static_argnums=0)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def run_block(
    problem: Problem,
    config: KipConfig,
    state: State,
    stop: Array,
    labels: Array,
    keys: Array,
    context: Context,
) -> State:
    """Steps of all seeds up to a given one, in one call; the memory of the state is taken.

    Args:
        problem: Loss of one seed.
        config: The optimiser.
        state: Number of the step, parameters (s, ...), state of the optimiser, the last parameters whose loss
            was finite, whether all were, and the losses (steps, s) so far.
        stop: Number of steps after which to return.
        labels: Fixed labels, shape (s, m, k).
        keys: One key a seed.
        context: What a step reads.
    """
    optimiser = config.transformation()

    def one(params: Any, memory: Any, labels: Array, key: Array) -> Any:
        def loss_of(p: Any) -> Array:
            return problem.loss(p, labels, context, key).astype(p["x"].dtype)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        # optax mixes types of numbers, which is its own business.
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimiser.update(
                gradient, memory, params, value=loss, grad=gradient, value_fn=loss_of
            )
            return loss, optax.apply_updates(params, updates), memory

    def step(state: State) -> State:
        # Everything random follows from the number of the step: blocks and restarts do not matter.
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state["step"])
        loss, params, memory = jax.vmap(one)(state["params"], state["optimiser"], labels, now)
        fine = state["fine"] & jnp.isfinite(loss)

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(fine.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return {
            "step": state["step"] + 1,
            "params": params,
            "optimiser": memory,
            "good": jax.tree.map(keep, state["params"], state["good"]),
            "fine": fine,
            "losses": state["losses"].at[state["step"]].set(loss.astype(state["losses"].dtype)),
        }

    state = jax.lax.while_loop(lambda s: s["step"] < stop, step, state)
    if problem.mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, NamedSharding(problem.mesh, SAME))
