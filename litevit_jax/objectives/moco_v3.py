"""MoCo v3: contrast of two views (Chen et al., arXiv 2104.02057, Algorithm 1).

The loss is that of `moco/builder.py` in the official repository, as the authors of
arXiv 2205.14443 use it (recipes 4). BatchNorm and the negatives span the global batch;
in both branches each view is normalised by its own statistics.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.models import projector, vit
from litevit_jax.objectives import base, health


def make(
    *,
    encoder: dict[str, Any],
    momentum_steps: int = base.TOTAL_STEPS,
    mlp_dim: int = 4096,
    embed_dim: int = 256,
    temperature: float = 0.2,
    momentum: float = 0.99,
    dtype: str = "auto",
) -> MoCoV3:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder`; by default initialised as in MoCo v3,
        with its position embedding.
      momentum_steps: T, the update after which the teacher stands still; by default
        the run's last.
      mlp_dim: hidden width of projector and predictor.
      embed_dim: E, the width in which views are compared.
      temperature: tau of the contrast.
      momentum: the teacher's at the start; it grows to 1.
      dtype: of the computation; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    if temperature <= 0 or not 0 <= momentum <= 1 or momentum_steps < 1:
        raise ValueError(
            f"moco_v3: {temperature=}, {momentum=}, {momentum_steps=}; expected a "
            "positive temperature, 0 <= momentum <= 1 and at least one step"
        )
    defaults: dict[str, Any] = {
        "init_style": "moco",
        "pos_embed": "sincos_moco",
        "dtype": base.compute_dtype(dtype),
    }
    module = vit.make_encoder(**{**defaults, **encoder})
    sizes: Any = {"mlp_dim": mlp_dim, "embed_dim": embed_dim, "dtype": module.dtype}
    return MoCoV3(
        encoder=module,
        projector=projector.make_projector(**sizes),
        predictor=projector.make_predictor(**sizes),
        temperature=temperature,
        momentum=momentum,
        momentum_steps=momentum_steps,
    )


@dataclasses.dataclass(frozen=True)
class MoCoV3(base.Objective):
    """Contrasts the student's prediction of one view with the teacher's other view."""

    encoder: vit.Encoder
    projector: projector.BatchNormMlp
    predictor: projector.BatchNormMlp
    temperature: float
    momentum: float
    momentum_steps: int

    @property
    def num_views(self) -> int:
        """The number of crops of each image: 2."""
        return 2

    @property
    def needs_whole_batch(self) -> str:
        """A reason: slices have fewer negatives and statistics of their own."""
        return "its negatives and its BatchNorm are those of all images"

    @property
    def min_batch_per_device(self) -> int:
        """Two: BatchNorm maps a batch of one to 0, and it has no negatives."""
        return 2

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'projector', 'predictor'}.

        The teacher starts as a copy of the first two. The state holds running
        statistics, the teacher's included.
        """
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, *batch["views"].shape[2:]))
        encoder = self.encoder.init(keys[0], image)["params"]
        pooled = jnp.zeros((1, self.encoder.width))
        projected = self.projector.init(keys[1], pooled, train=True)
        embedding = jnp.zeros((1, self.projector.widths[-1]))
        predicted = self.predictor.init(keys[2], embedding, train=True)
        teacher = {"encoder": encoder, "projector": projected["params"]}
        state = {
            "projector": projected["batch_stats"],
            "predictor": predicted["batch_stats"],
            "teacher_projector": projected["batch_stats"],
        }
        params = {**teacher, "predictor": predicted["params"]}
        return base.Variables(params, state, teacher)

    def update_teacher(self, teacher, params, step):
        """The moving average theta_t + (1 - m) (theta - theta_t), float32.

        1 - m falls from 1 - `momentum` to 0 along half a cosine. Parameters equal in
        student and teacher (a frozen patch embedding) keep their bits.
        """
        left = 1 - step / jnp.float32(self.momentum_steps)
        rate = (1 - self.momentum) * jnp.sin(jnp.pi / 2 * left) ** 2
        student = {name: params[name] for name in teacher}
        return jax.tree.map(lambda t, p: t + rate * (p - t), teacher, student)

    def loss(self, params, model_state, teacher, batch, key):
        """Returns ctr(q1, k2) + ctr(q2, k1); see `base.Objective`. It draws nothing.

        'contrast_top1' is the percentage of queries whose nearest key is their own.
        """
        del key
        q, k, model_state = self.embed(params, model_state, teacher, batch["views"])
        first, first_hits = contrast(q[0], k[1], self.temperature)
        second, second_hits = contrast(q[1], k[0], self.temperature)
        loss = first + second
        hits = 50 * (first_hits + second_hits)  # percent of both halves
        metrics = {"loss": loss, "contrast_top1": hits}
        return loss, (metrics, model_state)

    def embed(
        self,
        params: base.Tree,
        model_state: base.Tree,
        teacher: base.Tree,
        views: jax.Array,
    ) -> tuple[list[jax.Array], list[jax.Array], base.Tree]:
        """Returns queries, keys and the new state, as in training.

        Args:
          params: the student's.
          model_state: running statistics.
          teacher: its parameters, which get no gradient.
          views: normalised images `[2, B, H, W, C]`.

        Returns:
          For each view the student's prediction and the teacher's projection,
          `[B, E]` float32, not normalised; and the state.
        """
        projected, own = _each(
            self.projector,
            params["projector"],
            model_state["projector"],
            self._pooled(params, views),
        )
        queries, predictor_state = _each(
            self.predictor, params["predictor"], model_state["predictor"], projected
        )
        teacher = jax.lax.stop_gradient(teacher)
        keys, others = _each(
            self.projector,
            teacher["projector"],
            model_state["teacher_projector"],
            self._pooled(teacher, views),
        )
        state = {
            "projector": own,
            "predictor": predictor_state,
            "teacher_projector": others,
        }
        return queries, keys, state

    def predict(self, params, model_state, batch):
        """The student's features in float32, see `vit.features_of`."""
        del model_state
        whole = self.encoder.in_float32()
        encoded: Any = whole.apply({"params": params["encoder"]}, batch["image"])
        return vit.features_of(*encoded)

    def health(self, params, model_state, teacher, batch, key):
        """Statistics of projections and attention, and the branches' 'agreement'.

        'agreement' is the mean cosine of q1 and k2.
        """
        del key
        views = health.some_examples(batch)["views"]
        q, k, _ = self.embed(params, model_state, teacher, views)
        tokens, intermediates = self._tokens(params, views[0])
        projected, _ = _each(
            self.projector,
            params["projector"],
            model_state["projector"],
            [vit.pool_tokens(tokens, "cls")],
        )
        probs = intermediates[f"block_{self.encoder.depth - 1:02d}/attn_probs"]
        agreement = (_unit(q[0]) * _unit(k[1])).sum(axis=-1).mean()
        return health.describe(projected[0], probs) | {"agreement": agreement}

    def _tokens(self, params, image) -> Any:
        return self.encoder.apply({"params": params["encoder"]}, image, train=True)

    def _pooled(self, params, views):
        """Encodes views `[V, B, H, W, C]` to their class tokens `[V, B, D]`.

        One pass serves all views. The batch stays the outer axis, so that every
        device keeps its rows.
        """
        count, size = views.shape[:2]
        rows = jnp.swapaxes(views, 0, 1).reshape(size * count, *views.shape[2:])
        tokens, _ = self._tokens(params, rows)
        pooled = vit.pool_tokens(tokens, "cls").reshape(size, count, -1)
        return jnp.swapaxes(pooled, 0, 1)


def _each(module, params, stats, inputs) -> tuple[list[jax.Array], base.Tree]:
    """Applies a module with BatchNorm to one view after the other, as in training."""
    outputs = []
    for x in inputs:
        variables = {"params": params, "batch_stats": stats}
        out, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
        stats = new["batch_stats"]
        outputs.append(out)
    return outputs, stats


def contrast(
    q: jax.Array, k: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE of queries `[B, E]` and keys `[B, E]` of the same rows, times 2 tau.

    The factor is Algorithm 1's. Also returns the share of queries whose nearest key is
    their own. Every key of the global batch is a candidate.
    """
    similarity = jnp.dot(_unit(q), _unit(k).T, precision="highest")
    own = jnp.diagonal(jax.nn.log_softmax(similarity / temperature))
    hits = similarity.argmax(axis=1) == jnp.arange(len(q))
    return -2 * temperature * own.mean(), hits.mean()


def _unit(x: jax.Array) -> jax.Array:
    """Rows `[B, E]` of length 1, float32; a length below 1e-12 counts as that."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
