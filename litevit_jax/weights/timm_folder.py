"""The folder of a model, as timm and hubs take it: config.json and a model card.

`timm.create_model("local-dir:DIR", pretrained=True)` reads model.safetensors beside
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from litevit_jax.weights import exportable as models
from litevit_jax.weights import layouts, names

# A name that timm knows; `model_args` give all that its sizes would.
ARCHITECTURE = "vit_tiny_patch16_224"
_POOLS = {"avg": "avg", "cls": "token", None: "token"}


def config(model: models.Model) -> dict[str, Any]:
    """Returns the content of config.json.

    Raises:
      ValueError: blocks with tables of relative positions, which timm's have not.
    """
    layouts.check_plain(model, "timm's folder")
    encoder, notes, classes = model.encoder, model.notes, model.num_classes
    pool = _POOLS[model.pool]
    pooled_norm = "head/fc_norm/scale" in model.params
    arguments = {
        "img_size": list(model.image_size),
        "patch_size": encoder.patch_size,
        "in_chans": model.channels,
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "global_pool": pool,  # timm takes none from beside the arguments
        "fc_norm": pooled_norm,
    }
    if not (pooled_norm or "encoder/norm/scale" in model.params):
        arguments["final_norm"] = False
    about: dict[str, Any] = {
        "custom_load": False,
        "input_size": [model.channels, *model.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "num_classes": classes,
        "pool_size": None,
        # timm changes the weights of other channel counts, and fails at most of them.
        "first_conv": "patch_embed.proj" if model.channels == 3 else None,
        "classifier": "head",
    }
    about |= {key: json.loads(notes[key]) for key in ("mean", "std") if key in notes}
    if "crop" in notes:
        about["crop_pct"] = float(notes["crop"])
    labels = names.parse_list(notes.get(names.CLASSES)) if classes else []
    if len(labels) == classes and labels:
        about["label_names"] = labels
    if names.LICENCE in notes:
        about["license"] = notes[names.LICENCE]
    if "source" in notes:
        about["description"] = f"litevit_jax: {notes['source']}"
    probabilities = {names.PROBABILITIES: notes.get(names.PROBABILITIES)}
    return {
        "architecture": ARCHITECTURE,
        **(probabilities if classes and any(probabilities.values()) else {}),
        "num_classes": classes,
        "num_features": encoder.width,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": about,
    }


def card(
    name: str, model: models.Model, results: Sequence[tuple[str, str, float]]
) -> str:
    """Returns the model card, README.md.

    Args:
      name: of the model.
      model: that is described.
      results: (evaluation, metric, value) of the run at the exported step.
    """
    notes = model.notes
    licence = notes.get(names.LICENCE)
    task = "image-classification" if model.num_classes else "image-feature-extraction"
    head = [
        "---",
        "library_name: timm",
        "tags:",
        f"- {task}",
        "- timm",
        "- litevit_jax",
    ]
    head += [f"license: {licence}"] * (licence is not None) + ["---", ""]
    rows = [
        ("encoder", _encoder(model)),
        ("parameters", f"{model.num_parameters:,}"),
        ("images", "{}x{}".format(*model.image_size) + _channels(model.channels)),
        ("crop", _crop(notes.get("crop"))),
        ("mean", notes.get("mean", "")),
        ("std", notes.get("std", "")),
        ("output", model.output),
        ("pooling", model.pool or "none"),
        ("classes", f"{model.num_classes:,}" * bool(model.num_classes)),
        ("probabilities", notes.get(names.PROBABILITIES, "") * bool(model.num_classes)),
        ("licence", licence or "not stated"),
        ("source", notes.get("source", "")),
    ]
    table = [f"| {key} | {_cell(value)} |" for key, value in rows if value]
    lines = [*head, f"# {name}", "", "| | |", "|---|---|", *table, "", "## Results", ""]
    if results:
        lines += ["| evaluation | metric | value |", "|---|---|---|"]
        lines += [f"| {_cell(t)} | {_cell(m)} | {v:.4g} |" for t, m, v in results]
    else:
        lines.append("None were recorded with these weights.")
    return "\n".join([*lines, "", _use(model, name)])


def _encoder(model: models.Model) -> str:
    encoder = model.encoder
    sizes = f"{encoder.depth} blocks, {encoder.width} wide, {encoder.num_heads} heads"
    return f"vision transformer, {sizes}, patches of {encoder.patch_size}"


def _channels(count: int) -> str:
    return f", {count} channel{'' if count == 1 else 's'}"


def _crop(share: str | None) -> str:
    return f"{share} of the shorter side, resized bicubic" if share else ""


def _cell(text: str) -> str:
    """Returns `text` as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _use(model: models.Model, name: str) -> str:
    what = "logits" if model.num_classes else "tokens = model.forward_features"
    call = "logits = model(images)" if model.num_classes else f"{what}(images)"
    return f"""## Use

```python
import timm

model = timm.create_model("local-dir:{name}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
images = transform(picture)[None]  # a PIL image
{call}
```

`litevit_jax.load("{name}/model.safetensors")` reads the same file.
"""
