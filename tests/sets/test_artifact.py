"""The file: everything that can be wrong with one, and writing that leaves all or nothing."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.errors import ArtifactError, InputError, OutputError
from jaxdistill.numerics.files import write_atomically
from jaxdistill.sets.archive import digest_arrays


@pytest.fixture(scope="module")
def small(problem, maps):
    model = jd.fit_ridge(maps["fourier"], problem["x"], problem["y"], lam=1.0)
    return jd.distill(model, ipc=1, dtype="float32", key=jax.random.key(0))


@pytest.fixture(scope="module")
def content(small, tmp_path_factory):
    return small.save(tmp_path_factory.mktemp("set") / "small.npz").read_bytes()


def rewritten(path, content, *, drop=(), **changes):
    """The file with some arrays changed and a digest that fits: what another program could write."""
    path.write_bytes(content)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name not in (*drop, "digest")} | changes
    if "digest" not in drop:
        arrays["digest"] = np.array(digest_arrays(arrays))
    np.savez(path, **arrays)
    return path


def meta_of(path, content):
    path.write_bytes(content)
    with np.load(path) as file:
        return json.loads(str(file["meta"]))


@pytest.mark.parametrize("name", ["linear", "fourier", "orthogonal fourier", "network"])
def test_a_set_of_every_map_comes_back_bit_for_bit(problem, maps, name, tmp_path):
    model = jd.fit_ridge(maps[name], problem["x"], problem["y"], lam=1.0)
    made = jd.distill(model, ipc=2, key=jax.random.key(1)).with_context(None, ("cat", "dog", "Eule ä"))
    again = jd.DistilledSet.load(made.save(tmp_path / "s.npz"))
    for a, b in ((made.x, again.x), (made.y, again.y), (made.weights, again.weights)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert (again.lam, again.recipe, again.class_names) == (made.lam, made.recipe, made.class_names)
    assert again.digest == made.digest and again.certificate is None
    for key, value in made.features.arrays().items():
        np.testing.assert_array_equal(again.features.arrays()[key], value)


def test_images_go_back_through_the_preprocessing_that_is_stored(problem, tmp_path):
    images = problem["x"].reshape(150, 2, 2, 3)
    transform = jd.fit_preprocess("standardize", images)
    x = transform.forward(images)
    model = jd.fit_ridge(jd.features.Linear(12), x, problem["y"], lam=1.0)
    made = jd.distill(model, ipc=1, key=jax.random.key(1))
    assert made.images.shape == (3, 12)
    made = made.with_context(transform, None)
    again = jd.DistilledSet.load(made.save(tmp_path / "s.npz"))
    assert again.images.shape == (3, 2, 2, 3)
    np.testing.assert_array_equal(again.images, made.images)
    np.testing.assert_allclose(again.preprocess.forward(again.images), made.x, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="rows of 48"):
        made.with_context(jd.fit_preprocess("standardize", np.linspace(0, 1, 240).reshape(5, 4, 4, 3)), None)


def test_the_digest_sees_all_that_training_sees(small):
    changes = [
        {"x": small.x + np.float32(1e-3)},
        {"x": small.x.astype(np.float64)},
        {"y": -small.y},
        {"lam": small.lam + 1e-9},
        {"features": dataclasses.replace(small.features, phases=2 * small.features.phases)},
    ]
    others = [dataclasses.replace(small, **change).digest for change in changes]
    assert len({small.digest, *others}) == len(changes) + 1
    assert dataclasses.replace(small, recipe={"a": 1}).digest == small.digest


@settings(max_examples=40)
@given(share=st.floats(0, 0.9999))
def test_a_file_cut_anywhere_is_refused(content, tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "s.npz"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError):
        jd.DistilledSet.load(path)


@settings(max_examples=60)
@given(share=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_nothing(small, content, tmp_path_factory, share, bit):
    path = tmp_path_factory.mktemp("flip") / "s.npz"
    damaged = bytearray(content)
    damaged[int(share * len(content))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        again = jd.DistilledSet.load(path)
    except ArtifactError:
        return
    assert again.digest == small.digest  # a bit of the archive that nothing reads, such as a date
    np.testing.assert_array_equal(again.weights, small.weights)


@pytest.mark.parametrize("name", ["digest", "inputs", "labels", "lam", "weights"])
def test_a_missing_array_is_named(content, tmp_path, name):
    path = rewritten(tmp_path / "s.npz", content, drop=(name,))
    with pytest.raises(ArtifactError, match=f"lacks {name}"):
        jd.DistilledSet.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 99}, "format 99.*upgrade"),
        ({"format": 0}, "format 0.*reads 1"),
        ({"program": "another"}, "written by 'another'"),
        ({"program": None}, "written by None"),
        ({"format": "new"}, "cannot be read"),
        ({"features": {"kind": "hyperbolic", "settings": {}}}, "hyperbolic"),
        ({"features": {"kind": "network", "settings": {}}}, "again"),
        ({"features": None}, "again"),
    ],
)
def test_metadata_that_is_not_understood_is_refused_although_the_digest_fits(content, tmp_path, change, says):
    path = tmp_path / "s.npz"
    meta = meta_of(path, content) | change
    rewritten(path, content, meta=np.array(json.dumps(meta)))
    with pytest.raises(ArtifactError, match=says):
        jd.DistilledSet.load(path)


def test_metadata_that_is_no_json_is_refused(content, tmp_path):
    path = rewritten(tmp_path / "s.npz", content, meta=np.array("{"))
    with pytest.raises(ArtifactError, match="cannot be read"):
        jd.DistilledSet.load(path)


def test_objects_beside_good_metadata_are_never_unpickled(content, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "s.npz"
    path.write_bytes(content)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **arrays | {"inputs": np.array([Trap()], dtype=object)})
    with pytest.raises(ArtifactError, match="pickled"):
        jd.DistilledSet.load(path)
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_archive_of_arrays_is_refused(tmp_path):
    single, text, empty = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz"
    with single.open("wb") as file:
        np.save(file, np.ones(3))
    text.write_text("not a set")
    empty.write_bytes(b"")
    for path in (single, text, empty, tmp_path):
        with pytest.raises(ArtifactError):
            jd.DistilledSet.load(path)
    with pytest.raises(ArtifactError, match="single array"):
        jd.DistilledSet.load(single)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, small, error):
    path = small.save(tmp_path / "s.npz")
    before = path.read_bytes()

    def fail(self, target):
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        dataclasses.replace(small, lam=1.0).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_disk_that_fills_half_way_leaves_nothing(tmp_path, monkeypatch):
    class Full:
        def __init__(self, handle, mode):
            self.handle = handle

        def __enter__(self):
            return self

        def __exit__(self, *_):
            os.close(self.handle)

        def write(self, content):
            os.write(self.handle, content[: len(content) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", Full)
    with pytest.raises(OutputError, match="No space left"):
        write_atomically(tmp_path / "s.npz", b"0123456789")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be_is_named(tmp_path, small):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        small.save(tmp_path / "file" / "s.npz")


def test_a_file_is_replaced_with_the_permissions_of_any_new_file(tmp_path, small):
    path = small.save(tmp_path / "s.npz")
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    other = dataclasses.replace(small, lam=2.0)
    other.save(path)
    assert jd.DistilledSet.load(path).lam == 2.0
