"""Eight devices and one: a process of its own, since the number of devices is fixed when JAX starts.

With XLA_FLAGS=--xla_force_host_platform_device_count=8, ``python tests/meshed_runs.py OUT`` writes
OUT/report.json.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.errors import InputError
from jaxdistill.kernels import NTK, FeatureKernel, Linear, tiles
from jaxdistill.numerics.placement import float64_on, over, placement
from jaxdistill.ridge import moments as sums
from jaxdistill.ridge.source import ArraySource

MESHES = {"8 x 1": (8, 1), "4 x 2": (4, 2)}
WIDE = 512  # features whose Gram matrix is summed in strips


def problem(seed, n, d, k):
    rng = np.random.default_rng(seed)
    x = 3 + rng.standard_normal((n, d)) * np.linspace(1, 2, d)
    return x, x @ rng.standard_normal((d, k)) + rng.standard_normal((n, k))


def apart(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def same_model():
    """Errors of a whole fit and its predictions on eight devices, relative to those on one."""
    phi = jd.features.Linear(16)
    x, y = problem(0, 403, 16, 3)
    fit = partial(jd.fit_ridge, phi, x, y, lam="auto", intercept=True)
    one, mesh = fit(mesh=jd.make_mesh(1)), jd.make_mesh(8)
    model = fit(mesh=mesh)
    return {
        "weights": apart(model.weights, one.weights),
        "lam": abs(model.lam / one.lam - 1),
        "scores": apart(model.selection.squared_errors, one.selection.squared_errors),
        "predictions": apart(model.predict(x[:101], mesh=mesh), one.predict(x[:101])),
    }


def far():
    """Centred sums of rows a million spreads from zero, on all devices as it is without a mesh."""
    rng = np.random.default_rng(0)
    x, y = 1e6 + rng.standard_normal((101, 16)), rng.standard_normal((101, 3))
    source = ArraySource(x, y, 31)
    m = sums.accumulate_moments(jd.features.Linear(16), source, dtype=np.float64, shifted=True).centred()
    x -= x.astype(np.longdouble).mean(0).astype(float)
    return float(np.max(np.abs(m.gram - x.T @ x) / (1 + np.abs(x.T @ x))))


def compiled_for(mesh, source, phi):
    """Moments on a mesh, with the operations of one device and where its part of G lies."""
    took = {}
    original = sums._add_chunk

    def noted(*args):
        if not took:
            took["flops"] = original.lower(*args).compile().cost_analysis()["flops"]
            took["numbers"] = sum(part.addressable_shards[0].data.size for part in args[0].gram)
        return original(*args)

    sums._add_chunk = noted
    try:
        with over(mesh):
            found = sums.accumulate_moments(phi, source, dtype=np.float64)
    finally:
        sums._add_chunk = original
    return found, took


def evenly():
    """Work and memory of one device, and errors of the moments."""
    x, y = problem(1, 1024, WIDE, 2)
    source, phi = ArraySource(x, y, 512), jd.features.Linear(WIDE)
    one, alone = compiled_for(jd.make_mesh(1), source, phi)
    report = {"error against NumPy": apart(one.gram, x.T @ x)}
    for name, shape in MESHES.items():
        found, each = compiled_for(jd.make_mesh(*shape), source, phi)
        report[name] = {
            "error": max(apart(found.gram, one.gram), apart(found.cross, one.cross)),
            "asymmetry": apart(found.gram, found.gram.T),
            "work": each["flops"] / alone["flops"],
            "memory": each["numbers"] / alone["numbers"],
        }
    return report


def short():
    """Devices that stand for accelerators without float64: sums in two numbers."""
    x, y = problem(2, 96, WIDE, 2)
    source, phi = ArraySource(x.astype(np.float32), y, 48), jd.features.Linear(WIDE)
    with float64_on("host"), over(jd.make_mesh(3, 2)):
        assert not placement().native
        found = sums.accumulate_moments(phi, source, shifted=True).centred()
        image = tiles.TiledKernel.of(Linear(), source.x, memory=2**14).matmul(y)
    about = apart(found.gram, (x - x.mean(0)).T @ (x - x.mean(0)))
    return max(about, apart(image, x @ (x.T @ y)))


class Enough(Exception):
    """The operations of a program, which is not run."""


class Noted:
    """A compiled function that adds up the operations of one device, or tells those of a whole program."""

    def __init__(self, module, name, statics, run=True):
        self.module, self.name, self.statics, self.run = module, name, statics, run
        self.function, self.programs, self.flops = getattr(module, name), {}, 0.0

    def __call__(self, *args):
        given = [arg for i, arg in enumerate(args) if i not in self.statics]
        program = self.programs.get(kind := str(jax.tree.map(np.shape, given)))
        if program is None:
            lowered = self.function.lower(*args)
            if not self.run:
                raise Enough(lowered.cost_analysis()["flops"])
            program = self.programs[kind] = lowered.compile()
        self.flops += program.cost_analysis()["flops"]
        return program(*given)

    def __enter__(self):
        setattr(self.module, self.name, self)
        return self

    def __exit__(self, *error):
        setattr(self.module, self.name, self.function)


def kernels():
    """Matrix, model and predictions of a kernel on eight devices and on one, and the work of a device."""
    x, y = problem(4, 192, 3, 2)
    found, work = [], []
    for mesh in jd.make_mesh(1), jd.make_mesh(4, 2):
        with Noted(tiles, "_entries", {4}) as half:
            model = jd.fit_kernel_ridge(NTK(), x, y, lam=0.1, mesh=mesh)
        matrix = tiles.kernel_matrix(NTK(), x, mesh=mesh)
        with over(mesh), Noted(tiles, "_entries", {4}) as whole:
            operator = tiles.TiledKernel.of(NTK(), x[:96], x[:12])
            square, _ = operator.normal_equations(y[:96])
        found.append((matrix, square, model.alpha, model.predict(x[:96] + 0.1, mesh=mesh)))
        work.append((half.flops, whole.flops))
    alone, shared = found
    operator, v = tiles.TiledKernel.of(NTK(), x[:50], memory=32 * 2 * 12**2), y[:50]
    whole = operator.to_matrix()
    return {
        "devices": len(operator.x.devices()),  # all that there are: no mesh was passed
        "products": [
            apart(operator.matmul(v), whole @ v),
            apart(operator.normal_equations(v)[1], whole.T @ v),
        ],
        "errors": [apart(*pair) for pair in zip(shared, alone, strict=True)],
        "asymmetry": apart(shared[0], shared[0].T),
        "work": [each / whole for each, whole in zip(work[1], work[0], strict=True)],
    }


def descents():
    """KIP on moments and on rows of a kernel, eight devices and one: errors, and the work of a device.

    Both have one loss. Of 129 features and 403 rows eight devices hold some more than there are.
    """
    x, y = problem(5, 403, 12, 3)
    phi = jd.features.RandomFourier.create(12, 129, lengthscale=8.0, key=jax.random.key(0))
    told = {"optimiser": "sgd", "schedule": "constant", "dtype": "float64"}
    config = kip.KipConfig(size=16, steps=3, block=3, **told)

    def descend(judge, devices, run=True):
        with Noted(sys.modules["jaxdistill.kip.train"], "run_block", {0, 1}, run) as block:
            mesh = jd.make_mesh(devices)
            result = kip.train(judge, x, y, config, key=jax.random.key(1), mesh=mesh)
        return block.flops, [result.x, result.y, result.lam, result.history.loss]

    _, alone = descend(phi, 1)
    report = {}
    for name, judge in {"moments": phi, "rows": FeatureKernel(phi)}.items():
        try:
            descend(judge, 1, run=False)
        except Enough as found:
            (operations,) = found.args
        flops, shared = descend(judge, 8)
        error = max(apart(*pair) for pair in zip(shared, alone, strict=True))
        report[name] = {"error": error, "work": flops / 2 / operations}  # the first call compiles
    return report


def refused():
    """What is said of a mesh that cannot be."""
    devices = np.asarray(jax.devices())
    mesh = jax.sharding.Mesh
    x, y = problem(3, 20, 5, 2)
    fit = partial(jd.fit_ridge, jd.features.Linear(5), x, y, lam=1.0)
    tried = {
        "more": lambda: jd.make_mesh(9),
        "none": lambda: jd.make_mesh(0),
        "axes": lambda: fit(mesh=mesh(devices, ("rows",))),
        "uneven": lambda: fit(mesh=jd.make_mesh(4, 2)),
        "no mesh": lambda: fit(mesh=8),
    }
    told = {}
    for name, call in tried.items():
        try:
            call()
        except InputError as error:
            told[name] = str(error)
    with float64_on("host"):
        try:
            fit(mesh=jd.make_mesh(8))
        except InputError as error:
            told["host"] = str(error)
    return told


def main(out):
    assert jax.local_device_count() == 8
    found = {
        "same": same_model(),
        "far": far(),
        "evenly": evenly(),
        "short": short(),
        "kernels": kernels(),
        "descents": descents(),
        "refused": refused(),
    }
    (Path(out) / "report.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
