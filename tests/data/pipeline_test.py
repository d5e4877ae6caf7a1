"""Batches follow from (seed, position) alone; evaluation counts everything once."""

import collections
import dataclasses
import io
import itertools
import logging
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import pipeline, transforms
from litevit_jax.data.sources import base

SIDE = 6


@dataclasses.dataclass(frozen=True)
class Noise(base.Source):
    """Small random images; those of `bad` are not images, `gone` not there."""

    count: int
    bad: frozenset = frozenset()
    gone: frozenset = frozenset()
    classes: tuple = ()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.gone:
            raise FileNotFoundError("gone")
        if index in self.bad:
            return {"image": b"not an image", "label": index}
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return {"image": image, "label": index}

    def name_of(self, index):
        return f"noise[{index}]"

    def fingerprint(self):
        return "noise"


TRAIN = transforms.train_ops(image_size=(SIDE, SIDE))
EVAL = transforms.eval_ops(image_size=(SIDE, SIDE), eval_crop_fraction=1.0)


def _train(source, steps=4, **options):
    options = {"batch_size": 8, "seed": 3, "threads": 2} | options
    stream = pipeline.train_batches(source, TRAIN, **options)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def _assert_equal(one, two):
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key])


def _joined(parts):
    """Batches of all processes -> global batches."""
    return [
        {key: np.concatenate([p[key] for p in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("start", [1, 7])
def test_a_stream_restarted_at_a_step_yields_what_it_would_have(start):
    _assert_equal(
        _train(Noise(30), 10)[start:], _train(Noise(30), 10 - start, start_step=start)
    )


@pytest.mark.parametrize("threads", [1, 8])
def test_threads_change_nothing(threads):
    _assert_equal(_train(Noise(30)), _train(Noise(30), threads=threads))


def test_worker_processes_change_nothing():
    source = Noise(200, bad=frozenset({5}))
    options = {"max_bad_fraction": 1.0, "start_step": 2}
    threads = _train(source, 6, **options)
    _assert_equal(threads, _train(source, 6, workers=2, **options))


@pytest.mark.parametrize("count", [2, 4])
def test_process_count_changes_nothing(count):
    parts = [
        _train(Noise(30), process_index=p, process_count=count, start_step=1)
        for p in range(count)
    ]
    _assert_equal(_joined(parts), _train(Noise(30), start_step=1))


class Labelled(Noise):
    """As Noise, with a label map that the pixels tell, of sizes around the crop's."""

    annotations = ("label_map",)

    def __getitem__(self, index):
        example = super().__getitem__(index)
        size = (SIDE - 2 + index % 5, SIDE + index % 3)
        rng = np.random.default_rng(index)
        example["image"] = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        return example | {"label_map": example["image"][..., 0] % 4, "label": -1}


JOINT = transforms.for_training(
    image_size=(SIDE, SIDE), joint={"annotations": ("label_map",), "short_side": SIDE}
)


def _train_joint(steps=4, **options):
    options = {"batch_size": 8, "seed": 3, "threads": 2} | options
    stream = pipeline.train_batches(Labelled(30), JOINT, **options)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def test_label_maps_come_with_their_images():
    batch = _train_joint(1)[0]
    shapes = {key: (x.shape, x.dtype) for key, x in batch.items()}
    assert shapes == {
        "image": ((8, SIDE, SIDE, 3), np.uint8),
        "label_map": ((8, SIDE, SIDE), np.uint8),
        "size": ((8, 2), np.int32),
        "label": ((8,), np.int32),
        "index": ((8,), np.int32),
    }
    assert set(np.unique(batch["label_map"])) <= {0, 1, 2, 3, 255}
    rows, columns = (batch["size"][:, i, None] for i in (0, 1))
    outside = np.arange(SIDE)[None] >= rows
    assert (batch["label_map"][outside] == 255).all() and outside.any()
    assert not batch["image"][np.arange(SIDE)[None] >= rows].any()
    assert (columns <= SIDE).all()


@pytest.mark.parametrize(
    "options",
    [{"threads": 8}, {"workers": 2}, {"start_step": 2}],
    ids=lambda options: next(iter(options)),
)
def test_label_maps_follow_from_seed_and_position_alone(options):
    start = options.get("start_step", 0)
    _assert_equal(_train_joint()[start:], _train_joint(4 - start, **options))


def test_label_maps_do_not_depend_on_the_number_of_processes():
    parts = [_train_joint(process_index=p, process_count=4) for p in range(4)]
    _assert_equal(_joined(parts), _train_joint())


def test_an_annotation_of_another_shape_names_the_example():
    class Wrong(Labelled):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example | {"label_map": example["label_map"][1:]}

    stream = pipeline.train_batches(
        Wrong(30), JOINT, batch_size=8, seed=0, max_bad_fraction=1.0
    )
    with pytest.raises(
        ValueError, match=r"noise\[\d+\]: label map of .* never resized"
    ):
        next(stream)


TWO_VIEWS = transforms.train_ops(image_size=(SIDE, SIDE), views=2)


def _train_views(**options):
    options = {"batch_size": 8, "seed": 3, "threads": 2} | options
    stream = pipeline.train_batches(Noise(30), TWO_VIEWS, **options)
    batches = list(itertools.islice(stream, 4))
    stream.close()
    return batches


def test_views_follow_from_seed_position_and_view_alone():
    batches = _train_views()
    for two, one in zip(batches, _train(Noise(30)), strict=True):
        assert "image" not in two
        assert two["views"].shape == (8, 2, SIDE, SIDE, 3)
        np.testing.assert_array_equal(two["views"][:, 0], one["image"])
        np.testing.assert_array_equal(two["index"], one["index"])
        differ = (two["views"][:, 0] != two["views"][:, 1]).any(axis=(1, 2, 3))
        assert differ.sum() >= 6  # of 8: a crop of so small an image may come twice
    _assert_equal(batches[2:], _train_views(start_step=2)[:2])
    _assert_equal(batches, _train_views(threads=1))
    parts = [_train_views(process_index=p, process_count=2) for p in range(2)]
    _assert_equal(batches, _joined(parts))


def test_each_epoch_is_a_fresh_permutation():
    batches = _train(Noise(16), 6)
    epochs = np.concatenate([b["index"] for b in batches]).reshape(3, 16)
    assert (np.sort(epochs, axis=1) == np.arange(16)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_seeds_give_unrelated_orders():
    orders = [
        np.concatenate([b["index"] for b in _train(Noise(16), 4, seed=seed)])
        for seed in range(4)
    ]
    epochs = [tuple(part) for order in orders for part in order.reshape(2, 16)]
    assert len(set(epochs)) == 8


def test_an_example_is_augmented_anew_each_epoch():
    first, second = _train(Noise(1), 2, batch_size=1)
    assert (first["index"] == second["index"]).all()
    assert (first["image"] != second["image"]).any()


def test_fields_belong_together():
    for batch in _train(Noise(30)):
        assert (batch["label"] == batch["index"]).all()
        assert batch["image"].shape == (8, SIDE, SIDE, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == batch["index"].dtype == np.int32


@pytest.mark.parametrize("size", [1, 7, 8, 9, 33])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_counts_every_example_once_and_in_order(size, count):
    parts = [
        list(
            pipeline.eval_batches(
                Noise(size),
                EVAL,
                batch_size=8,
                process_index=p,
                process_count=count,
                threads=2,
            )
        )
        for p in range(count)
    ]
    assert {len(part) for part in parts} == {-(-size // 8)}
    batches = _joined(parts)
    index = np.concatenate([b["index"] for b in batches])
    mask = np.concatenate([b["mask"] for b in batches])
    images = np.concatenate([b["image"] for b in batches])
    assert mask.dtype == np.float32
    assert (index[mask == 1] == np.arange(size)).all()
    assert (index[mask == 0] == -1).all() and not images[mask == 0].any()
    expected = [Noise(size)[i]["image"] for i in range(size)]
    assert np.array_equal(images[mask == 1], expected)


def test_evaluation_in_worker_processes_is_the_same_and_ends():
    source = Noise(21, bad=frozenset({4}))
    streams = [
        pipeline.eval_batches(
            source, EVAL, batch_size=8, workers=workers, max_bad_fraction=0.1
        )
        for workers in (0, 2)
    ]
    one, two = (list(stream) for stream in streams)
    _assert_equal(one, two)
    assert streams[0].bad == streams[1].bad and list(streams[0].bad) == ["noise[4]"]
    for stream in streams:
        stream.close()


def test_unreadable_file_in_evaluation_has_mask_zero_and_is_named():
    source = Noise(10, bad=frozenset({2}), gone=frozenset({9}))
    stream = pipeline.eval_batches(source, EVAL, batch_size=4, max_bad_fraction=0.2)
    batches = list(stream)
    mask = np.concatenate([b["mask"] for b in batches])
    assert np.flatnonzero(mask == 0).tolist() == [2, 9, 10, 11]
    assert list(stream.bad) == ["noise[2]", "noise[9]"]
    assert "not an image" in stream.bad["noise[2]"]
    assert stream.bad["noise[9]"] == "FileNotFoundError: gone"


def test_unreadable_files_in_training_are_replaced_and_named_once(caplog):
    source = Noise(20, bad=frozenset({2}), gone=frozenset({11}))
    stream = pipeline.train_batches(
        source, TRAIN, batch_size=20, seed=0, max_bad_fraction=0.1
    )
    with caplog.at_level(logging.WARNING):
        batches = list(itertools.islice(stream, 5))
    stream.close()
    counts = collections.Counter(np.concatenate([b["index"] for b in batches]).tolist())
    assert set(counts) == set(range(20)) - {2, 11} and sum(counts.values()) == 100
    assert set(stream.bad) == {"noise[2]", "noise[11]"}
    assert len(caplog.records) == 2
    again = _train(source, 5, batch_size=20, seed=0, max_bad_fraction=0.1, threads=1)
    _assert_equal(batches, again)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_files_end_the_stream_with_their_names(workers):
    source = Noise(100, bad=frozenset(range(30)))
    stream = pipeline.train_batches(
        source, TRAIN, batch_size=50, seed=0, max_bad_fraction=0.25, workers=workers
    )
    with pytest.raises(pipeline.BadDataError) as caught:
        list(itertools.islice(stream, 20))
    message = str(caught.value)
    assert "26 of 100 examples cannot be read so far" in message
    assert "data.max_bad_fraction=0.25 allows 25" in message
    assert "--config.data.max_bad_fraction=" in message
    assert message.count("noise[") == 20 and "and 6 more" in message


def test_when_nothing_can_be_read_the_stream_ends():
    source = Noise(5, bad=frozenset(range(5)))
    stream = pipeline.train_batches(
        source, TRAIN, batch_size=2, seed=0, max_bad_fraction=1.0
    )
    with pytest.raises(pipeline.BadDataError, match="64 examples in a row"):
        next(stream)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A transform with a mistake in it."""

    shape: tuple = (SIDE, SIDE, 3)

    def __call__(self, image, rng, out=None):
        raise KeyError("oops")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_transform_names_the_file(workers):
    stream = pipeline.eval_batches(Noise(3), Broken(), batch_size=2, workers=workers)
    with pytest.raises(RuntimeError, match=r"noise\[0\] failed: KeyError: 'oops'"):
        next(stream)
    stream.close()


def test_a_result_of_another_shape_names_the_file():
    class Wrong(Broken):
        def __call__(self, image, rng, out=None):
            return image[:2]

    stream = pipeline.eval_batches(Noise(3), Wrong(), batch_size=2)
    with pytest.raises(RuntimeError, match=r"noise\[0\].*\(2, 6, 3\); expected uint8"):
        next(stream)
    stream.close()


def test_closing_ends_the_threads():
    stream = pipeline.train_batches(Noise(30), TRAIN, batch_size=8, seed=0)
    next(stream)
    stream.close()
    threads = [t for t in threading.enumerate() if "grain-prefetch" in t.name]
    for thread in threads:
        thread.join(timeout=600)
    assert not any(thread.is_alive() for thread in threads)


PROGRAM = """
import itertools
from litevit_jax.data import pipeline, transforms
from litevit_jax.data.sources import digits

if __name__ == "__main__":
    transform = transforms.train_ops(image_size=(8, 8), channels=1)
    for workers in (0, 1):
        stream = pipeline.train_batches(
            digits.make(split="train"), transform, batch_size=8, seed=0, workers=workers
        )
        list(itertools.islice(stream, 2))
    print("done")
"""


def test_a_program_that_does_not_close_its_stream_ends_quietly(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_encoded_images_are_decoded(tmp_path):
    class Encoded(Noise):
        def __getitem__(self, index):
            file = io.BytesIO()
            PIL.Image.fromarray(super().__getitem__(index)["image"]).save(file, "PNG")
            return {"image": file.getvalue(), "label": index}

    one, two = (
        list(pipeline.eval_batches(source, EVAL, batch_size=4))
        for source in (Noise(6), Encoded(6))
    )
    _assert_equal(one, two)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"process_count": 3}, "batch_size=8 is not a multiple of 3 processes"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 2, "process_count": 2}, "process_index=2; expected 0 to 1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"threads": 0}, "data.threads=0"),
        ({"workers": -1}, "data.workers=-1"),
    ],
)
def test_wrong_arguments_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        pipeline.train_batches(Noise(9), TRAIN, **{"batch_size": 8, "seed": 0, **wrong})


def test_an_empty_source_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        pipeline.eval_batches(Noise(0), EVAL, batch_size=1)


@pytest.mark.parametrize(
    ("fraction", "total", "allowed"),
    [(0.001, 500, 1), (0.001, 3000, 3), (0.0, 500, 0), (0.5, 1, 0), (1.0, 1, 1)],
)
def test_one_unreadable_file_of_a_small_set_ends_no_run(fraction, total, allowed):
    limit = pipeline.BadLimit(fraction, total)
    bad = {str(number): "damaged" for number in range(allowed)}
    assert not limit.exceeded(bad) and limit.exceeded(bad | {"one more": "damaged"})
