"""Evaluators: they turn a state into numbers and pictures."""
