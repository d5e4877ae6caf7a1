"""The models and steps of the other side of train_step.py, plainly written in PyTorch.

`torch` is an argument, because it is no dependency of the package.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np


def block(
    torch: Any,
    width: int,
    num_heads: int,
    side: int | None = None,
    *,
    fused: bool = False,
    drop_path: float | None = None,
) -> Any:
    """A pre-norm block with attention written out, or PyTorch's own if `fused`.

    With `side`, it has a relative position bias for `side` x `side` patches; with
    `drop_path`, layer scale and residual branches that are dropped at this rate.
    """
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in "12")
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1 = nn.Linear(width, 4 * width)
            self.fc2 = nn.Linear(4 * width, width)
            self.table = None
            if side:
                self.table = nn.Parameter(
                    torch.zeros((2 * side - 1) ** 2 + 3, num_heads)
                )
                self.register_buffer("index", torch.from_numpy(bias_index(side)))
            self.gamma_1 = self.gamma_2 = None
            self.rate = drop_path or 0.0
            if drop_path is not None:
                self.gamma_1, self.gamma_2 = (
                    nn.Parameter(torch.ones(width)) for _ in "12"
                )

        def branch(self, x, gamma):
            if gamma is not None:
                x = gamma * x
            if self.rate and self.training:
                kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
                x = x * (kept.to(x.dtype) / (1 - self.rate))
            return x

        def forward(self, x):
            size, tokens, _ = x.shape
            shape = (size, tokens, 3, num_heads, width // num_heads)
            q, k, v = self.qkv(self.norm1(x)).reshape(shape).permute(2, 0, 3, 1, 4)
            if fused:
                bias = None
                if self.table is not None:
                    bias = self.table[self.index].permute(2, 0, 1).to(q.dtype)
                attend = nn.functional.scaled_dot_product_attention
                out = attend(q, k, v, attn_mask=bias).transpose(1, 2)
            else:
                logits = (q @ k.transpose(-2, -1)) * (width // num_heads) ** -0.5
                if self.table is not None:
                    logits = logits + self.table[self.index].permute(2, 0, 1)
                out = (logits.softmax(dim=-1) @ v).transpose(1, 2)
            out = self.proj(out.reshape(size, tokens, width))
            x = x + self.branch(out, self.gamma_1)
            out = self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
            return x + self.branch(out, self.gamma_2)

    return Block()


def mae(torch: Any, side: int, *, fused: bool = False) -> Any:
    """The tiny MAE as He et al. order it, on `side` x `side` patches; gives a loss."""
    nn, num_patches = torch.nn, side**2

    class Mae(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 192, 16, 16)
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, 192))
            self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, 96))
            self.blocks = nn.Sequential(
                *[block(torch, 192, 12, fused=fused) for _ in "x" * 12]
            )
            self.norm = nn.LayerNorm(192, eps=1e-6)
            self.embed = nn.Linear(192, 96)
            self.decoder = block(torch, 96, 3, fused=fused)
            self.decoder_norm = nn.LayerNorm(96, eps=1e-6)
            self.pred = nn.Linear(96, 768)
            for name, width in (("pos", 192), ("decoder_pos", 96)):
                table = positions(side, width)
                self.register_buffer(name, torch.from_numpy(table)[None])

        def forward(self, image):
            latent, restore, mask = self.encode(image)
            pred = self.decode(latent, restore)
            shape = (len(image), 3, side, 16, side, 16)
            target = image.reshape(shape).permute(0, 2, 4, 3, 5, 1)
            target = target.reshape(len(image), num_patches, 768)
            var = target.var(dim=-1, keepdim=True)
            target = (target - target.mean(dim=-1, keepdim=True)) / (var + 1e-6).sqrt()
            error = ((pred - target) ** 2).mean(dim=-1)
            return (error * mask).sum() / mask.sum()

        def encode(self, image):
            x = self.patch_embed(image).flatten(2).transpose(1, 2) + self.pos[:, 1:]
            size, kept = len(x), num_patches // 4
            ids = torch.rand(size, num_patches, device=x.device).argsort(dim=1)
            restore = ids.argsort(dim=1)
            index = ids[:, :kept, None].expand(-1, -1, 192)
            cls = self.cls_token.expand(size, -1, -1)
            x = torch.cat([cls, x.gather(1, index)], dim=1)
            return self.norm(self.blocks(x)), restore, (restore >= kept).float()

        def decode(self, latent, restore):
            x = self.embed(latent)
            missing = num_patches + 1 - x.shape[1]
            masked = self.mask_token.expand(len(x), missing, -1)
            patches = torch.cat([x[:, 1:], masked], dim=1)
            patches = patches.gather(1, restore.unsqueeze(-1).expand(-1, -1, 96))
            x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos
            return self.pred(self.decoder_norm(self.decoder(x)))[:, 1:]

    return Mae()


def positions(side: int, width: int) -> np.ndarray:
    """A sine and cosine for each position and frequency: `[side * side + 1, width]`.

    It stands for the table of both sides, whose values cost nothing.
    """
    angles = np.arange(side**2 + 1)[:, None] / 10_000 ** np.linspace(0, 1, width // 2)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return table.astype(np.float32)


def bias_index(side: int) -> np.ndarray:
    """Rows of a table of relative positions that tokens read, class token first."""
    row, column = np.divmod(np.arange(side**2), side)
    down, right = row[:, None] - row, column[:, None] - column
    index = np.empty((side**2 + 1,) * 2, np.int64)
    index[1:, 1:] = (down + side - 1) * (2 * side - 1) + right + side - 1
    last = (2 * side - 1) ** 2
    index[0], index[1:, 0], index[0, 0] = last, last + 1, last + 2
    return index


def encoder_class(
    torch: Any, *, fused: bool = False, drop_path: float | None = None
) -> Any:
    """The class of ViT-Tiny with 12 heads: images to tokens, before a last norm.

    `drop_path` is the rate of the last block; see `block`.
    """
    nn = torch.nn
    rates = [drop_path and drop_path * number / 11 for number in range(12)]

    class Encoder(nn.Module):
        def __init__(self, side, *, learned=False, biased=False):
            super().__init__()
            table = torch.from_numpy(positions(side, 192))
            self.patch_embed = nn.Conv2d(3, 192, 16, 16)
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, 192))
            self.pos_embed = nn.Parameter(table[None], requires_grad=learned)
            grid = side if biased else None
            self.blocks = nn.Sequential(
                *[
                    block(torch, 192, 12, grid, fused=fused, drop_path=rate)
                    for rate in rates
                ]
            )

        def embed(self, image):
            x = self.patch_embed(image).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
            return x + self.pos_embed

        def forward(self, image):
            return self.blocks(self.embed(image))

    return Encoder


def classifier(
    torch: Any, side: int, classes: int, biased: bool, *, fused: bool = False
) -> Any:
    """ViT-Tiny on `side` x `side` patches, averaged; gives logits."""
    nn, encoder = torch.nn, encoder_class(torch, fused=fused)

    class Classifier(encoder):
        def __init__(self):
            super().__init__(side, learned=True, biased=biased)
            self.fc_norm = nn.LayerNorm(192, eps=1e-6)
            self.head = nn.Linear(192, classes)

        def forward(self, image):
            x = super().forward(image)
            return self.head(self.fc_norm(x[:, 1:].mean(dim=1)))

    return Classifier()


def mixed_loss(torch: Any, model: Any, image: Any, label: Any, alpha: float) -> Any:
    """Soft-target cross-entropy of a batch whose images are mixed with its mirror."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    mixed = share * image + (1 - share) * image.flip(0)
    logits = model(mixed)
    target = torch.nn.functional.one_hot(label, logits.shape[1]).float()
    target = share * target + (1 - share) * target.flip(0)
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def moco(torch: Any, side: int, *, fused: bool = False) -> Any:
    """MoCo v3 on `side` x `side` patches: (view, view) -> loss, teacher updated."""
    nn, functional = torch.nn, torch.nn.functional

    def mlp(*widths):
        layers = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            last = number == len(widths) - 2
            layers += [nn.Linear(inputs, outputs, bias=False)]
            layers += [nn.BatchNorm1d(outputs, affine=not last)]
            layers += [] if last else [nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def contrast(q, k):
        similarity = functional.normalize(q) @ functional.normalize(k).T / 0.2
        own = torch.arange(len(q), device=q.device)
        return functional.cross_entropy(similarity, own) * 2 * 0.2

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder_class(torch, fused=fused)(side)
            self.norm = nn.LayerNorm(192, eps=1e-6)
            self.projector = mlp(192, 4096, 4096, 256)

        def forward(self, view):
            return self.projector(self.norm(self.encoder(view))[:, 0])

    class Moco(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = Branch(), Branch()
            self.predictor = mlp(256, 4096, 256)
            self.teacher.load_state_dict(self.student.state_dict())
            self.teacher.requires_grad_(False)
            self.blocks = self.student.encoder.blocks

        def forward(self, first, second):
            q = [self.predictor(self.student(view)) for view in (first, second)]
            with torch.no_grad():
                pairs = zip(
                    self.teacher.parameters(), self.student.parameters(), strict=True
                )
                for average, value in pairs:
                    average.mul_(0.99).add_(value, alpha=0.01)
                k = [self.teacher(view) for view in (first, second)]
            return contrast(q[0], k[1]) + contrast(q[1], k[0])

    return Moco()


def segmenter(
    torch: Any, side: int, classes: int, *, drop: float = 0.1, fused: bool = False
) -> Any:
    """ViT-Tiny with Semantic FPN on `side` x `side` patches: (image, labels) -> loss.

    `drop` is the rate of the last block's branches and of the head's channels.
    """
    nn, functional = torch.nn, torch.nn.functional
    encoder = encoder_class(torch, fused=fused, drop_path=drop)

    def enlarge(inputs):
        return nn.ConvTranspose2d(inputs, 48, 2, 2)

    def twice():
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def level(number):
        layers, inputs = [], 48
        for _ in range(max(number, 1)):
            layers += [nn.Conv2d(inputs, 128, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(128), nn.ReLU(inplace=True)]
            layers += [twice()] if number else []
            inputs = 128
        return nn.Sequential(*layers)

    class Segmenter(encoder):
        def __init__(self):
            super().__init__(side, learned=True, biased=True)
            self.neck = nn.ModuleList(
                [
                    nn.Sequential(
                        enlarge(192), nn.BatchNorm2d(48), nn.GELU(), enlarge(48)
                    ),
                    enlarge(192),
                    nn.Conv2d(192, 48, 1),
                    nn.Sequential(nn.Conv2d(192, 48, 1), nn.MaxPool2d(2, 2)),
                ]
            )
            self.levels = nn.ModuleList([level(number) for number in range(4)])
            self.dropout = nn.Dropout2d(drop)
            self.head = nn.Conv2d(128, classes, 1)

        def forward(self, image, labels):
            x, maps = self.embed(image), []
            for number, each in enumerate(self.blocks):
                x = each(x)
                if number in (3, 5, 7, 11):
                    whole = x[:, 1:].transpose(1, 2)
                    maps.append(whole.reshape(len(x), -1, side, side))
            pairs = zip(self.neck, self.levels, maps, strict=True)
            total = sum(level(neck(whole)) for neck, level, whole in pairs)
            logits = functional.interpolate(
                self.head(self.dropout(total)),
                size=labels.shape[1:],
                mode="bilinear",
                align_corners=False,
            )
            each = functional.cross_entropy(
                logits, labels, ignore_index=255, reduction="none"
            )
            return each.mean()

    return Segmenter()


def groups(
    model: Any,
    lr: float,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    decay_1d: float = False,
    decay_positions: float = False,
    **_: float,
) -> list[dict[str, Any]]:
    """Groups of parameters for AdamW: decayed or not, and a rate for each layer."""
    by_rate: dict[tuple[int, bool], dict[str, Any]] = {}
    depth = len(model.blocks)
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        match = re.match(r"blocks\.(\d+)\.", name)
        layer = int(match[1]) + 1 if match else depth + 1
        if name.startswith(("cls_token", "pos_embed", "patch_embed")):
            layer = 0
        spared = layer_decay < 1 and name in ("cls_token", "pos_embed")
        spared = spared and not decay_positions
        decayed = bool(value.ndim > 1 or decay_1d) and not spared
        if layer_decay >= 1:
            layer = depth + 1
        group = by_rate.setdefault((layer, decayed), {"params": []})
        group["params"].append(value)
        group["weight_decay"] = weight_decay if decayed else 0.0
        group["lr"] = lr * layer_decay ** (depth + 1 - layer)
    return list(by_rate.values())
