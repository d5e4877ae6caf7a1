"""Segmentation: the recorded model of mmsegmentation, counts, losses, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import trees
from litevit_jax.objectives import segmentation
from litevit_jax.train import lr_scales, optimizer
from tests import dense_golden as golden
from tests import params as parameters

KEY = jax.random.key(0)
TINY = {"width": 16, "depth": 4, "num_heads": 2, "patch_size": 16}
SMALL = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4}


def recorded(**kwargs):
    """The objective of the recorded model."""
    given = {"encoder": TINY, "num_classes": 5, "channels": 8, "dropout": 0.0}
    return segmentation.make(**given | kwargs)


def recorded_batch():
    values = golden.group("semfpn")
    return {"image": golden.maps(values["input"]), "label_map": values["label"]}


@functools.cache
def predicted():
    """Maps of the blocks, logits, and the loss with running statistics."""
    objective, batch = recorded(), recorded_batch()

    @jax.jit
    def run(params, state, image, label):
        outputs = objective.predict(params, state, {"image": image})
        logits = outputs["segmentation_logits"]
        large = segmentation.segmentation.resize(logits, (64, 64))
        loss = segmentation._cross_entropy(large, label, label != 255, "all")
        return objective._maps(params, image, None), logits, loss

    label = batch["label_map"].astype(int)
    return run(*golden.variables(), batch["image"], label)


def test_the_recorded_model_gives_its_blocks_and_logits():
    values, (params, state) = golden.group("semfpn"), golden.variables()
    shapes = parameters.shapes_of(recorded(), recorded_batch())
    assert trees.flatten(shapes.params).keys() == trees.flatten(params).keys()
    assert trees.flatten(shapes.model_state).keys() == trees.flatten(state).keys()
    maps, logits, _ = predicted()
    for i, x in enumerate(maps):
        golden.close(x, golden.maps(values[f"block{i}"]))
    golden.close(logits, golden.maps(values["logits"]))
    large = jax.image.resize(logits, (2, 64, 64, 5), "bilinear", antialias=False)
    assert (large.argmax(axis=-1) == values["upsampled_argmax"]).all()


@functools.cache
def trained():
    """Loss, metrics, state and gradients of the recorded model in training."""
    params, state = golden.variables()
    grad = jax.value_and_grad(recorded().loss, has_aux=True)
    (loss, (metrics, state)), grads = jax.jit(grad)(
        params, state, {}, recorded_batch(), KEY
    )
    return loss, metrics, state, trees.flatten(grads)


def test_the_recorded_model_gives_its_losses():
    values = golden.group("semfpn")
    golden.close(trained()[0], values["loss_train_bn"])
    golden.close(predicted()[2], values["loss_eval_bn"])


def test_the_recorded_model_gives_its_running_statistics():
    values, state = golden.group("semfpn"), trained()[2]
    stats = state["decode_head"]["norm_0_0"]
    golden.close(stats["mean"], values["running_mean_after"])
    golden.close(stats["var"], values["running_var_after"])


def test_the_recorded_model_gives_its_gradients():
    grads = trained()[3]
    norms = golden.group("semfpn")["grad_norms"]
    assert {golden.our_name(key) for key in norms} == grads.keys()
    for key, norm in norms.items():
        got = np.linalg.norm(grads[golden.our_name(key)])
        np.testing.assert_allclose(got, norm, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("mean_over", ["all", "valid"])
def test_the_mean_is_over_all_pixels_or_over_labelled_ones(mean_over):
    values = golden.group("linear")
    logits = jnp.asarray(golden.maps(values["upsampled"]))
    label = jnp.asarray(values["label"], int)
    loss = segmentation._cross_entropy(logits, label, label != 255, mean_over)
    name = {"all": "ce_mean_all_pixels", "valid": "ce_mean_valid_pixels"}[mean_over]
    golden.close(loss, values[name])


def test_the_linear_heads_norm_in_training_is_the_recorded_one():
    values = golden.group("linear")
    norm = segmentation.segmentation.heads.BatchNorm(1e-5, affine=True)
    affine = {"scale": values["bn_weight"], "bias": values["bn_bias"]}
    stats = {"mean": values["bn_mean"], "var": values["bn_var"]}
    apply = functools.partial(norm.apply, train=True, mutable=["batch_stats"])
    variables = {"params": affine, "batch_stats": stats}
    out, _ = jax.jit(apply)(variables, golden.maps(values["features"]))
    golden.close(out, golden.maps(values["bn_training_output"]))


def counts(**kwargs):
    """Parameters of each part at full size, by shapes alone."""
    objective = segmentation.make(**{"encoder": {"variant": "tiny"}} | kwargs)
    batch = {"image": jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)}
    params = parameters.shapes_of(objective, batch).params
    return {part: parameters.size(tree) for part, tree in params.items()}


def test_the_published_model_has_its_number_of_parameters():
    parts = counts(num_classes=150)
    assert parts == {"encoder": 6_259_584, "neck": 101_712, "decode_head": 684_694}
    assert sum(parts.values()) == 7_045_990


def test_the_linear_heads_read_one_block_or_four():
    one, four = (
        counts(num_classes=150, head=head, encoder={"variant": "tiny", "depth": 4})
        for head in ("linear", "linear_ms")
    )
    assert one["decode_head"] == 2 * 192 + 192 * 150 + 150
    assert four["decode_head"] == 4 * (2 * 192 + 192 * 150) + 150


def small(**kwargs):
    return segmentation.make(encoder=SMALL, num_classes=3, channels=8, **kwargs)


def small_batch(count=4, side=16):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(count, side, side, 3)).astype(np.float32),
        "label_map": rng.integers(0, 3, (count, side, side)).astype(np.uint8),
        "index": np.arange(count),
        "slot": np.arange(count),
    }


@pytest.mark.parametrize("head", ["sem_fpn", "linear", "linear_ms"])
def test_a_batch_without_labels_has_no_loss_and_no_gradient(head):
    objective, batch = small(head=head, mean_over="valid"), small_batch()
    batch["label_map"][:] = 255
    variables = parameters.start(objective, batch)
    grad = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, (metrics, _)), grads = grad(*variables, batch, KEY)
    assert loss == 0 and metrics["pixel_acc"] == 0
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(grads))


def test_ignored_pixels_count_in_the_mean_over_all():
    objective, batch = small(dropout=0.0), small_batch()
    batch["label_map"][:, :4] = 255
    other = small(dropout=0.0, mean_over="valid")
    over_all, valid = jax.jit(
        lambda *args: (objective.loss(*args)[0], other.loss(*args)[0])
    )(*parameters.start(objective, batch), batch, KEY)
    np.testing.assert_allclose(over_all, valid * 12 / 16, rtol=1e-5)


def test_the_head_of_each_block_learns_as_it_would_alone():
    fields = {"frozen_encoder": True, "dropout": 0.0}
    each, batch = small(head="linear_each", **fields), small_batch()
    variables = parameters.start(each, batch)
    step = jax.jit(jax.value_and_grad(each.loss, has_aux=True))
    (total, (metrics, state)), grads = step(*variables, batch, KEY)
    losses = []
    for block in (1, 2):
        alone = small(head="linear", out_blocks=(block,), **fields)
        name = f"block_{block - 1:02d}"
        heads = {"decode_head": variables.params["decode_head"][name]}
        stats = {"decode_head": variables.model_state["decode_head"][name]}
        (loss, (_, new)), own = jax.jit(jax.value_and_grad(alone.loss, has_aux=True))(
            variables.params | heads, stats, {}, batch, KEY
        )
        losses.append(loss)
        for got, want in (
            (grads["decode_head"][name], own["decode_head"]),
            (state["decode_head"][name], new["decode_head"]),
        ):
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
                got,
                want,
            )
    np.testing.assert_allclose(total, sum(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], total / 2, rtol=1e-6)
    predict = jax.jit(each.predict)
    predicted = predict(variables.params, variables.model_state, batch)
    logits = predicted["segmentation_logits_each"]
    assert logits.shape == (4, 4, 4, 2, 3)
    np.testing.assert_array_equal(logits[..., 1, :], predicted["segmentation_logits"])


def test_a_frozen_encoder_gets_no_gradient():
    objective, batch = small(head="linear", frozen_encoder=True), small_batch()
    variables = parameters.start(objective, batch)
    grad = jax.jit(jax.grad(lambda *x: objective.loss(*x)[0]))
    grads = grad(*variables, batch, KEY)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(grads["encoder"]))
    assert all(np.asarray(x).any() for x in jax.tree.leaves(grads["decode_head"]))


def test_the_linear_heads_read_tokens_behind_the_final_norm():
    objective, batch = small(head="linear_ms"), small_batch()
    params = parameters.start(objective, batch).params
    norm = params["encoder"]["norm"]
    norm["scale"], norm["bias"] = (
        np.ones_like(norm["scale"]),
        np.ones_like(norm["bias"]),
    )
    maps = jax.jit(lambda params, image: objective._maps(params, image, None))
    shifted = maps(params, batch["image"])
    assert len(shifted) == 2
    for x in shifted:
        np.testing.assert_allclose(np.mean(x, axis=-1), 1.0, atol=1e-4)


def test_dropped_channels_and_paths_follow_from_the_examples_slot():
    objective = small(drop_path=0.5, dropout=0.5)
    batch = small_batch()
    variables = parameters.start(objective, batch)
    loss = jax.jit(objective.loss)
    first, second, other = (
        loss(*variables, batch, key)[0] for key in (KEY, KEY, jax.random.key(1))
    )
    assert first == second != other
    turned = {k: x[::-1] for k, x in batch.items()}
    again = loss(*variables, turned, KEY)[0]
    np.testing.assert_allclose(again, first, rtol=1e-5)


def decayed(**rules):
    shapes = parameters.shapes_of(small(), small_batch()).params
    given = {"decay_1d": False, "skip": ()} | rules
    mask = trees.flatten(optimizer.decay_mask(shapes, **given))
    return {name for name, yes in mask.items() if yes}


def test_what_the_segmentation_recipe_decays():
    """All but 1-D parameters and biases; positions and the class token decay, too."""
    names = decayed()
    assert {"encoder/pos_embed", "encoder/cls_token", "neck/up2/kernel"} <= names
    assert "encoder/blocks_0/attn/relative_position_bias_table" in names
    assert not [name for name in names if name.endswith(("bias", "scale"))]
    assert not [name for name in names if "gamma" in name]


def test_what_the_detection_recipe_decays():
    """All but the norms inside the encoder's blocks and the positions."""
    skip = (r"encoder/blocks_\d+/norm\d/.*", "encoder/pos_embed")
    names = decayed(decay_1d=True, skip=skip)
    assert {"neck/up4_norm/scale", "neck/up2/bias", "encoder/cls_token"} <= names
    assert "encoder/blocks_0/mlp/fc1/bias" in names
    assert not [n for n in names if "norm1" in n or "norm2" in n or "pos_embed" in n]


def test_layers_learn_slower_towards_the_image():
    shapes = parameters.shapes_of(
        segmentation.make(encoder={"variant": "tiny"}, num_classes=2),
        {"image": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)},
    ).params
    scales = trees.flatten(lr_scales.layer_scales(shapes, 0.8))
    for name, layer in {
        "encoder/cls_token": 0,
        "encoder/pos_embed": 0,
        "encoder/patch_embed/kernel": 0,
        "encoder/blocks_0/gamma_1": 1,
        "encoder/blocks_11/attn/relative_position_bias_table": 12,
        "neck/up2/kernel": 13,
        "decode_head/fc/kernel": 13,
    }.items():
        np.testing.assert_allclose(scales[name], 0.8 ** (13 - layer), err_msg=name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": "fpn"}, "head 'fpn' unknown.*sem_fpn"),
        ({"mean_over": "labelled"}, "mean_over 'labelled' unknown.*all, valid"),
        ({"out_blocks": (1, 2)}, r"out_blocks=\(1, 2\)"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        small(**changed)
