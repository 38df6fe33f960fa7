"""Whole runs with float64 on the host, on several CPU devices: what was compiled where, and what came out.

A process of its own, since the number of devices is fixed when JAX starts: with JAX_PLATFORMS=cpu and
XLA_FLAGS=--xla_force_host_platform_device_count=3, ``python tests/placed_runs.py OUT`` writes
OUT/report.json. The last device is the host, and the others stand for accelerators without float64.
"""

import functools
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import compiler
from pytest import MonkeyPatch

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.data.pixels import Pixels
from jaxdistill.data.preprocess import Identity
from jaxdistill.features.trained import train_encoder
from jaxdistill.kernels import NTK, RBF, EmpiricalNTK
from jaxdistill.kernels.tiles import TiledKernel
from jaxdistill.networks import make_network
from jaxdistill.networks.config import TrainConfig
from jaxdistill.networks.training import train_networks
from jaxdistill.numerics.placement import Side, device_scope, float64_on, float64_scope
from jaxdistill.privacy.budget import Budget
from jaxdistill.privacy.mechanism import fit_private_ridge
from jaxdistill.privacy.membership import influence
from jaxdistill.ridge import crossing
from jaxdistill.ridge.moments import accumulate_moments
from jaxdistill.ridge.source import ArraySource
from jaxdistill.solve import spanning_solver
from jaxdistill.solve.covering import covering_rows, slope_sizes
from jaxdistill.solve.invert import invert
from jaxdistill.solve.near_copies import near_copies
from jaxdistill.solve.projection import project
from jaxdistill.solve.spanning_solver import solve_spanning
from jaxdistill.solve.spanning_step import SpanningMethod

WIDE = re.compile(r"[<x]f64\b")
CALLS = re.compile(r"custom_call @?\"?([\w$.]+)")
STEPS = 30


def is_compiled(value):
    """Whether something is a function that jax.jit made."""
    return callable(value) and all(hasattr(value, name) for name in ("lower", "eval_shape", "clear_cache"))


class Recorder:
    """A compiled function that remembers what it was called with, and whether float64 was allowed."""

    def __init__(self, function):
        self.function, self.calls = function, {}
        functools.update_wrapper(self, function)

    def __call__(self, *args, **named):
        leaves = jax.tree.leaves((args, named))
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            shapes, wide = jax.tree.map(shape_of, (args, named)), jnp.result_type(float) == np.float64
            # Other lengths make the same program.
            kinds = [
                (leaf.ndim, leaf.dtype) if hasattr(leaf, "ndim") else leaf for leaf in jax.tree.leaves(shapes)
            ]
            self.calls.setdefault((wide, str(jax.tree.structure(shapes)), str(kinds)), (wide, *shapes))
        return self.function(*args, **named)

    def __getattr__(self, name):
        return getattr(self.function, name)


def shape_of(leaf):
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if isinstance(leaf, (np.ndarray, np.generic)):
        return jax.eval_shape(lambda a: a, leaf)
    return leaf


def record_all():
    """Put a recorder in the place of every compiled function of the package."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "jaxdistill":
            for word, value in list(vars(module).items()):
                if is_compiled(value):
                    setattr(module, word, found.setdefault(id(value), Recorder(value)))
    return sorted(found.values(), key=name_of)


def name_of(recorder):
    return f"{recorder.__module__.removeprefix('jaxdistill.')}.{recorder.__name__}"


class Guard:
    """Notes every program with float64 that is compiled for a device that must not have it."""

    def __init__(self):
        self.programs, self.offences, self.where = 0, [], None
        self.compile = compiler.compile_or_get_cached
        compiler.compile_or_get_cached = self

    def __call__(self, backend, computation, devices, *rest, **named):
        if self.where is not None:
            self.programs += 1
            others = [d for d in np.ravel(devices) if d != self.where.algebra]
            if others and WIDE.search(str(computation)):
                name = re.search(r"module @(\S+)", str(computation))
                self.offences.append(f"{name.group(1) if name else '?'} on {others}")
        return self.compile(backend, computation, devices, *rest, **named)

    def look_around(self, stage):
        """Note the arrays of float64 that lie where they must not."""
        for array in jax.live_arrays():
            if array.dtype == np.float64 and array.devices() != {self.where.algebra}:
                self.offences.append(f"{stage}: an array {array.shape} on {array.devices()}")


def digits():
    data = jd.load_dataset("digits")
    scale = jd.Standardize.fit(data.x_train)
    x, t = scale.forward(data.x_train)[:240], scale.forward(data.x_test)[:200]
    return x, jd.one_hot(data.y_train[:240], 10, centred=True), t, data.y_test[:200]


def features(x, y):
    """Most have 64 features: what depends on their number alone is compiled once."""
    key = jax.random.key(0)
    quick = TrainConfig(steps=STEPS, batch=64)
    return {
        "linear": jd.features.Linear(64),
        "fourier": jd.features.RandomFourier.create(64, 64, lengthscale=10.0, key=key),
        "network": jd.features.RandomNetwork.create(64, widths=(64,), key=key),
        "encoder": train_encoder(
            x, y, image_shape=(8, 8, 1), config=quick, key=key, channels=(4,), num_features=16
        ),
    }


def told(certificate):
    """What a certificate says; the full model's numbers are those of the training."""
    return {
        name: getattr(certificate, name)
        for name in ("exact", "relative_weight_error", "accuracy_full", "accuracy_distilled")
    }


