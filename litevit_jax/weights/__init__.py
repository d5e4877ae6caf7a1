"""Public weights <-> our trees: every key accounted for, heads never guessed."""

from litevit_jax.weights.base import WeightsError as WeightsError
from litevit_jax.weights.reader import Weights as Weights
from litevit_jax.weights.reader import read as read
