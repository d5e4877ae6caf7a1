"""Recorded values are all read by a test."""

import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def test_every_group_of_recorded_values_is_read():
    tests = "".join(path.read_text() for path in HERE.rglob("*_test.py"))
    groups = set()
    for name in ("dense_goldens.npz", "detect_goldens.npz"):
        with np.load(HERE / name) as file:
            groups |= {key.partition("/")[0] for key in file.files}
    assert len(groups) == 24
    # By name, or as one of several by a parameter of a test.
    read = {x for x in groups if f'group("{x}")' in tests or f'"{x}": ' in tests}
    assert groups - read == set()
