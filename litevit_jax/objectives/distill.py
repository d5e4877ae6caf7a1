"""MAE whose attention follows a frozen teacher's (arXiv 2205.14443, recipes 3).

Student and teacher see the same image and the same kept patches in the same order.
The loss is MAE's plus `weight` times the mean squared error between the scaled
attention logits S, before the softmax, of matched layers; a bias-free linear map
across heads takes the student's to the teacher's. It agrees with the authors'
`mae_lite_distill` experiment, whose "attention map" is S as well. S and the loss are
float32 at any compute dtype.

`decoupled` is the extension of arXiv 2404.12210 (D2-MAE): an additional block with
attention logits alone is matched, and the decoder reads an earlier block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import adapter as adapters
from litevit_jax.models import partial_block, vit
from litevit_jax.objectives import base, health, mae

# What is compared, and how:
#   logits     S, by mean squared error
#   probs      the softmax of S, by KL(teacher, student)
#   hidden     normed tokens, by mean squared error
#   relations  the softmax of the scaled products q-q, k-k and v-v of MiniLM v2 (arXiv
#              2012.15828), by the mean of their three KL(teacher, student); heads are
#              joined until both sides have as many
# A KL is averaged over heads and queries.
TARGETS = ("logits", "probs", "hidden", "relations")
RELATIONS = ("q", "k", "v")


class Pair(NamedTuple):
    """A layer of the student that is to match a layer of the teacher.

    Attention layers count from 1. Hidden states count from 0: state i leaves the first
    norm of block i + 1, and the one numbered as the depth leaves the final norm.
    """

    student: int
    teacher: int
    weight: float = 1.0


def make(
    *,
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    teacher: dict[str, Any],
    pairs: Sequence[Sequence[float]] | None = None,
    target: str = "logits",
    adapter: bool = True,
    weight: float = 1.0,
    decoupled: int | None = None,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    dtype: str = "auto",
) -> Distill:
    """Builds the objective.

    Args:
      encoder, decoder: the student's; see `mae.make`.
      teacher: arguments of `vit.make_encoder` for the teacher.
      pairs: (student layer, teacher layer) or (student layer, teacher layer, weight)
        each, numbered as in `Pair`; None matches the last layers, which needs a
        teacher of the student's depth.
      target: what is compared, one of `TARGETS`.
      adapter: whether a linear map takes the student's heads (for 'hidden' its width)
        to the teacher's even if there are as many; where they differ there is always
        one.
      weight: of the distillation term.
      decoupled: the decoder reads the tokens after this many blocks, and the layer
        matched by default is an extra one behind the last block.
      mask_ratio, norm_pix_loss, dtype: see `mae.make`; the teacher computes in
        `dtype` too.

    Raises:
      ValueError: a value out of range, or a teacher that does not fit the student.
    """
    student = mae.make(
        encoder=encoder,
        decoder=decoder,
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        dtype=dtype,
    )
    computed: dict[str, Any] = {"dtype": student.encoder.dtype}
    full = vit.make_encoder(**{**computed, **teacher})
    choices.check("distill: target", target, TARGETS)
    check_patches("distill", student.encoder, full)
    if weight < 0:
        raise ValueError(f"distill: weight={weight}, expected 0 or more")
    extra = _extra_block(student.encoder, target, decoupled)
    matched = _resolve(pairs, target, student.encoder, full, extra is not None)
    return Distill(
        student=dataclasses.replace(student, decode_after=decoupled),
        teacher=_as_far_as_needed(full, target, matched),
        pairs=matched,
        target=target,
        adapter=_make_adapter(adapter, target, student.encoder, full),
        weight=weight,
        extra=extra,
    )


def check_patches(name: str, encoder: vit.Encoder, teacher: vit.Encoder) -> None:
    """Raises a ValueError unless both encoders cut an image into the same patches."""
    if encoder.patch_size != teacher.patch_size:
        raise ValueError(
            f"{name}: the teacher's patch_size={teacher.patch_size}, the encoder's is "
            f"{encoder.patch_size}: they cut an image into different numbers of "
            "patches; choose a teacher with the encoder's patch size"
        )


def _extra_block(
    encoder: vit.Encoder, target: str, decoupled: int | None
) -> partial_block.PartialBlock | None:
    if decoupled is None:
        return None
    if not 0 < decoupled < encoder.depth:
        raise ValueError(
            f"distill: decoupled={decoupled}, expected 1 to {encoder.depth - 1}, a "
            f"number of blocks below the encoder's depth={encoder.depth}"
        )
    if target == "hidden":
        raise ValueError(
            f"distill: decoupled={decoupled} adds a block with attention alone, which "
            "has no hidden state to match; choose target logits, probs or relations"
        )
    part = "qkv" if target == "relations" else "logits"
    return partial_block.PartialBlock(
        encoder.num_heads, encoder.init_style, encoder.dtype, part
    )


def _resolve(
    pairs: Any, target: str, encoder: vit.Encoder, teacher: vit.Encoder, extra: bool
) -> tuple[Pair, ...]:
    """Checks and returns the pairs that were asked for, by default the last layers."""
    first = 0 if target == "hidden" else 1
    last = Pair(encoder.depth + extra, teacher.depth)
    if pairs is None:
        if encoder.depth != teacher.depth:
            example = f"(({last.student}, {last.teacher}),)"
            raise ValueError(
                f"distill: the teacher has {teacher.depth} blocks, the encoder "
                f"{encoder.depth}: which layers match? Give them as (student layer, "
                f'teacher layer), for example --config.objective.pairs="{example}"'
            )
        return (last,)
    fits = (isinstance(p, Sequence) and len(p) in (2, 3) for p in pairs)
    if not pairs or not all(fits):
        raise ValueError(
            f"distill: pairs={pairs}, expected (student layer, teacher layer) or "
            "(student layer, teacher layer, weight) each, such as ((12, 12),)"
        )
    resolved = tuple(Pair(int(p[0]), int(p[1]), *map(float, p[2:])) for p in pairs)
    for side in ("student", "teacher"):
        most = getattr(last, side)
        for pair in resolved:
            layer = getattr(pair, side)
            if not first <= layer <= most:
                raise ValueError(
                    f"distill: pairs={pairs}: {side} layer {layer}, expected "
                    f"{first} to {most}"
                )
    if len({pair[:2] for pair in resolved}) < len(resolved):
        raise ValueError(f"distill: pairs={pairs} names a pair twice")
    return resolved


def _as_far_as_needed(
    teacher: vit.Encoder, target: str, pairs: tuple[Pair, ...]
) -> vit.Encoder:
    """Cuts off the part of the teacher that no pair reads."""
    last = max(pair.teacher for pair in pairs)
    if target == "hidden":
        return teacher if last == teacher.depth else teacher.cut(last + 1, "norm1")
    return teacher.cut(last, "qkv" if target == "relations" else "logits")


def _make_adapter(
    wanted: bool, target: str, encoder: vit.Encoder, teacher: vit.Encoder
) -> adapters.Adapter | None:
    if target == "relations":
        return None
    size, axis = ("width", -1) if target == "hidden" else ("num_heads", -3)
    student_size, teacher_size = getattr(encoder, size), getattr(teacher, size)
    wanted = wanted or student_size != teacher_size
    return adapters.Adapter(teacher_size, axis) if wanted else None


@dataclasses.dataclass(frozen=True)
class Distill(base.Objective):
    """Reconstructs masked patches while following a teacher's layers.

    Attributes:
      student: the MAE objective.
      teacher: its encoder, cut behind the last layer that `pairs` need.
      pairs: the matched layers.
      target: see `make`.
      adapter: maps the student's heads or width; None: no map.
      weight: of the distillation term.
      extra: the block behind the encoder's last, if decoupled.
    """

    student: mae.Mae
    teacher: vit.Encoder
    pairs: tuple[Pair, ...]
    target: str
    adapter: adapters.Adapter | None
    weight: float
    extra: partial_block.PartialBlock | None

    @property
    def frozen_teacher(self) -> bool:
        """True: the teacher is another run's encoder."""
        return True

    @property
    def encoded_share(self) -> float:
        """The share of the patches that the student encodes."""
        return self.student.encoded_share

    @property
    def takes_pixels(self) -> bool:
        """True: student and teacher read the same patches."""
        return True

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'decoder'}, and 'adapter' and 'extra' where in use.

        Nothing downstream needs the last two. The teacher is {'encoder'}.
        """
        keys = jax.random.split(key, 4)
        params = dict(self.student.init(keys[0], batch).params)
        if self.extra is not None:
            token = jnp.zeros((1, 1, self.student.encoder.width))
            params["extra"] = self.extra.init(keys[1], token)["params"]
        if self.adapter is not None:
            params["adapter"] = {
                self._name(pair): self.adapter.init(
                    jax.random.fold_in(keys[2], i), self._zeros()
                )["params"]
                for i, pair in enumerate(self.pairs)
            }
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        ids_keep = jnp.zeros((1, 1), jnp.int32)
        teacher = self.teacher.init(keys[3], image, ids_keep)["params"]
        teacher = base.cast_teacher_kernels(teacher, self.teacher.dtype)
        return base.Variables(params, {}, {"encoder": teacher})

    def loss(self, params, model_state, teacher, batch, key):
        """MAE's loss and the mismatch with the teacher; see `base.Objective`."""
        image, ids = batch["image"], self.student.masks_of(batch, key)
        pred, layers = self._run_both(params, teacher, image, ids)
        mae_loss = self.student.pixel_errors(pred, image, ids).mean()
        terms = [
            pair.weight * self._mismatch(self._matched(params, pair, layers))
            for pair in self.pairs
        ]
        distill_loss = jnp.stack(terms).sum()
        loss = mae_loss + self.weight * distill_loss
        metrics = {"mae_loss": mae_loss, "distill_loss": distill_loss}
        return loss, ({"loss": loss, **metrics}, model_state)

    def health(self, params, model_state, teacher, batch, key):
        """MAE's health and 'teacher_agreement', the mean correlation of the pairs."""
        subset = health.some_examples(batch)
        ids = self.student.masks_of(subset, key)
        _, layers = self._run_both(params, teacher, subset["image"], ids)
        matched = [self._matched(params, pair, layers) for pair in self.pairs]
        each = jnp.stack([_correlation(x, y) for pair in matched for x, y in pair])
        of_student = self.student.health(params, model_state, teacher, batch, key)
        return {**of_student, "teacher_agreement": each.mean()}

    def predict(self, params, model_state, batch):
        """Returns what MAE predicts."""
        return self.student.predict(params, model_state, batch)

    def _name(self, pair: Pair) -> str:
        """The name of a pair's adapter; layers count from 0, as in 'attn_11'."""
        if self.target == "hidden":
            kind, student, teacher = "hidden", pair.student, pair.teacher
        else:
            kind, student, teacher = "attn", pair.student - 1, pair.teacher - 1
        suffix = "" if student == teacher else f"_to_{teacher}"
        return f"{kind}_{student}{suffix}"

    def _zeros(self):
        """Zeros in the shape of an input of the adapter."""
        encoder = self.student.encoder
        hidden = self.target == "hidden"
        return jnp.zeros((1, 1, encoder.width) if hidden else (encoder.num_heads, 1, 1))

    def _run_both(self, params, teacher, image, ids):
        """Returns the student's prediction and (its, the teacher's) intermediates."""
        pred, tokens, intermediates = self.student.forward(params, image, ids)
        student = self._with_extra(params, {**intermediates, "tokens": tokens})
        ids_keep = ids[:, : tokens.shape[1] - 1]
        return pred, (student, self._run_teacher(teacher, image, ids_keep))

    def _with_extra(self, params, intermediates):
        if self.extra is None:
            return intermediates
        inside: Any = self.extra.apply(
            {"params": params["extra"]}, intermediates["pre_norm"]
        )
        block = f"block_{self.student.encoder.depth:02d}"
        return intermediates | {f"{block}/{name}": x for name, x in inside.items()}

    def _run_teacher(self, teacher, image, ids_keep):
        """Returns the teacher's intermediates, and its 'tokens' `[B, 1 + M, D]`."""
        variables = {"params": teacher["encoder"]}
        encoded: Any = self.teacher.apply(variables, image, ids_keep)
        return jax.lax.stop_gradient({**encoded[1], "tokens": encoded[0]})

    def _matched(self, params, pair, layers):
        """Tensors to compare, (student's, teacher's) each, before any softmax."""
        sides = list(zip(layers, pair[:2], strict=True))
        if self.target == "relations":
            return _relations(*(_layer(*side) for side in sides))
        if self.target == "hidden":
            x, y = (_hidden(*side) for side in sides)
        else:
            x, y = (_layer(*side)("attn_logits") for side in sides)
        x = x.astype(jnp.float32)
        if self.adapter is not None:
            x = self.adapter.apply({"params": params["adapter"][self._name(pair)]}, x)
        return [(x, y.astype(jnp.float32))]

    def _mismatch(self, matched):
        squared = self.target in ("logits", "hidden")
        parts = [
            jnp.square(x - y).mean() if squared else _divergence(x, y)
            for x, y in matched
        ]
        return jnp.stack(parts).mean()


