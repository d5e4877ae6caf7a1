"""FLOPs of matrix products, counted from the trace."""

import jax
import jax.numpy as jnp
import pytest

from litevit_jax.models import detector
from litevit_jax.plan import flops


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def matmul(x, y):
    return x @ y


def in_a_loop(x, y):
    return jax.lax.scan(lambda c, _: (c @ y, None), x, None, length=7)[0]


def in_branches(x, y):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: x @ y + (x @ y) @ y)


def with_gradient(x, y):
    return jax.jit(jax.grad(lambda x, y: (x @ y).sum() ** 2, argnums=(0, 1)))(x, y)


@pytest.mark.parametrize(
    ("function", "times"),
    [(matmul, 1), (in_a_loop, 7), (in_branches, 3), (with_gradient, 3)],
)
def test_products_are_counted_wherever_they_are(function, times):
    one = 2 * 8 * 16 * 16
    expected = times * one
    assert flops.count(function, shape(8, 16), shape(16, 16)) == expected


def test_a_convolution_costs_its_kernel_at_every_output():
    def patches(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    counted = flops.count(patches, shape(2, 16, 16, 3), shape(4, 4, 3, 24))
    assert counted == 2 * (2 * 4 * 4 * 24) * (4 * 4 * 3)


def test_batched_products_are_counted_as_often():
    def attend(q, k):
        return jnp.einsum("bqhd,bkhd->bhqk", q, k)

    counted = flops.count(attend, shape(2, 5, 3, 8), shape(2, 7, 3, 8))
    assert counted == 2 * 2 * 3 * 5 * 7 * 8


def test_the_published_detector_takes_the_published_number_of_products():
    """Multiply-accumulates of one image of 640 pixels, forward, in billions."""
    model = detector.make(encoder={"variant": "tiny", "grid": (40, 40)}, num_classes=80)
    image, boxes, own = shape(1, 640, 640, 3), shape(1, 512, 4), shape(1, 128, 4)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    maps = jax.eval_shape(model.maps, params, image)
    classes = jax.ShapeDtypeStruct((1, 128), jnp.int32)

    def billions(function, *args):
        return flops.count(function, *args) / 2e9

    def encode(params, image):
        return model.encoder.apply({"params": params["encoder"]}, image)[0]

    pool = [
        billions(lambda maps, x, size=size: model.pool(maps, x, size), maps, x)
        for x, size in zip((boxes, own), model.pooled, strict=True)
    ]
    encoder = billions(encode, params, image)
    parts = {
        "pyramid": (billions(model.maps, params, image) - encoder, 21.0),
        "proposals": (billions(model.score, params, maps), 40.4),
        "boxes": (billions(model.classify, params, maps, boxes) - pool[0], 66),
        "masks": (
            billions(model.mask_logits, params, maps, own, classes) - pool[1],
            68,
        ),
    }
    for name, (got, published) in parts.items():
        assert got == pytest.approx(published, rel=0.05), name
    # Relative positions are further channels of queries: 80 of each head, or 28.
    further = 12 * (4 * 1600**2 * 80 + 8 * 9 * 196**2 * 28) / 1e9
    assert encoder - further == pytest.approx(13.9, rel=0.05)
    total = sum(got for got, _ in parts.values()) + encoder - further
    assert total == pytest.approx(209, rel=0.02)
