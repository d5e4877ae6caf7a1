"""Sheets of pictures: what their colours mean."""

import numpy as np

from litevit_jax.analysis import pictures


def tile(sheet, line, column):
    """The middle of a patch grid's tiles, as the picture has it."""
    start = pictures._HEAD + line * (pictures._TILE + pictures._GAP)
    left = column * (pictures._TILE + pictures._GAP)
    return sheet[start : start + pictures._TILE, left : left + pictures._TILE]


def test_a_colour_of_patches_means_the_same_in_every_image():
    shown = np.zeros((2, 8, 8, 1), np.uint8)
    scores = np.zeros((2, 6, 3))
    scores[0, :, 0], scores[1, :, 0] = np.linspace(-1, 1, 6), 1.0  # one component
    sheet = pictures.patch_sheet(shown, scores, (2, 3))
    assert sheet.shape[1] == 5 * (pictures._TILE + pictures._GAP)
    first, second = tile(sheet, 0, 1), tile(sheet, 1, 1)
    np.testing.assert_array_equal(first[0, 0], [0, 128, 128])
    np.testing.assert_array_equal(first[-1, -1], [255, 128, 128])
    assert (second == [255, 128, 128]).all()  # the token of the first one's last patch
    np.testing.assert_array_equal(tile(sheet, 0, 2), np.repeat(first[..., :1], 3, 2))
    assert (tile(sheet, 1, 4) == 128).all() and not tile(sheet, 0, 0).any()
