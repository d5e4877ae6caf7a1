"""A ViTDet Mask R-CNN, plainly written in PyTorch: the other side of detection.py.

Parameters have detectron2's names. `torch` and `torchvision.ops` are arguments, because
they are no dependencies of the package.
"""

from __future__ import annotations

import math
from typing import Any

BOX_WEIGHTS, MOST_GROWTH = (10.0, 10.0, 5.0, 5.0), math.log(1000 / 16)


def detector(torch: Any, sizes: dict[str, Any]) -> Any:
    """The modules; `sizes` are those of `detection_sides.sizes_of`."""
    nn, c, k = torch.nn, sizes["channels"], sizes["num_classes"]

    def module(**parts):
        return nn.ModuleDict(parts)

    def convs(name, count, first=1):
        return {f"{name}{i + first}": normed(torch, c, c, 3) for i in range(count)}

    def plain(outputs, side):
        return nn.Conv2d(c, outputs, side, padding=side // 2)

    box = convs("conv", sizes["box_convs"])
    box["fc1"] = nn.Linear(c * sizes["pooled"][0] ** 2, sizes["box_hidden"])
    mask = convs("mask_fcn", sizes["mask_convs"])
    mask["deconv"] = nn.ConvTranspose2d(c, c, 2, 2)
    mask["predictor"] = plain(k, 1)
    hidden = {f"conv{i}": plain(c, 3) for i in range(sizes["rpn_convs"])}
    return module(
        backbone=backbone(torch, sizes),
        proposal_generator=module(
            rpn_head=module(
                conv=module(**hidden),
                objectness_logits=plain(3, 1),
                anchor_deltas=plain(12, 1),
            )
        ),
        roi_heads=module(
            box_head=module(**box),
            box_predictor=module(
                cls_score=nn.Linear(sizes["box_hidden"], k + 1),
                bbox_pred=nn.Linear(sizes["box_hidden"], 4 * k),
            ),
            mask_head=module(**mask),
        ),
    )


def channel_norm(torch: Any, channels: int) -> Any:
    """A LayerNorm over the channels of each pixel of `[B, C, h, w]`."""

    class ChannelNorm(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return ChannelNorm(channels, eps=1e-6)


def normed(torch: Any, inputs: int, outputs: int, side: int) -> Any:
    """A convolution without bias that keeps the size, and its norm."""

    class Normed(torch.nn.Conv2d):
        def __init__(self):
            super().__init__(inputs, outputs, side, padding=side // 2, bias=False)
            self.norm = channel_norm(torch, outputs)

        def forward(self, x):
            return self.norm(super().forward(x))

    return Normed()


def backbone(torch: Any, sizes: dict[str, Any]) -> Any:
    """Encoder and pyramid: images `[B, 3, H, W]` to five maps."""
    nn, d, c = torch.nn, sizes["width"], sizes["channels"]

    def up(inputs):
        return nn.ConvTranspose2d(inputs, inputs // 2, 2, 2)

    def tail(inputs):
        return normed(torch, inputs, c, 1), normed(torch, c, c, 3)

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = encoder(torch, sizes)
            twice = (up(d), channel_norm(torch, d // 2), nn.GELU(), up(d // 2))
            self.simfp_2 = nn.Sequential(*twice, *tail(d // 4))
            self.simfp_3 = nn.Sequential(up(d), *tail(d // 2))
            self.simfp_4 = nn.Sequential(*tail(d))
            self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, 2), *tail(d))

        def forward(self, image):
            x = self.net(image)
            maps = [getattr(self, f"simfp_{level}")(x) for level in (2, 3, 4, 5)]
            return [*maps, maps[-1][..., ::2, ::2]]

    return Backbone()


def encoder(torch: Any, sizes: dict[str, Any]) -> Any:
    """The encoder: images `[B, 3, H, W]` to `[B, D, h, w]`."""
    nn, d, patch = torch.nn, sizes["width"], sizes["patch_size"]
    (rows, cols), before = sizes["grid"], sizes["pos_grid"]

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, patch, patch)})
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + before[0] * before[1], d))
            self.blocks = nn.ModuleList(
                [
                    block(torch, sizes, number not in sizes["global_blocks"])
                    for number in range(1, sizes["depth"] + 1)
                ]
            )

        def forward(self, image):
            x = self.patch_embed["proj"](image)
            table = self.pos_embed[:, 1:].reshape(1, *before, d).permute(0, 3, 1, 2)
            x = x + nn.functional.interpolate(
                table, size=(rows, cols), mode="bicubic", align_corners=False
            )
            x = x.permute(0, 2, 3, 1)
            for each in self.blocks:
                x = each(x)
            return x.permute(0, 3, 1, 2)

    return Encoder()


def block(torch: Any, sizes: dict[str, Any], windowed: bool) -> Any:
    """A block on `[B, h, w, D]` with decomposed relative positions."""
    nn, d, heads = torch.nn, sizes["width"], sizes["num_heads"]
    window, size = sizes["window"], d // heads
    grid = (window, window) if windowed else sizes["grid"]

    def rows_of(table, side):
        offsets = torch.arange(side)
        return table[offsets[:, None] - offsets + side - 1]

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.rel_pos_h, self.rel_pos_w = (
                nn.Parameter(torch.zeros(2 * side - 1, size)) for side in grid
            )

        def forward(self, x):
            batch, (h, w) = len(x), x.shape[1:3]
            qkv = self.qkv(x).reshape(batch, h * w, 3, heads, size)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            logits = (q * size**-0.5) @ k.transpose(-2, -1)
            asked = q.reshape(batch, heads, h, w, size)
            down = torch.einsum("bahwe,hke->bahwk", asked, rows_of(self.rel_pos_h, h))
            right = torch.einsum("bahwe,wke->bahwk", asked, rows_of(self.rel_pos_w, w))
            logits = logits.reshape(batch, heads, h, w, h, w)
            logits = logits + down[..., None] + right[..., None, :]
            logits = logits.reshape(batch, heads, h * w, h * w)
            out = (logits.softmax(dim=-1) @ v).transpose(1, 2)
            return self.proj(out.reshape(batch, h, w, d))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(d, eps=1e-6) for _ in "12")
            self.attn = Attention()
            self.mlp = nn.ModuleDict(
                {"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)}
            )

        def attend(self, x):
            if not windowed:
                return self.attn(x)
            batch, (h, w) = len(x), x.shape[1:3]
            x = nn.functional.pad(x, (0, 0, 0, -w % window, 0, -h % window))
            down, right = x.shape[1] // window, x.shape[2] // window
            x = x.reshape(batch, down, window, right, window, d).transpose(2, 3)
            x = self.attn(x.reshape(-1, window, window, d))
            x = x.reshape(batch, down, right, window, window, d).transpose(2, 3)
            return x.reshape(batch, down * window, right * window, d)[:, :h, :w]

        def forward(self, x):
            x = x + self.attend(self.norm1(x))
            hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
            return x + self.mlp["fc2"](hidden)

    return Block()


def anchors(torch: Any, maps: list[Any], sizes: dict[str, Any]) -> list[Any]:
    """The anchors of each level `[N, 4]`."""
    levels = []
    for number, (x, size) in enumerate(zip(maps, sizes["anchor_sizes"], strict=True)):
        stride = sizes["patch_size"] * 2.0 ** (number - 2)
        around, area = [], (size * sizes["patch_size"]) ** 2
        for ratio in (0.5, 1.0, 2.0):
            width = math.sqrt(area / ratio)
            height = ratio * width
            around.append([-width / 2, -height / 2, width / 2, height / 2])
        grid = (torch.arange(n) * stride for n in x.shape[2:])
        y, x = torch.meshgrid(*grid, indexing="ij")
        corner = torch.stack([x, y, x, y], dim=-1)
        levels.append((corner[:, :, None] + torch.tensor(around)).reshape(-1, 4))
    return levels


def encode(torch: Any, boxes: Any, targets: Any, weights: tuple = (1, 1, 1, 1)) -> Any:
    """Offsets `[..., 4]` that turn boxes into targets."""
    sides, to_sides = (x[..., 2:] - x[..., :2] for x in (boxes, targets))
    moved = targets[..., :2] + to_sides / 2 - boxes[..., :2] - sides / 2
    offsets = torch.cat([moved / sides, torch.log(to_sides / sides)], dim=-1)
    return offsets * torch.tensor(weights, dtype=torch.float32)


def decode(torch: Any, boxes: Any, offsets: Any, weights: tuple = (1, 1, 1, 1)) -> Any:
    """Boxes `[..., 4]` moved by offsets."""
    offsets = offsets / torch.tensor(weights, dtype=torch.float32)
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + sides / 2 + offsets[..., :2] * sides
    sides = sides * torch.exp(offsets[..., 2:].clamp(max=MOST_GROWTH))
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=-1)


def score(model: Any, maps: list[Any]) -> tuple[list[Any], list[Any]]:
    """Logits `[B, N]` and offsets `[B, N, 4]` of each level's anchors."""
    head, logits, offsets = model["proposal_generator"]["rpn_head"], [], []
    for x in maps:
        for layer in head["conv"].values():
            x = layer(x).relu()
        logit = head["objectness_logits"](x).permute(0, 2, 3, 1)
        offset = head["anchor_deltas"](x).permute(0, 2, 3, 1)
        logits.append(logit.reshape(len(x), -1))
        offsets.append(offset.reshape(len(x), -1, 4))
    return logits, offsets


def pool(torch: Any, ops: Any, sizes: dict[str, Any], maps: Any, boxes: Any, to: int):
    """RoIAlign of boxes (a list, `[R, 4]` of each image), each from its own level."""
    flat = torch.cat(boxes)
    image = torch.cat([flat.new_full((len(x), 1), i) for i, x in enumerate(boxes)])
    rois = torch.cat([image, flat], dim=1)
    area = (flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])
    side = area.clamp(min=0).sqrt() / (14 * sizes["patch_size"]) + 1e-8
    level = torch.floor(4 + torch.log2(side)).clamp(2, 5)
    out = flat.new_zeros(len(flat), sizes["channels"], to, to)
    for number, x in enumerate(maps[:4], 2):
        rows = torch.nonzero(level == number)[:, 0]
        scale = 2.0 ** (4 - number) / sizes["patch_size"]
        out[rows] = ops.roi_align(x, rois[rows], (to, to), scale, 2, aligned=True)
    return out


def classify(torch: Any, ops: Any, sizes: Any, model: Any, maps: Any, boxes: Any):
    """Logits `[R, K + 1]` and offsets `[R, K, 4]` of the boxes of all images."""
    head = model["roi_heads"]["box_head"]
    x = pool(torch, ops, sizes, maps, boxes, sizes["pooled"][0])
    for i in range(1, sizes["box_convs"] + 1):
        x = head[f"conv{i}"](x).relu()
    x = head["fc1"](x.flatten(1)).relu()
    out = model["roi_heads"]["box_predictor"]
    return out["cls_score"](x), out["bbox_pred"](x).reshape(len(x), -1, 4)


def masks(torch: Any, ops: Any, sizes: Any, model: Any, maps: Any, boxes: Any, own):
    """Mask logits `[R, s, s]` of the boxes of all images, as classes `own` `[R]`."""
    head = model["roi_heads"]["mask_head"]
    x = pool(torch, ops, sizes, maps, boxes, sizes["pooled"][1])
    for i in range(1, sizes["mask_convs"] + 1):
        x = head[f"mask_fcn{i}"](x).relu()
    x = head["predictor"](head["deconv"](x).relu())
    return x[torch.arange(len(x)), own]
