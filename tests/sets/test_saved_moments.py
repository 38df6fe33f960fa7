"""Moments as a file: a pass that is killed ends with the same bits, parts add up, others are refused."""

import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from helpers import relative
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.errors import ArtifactError, InputError, OutputError
from jaxdistill.numerics.products import products_of
from jaxdistill.ridge import moments
from jaxdistill.ridge.moments import Moments
from jaxdistill.sets.saved_moments import SavedMoments, collect_moments

KEY = jax.random.key(0)
PHI = jd.features.RandomFourier.create(4, 2**7, lengthscale=2.0, key=KEY)
ROWS, CHUNK = 5000, 1000


def data(seed=0, n=ROWS):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4)).astype(np.float32) + 3
    return x, jd.one_hot(rng.integers(0, 3, n), 3)


def pieces(x, y, stop=None):
    """A stream in chunks, and perhaps a fault after some."""

    def chunks():
        for i, first in enumerate(range(0, len(x), CHUNK)):
            if i == stop:
                raise KeyboardInterrupt
            yield x[first : first + CHUNK], y[first : first + CHUNK]

    return chunks


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("jaxdistill.ridge.source.CHUNK_BYTES", 2**18)


def same_bits(a, b):
    return all(
        np.asarray(getattr(a, f.name)).tobytes() == np.asarray(getattr(b, f.name)).tobytes()
        for f in fields(Moments)
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None)
@given(stops=st.lists(st.integers(1, 4), max_size=4))
def test_a_pass_that_stops_anywhere_goes_on_to_the_same_bits(tmp_path_factory, stops):
    folder, (x, y) = tmp_path_factory.mktemp("pass"), data()
    expected = collect_moments(PHI, pieces(x, y), path=folder / "whole.npz")
    read = []
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            collect_moments(PHI, pieces(x, y, stop), path=folder / "part.npz", every=0.0)
        if (folder / "part.npz").exists():
            half = SavedMoments.load(folder / "part.npz")
            read.append(half.num_rows)
            assert not half.whole and half.num_rows < ROWS
            with pytest.raises(InputError, match="a pass that was not finished"):
                half.source()
    found = collect_moments(PHI, pieces(x, y), path=folder / "part.npz")
    assert found.whole and found.num_rows == ROWS and same_bits(found.moments, expected.moments)
    assert found.target_kind.value == "one-hot" and read == sorted(read)


def test_what_was_read_is_not_read_again_and_a_whole_file_is_taken_as_it_is(tmp_path, monkeypatch):
    x, y = data()
    with pytest.raises(KeyboardInterrupt):
        collect_moments(PHI, pieces(x, y, 4), path=tmp_path / "m.npz", every=0.0)
    before = SavedMoments.load(tmp_path / "m.npz").num_rows
    added = []
    original = moments._add_chunk
    monkeypatch.setattr(moments, "_add_chunk", lambda *a: added.append(1) or original(*a))
    found = collect_moments(PHI, pieces(x, y), path=tmp_path / "m.npz")
    size = found.chunk_size
    assert before > 0 and len(added) == -(-(ROWS - before) // size)
    added.clear()
    again = collect_moments(PHI, pieces(x, y), path=tmp_path / "m.npz")
    assert not added and same_bits(again.moments, found.moments)


SCRIPT = """
import sys, time
import numpy as np
import jaxdistill as jd
from jaxdistill.sets.saved_moments import collect_moments
rng = np.random.default_rng(0)
x, y = rng.standard_normal((6000, 4)).astype(np.float32), rng.standard_normal((6000, 2))
def chunks():
    for i in range(0, 6000, 300):
        time.sleep(float(sys.argv[2]))
        yield x[i : i + 300], y[i : i + 300]
phi = jd.features.Linear(4)
import jaxdistill.ridge.source as source
source.CHUNK_BYTES = 1
collect_moments(phi, chunks, path=sys.argv[1], every=0.0)
"""


@pytest.mark.long
def test_killed_five_times_it_ends_with_the_same_bits(tmp_path):
    path, rng = tmp_path / "m.npz", np.random.default_rng()
    for target in np.sort(rng.choice(np.arange(1, 20), 5, replace=False)) * 256:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), "0.1"])
        for _ in range(1200):
            if path.exists() and SavedMoments.load(path).num_rows >= target:
                break
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not SavedMoments.load(path).whole
    for file in (path, tmp_path / "whole.npz"):
        subprocess.run([sys.executable, "-c", SCRIPT, str(file), "0"], check=True)
    found, expected = SavedMoments.load(path), SavedMoments.load(tmp_path / "whole.npz")
    assert found.whole and found.num_rows == 6000 and same_bits(found.moments, expected.moments)


