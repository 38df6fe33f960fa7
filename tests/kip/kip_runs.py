"""A small KIP problem and runs on it, shared by the tests of losses and of restarts."""

import jax
import jax.numpy as jnp

import jaxdistill as jd
from jaxdistill import kip

KEY = jax.random.key(3)


def rbf(a, b):
    """A kernel without a finite map."""
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :] - 2 * (a @ b.T)
    return jnp.exp(-squares / 24)


def setting_of(problem, phi):
    """Centred targets, features of fewer dimensions than inputs, and a model of both."""
    y = problem["y"] - 1 / 3
    return {**problem, "y": y, "model": jd.fit_ridge(phi, problem["x"], y, lam=0.1), "phi": phi}


def run(setting, model=None, key=KEY, validation=None, checkpoint=None, preprocess=None, **settings):
    config = kip.KipConfig(**{"ipc": 2, "steps": 30, **settings})
    model = setting["model"] if model is None else model
    extra = {"validation": validation, "checkpoint": checkpoint, "preprocess": preprocess}
    return kip.train(model, setting["x"], setting["y"], config, key=key, **extra)
