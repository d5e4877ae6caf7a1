"""A pass over a source that stayed on the devices reads nothing and is the same."""

import itertools

import jax
import numpy as np
import pytest

from litevit_jax import sharding
from litevit_jax.data import device, kept


class Source:
    """Knows how often it was read."""

    def __init__(self):
        self.passes = 0

    def read(self):
        self.passes += 1
        batch = {"index": np.arange(8, dtype=np.int32)}
        batches = iter([batch, {"index": batch["index"] + 8}])
        return device.feed(batches, sharding.make_mesh(8, 1))


def indices(feed):
    return [jax.device_get(fed.batch["index"]).tolist() for fed in feed]


def test_a_source_is_read_once():
    batches, source, other = kept.Kept(100), Source(), Source()
    passes = [indices(batches.feed(source, source.read)) for _ in range(3)]
    assert passes == [[[*range(8)], [*range(8, 16)]]] * 3
    assert source.passes == 1
    indices(batches.feed(other, other.read))
    assert other.passes == 1


@pytest.mark.parametrize(("most", "passes"), [(8, 1), (7, 2), (0, 2)])
def test_what_does_not_fit_is_read_again(most, passes):
    batches, source = kept.Kept(most), Source()  # 4 bytes a batch on each of 8 devices
    for _ in range(2):
        assert len(indices(batches.feed(source, source.read))) == 2
    assert source.passes == passes


def test_a_pass_that_was_left_is_not_taken_for_a_whole_one():
    batches, source = kept.Kept(100), Source()
    feed = batches.feed(source, source.read)
    assert len(indices(itertools.islice(feed, 1))) == 1
    feed.close()
    assert len(indices(batches.feed(source, source.read))) == 2


def test_a_source_that_is_gone_is_forgotten():
    batches, source = kept.Kept(8), Source()
    indices(batches.feed(source, source.read))
    del source
    again = Source()  # a set has the room again
    for _ in range(2):
        indices(batches.feed(again, again.read))
    assert again.passes == 1


class Equal(Source):
    """A source that says which others it equals cannot be a key of a dict."""

    def __eq__(self, other):
        return True

    __hash__ = None


def test_a_source_without_a_hash_is_kept():
    batches, one, other = kept.Kept(100), Equal(), Equal()
    for _ in range(2):
        indices(batches.feed(one, one.read))
        indices(batches.feed(other, other.read))
    assert one.passes == other.passes == 1
