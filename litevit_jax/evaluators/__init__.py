"""A state -> numbers and pictures."""
