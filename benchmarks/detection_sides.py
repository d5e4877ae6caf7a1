"""The sides of detection.py: ours and a plain PyTorch one, each in its own process.

Both have the same parameters, filled by `filled` from their names and shapes, the same
images and objects. A `Spec` says which part of a step or of a test pass is run.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import sides

# PyTorch's Python may have nothing else but NumPy: see benchmarks/sides.py.

Run = Callable[[int], float]
LR, DECAY, SPARED = 1e-4, 0.05, ("pos_embed", ".norm1.", ".norm2.")


class Size(NamedTuple):
    """A model and its batch: a variant of the recipe `detect`, and what it changes."""

    variant: str
    batch: int
    pixels: int
    classes: int
    objects: int  # of an image
    fields: dict[str, Any]


SIZES = {
    "digits": Size("digit_scenes", 8, 48, 10, 3, {}),
    "tiny": Size(
        *("coco", 2, 256, 80, 10),
        {
            "objective.encoder.variant": "tiny",
            "objective.encoder.pos_grid": (14, 14),
            "objective.rules.train_per_level": 512,
            "objective.rules.test_per_level": 256,
            "objective.rules.proposals": 256,
            "objective.rules.box_samples": 64,
            "objective.rules.box_positive": 16,
            "objective.rules.detections": 50,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a side runs.

    Attributes:
      size: a key of `SIZES`.
      part: 'step' or 'test', either 'of the encoder' too; 'check': see `computed`.
      cores: how many it may use; 0: all.
      batch: images of a step.
      sizes: of the model, from `sizes_of`; PyTorch's side reads them.
      fixed: PyTorch's heads get as many boxes as ours.
    """

    size: str
    part: str
    cores: int = 0
    batch: int = 1
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    fixed: bool = False

    def to_json(self) -> str:
        """It as JSON, from which a side makes it again."""
        return json.dumps(dataclasses.asdict(self))


def recipe(size: str) -> Any:
    """The config of a size, without the work that a loader does outside the step."""
    from litevit_jax import recipes

    about = SIZES[size]
    config = recipes.get("detect", about.variant).copy_and_resolve_references().unlock()
    given = config.fallback.encoder.to_dict()
    common = {f"objective.encoder.{key}": value for key, value in given.items()}
    common |= {"batch_size": about.batch, "data.image_size": about.pixels}
    common |= {"data.flip": 0.0, "data.channels": 3, "log.health": False}
    common |= {"augment.normalize.mean": (0.5,) * 3, "init": "random"}
    common |= {"augment.normalize.std": (0.5,) * 3}
    common |= {"objective.num_classes": about.classes}
    config.update_from_flattened_dict({**common, **about.fields})
    config.augment = {"normalize": config.augment.normalize}
    return config


def our_detector(size: str) -> Any:
    """The detector of a size, without its step."""
    from litevit_jax.objectives import detect

    block, pixels = recipe(size).objective.to_dict(), SIZES[size].pixels
    encoder = {k: v for k, v in block.pop("encoder").items() if v is not None}
    del block["name"]
    return detect.make(encoder=encoder, image_size=(pixels,) * 2, **block).detector


def sizes_of(size: str) -> dict[str, Any]:
    """What PyTorch's side needs to build the same model, as JSON can hold it."""
    detector, joint = our_detector(size), recipe(size).data.joint
    encoder, mask = detector.encoder, detector.mask_head
    names = ("width", "depth", "num_heads", "patch_size", "grid", "pos_grid", "window")
    return {
        **{name: getattr(encoder, name) for name in names},
        "global_blocks": encoder.global_blocks,
        "channels": mask.channels,
        "num_classes": mask.num_classes,
        "rpn_convs": detector.rpn.convs,
        "box_convs": detector.box_head.convs,
        "box_hidden": detector.box_head.hidden,
        "mask_convs": mask.convs,
        "anchor_sizes": detector.anchor_sizes,
        "pooled": detector.pooled,
        "rules": dataclasses.asdict(detector.rules),
        "max_objects": joint.max_objects,
        "mask_size": joint.mask_size,
    }


