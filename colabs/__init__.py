"""Notebooks for Colab, and what they share."""
