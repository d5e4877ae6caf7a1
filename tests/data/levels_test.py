"""Which values become black and white, and what lies between them."""

import numpy as np
import pytest

from litevit_jax.data import levels


def _sixteen(values):
    return levels.of_array(np.asarray(values, np.uint16))


def test_the_full_range_of_sixteen_bits_is_rounded_to_the_nearest_of_256():
    values = np.arange(65536, dtype=np.uint16)
    got = levels.to_bytes(levels.of_array(values), "full")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, (values.astype(int) + 128) // 257)


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.float32, float])
def test_two_values_are_black_and_white_of_any_type(kind):
    values = np.array([[-2000, 0, 100], [1000, 1100, 30000]]).astype(kind)
    got = levels.to_bytes(levels.of_array(values), "100,1100")
    black = 255 if kind == np.uint16 else 0  # -2000 is a large number there
    np.testing.assert_array_equal(got, [[black, 0, 0], [230, 255, 255]])


def test_full_is_what_a_type_can_hold():
    ends = np.array([-32768, 0, 32767], np.int16)
    assert levels.to_bytes(levels.of_array(ends), "full").tolist() == [0, 128, 255]
    small = np.array([-128, 127], np.int8)
    assert levels.to_bytes(levels.of_array(small), "full").tolist() == [0, 255]
    twelve = levels.of_integers(
        np.array([0, 4095], np.uint16), "TIFF", bits=12, signed=False
    )
    assert levels.to_bytes(twelve, "full").tolist() == [0, 255]


def test_wide_integers_are_sixteen_bits_where_these_would_do():
    values = np.array([0, 65535], np.int32)
    assert levels.to_bytes(levels.of_array(values), "full").tolist() == [0, 255]


@pytest.mark.parametrize(
    "values", [np.array([-1000, 3000], np.int32), np.array([0.0, 1.0], np.float32)]
)
def test_a_type_that_is_never_used_up_needs_a_range(values):
    with pytest.raises(ValueError, match=r"from .* to .* --config\.data\.range=LOW,HI"):
        levels.to_bytes(levels.of_array(values), "full")
    assert levels.to_bytes(levels.of_array(values), "auto_each").tolist() == [0, 255]


def test_each_image_is_stretched_between_its_own_percentiles():
    values = np.arange(1000, dtype=np.uint16) + 5000
    got = levels.to_bytes(levels.of_array(values), "auto_each")
    low, high = np.percentile(values, [0.5, 99.5])
    assert (got[:5] == 0).all() and (got[-5:] == 255).all()
    assert got[500] == round((values[500] - low) / (high - low) * 255)
    hot = np.append(values, 65535).astype(np.uint16)  # a hot pixel changes little
    assert abs(int(levels.to_bytes(levels.of_array(hot), "auto_each")[500]) - 127) < 3


def test_an_image_of_one_value_is_black_and_of_two_is_black_and_white():
    assert not levels.to_bytes(_sixteen([7, 7, 7]), "auto_each").any()
    rare = _sixteen([7] * 999 + [9])  # percentiles are both 7
    assert levels.to_bytes(rare, "auto_each").tolist() == [0] * 999 + [255]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("text", ["0,1", "auto_each"])
def test_pixels_that_are_no_numbers_are_refused(bad, text):
    values = np.array([0.0, 1.0, bad])
    with pytest.raises(ValueError, match=r"1 of 3 pixels .* infinite or no numbers"):
        levels.to_bytes(levels.of_array(values), text)


@pytest.mark.parametrize(
    "text, pair",
    [
        ("0,4095", (0, 4095)),
        ("(-1000, 3000)", (-1000, 3000)),
        ("[0.5,1e3]", (0.5, 1e3)),
    ],
)
def test_a_pair_can_be_written_in_several_ways(text, pair):
    assert levels.parse(text) == pair
    assert levels.parse(levels.spell(pair)) == pair


@pytest.mark.parametrize(
    "text", ["ful", "1", "3,3", "5,1", "nan,1", "0,inf", "", "1,2,3"]
)
def test_what_is_no_range_is_explained(text):
    with pytest.raises(ValueError, match=r"data\.range=.*expected full .* LOW < HIGH"):
        levels.parse(text)


def test_auto_is_no_range_until_it_is_settled():
    with pytest.raises(ValueError, match="auto was not replaced"):
        levels.to_bytes(_sixteen([1, 2]), "auto")


def test_percentiles_of_whole_numbers_do_not_overflow():
    values = np.array([-(2**31), 2**31 - 1], np.int32)
    expected = levels.percentiles(values.astype(np.float64))
    assert levels.percentiles(values) == expected and expected[0] < expected[1]
