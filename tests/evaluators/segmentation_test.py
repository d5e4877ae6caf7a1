"""Intersection over union: recorded values, and windows against a plain reference."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from litevit_jax import sharding
from litevit_jax.data import windows
from litevit_jax.evaluators import base, segmentation, views
from tests import dense_golden as golden

CROP = (8, 8)


def one_hot(label, classes):
    return np.eye(classes, dtype=np.float32)[label]


def whole(prediction, classes):
    """The logits of one window that covers a label map exactly."""
    return windowed(one_hot(prediction, classes)[None, None], prediction.shape)


def windowed(logits, crop, starts=None, extent=None, mirrored=False):
    """An image of one view; without `starts`, of one window."""
    zero = np.zeros(1, np.int32)
    view = views.View(logits, starts or (zero, zero), extent or crop, mirrored)
    return views.Predicted(0, crop, (view,))


def test_counts_and_scores_of_several_images_are_the_recorded_ones():
    values = golden.group("miou")
    counts = 0
    for label, prediction in zip(values["label"], values["prediction"], strict=True):
        counted, called = segmentation.count(whole(prediction, 6), label)
        np.testing.assert_array_equal(called, prediction)
        counts += counted
    np.testing.assert_array_equal(counts[:, :6], values["confusion"])
    assert not counts[:, 6].any()
    got = segmentation.scores(counts)
    want = {"miou": "miou", "aacc": "aacc", "macc": "macc"}
    for name, key in want.items():
        assert got[name] == pytest.approx(100 * float(values[key]), rel=1e-5)


def test_scores_are_those_of_mmsegmentation():
    values = golden.group("mmiou")
    counts, _ = segmentation.count(whole(values["prediction"], 6), values["label"])
    got = segmentation.scores(counts)
    assert got["miou"] == pytest.approx(100 * float(values["miou"]), rel=1e-5)
    assert got["aacc"] == pytest.approx(100 * float(values["aacc"]), rel=1e-5)
    rows = segmentation.table(counts, "abcdef")
    for name in ("iou", "acc"):
        each = [np.nan if row[name] is None else row[name] / 100 for row in rows]
        np.testing.assert_allclose(each, values[name], rtol=1e-5)
    assert [row["class"] for row in rows] == list("abcdef")


def test_logits_that_are_no_numbers_are_never_right():
    label = np.zeros((4, 4), np.uint8)
    image = whole(label, 3)
    image.views[0].logits[..., 1] = np.nan
    counts, _ = segmentation.count(image, label)
    assert counts[0, 3] == 16 and segmentation.scores(counts)["aacc"] == 0


def bilinear(x, size):
    """Resizes `[h, w, K]` by the formula, in float64."""
    for axis, length in enumerate(size):
        known = x.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * known / length - 0.5, 0, known - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, known - 1), at - low
        part = part.reshape(-1, *[1] * (2 - axis))
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x


def reference(logits, extent, stride, size):
    """Adds windows up, divides, cuts and resizes, one after the other."""
    starts = [
        windows.starts(n, c, s) for n, c, s in zip(extent, CROP, stride, strict=True)
    ]
    shape = [max(n, c) for n, c in zip(extent, CROP, strict=True)]
    total, seen = np.zeros((*shape, logits.shape[-1])), np.zeros((*shape, 1))
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            area = np.s_[top : top + CROP[0], left : left + CROP[1]]
            total[area] += bilinear(logits[i, j].astype(np.float64), CROP)
            seen[area] += 1
    mean = (total / seen)[: extent[0], : extent[1]]
    return bilinear(mean, size)


@pytest.mark.parametrize(
    ("extent", "size"),
    [((8, 8), (8, 8)), ((8, 19), (31, 70)), ((17, 8), (9, 5)), ((5, 12), (40, 96))],
)
def test_windows_are_averaged_cut_and_enlarged_as_the_reference_does(extent, size):
    rng, stride = np.random.default_rng(0), (5, 5)
    starts = [
        np.array(windows.starts(n, c, s), np.int32)
        for n, c, s in zip(extent, CROP, stride, strict=True)
    ]
    grid = tuple(map(len, starts))
    logits = rng.normal(size=(*grid, 2, 2, 5)).astype(np.float32)
    image = windowed(logits, CROP, tuple(starts), extent)
    want = reference(logits, extent, stride, size)
    _, called = segmentation.count(image, np.zeros(size, np.uint8))
    ordered = np.sort(want, axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > 1e-4
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(called[clear], want.argmax(axis=-1)[clear])


def test_enlarging_in_blocks_of_rows_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 1, 4, 4, 3)).astype(np.float32)
    image = windowed(logits, CROP)
    label = rng.integers(0, 3, (64, 48)).astype(np.uint8)
    want = segmentation.count(image, label)
    monkeypatch.setattr(segmentation, "_MOST_LOGITS", 1024)
    assert segmentation._blocks(64 * 48, 64, 3) == 16
    segmentation._count.clear_cache()
    got = segmentation.count(image, label)
    segmentation._count.clear_cache()
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def softmax(x):
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def test_the_softmax_of_views_is_averaged_at_the_original_size():
    rng, size = np.random.default_rng(0), (21, 30)
    total, seen = 0, []
    for extent, mirrored in (((8, 12), False), ((8, 12), True), ((16, 24), True)):
        starts = [
            np.array(windows.starts(n, c, 5), np.int32)
            for n, c in zip(extent, CROP, strict=True)
        ]
        logits = 3 * rng.normal(size=(*map(len, starts), 2, 2, 4)).astype(np.float32)
        seen.append(views.View(logits, tuple(starts), extent, mirrored))
        large = softmax(reference(logits, extent, (5, 5), size))
        total = total + (large[:, ::-1] if mirrored else large)
    image = views.Predicted(0, CROP, tuple(seen))
    _, called = segmentation.count(image, np.zeros(size, np.uint8))
    ordered = np.sort(total, axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > 1e-4
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(called[clear], total.argmax(axis=-1)[clear])


def test_label_maps_are_padded_to_few_sizes():
    sizes = {n: segmentation._padded(n) for n in (1, 32, 33, 48, 49, 96, 97, 683)}
    assert sizes == {1: 32, 32: 32, 33: 48, 48: 48, 49: 64, 96: 96, 97: 128, 683: 768}


class Scenes:
    """Images of several sizes with label maps; `labels` may be replaced."""

    annotations = ("label_map",)
    classes = ("sky", "tree", "road")

    def __init__(self, count=5):
        rng = np.random.default_rng(0)
        self.extents = [(8, 8 + 3 * i) for i in range(count)]
        self.labels = [
            rng.integers(0, 3, (2 * rows, 2 * cols)).astype(np.uint8)
            for rows, cols in self.extents
        ]
        self.labels[0][:3] = 255

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        rows, cols = self.extents[index]
        return {"image": np.full((rows, cols, 1), 20 * index + 1, np.uint8)}

    def label_map(self, index):
        return self.labels[index]

    def name_of(self, index):
        return f"scene {index}"


def batches(size, width=32):
    """A function from a source to batches of `size` canvases."""

    def of(source, scales=(1.0,)):
        count = -(-len(source) // size) * size
        image = np.zeros((count, 8, width, 1), np.uint8)
        extent = np.zeros((count, 2), np.int32)
        for i in range(len(source)):
            rows, cols = extent[i] = source.extents[i]
            image[i, :rows, :cols] = 20 * i + 1
        known = np.arange(count) < len(source)
        rows = {
            "image": image,
            "size": extent,
            "original_size": 2 * extent,
            "index": np.where(known, np.arange(count), -1).astype(np.int32),
            "label": np.zeros(count, np.int32),
            "mask": known.astype(np.float32),
        }
        for start in range(0, count, size):
            for view in range(len(scales)):  # as large each time
                batch = {k: x[start : start + size] for k, x in rows.items()}
                yield batch | {"view": np.full(size, view, np.int32)}

    return of


PLACE = jnp.arange(48).reshape(4, 4, 3) * 29 % 41


def predict(params, model_state, batch):
    """Logits `[B, 4, 4, 3]` that depend on the pixels and on where they lie."""
    del model_state
    x = batch["image"].astype(jnp.float32)[:, ::2, ::2]
    x = jnp.concatenate([x, 40 - x, 10 + 0 * x], axis=-1)
    return {"segmentation_logits": x + params * PLACE}


def context_of(tmp_path, *, source=None, size=4, width=32, devices=(1, 1)):
    """A context of scenes, or of another source like them."""
    source = source or Scenes()
    return base.Context(
        predict=predict,
        source=lambda _: source,
        batches=batches(size, width),
        mesh=sharding.make_mesh(*devices, sharding.jax.devices()[: np.prod(devices)]),
        outdir=tmp_path,
        mean=(0.5,),
        std=(0.5,),
        num_classes=3,
        size=CROP,
    )


def evaluate(tmp_path, *, images=4, how=None, **kwargs):
    context = context_of(tmp_path, **kwargs)
    evaluator = segmentation.make(context=context, images=images, **how or {})
    state = types.SimpleNamespace(params=jnp.ones(()), model_state={})
    return evaluator, evaluator.run(state, step=7)


def test_the_result_is_independent_of_batch_devices_and_padding(tmp_path):
    results = [
        evaluate(tmp_path, images=0)[1],
        evaluate(tmp_path, images=0, size=8, devices=(8, 1))[1],
        evaluate(tmp_path, images=0, size=1, width=64)[1],
        evaluate(tmp_path, images=0, size=8, devices=(4, 2))[1],
    ]
    assert results[0]["n"] == 5
    pixels = sum((label != 255).sum() for label in Scenes().labels)
    assert sum(row["pixels"] for row in results[0]["table"]) == pixels
    for result in results[1:]:
        assert result == results[0]


def test_heads_on_each_block_are_compared(tmp_path):
    """The second block's head is the plain one."""

    def both(params, model_state, batch):
        logits = predict(params, model_state, batch)["segmentation_logits"]
        return {"segmentation_logits_each": jnp.stack([-logits, logits], axis=-2)}

    context = dataclasses.replace(context_of(tmp_path), predict=both)
    state = types.SimpleNamespace(params=jnp.ones(()), model_state={})
    made = segmentation.make(context=context, images=0, each_block=True)
    result, plain = made.run(state, step=1), evaluate(tmp_path, images=0)[1]
    first, last = result.pop("blocks")
    assert result == plain
    names = ("miou", "aacc", "macc")
    assert last == {"block": 2} | {name: plain[name] for name in names}
    assert first["block"] == 1 and first["aacc"] != last["aacc"]


