"""JAX as users set it up: strict, guarded, checked, unjitted or wide, the main job gives the same numbers."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill import kip

KEY = jax.random.key(5)
DIM = 6


def make_data():
    rng = np.random.default_rng(0)
    labels = np.arange(45) % 3
    x = (rng.standard_normal((3, DIM))[labels] + 0.8 * rng.standard_normal((45, DIM))).astype(np.float32)
    return x[:30], jd.one_hot(labels[:30], 3), x[30:], labels[30:]


@pytest.fixture(scope="module")
def data():
    return make_data()


def linear():
    return jd.features.Linear(DIM)


def network():
    return jd.features.RandomNetwork.create(DIM, widths=(DIM, 5), key=KEY)


def fourier():
    return jd.features.RandomFourier.create(DIM, 5, lengthscale=4.0, key=KEY)


def of_map(make, lam="auto", size=3, intercept=False, **how):
    """A feature map through the main job."""

    def job(x, y, x_test, y_test):
        reference = {"reference": (x, y)} if how or make is wide else {}
        model = jd.fit_ridge(make(), x, y, lam=lam, intercept=intercept, key=KEY)
        small = jd.distill(model, size=size, key=KEY, **how, **reference)
        return results(model, small, jd.certify(model, small, x_test, y_test), x_test)

    return job


def wide():
    return jd.features.RandomNetwork.create(DIM, widths=(9,), key=KEY)


def of_kernel(kernel):
    def job(x, y, x_test, y_test):
        model = jd.fit_kernel_ridge(kernel, x, y, lam="auto")
        small = jd.distill_kernel(model, x, y, ipc=2, key=KEY)
        return results(model, small, jd.certify(model, small, x_test, y_test), x_test)

    return job


def of_kip(x, y, x_test, y_test):
    model = jd.fit_ridge(fourier(), x, y, lam=0.1)
    small = kip.train(model, x, y, kip.KipConfig(ipc=1, steps=3), key=KEY).sets[0]
    return results(model, small, jd.certify(model, small, x_test, y_test), x_test)


def results(model, small, certificate, x_test):
    told = certificate.to_dict()
    names = ("exact", "agreement", "accuracy_full", "accuracy_distilled", "relative_weight_error")
    return {
        "prediction": np.asarray(model.predict(x_test)),
        "inputs": small.x,
        "labels": small.y,
        **{name: told[name] for name in names},
    }


JOBS = {
    "linear": of_map(linear),
    "network": of_map(network),
    "fourier": of_map(fourier),
    "intercept": of_map(network, size=4, intercept=True),
    "closest": of_map(network, lam=1.0, size=6, realistic="closest"),
    "copies": of_map(network, lam=1.0, size=8, realistic="copies"),
    "wide": of_map(wide, lam=1.0, size=12),
    "rbf": of_kernel(jd.kernels.RBF(3.0)),
    "kip": of_kip,
}
COMPILED = "rank promotion"
# Every way of JAX to be strict, or to compute otherwise than by default.
SETTINGS = {
    COMPILED: lambda: jax.numpy_rank_promotion("raise"),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "debug nans": lambda: jax.debug_nans(True),
    "x64": lambda: jax.enable_x64(True),
}


@pytest.fixture(scope="module")
def plain(data):
    """Results without any setting, each computed once."""
    return functools.cache(lambda name: JOBS[name](*data))


# Under another rule for ranks every program is compiled again.
AGAIN = ("fourier", "intercept", "closest", "copies", "rbf")
PAIRS = [
    pytest.param(name, setting, marks=[pytest.mark.long] if setting == COMPILED and name in AGAIN else [])
    for name in JOBS
    for setting in SETTINGS
]


@pytest.mark.parametrize(("name", "setting"), PAIRS)
def test_the_main_job_gives_the_same_numbers(plain, data, name, setting):
    expected = plain(name)
    with SETTINGS[setting]():
        found = JOBS[name](*data)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


WITHOUT_JIT = """
import sys
import numpy as np
import jax
import test_jax_settings as settings

data = settings.make_data()
for name in sys.argv[1:]:
    expected = settings.JOBS[name](*data)
    with jax.disable_jit():
        found = settings.JOBS[name](*data)
    assert found["exact"] == expected["exact"] and found["agreement"] == expected["agreement"]
    for key in ("prediction", "inputs", "labels"):
        size = np.abs(expected[key]).max()
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-5 * size, err_msg=key)
    print(name)
