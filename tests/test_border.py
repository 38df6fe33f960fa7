"""Every public function reads arrays, keys and files through the same doors."""

import functools
import inspect
import io
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.sparse
from encodings_of_arrays import encodings, whole_numbers
from hypothesis import given, settings
from test_interface import WITH_KEY

import jaxdistill as jd
from jaxdistill import kip
from jaxdistill.errors import InputError, OutputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
X, X_TEST = whole_numbers(RNG, 30, 4), whole_numbers(RNG, 12, 4)
CLASSES = np.arange(30) % 2
Y = jd.one_hot(CLASSES, 2)


def outcomes(x, y, x_test, y_test):
    """What every function of the package that takes data makes of them, in float64."""
    prepare, whiten = jd.Standardize.fit(x), jd.ZCA.fit(x)
    model = jd.fit_ridge(jd.features.Linear(4), x, y, lam=1.0, dtype="float64")
    kernel = jd.kernels.RBF(3.0)
    kernel_model = jd.fit_kernel_ridge(kernel, x, y, lam=1.0)
    small = jd.distill(model, ipc=1, realistic="fixed", reference=(x, y), dtype="float64", key=KEY)
    certificate = jd.certify(model, small, x_test, y_test)
    kernel_small = jd.distill_kernel(kernel_model, x, y, ipc=1, key=KEY)
    return {
        "standardize": prepare.forward(x_test),
        "back": prepare.inverse(x_test),
        "zca": whiten.forward(x_test),
        "weights": model.weights,
        "validated": jd.fit_ridge(
            jd.features.Linear(4), x, y, validation=(x_test, y_test), dtype="float64"
        ).weights,
        "predict": model.predict(x_test),
        "alpha": kernel_model.alpha,
        "kernel predict": kernel_model.predict(x_test, dtype="float64"),
        "small": small.x,
        "squared error": certificate.squared_error_full,
        "accuracy": certificate.accuracy_full,
        "kernel small": kernel_small.y,
        "baseline": jd.baseline("means", model, x, y, ipc=1, key=KEY).x,
    }


@functools.cache
def expected():
    return outcomes(X, Y, X_TEST, Y[:12])


@settings(max_examples=12)
@given(encode_x=encodings(), encode_y=encodings())
def test_whatever_numpy_reads_gives_the_same_numbers(encode_x, encode_y):
    found = outcomes(encode_x(X), encode_y(Y), encode_x(X_TEST), encode_y(Y[:12]))
    for name, value in expected().items():
        # Inputs of float32 are transformed and predicted in float32.
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def test_kip_reads_the_same_numbers():
    model = jd.fit_ridge(jd.features.Linear(4), X, Y, lam=1.0)
    config = kip.KipConfig(ipc=1, steps=3)
    one = kip.train(model, X, Y, config, key=KEY).small
    two = kip.train(model, X.astype(">f8"), np.asfortranarray(Y.astype(">f4")), config, key=KEY).small
    np.testing.assert_allclose(two.x, one.x, rtol=1e-6)


SPARSE = scipy.sparse.csr_matrix(X)
MODEL = jd.fit_ridge(jd.features.Linear(4), X, Y, lam=1.0)
SMALL = jd.distill(MODEL, ipc=1, key=KEY)
REFUSING = {
    "fit": lambda x: jd.fit_ridge(jd.features.Linear(4), x, Y, lam=1.0),
    "targets": lambda x: jd.fit_ridge(jd.features.Linear(4), X, x, lam=1.0),
    "kernel fit": lambda x: jd.fit_kernel_ridge(jd.kernels.RBF(2.0), x, Y, lam=1.0),
    "predict": lambda x: MODEL.predict(x),
    "certify": lambda x: jd.certify(MODEL, SMALL, x),
    "transfer": lambda x: jd.transfer(SMALL, jd.kernels.RBF(2.0), x),
    "standardize": lambda x: jd.Standardize.fit(x),
    "forward": lambda x: jd.Standardize.fit(X).forward(x),
    "zca": lambda x: jd.ZCA.fit(x),
    "kip": lambda x: kip.train(MODEL, x, Y, kip.KipConfig(ipc=1, steps=1), key=KEY),
    "reference": lambda x: jd.distill(MODEL, ipc=1, realistic="fixed", reference=(x, Y), key=KEY),
    "baseline": lambda x: jd.baseline("means", MODEL, x, Y, ipc=1, key=KEY),
}