def test_images_labels_and_predictions_are_drawn(tmp_path):
    evaluate(tmp_path, images=2)
    with Image.open(tmp_path / "segmentation_0000007.png") as picture:
        assert picture.size[0] > 6 * 160
        pixels = {tuple(x) for x in np.asarray(picture).reshape(-1, 3)}
    assert {tuple(x) for x in segmentation.palette(3)} <= pixels
    evaluate(tmp_path / "none", images=0)
    assert not (tmp_path / "none").exists()


def test_colours_of_classes_differ():
    colours = segmentation.palette(150)
    assert colours.shape == (150, 3) and len({tuple(c) for c in colours}) == 150
    assert not (colours == 255).all(axis=1).any()  # pixels without a label are white
    neighbours = abs(colours[1:].astype(int) - colours[:-1]).max(axis=1)
    assert neighbours.min() > 30


def test_labels_that_are_no_class_are_an_error(tmp_path):
    source = Scenes()
    source.labels[3][0, :2] = 3
    message = r"scene 3: .*has the label 3 \(2 pixels.*0 to 2, or 255"
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, source=source)


def test_data_without_label_maps_are_refused(tmp_path):
    source = Scenes()
    evaluator, _ = evaluate(tmp_path, source=source, images=0)
    evaluator.check_data()
    source.annotations = ()
    with pytest.raises(ValueError, match=r"'eval' needs label maps.*segfolder"):
        evaluator.check_data()


