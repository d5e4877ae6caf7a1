"""The jobs look into the runs that the tests of analyses share."""

from tests.analysis.conftest import checkpoints, one_device

__all__ = ["checkpoints", "one_device"]
