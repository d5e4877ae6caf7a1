"""The picture, pixel by pixel, and the loss over every example."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from litevit_jax.evaluators import reconstruction
from tests.evaluators import common

SIDE, SCALE, TITLE, GAP = 4, 24, 16, 4  # 4 pixels become 96
TILE = SIDE * SCALE
BLOCK = 3 * (TILE + GAP) + 3 * GAP


def predict(params, model_state, batch):
    """Normalised pixels with a black corner, doubled values, losses looked up."""
    del model_state
    image = (batch["image"] / 255.0 - 0.25) / 0.5
    return {
        "mae_loss": params[batch["index"]],
        "masked": image.at[:, :2, :2].set(0.0),
        "reconstruction": jnp.where(image > 100, image, image * 2),
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(numbers, picture, source) of 37 examples, 3 of them drawn."""
    outdir = tmp_path_factory.mktemp("pictures")
    source = common.Images(np.full(37, -1), 0)
    made = common.context(predict, tmp_path=outdir, eval=source)
    losses = np.arange(37, dtype=np.float32)
    evaluator = reconstruction.make(context=made, images=3)
    numbers = evaluator.run(common.state(losses), step=12)
    with Image.open(outdir / "reconstruction_0000012.png") as picture:
        return numbers, np.asarray(picture), source


def tile(picture, number, column):
    """Pixels of one tile; two examples stand side by side."""
    line, half = divmod(number, 2)
    x, y = half * BLOCK + column * (TILE + GAP), TITLE + line * (TILE + GAP)
    return picture[y : y + TILE, x : x + TILE]


def enlarged(image):
    return np.kron(image, np.ones((SCALE, SCALE, 3), np.uint8))


def test_the_loss_is_the_mean_over_all_examples(drawn):
    assert drawn[0] == {"mae_loss": pytest.approx(18.0), "n": 37}


def test_the_picture_has_a_row_for_every_two_examples(drawn):
    assert drawn[1].shape == (TITLE + 2 * (TILE + GAP), 2 * BLOCK, 3)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_tiles_are_the_enlarged_original_masked_and_reconstructed(drawn, number):
    _, picture, source = drawn
    image = source.images[number]
    np.testing.assert_array_equal(tile(picture, number, 0), enlarged(image))
    masked = image.copy()
    masked[:2, :2] = round(0.25 * 255)  # the mean, since 0 is de-normalised
    np.testing.assert_array_equal(tile(picture, number, 1), enlarged(masked))
    doubled = ((image / 255 - 0.25) / 0.5 * 2 * 0.5 + 0.25) * 255
    want = np.clip(np.round(doubled), 0, 255).astype(np.uint8)
    got = tile(picture, number, 2).astype(int)
    assert np.abs(got - enlarged(want)).max() <= 1


def test_columns_have_titles_and_the_rest_is_white(drawn):
    _, picture, _ = drawn
    for column in range(3):
        title = picture[:TITLE, column * (TILE + GAP) :][:, :TILE]
        assert (title < 128).any()
    assert (tile(picture, 3, 0) == 255).all()  # there is no fourth example


def test_no_more_examples_are_counted_than_asked_for(tmp_path):
    source = common.Images(np.full(37, -1), 0)
    made = common.context(predict, tmp_path=tmp_path, eval=source)
    losses = common.state(np.arange(37, dtype=np.float32))
    got = reconstruction.make(context=made, examples=11).run(losses, step=0)
    assert got == {"mae_loss": pytest.approx(5.0), "n": 11}


def test_large_images_are_not_enlarged_and_colours_are_kept():
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    picture = reconstruction.grid([[image, image, image]])
    np.testing.assert_array_equal(picture[TITLE : TITLE + 100, :120], image)
    assert picture.shape == (TITLE + 100 + GAP, 3 * (120 + GAP) + 3 * GAP, 3)


@pytest.mark.parametrize("setting", [{"images": 0}, {"examples": 0}])
def test_settings_that_draw_or_count_nothing_are_refused(setting):
    with pytest.raises(ValueError, match="must be >= 1"):
        reconstruction.make(context=common.context(None), **setting)