def runs(watch):
    """Every kind of run; ``watch`` is called after each."""
    x, y, t, classes = digits()
    key, found = jax.random.key(1), {}
    maps = features(x, y)
    models = {}
    for name, phi in maps.items():
        models[name] = model = jd.fit_ridge(phi, x, y, lam="auto", dtype=np.float32)
        # Maps with a closed-form inverse take one example a class, the solver of the others some more.
        closed = name in ("linear", "network")
        size = {"ipc": 1} if closed else {"size": 30, "reference": (x, y)}
        small = jd.distill(model, key=key, **size)
        found[name] = told(jd.certify(model, small, t, classes)) | {"lam": model.lam}
        watch(name)
    kernel = jd.fit_kernel_ridge(NTK(), x, y, lam=1.0)
    jd.fit_kernel_ridge(NTK(), x, y, lam=1.0, solver="cg", key=key)
    small = jd.distill_kernel(kernel, x, y, ipc=1, key=key)
    report = jd.certify(kernel, small, t, classes)
    found["ntk"] = {name: getattr(report, name) for name in ("accuracy_full", "accuracy_distilled")}
    watch("ntk")
    few, held_out = (x[:-40], y[:-40]), (x[-40:], y[-40:])
    for labels in kip.config.LABELS:
        config = kip.KipConfig(ipc=1, labels=labels, steps=STEPS, evaluate_every=STEPS)
        # With a kernel, those whose system squares its condition number.
        judges = {"kip": models["network"]} | ({"kip ntk": kernel} if labels == "solved" else {})
        for name, model in judges.items():
            validation = held_out if labels == "fixed" else None
            result = kip.train(model, *few, config, key=key, validation=validation)
            score = jd.certify(model, result.sets[0], t, classes).accuracy_distilled
            found[f"{name} {labels}"] = {"accuracy_distilled": score, "loss": result.history.loss[-1, 0]}
        watch(f"kip {labels}")
    found |= solvers(models, x)
    watch("solvers")
    return found, models


def solvers(models, x):
    """The iterative solvers on their own."""
    rng, found = np.random.default_rng(0), {}
    start, model = 0.5 * rng.standard_normal((10, 12)), models["fourier"]
    phi = jd.features.RandomNetwork.create(12, widths=(30,), activation="gelu", key=jax.random.key(0))
    problems = {
        SpanningMethod.DIRECT: (model.features, model.weights, x[:30]),  # as it was solved before
        SpanningMethod.MATRIX_FREE: (phi, rng.standard_normal((30, 3)), start),
    }
    for method, problem in problems.items():
        report = solve_spanning(*problem, method=method).report
        found[f"spanning {method.name}"] = {"exact": report.reached, "steps": report.steps}
    short = jd.features.RandomNetwork.create(12, widths=(14, 6), activation="tanh", key=jax.random.key(0))
    wanted = np.asarray(short(jnp.asarray(start[:3], jnp.float32)))
    report = invert(short, wanted, np.zeros((3, 12))).report
    found["pre-images"] = {"exact": bool(report.reached.all()), "steps": int(report.steps.max())}
    basis = np.linalg.qr(rng.standard_normal((6, 2)))[0]
    images = start[covering_rows(slope_sizes(short, start), np.arange(len(start)) % 2, 2)]
    near = near_copies(short, basis, images, [1e-3, 1e-2]).report
    found["near copies"] = {"exact": near.reached, "steps": near.steps}
    model = models["network"]
    projected = project(model.features, model.weights, model.moments.gram, x[:5], steps=50)
    found["projection"] = {"loss": projected.report.loss}
    source = ArraySource.of(1e3 + x, x[:, :2], num_inputs=64, breadth=64)
    moments = accumulate_moments(model.features, source, shifted=True).centred()
    found["centred moments"] = {"trace": np.trace(moments.gram)}
    return found


