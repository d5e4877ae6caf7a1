"""Classes of two data sets are matched by name; numbers stand for themselves."""

import numpy as np
import pytest

from litevit_jax.data import relabel
from tests.evaluators import common

KNOWN = ["cat", "dog", "owl"]

MATCHES = {
    "the same": (KNOWN, KNOWN, [0, 1, 2], ""),
    "another order": (["dog", "cat", "owl"], KNOWN, [1, 0, 2], "3 of the 3"),
    "a part": (["dog", "owl"], KNOWN, [1, 2], "2 of the 3 classes of the model"),
    "one renamed": (["dog", "owl", "zcat"], KNOWN, [1, 2, -1], "matched by name"),
    "none": (["x", "y"], KNOWN, [-1, -1], "0 of the 3"),
    "numbers": (["0", "2"], KNOWN, [0, 2], "by number, as the data's have numbers"),
    "too large a number": (["1", "3"], KNOWN, [1, -1], "matched by number"),
    "numbers on both sides": (["2", "10"], ["1", "2", "10"], [1, 2], "by name"),
    "names for numbers": (["a", "b", "c"], ["0", "1", "2"], [-1] * 3, "by name"),
    "digits of other scripts": (["\u0660", "\u0661"], KNOWN, [-1, -1], "by name"),
    "a name twice that is not asked for": (["owl"], ["cat", "cat", "owl"], [2], "1 of"),
    "the same, a name twice": (["cat", "cat"], ["cat", "cat"], [0, 1], ""),
    "no names": (["a", "b", "c"], [], [0, 1, 2], "those of the model have no names"),
}  # fmt: skip


@pytest.mark.parametrize("name", MATCHES)
def test_classes_are_matched(name):
    names, known, numbers, how = MATCHES[name]
    got = relabel.match(names, known, 3)
    np.testing.assert_array_equal(got.numbers, numbers)
    assert got.numbers.dtype == np.int32
    assert how in got.how and bool(got.how) == bool(how)
    assert got.unknown.tolist() == [k for k, n in enumerate(numbers) if n < 0]


def test_classes_without_names_are_not_matched_if_they_are_not_as_many():
    assert relabel.match(["a", "b"], [], 3) is None


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (["crane", "owl"], ["crane", "owl", "crane"], r"model .* name \('crane' of 2"),
        (["cat", "dog", "cat"], KNOWN, r"data have the same name \('cat' of 2 classes"),
        (["00", "0", "1"], KNOWN, r"data have the same number \(0 of 2 classes\).*own"),
    ],
)
def test_a_name_or_number_of_several_classes_is_refused(names, known, message):
    with pytest.raises(ValueError, match=message):
        relabel.match(names, known, len(known))


def test_a_relabelled_source_has_the_known_classes_and_their_numbers():
    source = common.Images([0, 2, 1, -1, 2], 3)
    got = relabel.Relabelled(source, np.array([1, -1, 0]), KNOWN)
    assert got.classes == KNOWN and len(got) == 5
    assert [got.label_of(i) for i in range(5)] == [1, 0, -1, -1, 0]
    assert [got[i]["label"] for i in range(5)] == [1, 0, -1, -1, 0]
    np.testing.assert_array_equal(got[3]["image"], source[3]["image"])
    assert relabel.count(source, np.array([2, 1])) == 3
    other = relabel.Relabelled(source, np.array([1, 2, 0]), KNOWN)
    assert got.fingerprint() != other.fingerprint()
