"""Predicted label maps are written at the size of each image, without any labels."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from litevit_jax.evaluators import label_maps, segmentation, views
from tests.evaluators import segmentation_test as scenes

STATE = types.SimpleNamespace(params=jnp.ones(()), model_state={})


class Pictures(scenes.Scenes):
    """Images of the size of the label maps, which are not there."""

    annotations = ()
    classes = ()

    def __getitem__(self, index):
        shape = (*self.labels[index].shape, 1)
        return {"image": np.full(shape, 20 * index + 1, np.uint8)}

    def label_map(self, index):
        raise AssertionError(index)

    def name_of(self, index):
        return f"a/b c/{index}:x.jpg"


def written(tmp_path, **kwargs):
    context = scenes.context_of(tmp_path, source=Pictures())
    evaluator = label_maps.make(context=context, **kwargs)
    result = evaluator.run(STATE, step=3)
    files = sorted(tmp_path.rglob("*.png"))
    return result, {file.relative_to(tmp_path).as_posix(): file for file in files}


def test_each_image_gets_a_label_map_of_its_size_and_an_overlay(tmp_path):
    result, files = written(tmp_path)
    assert result == {"n": 5, "folder": str(tmp_path / "label_maps")}
    assert len(files) == 10
    context = scenes.context_of(tmp_path, source=Pictures())
    how = views.Decoding((5, 5))
    for image in views.predict(context, STATE, "eval", how):
        shape = (16, 2 * image.views[0].extent[1])
        _, want = segmentation.count(image, np.zeros(shape, np.uint8))
        start = f"label_maps/{image.index:06d}-{image.index}x"
        with Image.open(files[f"{start}.png"]) as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), want)
            colours = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(colours, segmentation.coloured(want, 3))
        with Image.open(files[f"{start}-overlay.png"]) as picture:
            mixed = (20 * image.index + 1 + colours.astype(float)) / 2
            assert abs(np.asarray(picture) - mixed).max() <= 0.5


def test_overlays_may_be_left_out(tmp_path):
    _, files = written(tmp_path, overlay=0.0)
    assert len(files) == 5 and not any("overlay" in name for name in files)


def test_a_share_of_colours_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"overlay=1.5; expected a share"):
        written(tmp_path, overlay=1.5)