def others(models, watch):
    """What no other run reaches; some of it only accelerators do."""
    x, y, _, _ = digits()
    key = jax.random.key(2)
    net = make_network("mlp", widths=(8,), num_outputs=10)
    config = TrainConfig(steps=2, batch=64)
    trained = train_networks(net, x, y, config, seeds=2, together=True, key=key)
    trained.predict(x[:20])
    empirical = EmpiricalNTK.of(net, variables=trained.variables[0], input_shape=(64,))
    TiledKernel.of(empirical, x[:96], x, memory=2**17).normal_equations(y[:96])  # strips of several tiles
    jd.fit_kernel_ridge(RBF(10.0), x, y, validation=0.2, key=key)
    watch("networks and kernels")
    linear = jd.features.Linear(64)
    private = fit_private_ridge(linear, x, y, budget=Budget(1.0, 1e-5), clip=1.0, lam=1.0)
    private.distill(ipc=1, key=key)
    influence(x[:80], y[:80], 1.0)
    watch("privacy")
    spanning_solver.on_accelerator, before = lambda: True, spanning_solver.on_accelerator
    model = models["fourier"]
    report = solve_spanning(model.features, model.weights, x[:30]).report
    spanning_solver.on_accelerator = before
    watch("several steps at a time")
    with MonkeyPatch.context() as patch:
        patch.setattr(Side, "far", True)
        patch.setattr(crossing, "device_bytes", lambda device: 2**30)
        pixels = Pixels((16 * jd.load_dataset("digits").x_train[:240]).astype(np.uint8), Identity((8, 8, 1)))
        sent = jd.fit_ridge(linear, pixels, y, dtype=np.float32, intercept=True)
        sent.predict(pixels)
        watch("images in uint8")
    same = jd.fit_ridge(linear, np.asarray(pixels), y, dtype=np.float32, intercept=True)
    assert np.array_equal(sent.weights, same.weights)
    return {"exact": report.reached}


def exported(recorders, wide, platform):
    """Lower what was called for a platform that is not here: float64 and custom calls of every program."""
    rows = []
    for recorder in recorders:
        for own, args, named in recorder.calls.values():
            if own != wide:
                continue
            with jax.enable_x64(wide):
                program = jax.export.export(recorder.function, platforms=[platform])(*args, **named)
            text = program.mlir_module()
            calls = sorted(set(CALLS.findall(text)))
            rows.append((name_of(recorder), len(WIDE.findall(text)), calls))
    return rows


def main(out):
    guard, recorders = Guard(), record_all()
    with float64_on("host") as guard.where:
        title = guard.where.title
        placed, models = runs(guard.look_around)
        far = others(models, guard.look_around)
        programs, offences = guard.programs, guard.offences
        with float64_scope() as where, device_scope(np.float32) as side:
            nested = jnp.ones(2).devices() == {side.devices[0]} != {where.algebra}
    guard.where = None
    tpu = exported(recorders, False, "tpu")
    for recorder in recorders:
        recorder.calls.clear()
    ordinary, _ = runs(lambda stage: None)
    both = [exported(recorders, wide, "cuda") for wide in (False, True)]
    report = {
        "placement": title,
        "programs": programs,
        "offences": offences,
        "nested": nested,
        "placed": placed,
        "several steps at a time": far,
        "ordinary": ordinary,
        "tpu": tpu,
        "cuda": [*both[0], *both[1]],
    }
    (Path(out) / "report.json").write_text(json.dumps(report, default=float))


if __name__ == "__main__":
    main(sys.argv[1])