def filled(name: str, shape: Sequence[int]) -> np.ndarray:
    """A parameter by detectron2's name: noise that follows from the name.

    Classes are told apart clearly, so that a test pass finds objects of many of them.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 1:
        return np.full(shape, float(name.endswith("weight")), np.float32)  # of norms
    std = {"cls_score": 0.2, "bbox_pred": 0.002, "objectness": 0.02, "anchor_": 0.002}
    std |= {"pos_embed": 0.02, "rel_pos": 0.02, "predictor.weight": 0.01}
    usual = (2 / np.prod(shape[1:])) ** 0.5
    scale = next((x for part, x in std.items() if part in name), usual)
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def host_batch(size: str, max_objects: int, mask_size: int) -> dict[str, np.ndarray]:
    """Images as bytes with objects, as our input pipeline gives them.

    Objects are ellipses of all sizes from 12 pixels on.
    """
    _, batch, pixels, classes, objects, _ = SIZES[size]
    rng = np.random.default_rng(0)
    sides = 12 * (pixels / 24) ** rng.random((batch, objects, 2))
    corner = rng.random((batch, objects, 2)) * (pixels - sides)
    boxes = np.zeros((batch, max_objects, 4), np.float32)
    boxes[:, :objects] = np.concatenate([corner, corner + sides], axis=-1)
    at = (np.arange(mask_size) + 0.5) / mask_size * 2 - 1
    ellipse = np.packbits(at[:, None] ** 2 + at**2 <= 1)
    return {
        "image": rng.integers(256, size=(batch, pixels, pixels, 3), dtype=np.uint8),
        "index": np.arange(batch, dtype=np.int32),
        "size": np.full((batch, 2), pixels, np.int32),
        "boxes": boxes,
        "classes": rng.integers(classes, size=boxes.shape[:2], dtype=np.int32),
        "valid": np.tile(np.arange(max_objects) < objects, (batch, 1)),
        "masks": np.tile(ellipse, (*boxes.shape[:2], 1)),
    }


def shapes_of(detector: Any, size: str) -> Any:
    """The shapes of our tree of parameters."""
    import jax

    pixels = SIZES[size].pixels
    image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), np.float32)
    return jax.eval_shape(detector.init, jax.random.key(0), image)


def jax_params(abstract: Any) -> Any:
    """Our tree of parameters, filled."""
    from litevit_jax import trees
    from litevit_jax.weights import detectron2

    shapes = {k: np.zeros(x.shape, "f4") for k, x in trees.flatten(abstract).items()}
    patch = round((shapes["encoder/patch_embed/kernel"].shape[0] / 3) ** 0.5)
    named = detectron2.to_detectron2(shapes, patch_size=patch)
    named = {name: filled(name, x.shape) for name, x in named.items()}
    return trees.nest(detectron2.from_detectron2(named))


def jax_side(spec: Spec) -> tuple[Run, str]:
    """Builds our side: (a function from steps to the last loss, versions)."""
    from litevit_jax import cpu

    cpu.prepare(spec.batch, 3 * SIZES[spec.size].pixels ** 2)  # as main.py does
    import jax

    about = f"jax {jax.__version__}, {jax.device_count()} cpu devices"
    if spec.part == "step":
        return _our_step(spec).run, about
    params, batch = _on_devices(spec)
    program = jax.jit(_part(our_detector(spec.size), spec.part))

    def run(steps):
        out: Any = 0.0
        for _ in range(steps):
            out = jax.block_until_ready(program(params, batch))
        return float(jax.tree.leaves(out)[0].ravel()[0])

    return run, about


def _our_step(spec):
    """The step that the recipe trains with, as a `sides.Step`."""
    import jax

    from litevit_jax import sharding
    from litevit_jax.plan import examples
    from litevit_jax.train import build, resolve

    config, mesh = resolve.settle(recipe(spec.size)), sharding.make_mesh()
    source = examples.Counted(118_000, SIZES[spec.size].classes, ("objects",))
    design = build.build_step(config, mesh, lambda split: source)
    state = design.create(jax.random.key(0))
    params = sharding.put(
        jax_params(state.params), jax.tree.map(lambda x: x.sharding, state.params)
    )
    host = host_batch(spec.size, spec.sizes["max_objects"], spec.sizes["mask_size"])
    batch = sharding.global_batch(host, mesh)
    return sides.Step(
        design, dataclasses.replace(state, params=params), batch, design.step
    )


def _on_devices(spec):
    """Parameters and a normalised batch, as evaluations have them."""
    import jax

    from litevit_jax import sharding

    mesh = sharding.make_mesh()
    host = host_batch(spec.size, spec.sizes["max_objects"], spec.sizes["mask_size"])
    host["image"] = host["image"] / np.float32(127.5) - 1
    shapes = shapes_of(our_detector(spec.size), spec.size)
    everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
    params = sharding.put(jax_params(shapes), everywhere)
    return params, sharding.global_batch(host, mesh)


def jax_computes(spec: Spec) -> dict[str, Any]:
    """The losses and detections of our side, with the first samples in order."""
    import jax
    import jax.numpy as jnp

    from litevit_jax.objectives import detect, detection_losses

    detector, (params, batch) = our_detector(spec.size), _on_devices(spec)
    batch["masks"] = detect.unpacked(batch["masks"])

    @jax.jit
    def compute(params, batch):
        drawn = jax.eval_shape(
            lambda: detection_losses.draw(
                detector, jax.random.split(jax.random.key(0), spec.batch), batch
            )
        )
        first = tuple(-jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape) for x in drawn)
        each = detection_losses.losses(detector, params, batch, first)
        return each, detector.detect(params, batch["image"], batch["size"])

    each, detected = compute(params, batch)
    rows = [np.asarray(detected[k])[np.asarray(detected["valid"])] for k in COMPARED]
    count = sum(x.size for x in jax.tree.leaves(params))
    return computed(count, each, rows)


COMPARED = ("scores", "boxes", "classes", "masks")


def computed(count: int, losses: Any, detected: Sequence[Any]) -> dict[str, float]:
    """Parameters, losses and detections of a side as numbers to compare."""
    numbers = {"parameters": count, "detections": len(detected[0])}
    numbers |= dict(zip(COMPARED, (float(x.mean()) for x in detected), strict=True))
    return numbers | {f"loss of {k}": float(x) for k, x in sorted(losses.items())}


def _part(detector, part):
    import jax

    encoder = detector.encoder

    def encode(params, batch):
        return encoder.apply({"params": params["encoder"]}, batch["image"])[0]

    if part == "test of the encoder":
        return encode
    if part == "test":
        return lambda params, x: detector.detect(params, x["image"], x["size"])
    return jax.value_and_grad(lambda params, batch: (encode(params, batch) ** 2).sum())


def torch_batch(torch: Any, spec: Spec) -> dict[str, Any]:
    """The batch as a plain PyTorch detector takes it: images without padding."""
    sizes = spec.sizes
    host = host_batch(spec.size, sizes["max_objects"], sizes["mask_size"])
    pixels = host["image"].astype(np.float32) / 127.5 - 1
    bits = np.unpackbits(host["masks"], axis=-1)
    host["masks"] = bits.reshape(*bits.shape[:2], *(sizes["mask_size"],) * 2)
    objects = []
    for i, there in enumerate(host["valid"]):
        own = {k: torch.from_numpy(host[k][i][there]) for k in ("boxes", "masks")}
        classes = torch.from_numpy(host["classes"][i][there]).long()
        objects.append(own | {"classes": classes})
    return {
        "image": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        "size": [tuple(map(int, size)) for size in host["size"]],
        "objects": objects,
    }


def torch_model(torch: Any, sizes: dict[str, Any]) -> Any:
    """PyTorch's model, filled."""
    from benchmarks import torch_detector

    model = torch_detector.detector(torch, sizes)
    state = {
        name: torch.from_numpy(filled(name, x.shape))
        for name, x in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def torch_side(spec: Spec) -> tuple[Run, str]:
    """Builds PyTorch's side: (a function from steps to the last loss, versions)."""
    torch, ops = map(importlib.import_module, ("torch", "torchvision.ops"))
    from benchmarks import torch_detection

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model, batch = torch_model(torch, spec.sizes), torch_batch(torch, spec)
    method = torch_detection.Method(torch, ops, spec.sizes, spec.fixed)
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    encoder = model["backbone"].net
    calls: dict[str, Any] = {
        "step": lambda: sum(method.losses(model, batch).values()),
        "step of the encoder": lambda: (encoder(batch["image"]) ** 2).sum(),
        "test": lambda: method.detect(model, batch)[0]["scores"][0],
        "test of the encoder": lambda: encoder(batch["image"]).ravel()[0],
    }
    optimizer = _adamw(torch, model)

    def run(steps):
        loss: Any = None
        with torch.inference_mode(spec.part.startswith("test")):
            for _ in range(steps):
                loss = calls[spec.part]()
                if spec.part.startswith("step"):
                    optimizer.zero_grad()
                    loss.backward()
                if spec.part == "step":
                    optimizer.step()
        return float(loss.detach())

    return run, about


def _adamw(torch, model):
    """AdamW as in the recipe: all decays but norms of blocks and positions."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, x in model.named_parameters():
        groups[not any(part in name for part in SPARED)].append(x)
    return torch.optim.AdamW(
        [{"params": x, "weight_decay": DECAY * decays} for decays, x in groups.items()],
        lr=LR,
    )


def torch_computes(spec: Spec) -> dict[str, Any]:
    """The same of PyTorch's side."""
    torch, ops = map(importlib.import_module, ("torch", "torchvision.ops"))
    from benchmarks import torch_detection

    model, batch = torch_model(torch, spec.sizes), torch_batch(torch, spec)
    method = torch_detection.Method(torch, ops, spec.sizes, ordered=True)
    with torch.no_grad():
        each, detected = method.losses(model, batch), method.detect(model, batch)
    rows = [torch.cat([x[k] for x in detected]).float() for k in COMPARED]
    return computed(sum(x.numel() for x in model.parameters()), each, rows)


if __name__ == "__main__":
    given = Spec(**json.loads(sys.argv[2]))
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    build = {"jax": jax_side, "torch": torch_side}[sys.argv[1]]
    compute = {"jax": jax_computes, "torch": torch_computes}[sys.argv[1]]
    if given.part == "check":
        print(json.dumps(compute(given)), flush=True)
    else:
        sides.answer(lambda: build(given))
