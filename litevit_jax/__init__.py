"""Self-supervised pre-training of small vision transformers in JAX."""

__version__ = "0.1.0"
