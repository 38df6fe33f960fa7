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
from jaxdistill.errors import InputError
from jaxdistill.kernels import NTK, Linear, tiles
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


class Noted:
    """A compiled function of tiles that adds up the operations of one device."""

    def __init__(self, name):
        self.name, self.function, self.flops, self.each = name, getattr(tiles, name), 0.0, {}

    def __call__(self, *args):
        kind = str(jax.tree.map(np.shape, args[:-1]))
        if kind not in self.each:
            self.each[kind] = self.function.lower(*args).compile().cost_analysis()["flops"]
        self.flops += self.each[kind]
        return self.function(*args)

    def __enter__(self):
        setattr(tiles, self.name, self)
        return self

    def __exit__(self, *error):
        setattr(tiles, self.name, self.function)


def kernels():
    """Matrix, model and predictions of a kernel on eight devices and on one, and the work of a device."""
    x, y = problem(4, 192, 3, 2)
    found, work = [], []
    for mesh in jd.make_mesh(1), jd.make_mesh(4, 2):
        with Noted("_entries") as half:
            model = jd.fit_kernel_ridge(NTK(), x, y, lam=0.1, mesh=mesh)
        matrix = tiles.kernel_matrix(NTK(), x, mesh=mesh)
        with over(mesh), Noted("_entries") as whole:
            operator = tiles.TiledKernel.of(NTK(), x[:96], x[:12])
            square, _ = operator.normal_equations(y[:96])
        found.append((matrix, square, model.alpha, model.predict(x[:96] + 0.1, mesh=mesh)))
        work.append((half.flops, whole.flops))
    alone, shared = found
    return {
        "devices": len(operator.x.devices()),
        "errors": [apart(*pair) for pair in zip(shared, alone, strict=True)],
        "asymmetry": apart(shared[0], shared[0].T),
        "work": [each / whole for each, whole in zip(work[1], work[0], strict=True)],
    }


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
        "refused": refused(),
    }
    (Path(out) / "report.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