VIEWS = {"scales": (1.0, 2.0), "flip": True}


def test_several_views_count_each_image_once_whatever_the_batch(tmp_path):
    one = evaluate(tmp_path, images=0)[1]
    many = evaluate(tmp_path, images=0, how=VIEWS)[1]
    again = evaluate(tmp_path, images=0, how=VIEWS, size=8, devices=(8, 1))[1]
    assert many == again and many["n"] == one["n"] == 5
    assert [r["pixels"] for r in many["table"]] == [r["pixels"] for r in one["table"]]
    assert many["miou"] != one["miou"]  # what is predicted depends on the place


def test_mirrored_windows_see_left_and_right_swapped(tmp_path):
    context = context_of(tmp_path)
    how = views.decoding(context, None, (1.0,), True)
    state = types.SimpleNamespace(params=jnp.zeros(()), model_state={})
    for image in views.predict(context, state, "eval", how):
        plain, mirrored = image.views
        assert (plain.mirrored, mirrored.mirrored) == (False, True)
        assert plain.extent == mirrored.extent == Scenes().extents[image.index]
        # Pixels of the image, all alike, start at its left and are padded right.
        np.testing.assert_array_equal(plain.logits, mirrored.logits)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"stride": 0}, "stride=0; expected 1 to 8"),
        ({"stride": 9}, "stride=9; expected 1 to 8"),
        ({"scales": ()}, r"scales=\(\); expected different factors above 0"),
        ({"scales": (1.0, 1.0)}, r"scales=\(1.0, 1.0\); expected different"),
        ({"scales": (0.0,)}, r"scales=\(0.0,\); expected different"),
    ],
)
def test_windows_and_views_that_make_no_sense_are_refused(how, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, how=how)


def test_the_usual_stride_is_two_thirds_of_a_window():
    context = types.SimpleNamespace(size=(512, 512))
    assert segmentation.make(context=context).how.stride == (341, 341)
