"""Lets tools that ask for setup.py build the package; pyproject.toml describes it."""

import setuptools

setuptools.setup()
