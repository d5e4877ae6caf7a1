"""Self-supervised pre-training of small vision transformers in JAX."""

import os

__version__ = "0.2.0"

# epath would read gs:// through TensorFlow wherever that is installed. It asks once,
# at its first path, which may be that of JAX's compilation cache.
os.environ["EPATH_USE_TF"] = "false"
