"""Windows: the recorded positions, and batches that hold each window once."""

import numpy as np
import pytest

from litevit_jax.data import windows
from tests import dense_golden


def test_windows_start_where_mmsegmentation_lets_them():
    recorded = dense_golden.group("slide")["left_edges_512_341"]
    assert len(recorded) > 5
    for size, edges in recorded.items():
        rows, cols = map(int, size.split("x"))
        lefts = windows.starts(cols, 512, 341)
        tops = windows.starts(rows, 512, 341)
        want = [left for left, _ in edges]
        assert lefts * len(tops) == want, size


@pytest.mark.parametrize("size", [1, 5, 8, 9, 13, 14, 40])
@pytest.mark.parametrize("stride", [1, 5, 8])
def test_windows_cover_every_pixel_and_stay_inside(size, stride):
    starts = windows.starts(size, 8, stride)
    seen = np.zeros(max(size, 8), int)
    for start in starts:
        seen[start : start + 8] += 1
    assert seen.all() and starts == sorted(set(starts))
    assert starts[0] == 0 and starts[-1] == max(size - 8, 0)


def images(*sizes, side=(12, 20)):
    """A batch of numbered pixels on canvases of one size."""
    count = len(sizes)
    pixels = np.arange(count * side[0] * side[1] * 2).reshape(count, *side, 2) % 251
    size = np.array([s or (0, 0) for s in sizes], np.int32)
    return {
        "image": pixels.astype(np.uint8),
        "size": size,
        "index": np.where(size.any(axis=1), np.arange(count) + 10, -1),
        "mask": size.any(axis=1).astype(np.float32),
    }


def cut(batches, **kwargs):
    return list(windows.cutter((8, 8), (5, 5), **kwargs)(iter(batches)))


def test_every_window_is_cut_once_in_batches_of_the_same_size():
    batch = images((12, 20), (8, 13), None, (6, 20))
    got = cut([batch])
    seen = {}
    for part in got:
        assert part["image"].shape == (4, 8, 8, 2) and part["size"].shape == (4, 2)
        for row in np.flatnonzero(part["mask"]):
            key = (part["index"][row], *part["window"][row])
            assert key not in seen
            seen[key] = {k: x[row] for k, x in part.items()}
    assert {k[0] for k in seen} == {10, 11, 13}
    wanted = {10: (2, 4), 11: (1, 2), 13: (1, 4)}
    for index, grid in wanted.items():
        assert {k[1:] for k in seen if k[0] == index} == set(np.ndindex(*grid))
    window = seen[10, 1, 3]
    np.testing.assert_array_equal(window["image"], batch["image"][0, 4:12, 12:20])
    np.testing.assert_array_equal(window["grid"], (2, 4))
    np.testing.assert_array_equal(window["extent"], (12, 20))
    np.testing.assert_array_equal(seen[13, 0, 0]["size"], (6, 8))  # the rest is padding


def test_windows_do_not_depend_on_how_images_are_batched():
    sizes = [(12, 20), (8, 13), (6, 20), (12, 9)]
    whole = images(*sizes)
    ones = [{k: x[i : i + 1] for k, x in whole.items()} for i in range(4)]
    flat = lambda parts: {  # noqa: E731
        (part["index"][row], *part["window"][row]): part["image"][row].tobytes()
        for part in parts
        for row in np.flatnonzero(part["mask"])
    }
    assert flat(cut([whole])) == flat(cut(ones)) == flat(cut(ones, pad_count=True))


def test_several_processes_cut_as_many_batches_whatever_their_images():
    large, small = images((12, 20), (12, 20)), images((8, 8), None)
    counts = {len(cut([x], pad_count=True)) for x in (large, small)}
    assert counts == {2 * 4}
    assert len(cut([small])) == 1


def test_images_are_also_cut_with_left_and_right_swapped():
    batch = images((12, 20), (6, 13)) | {"view": np.array([1, 1], np.int32)}
    plain, both = cut([batch]), cut([batch], flip=True)
    assert sum(x["mask"].sum() for x in both) == 2 * sum(x["mask"].sum() for x in plain)
    assert {int(v) for x in plain for v in x["view"][x["mask"] > 0]} == {2}
    swapped = dict(batch, image=batch["image"].copy())
    for row, (_, width) in enumerate(batch["size"]):
        swapped["image"][row, :, :width] = batch["image"][row, :, :width][:, ::-1]
        swapped["image"][row, :, width:] = 0
    want = {
        (part["index"][row], *part["window"][row]): part["image"][row, :, :5].tobytes()
        for part in cut([swapped])
        for row in np.flatnonzero(part["mask"])
    }
    got = {
        (part["index"][row], *part["window"][row]): part["image"][row, :, :5].tobytes()
        for part in both
        for row in np.flatnonzero(part["mask"] * (part["view"] == 3))
    }
    assert got == want
    assert len(cut([batch], flip=True, pad_count=True)) == 2 * 2 * 4


def test_a_canvas_smaller_than_a_window_is_padded():
    got = cut([images((5, 6), side=(5, 6))])
    assert got[0]["image"].shape == (1, 8, 8, 2)
    np.testing.assert_array_equal(got[0]["size"], [[5, 6]])
    assert not got[0]["image"][0, 5:].any() and not got[0]["image"][0, :, 6:].any()