def _layer(intermediates, number):
    """Returns a function: name -> that intermediate of layer `number`, from 1."""
    return lambda name: intermediates[f"block_{number - 1:02d}/{name}"]


def _hidden(intermediates, number):
    # Behind the last block there is the final norm.
    return intermediates.get(f"block_{number:02d}/norm1", intermediates["tokens"])


def _relations(student, teacher):
    """Scaled self-products `[B, A, T, T]` of q, k and v, A being common to both."""
    heads = math.gcd(student("q").shape[1], teacher("q").shape[1])
    return [
        tuple(_self_product(layer(name), heads) for layer in (student, teacher))
        for name in RELATIONS
    ]


def _self_product(x, heads):
    """Joins neighbouring heads of `[B, A, T, D/A]`: products `[B, heads, T, T]`."""
    batch, _, tokens, _ = x.shape
    x = x.swapaxes(1, 2).reshape(batch, tokens, heads, -1)
    return jnp.einsum(
        "bnhd,bmhd->bhnm",
        x * x.shape[-1] ** -0.5,
        x,
        preferred_element_type=jnp.float32,
    )


def _divergence(x, y):
    """KL(softmax(y), softmax(x)) of `[B, A, T, T]`, averaged over B, A and queries."""
    log_p, log_q = jax.nn.log_softmax(y), jax.nn.log_softmax(x)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()


def _correlation(x, y):
    """Mean over leading axes of the correlation over the last two."""
    axes = (-2, -1)
    x, y = (z - z.mean(axis=axes, keepdims=True) for z in (x, y))
    norms = jnp.square(x).sum(axis=axes) * jnp.square(y).sum(axis=axes)
    return ((x * y).sum(axis=axes) * jax.lax.rsqrt(norms + 1e-12)).mean()
