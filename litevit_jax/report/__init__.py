"""Draws runs and analyses: figures, tables, and one page of both."""
