"""Large-scale jitter: one draw for the image and its objects, boxes tight again."""

import functools
import io
import itertools
import pickle

import numpy as np
import PIL.Image
import pytest

from litevit_jax import sharding
from litevit_jax.data import (
    decode,
    jitter,
    joint,
    objects,
    pipeline,
    polygons,
    splits,
)
from litevit_jax.data.sources import digit_scenes
from litevit_jax.data.sources.base import AnnotationError
from tests import jobs

SETTINGS = joint.Settings(
    annotations=("objects",), ratio=(0.1, 2.0), max_objects=6, mask_size=16
)


class Fixed:
    """A generator whose draws are given in advance."""

    def __init__(self, *, factor, flip=1.0, places=(0.5,)):
        self._factor, self._draws = factor, [flip, *places]

    def uniform(self, low, high):
        return self._factor

    def random(self):
        return self._draws.pop(0)


def _jitter(side=32, settings=SETTINGS, flip=0.5, **changes):
    how = joint.Settings(**{**vars(settings), **changes})
    return jitter.Jitter(decode.Decode(), (side, side), how, flip)


def _canvas(example, size=(32, 32)):
    fit = functools.partial(jitter.whole, size=size)
    return joint.Canvas(decode.Decode(), size, fit)(example, None)


def _scene(height=40, width=50, seed=0):
    """Rectangles and a triangle: masks as runs, and as polygons, of the same pixels."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, height, width), bool)
    image = np.zeros((height, width, 3), np.uint8)
    for i in range(4):
        top, left = rng.integers(height - 8), rng.integers(width - 8)
        masks[i, top : top + 8, left : left + 6 + i] = True
        image[masks[i]] = 60 * (i + 1)
    made = objects.of_masks(masks, [0, 1, 2, 3], 1)
    for i in (0, 1):
        x1, y1, x2, y2 = made.boxes[i]
        made.shapes[i] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    return {"image": image, "objects": made, "label": -1}


@pytest.mark.parametrize(
    ("factor", "size", "margins"),
    [
        (0.1, (48, 64), (0, 0)),
        (1.0, (480, 640), (0, 0)),
        (2.0, (960, 1280), (320, 640)),
        (1.37, (658, 877), (18, 237)),
    ],
)
def test_sizes_are_those_of_detectron2(factor, size, margins):
    for place in (0.0, 0.5, 1.0):
        made = _jitter(640).draw((480, 640), Fixed(factor=factor, places=(place,)))
        assert made.resized == size
        expected = [int(np.round(margin * place)) for margin in margins]
        assert [made.top, made.left] == expected  # one draw serves both axes
        assert made.size == (min(size[0], 640), min(size[1], 640))
    two = _jitter(640, crop_draws=2)
    made = two.draw((480, 640), Fixed(factor=2.0, places=(0.0, 1.0)))
    assert (made.top, made.left) == (0, 640)


def test_pixels_are_pil_s_of_the_mirrored_image():
    example = _scene()
    out = _jitter()(example, Fixed(factor=1.6, flip=0.1, places=(0.4,)))
    mirrored = PIL.Image.fromarray(example["image"][:, ::-1])
    scale = 1.6 * 32 / 50
    size = round(50 * scale), round(40 * scale)
    resized = np.asarray(mirrored.resize(size, PIL.Image.Resampling.BILINEAR))
    top, left = round((size[1] - 32) * 0.4), round((size[0] - 32) * 0.4)
    expected = resized[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(out["image"], expected)


def test_what_the_image_does_not_fill_is_zero():
    out = _jitter()(_scene(), Fixed(factor=0.5))
    np.testing.assert_array_equal(out["size"], (13, 16))
    assert not out["image"][13:].any() and not out["image"][:, 16:].any()
    assert out["image"][:13, :16].any()


def test_boxes_and_masks_lie_on_what_they_are_of():
    found = 0
    for seed in range(40):
        example = _scene(seed=seed)
        # One object alone, so that no other one covers it.
        example["image"][:] = 0
        example["image"][objects.bitmap(example["objects"].shapes[2])] = 255
        only = example["objects"]
        out = _jitter(ratio=(0.8, 2.0))(example, np.random.default_rng(seed))
        rows = np.flatnonzero(out["classes"] * out["valid"] == 2)
        bright = out["image"][..., 0] > 127
        if not bright.any():
            continue
        found += 1
        box = out["boxes"][rows[0]]
        np.testing.assert_allclose(box, objects.box_of(bright), atol=1.01)
        mask = np.unpackbits(out["masks"][rows[0]]).reshape(16, 16)
        assert mask.mean() > 0.97, only.boxes[2]
    assert found > 10


def test_polygons_and_runs_of_the_same_pixels_are_the_same_targets():
    for seed in range(20):
        example = _scene(seed=seed)
        drawn = np.random.default_rng(seed)
        one = _jitter()(example, drawn)
        those = example["objects"]
        for i in (0, 1):
            x1, y1, x2, y2 = those.boxes[i].astype(int)
            mask = np.zeros(those.size, bool)
            mask[y1:y2, x1:x2] = True
            those.shapes[i] = objects.runs(mask)
        two = _jitter()(example, np.random.default_rng(seed))
        np.testing.assert_allclose(one["boxes"], two["boxes"], atol=1e-4)
        np.testing.assert_array_equal(one["valid"], two["valid"])
        differs = np.unpackbits(one["masks"] ^ two["masks"], axis=-1).mean(axis=1)
        assert (differs < 0.13).all()  # COCO's rule draws a border of half a pixel


def test_masks_of_polygons_are_drawn_inside_their_box():
    example = _scene()
    triangle = [[10.0, 5.0, 40.0, 5.0, 10.0, 35.0]]
    example["objects"].shapes[0] = triangle
    out = _jitter()(example, Fixed(factor=1.0))
    scale = np.array((32 / 50, 26 / 40))
    corners = np.reshape(triangle, (-1, 2)) * scale
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    np.testing.assert_allclose(out["boxes"][0], box, atol=1e-5)
    expected = polygons.draw([corners], box, 16)
    mask = np.unpackbits(out["masks"][0]).reshape(16, 16)
    np.testing.assert_array_equal(mask, expected)
    assert mask[2, 2] and not mask[13, 13]


def test_the_largest_objects_are_kept_and_the_others_counted():
    out = _jitter(max_objects=2)(_scene(seed=3), Fixed(factor=1.0))
    np.testing.assert_array_equal(out["classes"], (2, 3))  # the widest ones, in order
    assert out["left_out"] == 2 and out["valid"].all()


def test_crowds_are_no_targets_and_what_is_outside_is_dropped():
    example = _scene()
    example["objects"].crowd[1] = True
    out = _jitter()(example, Fixed(factor=1.0))
    assert 1 not in out["classes"][out["valid"]] and out["valid"].sum() == 3
    example["objects"].shapes[0] = [[60.0, 60.0, 70.0, 60.0, 70.0, 70.0]]
    out = _jitter()(example, Fixed(factor=1.0))
    assert out["valid"].sum() == 2 and not out["boxes"][~out["valid"]].any()


def test_boxes_alone_need_no_masks():
    example = _scene()
    example["objects"].shapes[:] = [None] * 4
    with pytest.raises(
        AnnotationError, match=r"object 1001 has no mask; .*detect.py:boxes"
    ):
        _jitter()(example, Fixed(factor=1.0))
    out = _jitter(annotations=("boxes",))(example, Fixed(factor=1.0, flip=0.0))
    assert "masks" not in out
    x1, y1, x2, y2 = example["objects"].boxes[0]
    scale = np.array((32 / 50, 26 / 40) * 2)
    expected = np.array((50 - x2, y1, 50 - x1, y2)) * scale
    np.testing.assert_allclose(out["boxes"][0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (7, 900)])
def test_images_of_any_ratio_are_padded(size):
    mask = np.ones((1, *size), bool)
    image = np.full((*size, 3), 90, np.uint8)
    example = {"image": image, "objects": objects.of_masks(mask, [0], 1)}
    for seed in range(5):
        out = _jitter()(example, np.random.default_rng(seed))
        assert out["image"].shape == (32, 32, 3) and (out["size"] >= 1).all()
        height, width = out["size"]
        np.testing.assert_allclose(out["boxes"][0], (0, 0, width, height), atol=1e-5)
    canvas = _canvas(example)
    assert (canvas["size"] >= 1).all() and canvas["size"].max() == 32


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_read(mode):
    file = io.BytesIO()
    pixels = np.full((40, 50), 200, np.uint8)
    picture = PIL.Image.fromarray(pixels)
    if mode == "I;16":
        picture = PIL.Image.fromarray(pixels.astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(file, "TIFF" if mode == "CMYK" else "PNG")
    example = _scene() | {"image": file.getvalue()}
    assert _jitter()(example, Fixed(factor=1.0))["image"].max() == 200


def test_objects_of_another_size_name_the_usual_cause():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.fromarray(_scene()["image"]).save(file, "JPEG", exif=exif)
    example = _scene() | {"image": file.getvalue()}
    with pytest.raises(AnnotationError, match="50 x 40 pixels, but the upright image "):
        _jitter()(example, Fixed(factor=1.0))
    with pytest.raises(AnnotationError, match="the sides are swapped"):
        _canvas(example)


@pytest.mark.parametrize(
    ("before", "size", "expected"),
    [
        ((480, 640), (640, 640), (480, 640)),
        ((427, 640), (640, 640), (427, 640)),
        ((1000, 333), (640, 640), (640, 213)),
        ((20, 10), (640, 640), (640, 320)),
        ((200, 100), (640, 320), (640, 320)),
        ((90, 100), (640, 320), (288, 320)),
    ],
)
def test_the_whole_image_is_evaluated_on_a_canvas(before, size, expected):
    assert jitter.fitted(before, size) == expected


def test_the_draw_follows_from_the_generator_alone():
    example = _scene()
    crop = pickle.loads(pickle.dumps(_jitter()))
    one, two = (each(example, np.random.default_rng(5)) for each in (_jitter(), crop))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    other = crop(example, np.random.default_rng(6))
    assert (other["image"] != one["image"]).any()
    assert {name: (x.shape, x.dtype) for name, x in one.items() if name != "image"} == {
        name: (shape, np.dtype(kind)) for name, (shape, kind) in crop.extras.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": ("objects", "boxes")}, "expected one of label_map, objects"),
        ({"crop_draws": 3}, "expected 1 or 2 draws"),
        ({"max_objects": 0}, "at least 1 object"),
        ({"mask_size": 20}, "a multiple of 8"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        joint.Settings(**change)


SCENES = digit_scenes.make(split="train", size=40, scenes=30, objects=True)


def _batches(**options):
    options = {"batch_size": 8, "seed": 3, "threads": 2} | options
    transform = _jitter(flip=0.5, ratio=(0.5, 2.0))
    stream = pipeline.train_batches(SCENES, transform, **options)
    batches = list(itertools.islice(stream, 3))
    stream.close()
    return batches


@pytest.mark.parametrize("options", [{"threads": 8}, {"start_step": 1}])
def test_objects_follow_from_seed_and_position_alone(options):
    start = options.get("start_step", 0)
    for one, two in zip(_batches()[start:], _batches(**options), strict=False):
        assert one.keys() == two.keys() and one["valid"].any()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_objects_do_not_depend_on_the_number_of_processes():
    parts = [_batches(process_index=p, process_count=2) for p in range(2)]
    for whole, *halves in zip(_batches(), *parts, strict=True):
        for name in whole:
            joined = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(whole[name], joined)


def test_whole_scenes_are_evaluated_at_the_image_size():
    data = jobs.config("mae_tiny", "smoke").data
    with data.unlocked():
        data.update(image_size=32, channels=3)
        data.joint.update(annotations=("objects",))
    test = digit_scenes.make(split="test", size=40, test_scenes=11, objects=True)
    batches = splits.evaluation_batches(data, 8, sharding.make_mesh())(test)
    seen = []
    for batch in batches:
        assert batch["image"].shape[1:] == (32, 32, 3)
        mask = batch["mask"] > 0
        seen += batch["index"][mask].tolist()
        assert (batch["size"][mask] == 32).all()
        assert (batch["original_size"][mask] == 40).all()
    assert seen == list(range(11))
