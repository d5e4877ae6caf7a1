"""Classification heads on pooled features (recipes 1.3, 1.4 and 7)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import layers

# name -> (standard deviation of the kernel, BatchNorm before it). 'probe' is the
# linear probe of MoCo v3, 'probe_bn' that of MAE; 'linear_small' that of encoders with
# relative position bias, a thousandth of 'linear' (recipes 1.4).
HEADS = {
    "linear": (0.02, False),
    "linear_small": (2e-5, False),
    "probe": (0.01, False),
    "probe_bn": (0.01, True),
}


def make_head(*, head: str, num_classes: int, fc_norm: bool) -> Classifier:
    """Builds a head: 'linear', 'linear_small', 'probe' or 'probe_bn'.

    Raises:
      ValueError: an unknown head, or no classes.
    """
    choices.check("head", head, tuple(HEADS))
    if num_classes < 1:
        raise ValueError(f"head: num_classes={num_classes}, expected at least 1")
    stddev, batch_norm = HEADS[head]
    return Classifier(num_classes, fc_norm, batch_norm, stddev)


class Classifier(nn.Module):
    """A linear layer on features, which may be normalised first; all in float32.

    Attributes:
      num_classes: K.
      fc_norm: whether a LayerNorm comes first, as average pooling needs.
      batch_norm: whether a BatchNorm without affine parameters precedes the linear
        layer.
      kernel_std: deviation of the linear layer's initial kernel; its bias starts at 0.
    """

    num_classes: int
    fc_norm: bool
    batch_norm: bool
    kernel_std: float

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Maps pooled tokens `[B, D]` to logits `[B, K]` and features `[B, D]`.

        The features are the pooled tokens, after `fc_norm` if the head has one.
        """
        features = x.astype(jnp.float32)
        if self.fc_norm:
            features = layers.LayerNorm("float32", name="fc_norm")(features)
        x = features
        if self.batch_norm:
            x = BatchNorm(epsilon=1e-6, name="bn")(x, train=train)
        kernel_init = layers.normal(self.kernel_std)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="fc")(
            x
        ), features


class BatchNorm(nn.Module):
    """BatchNorm over the global batch, as PyTorch computes it.

    It normalises with the biased variance but averages the unbiased one; flax's
    BatchNorm averages the biased one (recipes 12.1).

    Attributes:
      epsilon: added to the variance.
      momentum: of the running statistics; 1 minus PyTorch's.
      affine: whether parameters `scale` and `bias` follow.
    """

    epsilon: float = 1e-6
    momentum: float = 0.9
    affine: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `[..., D]` by the batch in training, else by running averages."""
        width = x.shape[-1]
        size, axes = x.size // width, tuple(range(x.ndim - 1))
        stats = {"mean": jnp.zeros, "var": jnp.ones}
        running = {
            n: self.variable("batch_stats", n, f, width) for n, f in stats.items()
        }
        mean, var = running["mean"].value, running["var"].value
        if train:
            mean, var = x.mean(axis=axes), x.var(axis=axes)
            if not self.is_initializing():
                self._average(running["mean"], mean)
                self._average(running["var"], var * (size / max(size - 1, 1)))
        out = (x - mean) * jax.lax.rsqrt(var + self.epsilon)
        if not self.affine:
            return out
        scale = self.param("scale", nn.initializers.ones, (width,))
        return out * scale + self.param("bias", nn.initializers.zeros, (width,))

    def _average(self, running, value):
        keep = self.momentum
        running.value = keep * running.value + (1 - keep) * value
