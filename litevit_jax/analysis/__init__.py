"""Analyses of checkpoints: similarity of layers, attention, features, pictures."""