@pytest.mark.parametrize("name", REFUSING)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (SPARSE, "sparse; pass"),
        (X.astype(int), "type int64"),
        (X.astype(str), "type <U"),
        ([[None]], "objects"),
    ],
)
def test_what_is_no_array_of_floats_is_told_in_one_line(name, value, words):
    with pytest.raises(InputError, match=words) as caught:
        REFUSING[name](value)
    assert "\n" not in str(caught.value)


# Keys

ARGUMENTS = {
    "fit_ridge": (jd.features.Linear(4), X, Y),
    "fit_kernel_ridge": (jd.kernels.RBF(2.0), X, Y),
    "distill": (MODEL,),
    "distill_kernel": (jd.fit_kernel_ridge(jd.kernels.RBF(2.0), X, Y, lam=1.0), X, Y),
    "baseline": ("means", MODEL, X, Y),
}
SETTINGS = {
    "RandomFourier": {"lengthscale": 1.0},
    "ConvolutionalNetwork": {"channels": (2,)},
    "DeepLinear": {"widths": (4,)},
    "RandomNetwork": {"widths": (4,)},
    "distill": {"ipc": 1},
    "distill_kernel": {"ipc": 1},
    "baseline": {"ipc": 1},
}
ARGUMENTS["features"] = (X, Y)  # features.train_encoder
SETTINGS["features"] = {"image_shape": (2, 2, 1)}
FIRST = {"RandomFourier": (4, 4), "ConvolutionalNetwork": ((4, 4, 1),)}


@pytest.mark.parametrize("name", sorted(WITH_KEY))
@pytest.mark.parametrize(
    ("key", "words"),
    [
        (3, r"key is 3; pass key=jax.random.key\(3\)"),
        (np.int64(7), r"pass key=jax.random.key\(7\)"),
        (True, "a bool"),
        (np.random.default_rng(0), "a Generator"),
        (jax.random.split(KEY, 2), "not one random key"),
        (np.zeros(2), "not one random key"),
    ],
)
def test_what_is_no_key_is_told(name, key, words):
    short = name.removeprefix("jaxdistill.").partition(".")[0]
    arguments = ARGUMENTS.get(short, FIRST.get(short, (4,)))
    required = inspect.signature(WITH_KEY[name]).parameters
    more = {n: v for n, v in SETTINGS.get(short, {}).items() if n in required}
    with pytest.raises(InputError, match=words):
        WITH_KEY[name](*arguments, key=key, **more)


def test_old_keys_are_keys():
    one = jd.features.RandomNetwork.create(4, widths=(4,), key=jax.random.PRNGKey(3))
    two = jd.features.RandomNetwork.create(4, widths=(4,), key=jax.random.key(3))
    np.testing.assert_array_equal(one.weights[0], two.weights[0])


# Files


def kernel_set():
    model = jd.fit_kernel_ridge(jd.kernels.RBF(2.0), X, Y, lam=1.0)
    return jd.distill_kernel(model, X, Y, ipc=1, key=KEY)


@pytest.mark.parametrize("make", [lambda: SMALL, kernel_set])
@pytest.mark.parametrize("open_file", [io.BytesIO, tempfile.TemporaryFile])
def test_a_set_passes_through_paths_and_open_files(tmp_path, make, open_file):
    small = make()
    assert small.save(str(tmp_path / "a.npz")) == small.save(tmp_path / "a.npz") == tmp_path / "a.npz"
    with open_file() as file:
        assert small.save(file) is file
        file.seek(0)
        again = type(small).load(file)
        file.seek(0)
        assert jd.load_set(file).digest == again.digest == small.digest
    for path in (tmp_path / "a.npz", str(tmp_path / "a.npz")):
        assert jd.load_set(path).digest == type(small).load(path).digest == small.digest


def test_what_is_no_file_is_told(tmp_path):
    with (tmp_path / "text").open("w") as file, pytest.raises(OutputError, match="mode 'wb'"):
        SMALL.save(file)
    for call in (SMALL.save, jd.DistilledSet.load, jd.KernelSet.load, jd.load_set):
        with pytest.raises(InputError, match="not int"):
            call(3)


def test_a_data_set_is_found_by_a_path(tmp_path):
    arrays = {"x_train": X, "y_train": CLASSES, "x_test": X_TEST, "y_test": CLASSES[:12]}
    np.savez(tmp_path / "t.npz", **{k: v.astype(v.dtype.newbyteorder(">")) for k, v in arrays.items()})
    data = jd.load_dataset(Path(tmp_path / "t.npz"))
    np.testing.assert_array_equal(data.x_train, X)
    assert data.x_train.dtype.isnative and data.y_train.dtype == np.int64