@pytest.mark.parametrize("intercept", (False, True))
def test_a_model_of_the_file_is_that_of_the_examples(tmp_path, intercept):
    x, y = data()
    saved = collect_moments(PHI, x, y, path=tmp_path / "m.npz", dtype="float64")
    loaded = SavedMoments.load(tmp_path / "m.npz")
    found = jd.fit_ridge(loaded.features, loaded.source(), lam=0.5, intercept=intercept)
    expected = jd.fit_ridge(PHI, x, y, lam=0.5, intercept=intercept, dtype="float64")
    assert relative(found.weights, expected.weights) < 1e-9 and same_bits(saved.moments, loaded.moments)
    assert (found.target_kind, found.data_dtype) == (expected.target_kind, expected.data_dtype)
    held = data(1, 200)
    chosen = jd.fit_ridge(loaded.features, loaded.source(), validation=held, intercept=intercept)
    asked = jd.fit_ridge(PHI, x, y, validation=held, intercept=intercept, dtype="float64")
    assert chosen.lam == asked.lam


def test_what_needs_examples_says_so(tmp_path):
    x, y = data()
    source = collect_moments(PHI, x, y, path=tmp_path / "m.npz").source()
    with pytest.raises(InputError, match="moments alone are here"):
        jd.fit_ridge(PHI, source)
    with pytest.raises(InputError, match="of moments no rows can be held out"):
        jd.fit_ridge(PHI, source, validation=0.1, key=KEY)
    with pytest.raises(InputError, match="leave y out"):
        jd.fit_ridge(PHI, source, y, lam=1.0)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have such products")
def test_moments_of_a_gpu_say_how_lam_is_chosen_on_a_cpu(tmp_path):
    x, y = data(n=300)
    source = collect_moments(PHI, x, y, path=tmp_path / "m.npz").source()
    source = replace(source, products=products_of("bfloat16_x3"))
    with pytest.raises(InputError, match=r"bfloat16_x3 .* held out: validation='generalised', or give lam$"):
        jd.fit_ridge(PHI, source, validation=data(1, 200))
    chosen = jd.fit_ridge(PHI, source, validation="generalised")
    assert chosen.product_dtype == jd.fit_ridge(PHI, source, lam=chosen.lam).product_dtype == "bfloat16_x3"


def test_parts_of_two_machines_add_up_to_the_whole(tmp_path):
    x, y = data()
    halves = [
        collect_moments(PHI, x[part], y[part], path=tmp_path / f"{i}.npz", dtype="float64")
        for i, part in enumerate((slice(0, 1700), slice(1700, None)))
    ]
    merged = halves[0].merge(halves[1])
    merged.save(tmp_path / "merged.npz")
    loaded = SavedMoments.load(tmp_path / "merged.npz")
    phi = np.asarray(jax.jit(PHI.__call__)(x), np.float64)
    found = loaded.moments.about(0.0, 0.0)
    assert loaded.num_rows == ROWS and relative(found.gram, phi.T @ phi) < 1e-6
    assert relative(found.cross, phi.T @ y) < 1e-6
    np.testing.assert_allclose(found.target_gram, y.T @ y, rtol=1e-12)
    whole = collect_moments(PHI, x, y, path=tmp_path / "whole.npz", dtype="float64")
    assert relative(found.gram, whole.moments.about(0.0, 0.0).gram) < 1e-13
    with pytest.raises(InputError, match="hold the same examples, which would count twice"):
        merged.merge(halves[1])


