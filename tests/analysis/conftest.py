"""Runs that the tests of analyses share; they are made once."""

import jax
import pytest

from litevit_jax import sharding
from litevit_jax.jobs import train
from tests import jobs

MAKE_MESH = sharding.make_mesh


def _on_one_device(patch):
    one = jax.devices()[:1]
    patch.setattr(sharding, "make_mesh", lambda **_: MAKE_MESH(1, 1, one))


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """One device compiles sooner."""
    with pytest.MonkeyPatch.context() as patch:
        _on_one_device(patch)
        yield


def shared(**fields):
    """The config of the shared runs."""
    sizes = {"objective__encoder__depth": 2, "log__every_steps": 1}
    return jobs.tiny(steps=2, **(sizes | fields))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Two MAE runs of two blocks that differ by their seed: '0' trained, '1' not."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        _on_one_device(patch)
        train.run(shared(), place / "0")
        jobs.saved_run(place / "1", shared(seed=1), noise=True)
    return place
