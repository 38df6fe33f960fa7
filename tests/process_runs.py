"""Two processes of one job over loopback: each reads its share, both get the same model, and one dies.

``python tests/process_runs.py PORT NUMBER OUT`` is one of them. It writes OUT/NUMBER.json; process 1 ends
in the middle of another fit, and process 0 writes what it was told to OUT/message.txt.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.errors import InputError, ProcessError
from jaxdistill.kernels import RBF

SHARES = (slice(0, 150), slice(150, 403))


def problem(shift=0.0):
    rng = np.random.default_rng(0)
    x = shift + rng.standard_normal((403, 8)) * np.logspace(0, 1, 8)
    return x, x @ rng.standard_normal((8, 2)) + rng.standard_normal((403, 2))


def numbers(model):
    """All that was computed, to the last bit."""
    kept = [
        model.weights,
        model.lam,
        model.intercept,
        model.selection.squared_errors,
        *jax.tree.leaves(model.moments),
    ]
    return b"".join(np.asarray(a, np.float64).tobytes() for a in kept).hex()


def columns(scale):
    """A problem whose second half of columns is of another size, so that its Gram matrix cannot be used."""
    x, y = problem()
    return x * np.where(np.arange(8) < 4, 1.0, scale), y


def main(port, number, out):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, heartbeat_timeout_seconds=10)
    mesh, mine, phi = jd.make_mesh(), SHARES[number], jd.features.Linear(8)
    report = {"devices": len(jax.devices())}
    for name, (x, y) in {"plain": problem(100.0), "scaled": columns(1e-9)}.items():
        model = jd.fit_ridge(phi, x[mine], y[mine], mesh=mesh, intercept=True)
        alone = jd.fit_ridge(
            phi, x, y, mesh=jax.sharding.Mesh(jax.local_devices(), ("data",)), intercept=True
        )
        report[name] = {
            "bits": numbers(model),
            "error": float(
                np.max(
                    np.abs(model.weights - alone.weights) / np.abs(alone.weights).max(axis=1, keepdims=True)
                )
            ),
            "lam": abs(model.lam / alone.lam - 1),
        }
    try:
        jd.fit_ridge(phi, x[mine], y[mine, : 1 + number], mesh=mesh)
    except ProcessError as error:
        report["other targets"] = str(error)
    config, key = kip.KipConfig(size=4, steps=1), jax.random.key(0)
    for name, call in {
        "a kernel fit": lambda: jd.fit_kernel_ridge(RBF(1.0), x[mine], y[mine], lam=1.0, mesh=mesh),
        "a KIP run": lambda: kip.train(phi, x[mine], y[mine], config, key=key, mesh=mesh),
    }.items():
        try:
            call()
        except InputError as error:
            report[name] = str(error)
    (Path(out) / f"{number}.json").write_text(json.dumps(report))

    def ending(x, y):
        yield x[:100], y[:100]
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield x[100:], y[100:]

    try:
        jd.fit_ridge(phi, lambda: ending(x[mine], y[mine]), lam=1.0, mesh=mesh)
    except ProcessError as error:
        (Path(out) / "message.txt").write_text(str(error))
        os._exit(3)  # the job cannot be taken down in order any more


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