def others(tmp_path):
    x, y = data(1)
    prepare = jd.Standardize.fit(x)
    return {
        "feature map": (PHI.create(4, 2**7, lengthscale=2.0, key=jax.random.key(1)), x, y, {}),
        "preprocessing": (PHI, x, y, {"preprocess": prepare}),
        "number of targets": (PHI, x, y[:, :2] + y[:, 2:] / 2, {}),
        "kind of targets": (PHI, x, y - 1 / 3, {}),
        "precision of products": (PHI, x, y, {"dtype": "float64"}),
        "class names": (PHI, x, y, {"class_names": "abc"}),
    }


@pytest.mark.parametrize(
    "name",
    (
        *("feature map", "preprocessing", "number of targets", "kind of targets", "precision of products"),
        "class names",
    ),
)
def test_moments_of_something_else_are_not_added_and_the_difference_is_named(tmp_path, name):
    first = collect_moments(PHI, *data(), path=tmp_path / "a.npz")
    phi, x, y, request = others(tmp_path)[name]
    second = collect_moments(phi, x, y, path=tmp_path / "b.npz", **request)
    with pytest.raises(InputError, match=f"the two files of moments differ in .*{name}"):
        first.merge(second)


def test_a_pass_goes_on_with_its_own_data_and_settings_alone(tmp_path):
    x, y = data()
    path = tmp_path / "m.npz"
    collect_moments(PHI, x, y, path=path)
    with pytest.raises(InputError, match="moments of other examples"):
        collect_moments(PHI, *data(1), path=path)
    with pytest.raises(InputError, match="differ in feature map"):
        collect_moments(PHI.create(4, 2**7, lengthscale=1.0, key=KEY), x, y, path=path)
    with pytest.raises(InputError, match="differ in precision of products"):
        collect_moments(PHI, x, y, path=path, dtype="float64")


@pytest.mark.parametrize("place", (0.1, 0.5, 0.9))
def test_a_file_that_was_cut_off_or_altered_is_refused(tmp_path, place):
    path = tmp_path / "m.npz"
    collect_moments(PHI, *data(), path=path)
    content = bytearray(path.read_bytes())
    cut = int(place * len(content))
    path.write_bytes(content[:cut])
    with pytest.raises(ArtifactError):
        SavedMoments.load(path)
    content[cut] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        SavedMoments.load(path)


def test_another_file_is_no_file_of_moments(tmp_path):
    x, y = data()
    model = jd.fit_ridge(jd.features.Linear(4), x, y, lam=1.0)
    jd.distill(model, ipc=1, key=KEY).save(tmp_path / "set.npz")
    with pytest.raises(ArtifactError, match="no file of moments"):
        SavedMoments.load(tmp_path / "set.npz")
    with pytest.raises(ArtifactError, match="does not exist"):
        SavedMoments.load(tmp_path / "no.npz")
    with pytest.raises(ArtifactError, match="is no file"):
        SavedMoments.load(tmp_path)
    with pytest.raises(OutputError, match="no is not a folder that can be written"):  # before any row is read
        collect_moments(PHI, pieces(x, y, 0), path=tmp_path / "no" / "m.npz")


def test_products_of_moments_have_the_precision_that_they_were_formed_in(tmp_path):
    source = collect_moments(PHI, *data(), path=tmp_path / "m.npz").source()
    assert jd.fit_ridge(PHI, source, lam=1.0).product_dtype == "float32"
    with pytest.raises(InputError, match="these moments are of float32"):
        jd.fit_ridge(PHI, source, lam=1.0, dtype="float64")


def test_an_iterator_can_be_collected_and_cannot_go_on(tmp_path):
    x, y = data()
    expected = collect_moments(PHI, pieces(x, y), path=tmp_path / "a.npz")
    found = collect_moments(PHI, pieces(x, y)(), path=tmp_path / "b.npz")
    assert same_bits(found.moments, expected.moments)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(PHI, pieces(x, y, 4)(), path=tmp_path / "c.npz", every=0.0)
    with pytest.raises(InputError, match="the iterator is used up"):
        collect_moments(PHI, pieces(x, y)(), path=tmp_path / "c.npz")
