"""Thin scripts that start runs, without logic of their own."""
