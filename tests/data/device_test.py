"""Feeding: order, errors at their batch, and an end that leaves nothing running."""

import contextlib
import threading
import time

import jax
import numpy as np
import pytest

from litevit_jax import sharding
from litevit_jax.data import device


class Batches:
    """`count` batches of 8; fails at batch `bad`; knows how far it was read."""

    def __init__(self, count, bad=None):
        self.count, self.bad = count, bad
        self.read = 0
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self):
        if self.read == self.bad:
            raise OSError(f"batch {self.bad} is bad")
        if self.read == self.count:
            raise StopIteration
        self.read += 1
        index = np.arange(8, dtype=np.int32) + 8 * (self.read - 1)
        return {"image": index.astype(np.uint8)[:, None], "index": index}

    def close(self):
        self.closed = True


@pytest.fixture
def mesh():
    return sharding.make_mesh(4, 2)


def feeders():
    return [t for t in threading.enumerate() if t.name == "feed"]


def test_batches_come_in_order_and_on_the_mesh(mesh):
    batches = Batches(7)
    for number, fed in enumerate(device.feed(batches, mesh)):
        want = np.arange(8) + 8 * number
        np.testing.assert_array_equal(jax.device_get(fed.batch["index"]), want)
        np.testing.assert_array_equal(jax.device_get(fed.batch["image"])[:, 0], want)
        np.testing.assert_array_equal(fed.index, want)
        assert fed.batch["index"].sharding == sharding.batch_sharding(mesh)
        assert fed.wait_s >= 0
    assert number == 6
    assert batches.closed and not feeders()


def test_an_error_is_raised_at_the_batch_where_it_happened(mesh):
    batches = Batches(9, bad=4)
    seen = []
    with pytest.raises(OSError, match="batch 4 is bad"):
        for fed in device.feed(batches, mesh):
            seen.append(int(fed.index[0]))
    assert seen == [0, 8, 16, 24]
    assert batches.closed and not feeders()


def test_it_reads_a_few_batches_ahead_and_no_more(mesh):
    batches = Batches(100)
    with contextlib.closing(device.feed(batches, mesh, ahead=3)) as feed:
        next(feed)
        deadline = time.monotonic() + 600
        while batches.read < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        # One taken, three waiting, one in the reader's hand.
        assert batches.read == 5


def test_closing_stops_the_thread_and_closes_the_source(mesh):
    batches = Batches(100)
    feed = device.feed(batches, mesh)
    next(feed)
    assert len(feeders()) == 1
    feed.close()
    assert batches.closed and not feeders()
    assert batches.read < 100
