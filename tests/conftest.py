"""Every test sees 8 CPU devices; flags are parsed as `main.py` would."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import pytest
from absl import flags


@pytest.fixture(autouse=True, scope="session")
def _parsed_flags():
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
