import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.data.augment import Augmentation, rotate
from jaxdistill.errors import InputError


def images(number=200, height=5, width=6, channels=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(number, height, width, channels)), jnp.float32)


def test_flip_mirrors_about_half_of_the_images():
    x = images()
    out = np.asarray(Augmentation(flip=True)(x, jax.random.key(0)))
    same = (out == np.asarray(x)).all(axis=(1, 2, 3))
    mirrored = (out == np.asarray(x)[:, :, ::-1]).all(axis=(1, 2, 3))
    assert np.all(same ^ mirrored) and 60 < mirrored.sum() < 140


def test_shifts_are_whole_pixels_and_all_of_them_occur():
    ramp = jnp.broadcast_to(10.0 * jnp.arange(7.0)[:, None] + jnp.arange(7.0), (400, 7, 7))[..., None]
    centre = np.asarray(Augmentation(shift=2)(ramp, jax.random.key(1)))[:, 3, 3, 0]
    assert set(centre) == {10.0 * r + c for r in range(1, 6) for c in range(1, 6)}


def test_what_comes_in_repeats_the_border():
    out = Augmentation(shift=3, rotation=90.0)(jnp.full((20, 4, 4, 1), 2.5), jax.random.key(0))
    np.testing.assert_allclose(out, 2.5, rtol=1e-6)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_by_right_angles_is_that_of_numpy(quarters):
    image = np.random.default_rng(0).normal(size=(6, 6, 3)).astype(np.float32)
    out = rotate(jnp.asarray(image), jnp.float32(quarters * np.pi / 2))
    np.testing.assert_allclose(out, np.rot90(image, -quarters), atol=1e-5)


def test_rotation_by_nothing_is_nothing_and_every_image_has_its_own_angle():
    x = images(8)
    np.testing.assert_allclose(jax.vmap(rotate)(x, jnp.zeros(8)), x, atol=1e-6)
    out = np.asarray(Augmentation(rotation=30.0)(jnp.repeat(x[:1], 8, axis=0), jax.random.key(2)))
    assert len({image.tobytes() for image in out}) == 8


def test_key_type_and_transformations():
    change = Augmentation(flip=True, shift=1, rotation=10.0)
    x = images(4)
    eager, compiled = change(x, jax.random.key(0)), jax.jit(change)(x, jax.random.key(0))
    np.testing.assert_allclose(eager, compiled, atol=1e-6)
    assert eager.dtype == x.dtype and not np.allclose(eager, change(x, jax.random.key(1)))
    assert change.describe() == {"flip": True, "shift": 1, "rotation": 10.0}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        assert change(x.astype(jnp.float64), jax.random.key(0)).dtype == jnp.float64
        assert change(x, jax.random.key(0)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shift": -1}, "shift is -1"),
        ({"shift": 1.5}, "whole number"),
        ({"rotation": 200.0}, "rotation is 200"),
        ({"rotation": float("nan")}, "rotation is nan"),
        ({}, "changes nothing"),
    ],
)
def test_bad_amounts_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        Augmentation(**settings)
