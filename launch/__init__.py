"""Thin scripts that start runs; no logic that a test could want."""
