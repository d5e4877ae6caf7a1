"""Checkpoints and runs -> figures, tables and one report."""
