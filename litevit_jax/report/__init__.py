"""Runs and analyses -> figures, tables and one page."""