"""


@pytest.mark.long
def test_without_jit_only_rounding_differs():
    """In a process of its own: where nothing is traced, checks of shapes would see arrays of NumPy."""
    names = ["linear", "network", "fourier", "rbf", "kip"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # alone they gain nothing
    command = [sys.executable, "-c", WITHOUT_JIT, *names]
    found = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    assert found.stdout.split() == names


SETS = {
    "map": lambda x, y: jd.distill(jd.fit_ridge(linear(), x, y, lam=1.0), ipc=1, key=KEY),
    "kernel": lambda x, y: jd.distill_kernel(
        jd.fit_kernel_ridge(jd.kernels.RBF(3.0), x, y, lam=0.1), x, y, ipc=1, key=KEY
    ),
}


@pytest.fixture(scope="module", params=SETS)
def small(request, data):
    x, y, x_test, y_test = data
    made = SETS[request.param](x, y).with_context(jd.Identity((DIM,)), ("a", "b", "c"))
    return made.with_certificate(jd.certify(made, made, x_test, y_test))


def test_a_set_is_a_pytree_of_arrays_without_recipe_and_certificate(small):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(small)]
    assert names[:3] == [".x", ".y", ".lam"]
    assert not [name for name in names if "recipe" in name or "certificate" in name]
    again = jax.tree.map(lambda leaf: leaf, small)
    assert type(again) is type(small) and again.digest == small.digest
    assert again.preprocess is small.preprocess and again.class_names == small.class_names
    assert small.certificate is not None and again.certificate is None and again.recipe == {}
    assert jax.tree.structure(again) == jax.tree.structure(small)


def test_sets_go_through_jit_and_vmap(small):
    def loss(w, one):
        return ((one.x @ w - one.y.astype(w.dtype)) ** 2).sum() + one.lam * (w**2).sum()

    w = np.ones((DIM, 3), np.float32)
    expected = np.sum((small.x @ w - small.y.astype(np.float32)) ** 2) + small.lam * w.size
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(jax.jit(loss)(w, small), expected, rtol=1e-5)
        two = jax.tree.map(lambda *leaves: jnp.stack(leaves), small, small)
        both = jax.vmap(loss, in_axes=(None, 0))(w, two)
    np.testing.assert_allclose(both, [expected] * 2, rtol=1e-5)


def test_a_set_that_went_through_jit_is_certified_and_saved_as_another(small, data, tmp_path):
    with jax.enable_x64(True):
        moved = jax.jit(lambda one: one)(small)
        certificate = jd.certify(moved, moved, *data[2:])
        assert certificate.to_dict()["relative_weight_error"] == small.certificate["relative_weight_error"]
        moved.with_certificate(certificate).save(tmp_path / "moved.npz")
    again = jd.load_set(tmp_path / "moved.npz")
    np.testing.assert_array_equal(again.x, small.x)
    np.testing.assert_array_equal(again.y, small.y)


COMMANDS = {
    "distill": (),
    "kip": (),
    "compare": (),
    "evaluate": ("no.npz", "--dataset", "digits"),
    "attack": ("no.npz", "--dataset", "digits"),
    "info": ("--json",),
}
EVERY_COMMAND = """
import json, sys
from jaxdistill.cli.main import main
for words in json.loads(sys.argv[1]):
    print("status", main(words), flush=True)
"""


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_platform_that_is_absent_is_one_line(platform, tmp_path):
    if platform == {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend()):
        pytest.skip(f"this machine has {platform}")
    words = [[name, *more] for name, more in COMMANDS.items()]
    found = subprocess.run(
        [sys.executable, "-c", EVERY_COMMAND, json.dumps(words)],
        env=os.environ | {"JAX_PLATFORMS": platform},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = found.stdout.splitlines()
    report = json.loads(lines.pop(-2))
    assert lines == ["status 2"] * len(words) and list(tmp_path.iterdir()) == []
    assert report["versions"]["jax"] and report["backend"] is None and report["devices"] == []
    told = found.stderr.splitlines()
    assert len(told) == len(words)
    for line in told:
        assert line.startswith(f"jaxdistill: JAX is told to use {platform}, which is not there")
        assert f"this machine has {jax.default_backend()}" in line.replace("has cpu, ", "has ")


def test_a_platform_that_is_absent_is_told_to_those_who_ask_again():
    code = """
from jaxdistill.errors import InputError
from jaxdistill.numerics.placement import placement
for _ in range(2):
    try:
        placement()
    except InputError as error:
        print(error)
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"JAX_PLATFORMS": "bogus"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = found.stdout.splitlines()
    assert first == second and "bogus" in first
