"""Fixtures of the tests of data."""

import pytest


@pytest.fixture
def fill(tmp_path):
    """Makes files of the given names, which hold their names; returns the folder."""

    def fill(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        return str(tmp_path)

    return fill
