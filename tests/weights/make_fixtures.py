"""Writes the files of tests/weights/fixtures anew: random weights, and what the
PyTorch reference models compute with them.

Needs torch, timm, transformers and safetensors; no test runs it:

    python tests/weights/make_fixtures.py

The encoder is timm's VisionTransformer, ViTMAE is that of transformers. The pixel
decoder has timm's blocks under MAE's names, put together as recipes 2.1 say.
"""

import argparse
import functools
import pathlib

import numpy as np
import safetensors.torch
import timm.models.vision_transformer as timm_vit
import torch
import transformers

HERE = pathlib.Path(__file__).parent / "fixtures"
WIDTH, DEPTH, HEADS, SIDE, PATCH, CLASSES = 16, 2, 4, 16, 4, 5
DECODER_WIDTH, DECODER_HEADS, KEPT = 8, 2, 6
PATCHES = (SIDE // PATCH) ** 2
NORM = functools.partial(torch.nn.LayerNorm, eps=1e-6)


def sincos(width, side, moco=False):
    """The table `[1, 1 + side * side, width]` of recipes 1.2."""
    count = width // 4
    omega = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    axes = (row, col) if moco else (col, row)
    angles = [axis.reshape(-1, 1) * omega for axis in axes]
    halves = [torch.cat([a.sin(), a.cos()], dim=1) for a in angles]
    table = torch.cat(halves, dim=1)
    return torch.cat([torch.zeros(1, width), table]).float()[None]


def randomise(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            value.copy_(1 + 0.1 * noise if is_scale else 0.2 * noise)
    return module.eval()


def vit(**kwargs):
    return randomise(
        timm_vit.VisionTransformer(
            img_size=SIDE,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            norm_layer=NORM,
            **{"num_classes": 0, **kwargs},
        ),
        seed=1,
    )


class Decoder(torch.nn.Module):
    """MAE's pixel decoder, with its names."""

    def __init__(self):
        super().__init__()
        self.decoder_embed = torch.nn.Linear(WIDTH, DECODER_WIDTH)
        self.mask_token = torch.nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        self.decoder_blocks = torch.nn.ModuleList(
            [
                timm_vit.Block(
                    DECODER_WIDTH, DECODER_HEADS, qkv_bias=True, norm_layer=NORM
                )
            ]
        )
        self.decoder_norm = NORM(DECODER_WIDTH)
        self.decoder_pred = torch.nn.Linear(DECODER_WIDTH, PATCH * PATCH * 3)
        randomise(self, seed=2)
        table = sincos(DECODER_WIDTH, SIDE // PATCH)
        self.decoder_pos_embed = torch.nn.Parameter(table, requires_grad=False)

    def forward(self, latent, ids_restore):
        x = self.decoder_embed(latent)
        hidden = self.mask_token.expand(x.shape[0], PATCHES + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        index = ids_restore[:, :, None].expand(-1, -1, DECODER_WIDTH)
        x = torch.cat([x[:, :1], patches.gather(1, index)], dim=1)
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


def encode(model, image, ids_keep):
    """Tokens of the kept patches, in the order of `ids_keep [B, M]`."""
    pos = model.pos_embed
    patches = model.patch_embed(image) + pos[:, 1:]
    index = ids_keep[:, :, None].expand(-1, -1, WIDTH)
    cls = (model.cls_token + pos[:, :1]).expand(image.shape[0], -1, -1)
    x = torch.cat([cls, patches.gather(1, index)], dim=1)
    for block in model.blocks:
        x = block(x)
    return model.norm(x)


def with_prefix(prefix, tree):
    return {prefix + key: value for key, value in tree.items()}


def save(name, tree, **kwargs):
    torch.save(tree, HERE / name, **kwargs)


def adam_state(module):
    """A small optimizer's state, as training checkpoints carry it."""
    optimizer = torch.optim.AdamW(module.decoder_norm.parameters())
    module.decoder_norm(torch.ones(1, DECODER_WIDTH)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def write_mae(image, expected):
    model, decoder = vit(), Decoder()
    state = adam_state(decoder)  # its one step changes the decoder
    model.pos_embed.data = sincos(WIDTH, SIDE // PATCH)
    encoder, full = model.state_dict(), model.state_dict() | decoder.state_dict()
    generator = torch.Generator().manual_seed(3)
    ids = torch.stack([torch.randperm(PATCHES, generator=generator) for _ in image])
    latent = encode(model, image, ids[:, :KEPT])
    expected["ids_shuffle"] = ids
    expected["mae_tokens"] = model.forward_features(image)
    expected["mae_latent"] = latent
    expected["mae_pred"] = decoder(latent, ids.argsort(dim=1))
    extra = {"epoch": 3, "optimizer": state, "scaler": {"scale": 65536.0}}
    args = argparse.Namespace(model="mae_vit_tiny", lr=None, betas=(0.9, 0.95))
    save("mae_encoder.pth", {"model": encoder})
    save("mae_full.pth", {"model": full, "args": args, **extra})
    extra |= {"start_epoch": 4, "best_top1": np.float64(1.5), "scheduler": {}}
    save("mae_lite.pth.tar", {"model": with_prefix("module.model.", full), **extra})
    distilled = with_prefix("module.model.", full)
    distilled["module.attn_adapter.adapter11.weight"] = torch.ones(4, 4, 1, 1)
    distilled |= with_prefix("module.tch_model.", encoder)
    save("mae_lite_distill.pth.tar", {"model": distilled, **extra})


def write_moco(image, expected):
    model = vit()
    model.pos_embed.data = sincos(WIDTH, SIDE // PATCH, moco=True)
    expected["moco_tokens"] = model.forward_features(image)
    base = model.state_dict() | {
        "head.0.weight": torch.ones(4, WIDTH),
        "head.1.running_mean": torch.zeros(4),
        "head.1.num_batches_tracked": torch.tensor(7),
    }
    with torch.no_grad():
        momentum = {key: 0.5 * v for key, v in base.items()}
    momentum["pos_embed"] = base["pos_embed"]
    tree = with_prefix("module.base_encoder.", base)
    tree |= with_prefix("module.momentum_encoder.", momentum)
    tree["module.predictor.0.weight"] = torch.ones(4, 4)
    save("moco_v3.pth.tar", {"state_dict": tree, "epoch": 300, "arch": "vit_small"})


def write_classifiers(image, expected):
    by_cls = vit(num_classes=CLASSES)
    by_mean = vit(num_classes=CLASSES, global_pool="avg")
    expected["cls_logits"], expected["avg_logits"] = by_cls(image), by_mean(image)
    tree = by_cls.state_dict()
    save("timm.pth", tree)
    save("timm_before_1.6.pth", tree, _use_new_zipfile_serialization=False)
    save("deit.pth", {"model": tree})
    save("timm_half.pth", {key: value.half() for key, value in tree.items()})
    transposed = {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in tree.items()}
    save("timm_strided.pth", transposed)
    path = HERE / "timm.safetensors"
    safetensors.torch.save_file(tree, path, metadata={"format": "pt"})
    bfloat = {key: value.bfloat16() for key, value in tree.items()}
    safetensors.torch.save_file(bfloat, HERE / "timm_bfloat16.safetensors")
    avg = with_prefix("model.", by_mean.state_dict())
    save("mae_lite_classifier.pth.tar", {"model": avg, "best_top1": np.float64(77.9)})
    double = dict(by_mean.state_dict())
    double["dist_norm.weight"], double["dist_norm.bias"] = torch.ones(2, WIDTH)
    double["head_dist.weight"] = torch.ones(CLASSES, WIDTH)
    double["head_dist.bias"] = torch.zeros(CLASSES)
    double = with_prefix("module.model.", double)
    save("mae_lite_two_heads.pth.tar", {"model": double})


def write_hf(image, expected):
    config = transformers.ViTMAEConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        decoder_hidden_size=DECODER_WIDTH,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=4 * DECODER_WIDTH,
        layer_norm_eps=1e-6,
        mask_ratio=0.0,
        attn_implementation="eager",
    )
    model = transformers.ViTMAEForPreTraining(config)
    randomise(model, seed=4)
    # Of a model from scratch the library leaves the decoder's table at 0.
    for table in (
        model.vit.embeddings.position_embeddings,
        model.decoder.decoder_pos_embed,
    ):
        table.data = sincos(table.shape[-1], SIDE // PATCH)
    noise = torch.arange(PATCHES).repeat(len(image), 1) / PATCHES
    expected["hf_tokens"] = model.vit(image, noise=noise).last_hidden_state
    expected["hf_pred"] = model(image, noise=noise).logits
    folder = HERE / "hf_vitmae"
    folder.mkdir(exist_ok=True)
    tree = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(tree, folder / "model.safetensors")
    config.to_json_file(folder / "config.json")


def write_resized(expected):
    table = torch.randn(1, 4 * 6, 3, generator=torch.Generator().manual_seed(5))
    picture = table.reshape(1, 4, 6, 3).permute(0, 3, 1, 2)
    expected["table"] = torch.cat([torch.full((1, 1, 3), 9.0), table], dim=1)
    for rows, cols in ((7, 6), (8, 12), (2, 3), (5, 4), (1, 1), (4, 13)):
        resized = torch.nn.functional.interpolate(
            picture, size=(rows, cols), mode="bicubic", align_corners=False
        )
        expected[f"resized_{rows}x{cols}"] = resized.permute(0, 2, 3, 1).flatten(1, 2)


def main():
    HERE.mkdir(exist_ok=True)
    image = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = {"image": image.permute(0, 2, 3, 1)}
    write_mae(image, expected)
    write_moco(image, expected)
    write_classifiers(image, expected)
    write_hf(image, expected)
    write_resized(expected)
    arrays = {name: value.detach().numpy() for name, value in expected.items()}
    np.savez(HERE / "expected.npz", **arrays)
    versions = (torch.__version__, timm_vit.__name__, transformers.__version__)
    print("written with", *versions, "to", HERE.name)


if __name__ == "__main__":
    main()
