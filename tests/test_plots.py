"""Pictures: what is drawn, in which range, with which words; one file, written whole."""

import numpy as np
import pytest
from matplotlib.image import imread

from jaxdistill.errors import OutputError
from jaxdistill.plots import MOST_COLUMNS, Row, as_picture, draw_rows

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("shape", "picture"),
    [((5, 4, 1), (5, 4)), ((5, 4, 3), (5, 4, 3)), ((5, 4, 2), (5, 4)), ((10,), (4, 4))],
)
def test_every_kind_of_example_becomes_a_picture(shape, picture):
    example = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    drawn, natural = as_picture(example)
    assert drawn.shape == picture and natural
    assert drawn.min() >= 0 and drawn.max() <= 1


def test_natural_images_keep_their_values_and_others_are_stretched_to_their_extremes():
    image = np.array([[0.25, 0.5], [0.75, 1.0]])[..., None]
    np.testing.assert_array_equal(as_picture(image)[0], image[..., 0])
    drawn, natural = as_picture(8 * image - 4)
    assert not natural
    np.testing.assert_allclose(drawn, (image[..., 0] - 0.25) / 0.75)


def test_rows_of_different_lengths_and_many_columns_are_one_png(tmp_path):
    rng = np.random.default_rng(0)
    rows = [Row("many", rng.random((MOST_COLUMNS + 5, 6, 6, 1))), Row("few", rng.random((2, 6, 6, 3)))]
    path = draw_rows(rows, [f"class number {c}" for c in range(3)], tmp_path / "a.png", "a note")
    assert path.read_bytes().startswith(PNG)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]  # nothing beside it
    height, width = imread(path).shape[:2]
    assert width > 5 * height  # twenty columns, two rows


def test_what_is_drawn_is_the_image(tmp_path):
    black, white = (np.full((1, 4, 4, 1), value) for value in (0.0, 1.0))
    dark, light = (imread(draw_rows([Row("", x)], None, tmp_path / "x.png"))[..., 0] for x in (black, white))
    changed = dark != light
    assert 0.1 < changed.mean() < 0.9
    assert dark[changed].max() < 0.01 < 0.99 < light[changed].min()


@pytest.mark.parametrize("name", ["$", "$x^", "cost $5 and $6", "\\frac{", "猫", "\U0001f600", "a_b^c", ""])
def test_every_name_is_drawn_as_it_is_without_a_warning(tmp_path, name):
    """Warnings are errors here."""
    images = np.random.default_rng(0).random((1, 4, 4, 1))
    path = draw_rows([Row(name, images)], [name], tmp_path / "a.png", name)
    plain = draw_rows([Row("", images)], [""], tmp_path / "b.png", "")
    assert path.read_bytes().startswith(PNG)
    assert (path.read_bytes() == plain.read_bytes()) == (name == "")


@pytest.mark.parametrize("value", [-3.0, 7.0, 1.7e9])
@pytest.mark.parametrize("shape", [(4, 4, 1), (5,), (4, 4, 3)])
def test_a_constant_example_is_flat(value, shape):
    drawn, natural = as_picture(np.full(shape, value))
    assert not natural and np.all(drawn == 0.5)


def test_a_picture_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        draw_rows([Row("", np.zeros((1, 2, 2, 1)))], None, tmp_path / "file" / "a.png")
