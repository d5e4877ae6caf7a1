"""A run that the tests of reports share; it is written once."""

import pytest

from tests.report import examples


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return examples.write_run(tmp_path_factory.mktemp("runs") / "one")
