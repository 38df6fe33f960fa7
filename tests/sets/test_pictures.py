"""A set as PNG files and one label file: pixels to the bit, refusals, and what others train from it."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib import image as reader
from sklearn.linear_model import Ridge

import jaxdistill as jd
from jaxdistill.distill.rounding import round_pixels
from jaxdistill.errors import ArtifactError, InputError
from jaxdistill.features import RandomNetwork
from jaxdistill.sets.pictures import load_pictures, pixel_levels, save_pictures, with_pictures
from jaxdistill.sets.png import png_bytes, png_pixels
from jaxdistill.solve.box import pixel_box

KEY = jax.random.key(0)
kinds = st.sampled_from([np.uint8, np.uint16])


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    images = rng.random((90, 4, 3, 1)).astype(np.float32)
    prepare = jd.Standardize.fit(images)
    return prepare, prepare.forward(images), jd.one_hot(np.arange(90) % 3, 3)


def made(problem, phi=None, **request):
    """A model, and real images with labels that return it as well as they can."""
    prepare, x, y = problem
    model = jd.fit_ridge(jd.features.Linear(12) if phi is None else phi, x, y, lam=0.1)
    request = {"size": 20, "realistic": "fixed"} | request
    small = jd.distill(model, reference=(x, y), dtype="float32", key=KEY, **request)
    return model, small.with_context(prepare, ("a", "b", "c"))


@given(data=st.data(), kind=kinds, channels=st.sampled_from([1, 3]))
def test_every_image_comes_back_to_the_bit(data, kind, channels):
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), channels)
    image = data.draw(hnp.arrays(kind, shape))
    again = png_pixels(png_bytes(image))
    assert again.dtype == image.dtype and np.array_equal(again, image)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_another_reader_sees_the_same_pixels(kind, tmp_path):
    image = np.random.default_rng(1).integers(0, np.iinfo(kind).max, (5, 7, 1), endpoint=True).astype(kind)
    (tmp_path / "a.png").write_bytes(png_bytes(image))
    seen = reader.imread(tmp_path / "a.png")
    assert np.allclose(seen, image[..., 0] / np.iinfo(kind).max, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_scikit_learn_returns_the_weights_from_the_folder_alone(bits, problem, tmp_path):
    model, small = made(problem)
    small = round_pixels(small, bits=bits, key=KEY)
    assert jd.certify(model, small).exact  # m >= p: nothing is lost
    files = save_pictures(small, tmp_path / "set", bits)
    assert [file.name for file in files[:2]] == ["000.png", "001.png"] and len(files) == 21
    found = load_pictures(tmp_path / "set")
    x = problem[0].forward(found.images.astype(np.float32)).astype(np.float64)
    head = Ridge(alpha=found.lam, fit_intercept=False).fit(x, found.labels)
    assert np.linalg.norm(head.coef_.T - model.weights) < 1e-5 * np.linalg.norm(model.weights)


@pytest.mark.parametrize("rounds", [0, 2])
def test_an_intercept_is_returned_by_rounded_pixels_too(rounds, problem):
    transform, x, y = problem[:3]
    model = jd.fit_ridge(jd.features.Linear(12), x, y, lam=0.3, intercept=True)
    reference = {"realistic": "fixed", "reference": (x, y)}
    small = jd.distill(model, size=20, **reference, key=KEY).with_context(transform, None)
    small = round_pixels(small, rounds=rounds, key=KEY)
    assert jd.certify(model, small).exact
    head = Ridge(alpha=small.lam).fit(small.x.astype(np.float64), small.y)
    np.testing.assert_allclose(head.intercept_, model.intercept, rtol=1e-6)


def test_scikit_learn_returns_the_weights_of_a_network_from_the_file():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((80, 12)).astype(np.float32), jd.one_hot(np.arange(80) % 3, 3)
    phi = RandomNetwork.create(12, widths=(24,), activation="gelu", key=KEY)
    model = jd.fit_ridge(phi, x, y, lam=0.3)
    small = jd.distill(model, ipc=4, reference=(x, y), key=KEY)
    with jax.enable_x64(True):
        features = np.asarray(jax.jit(lambda phi, x: phi(x))(phi, small.x))
    head = Ridge(alpha=small.lam, fit_intercept=False, solver="svd").fit(features, small.y)
    assert np.linalg.norm(head.coef_.T - model.weights) < 1e-9 * np.linalg.norm(model.weights)


def test_torch_fits_a_linear_layer_in_closed_form(problem):
    torch = pytest.importorskip("torch")
    model, small = made(problem)
    x, y = torch.from_numpy(small.x).double(), torch.from_numpy(small.y)
    layer = torch.nn.Linear(12, 3, bias=False).double()
    gram = x.T @ x + small.lam * torch.eye(12, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.solve(gram, x.T @ y).T)
    assert np.linalg.norm(layer.weight.detach().numpy().T - model.weights) < 1e-5


@pytest.mark.long
def test_sixteen_bits_and_feedback_lose_less_where_examples_are_few(problem):
    phi = RandomNetwork.create(12, widths=(12,), activation="gelu", key=KEY)
    box = pixel_box(problem[0], 0.05, 0.95, dtype=np.float32)
    model, small = made(problem, phi, size=11, realistic=None, box=box)
    assert jd.certify(model, small).exact
    errors = {
        (bits, rounds): jd.certify(
            model, round_pixels(small, bits=bits, rounds=rounds, key=KEY)
        ).relative_weight_error
        for bits in (8, 16)
        for rounds in (0, 1)
    }
    assert errors[16, 0] < 0.05 * errors[8, 0] and errors[8, 0] < 0.2
    assert errors[8, 1] < 0.5 * errors[8, 0] and errors[16, 1] < 0.5 * errors[16, 0]


def test_feedback_gains_places_on_black_and_white_images():
    rng = np.random.default_rng(4)
    images = (rng.random((90, 6, 6, 1)) < 0.4).astype(np.float32)
    prepare = jd.Standardize.fit(images)
    x, y = prepare.forward(images), jd.one_hot(np.arange(90) % 2, 2)
    model = jd.fit_ridge(jd.features.Linear(36), x, y, lam=1.0)
    box, reference = pixel_box(prepare, dtype=np.float32), (x, y)
    small = jd.distill(model, size=20, realistic="closest", reference=reference, box=box, key=KEY)
    small = small.with_context(prepare, None)
    found = [round_pixels(small, rounds=rounds, key=KEY) for rounds in (0, 3)]
    errors = [jd.certify(model, one).relative_weight_error for one in found]
    assert errors[1] < 0.05 * errors[0]
    assert np.array_equal(found[1].x, round_pixels(small, rounds=3, key=KEY).x)
    with pytest.raises(InputError, match="room for"):
        round_pixels(small, rounds=9, key=KEY)


def test_pixels_outside_are_refused_with_how_far_and_the_cure(problem):
    _, small = made(problem)
    images = small.images.copy()
    images[0, 0, 0, 0], images[1, 1, 1, 0] = -0.25, 1.5
    far = replace(small, x=np.asarray(problem[0].forward(images)))
    with pytest.raises(InputError, match=r"0\.25 below and 0\.5 above.*--box 0 1"):
        round_pixels(far, key=KEY)
    with pytest.raises(InputError, match="not rounded to 8 bits"):
        save_pictures(small, "nowhere", 8)
    with pytest.raises(InputError, match="8 or 16"):
        pixel_levels(small.images, 12)
    with pytest.raises(InputError, match="no images"):
        pixel_levels(small.x, 8)
    with pytest.raises(InputError, match="with_context"):
        round_pixels(replace(small, preprocess=None), key=KEY)
    with pytest.raises(InputError, match="rounds"):
        round_pixels(small, rounds=-1, key=KEY)


def test_a_folder_that_is_no_set_is_refused(problem, tmp_path):
    small = round_pixels(made(problem)[1], key=KEY)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_pictures(tmp_path)
    save_pictures(small, tmp_path, 8)
    told = json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps(told | {"labels": told["labels"][:-1]}))
    with pytest.raises(ArtifactError, match=r"20 images.*19 labels"):
        load_pictures(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="name the set that was exported"):
        with_pictures(replace(small, y=small.y[:, :2]), tmp_path)
    assert np.array_equal(with_pictures(small, tmp_path).x, small.x)
    (tmp_path / "020.png").write_bytes(png_bytes(np.zeros((4, 3, 1), np.uint8)))
    with pytest.raises(ArtifactError, match="21 images"):
        load_pictures(tmp_path)
    (tmp_path / "020.png").unlink()
    (tmp_path / "003.png").write_bytes(png_bytes(np.zeros((4, 4, 1), np.uint8)))
    with pytest.raises(ArtifactError, match="different sizes"):
        load_pictures(tmp_path)
    (tmp_path / "003.png").write_bytes((tmp_path / "004.png").read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"003\.png"):
        load_pictures(tmp_path)
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(ArtifactError, match="understood"):
        load_pictures(tmp_path)
