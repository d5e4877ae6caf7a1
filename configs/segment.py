"""Semantic segmentation: a class for every pixel, from a pre-trained encoder.

    python main.py --config=configs/segment.py:ade20k,path=DIR --config.init=RUN_DIR
    python main.py --config=configs/segment.py:linear,ade20k,path=DIR \\
        --config.init=RUN_DIR
    python main.py --config=configs/segment.py:folder,path=DIR --config.init=RUN_DIR \\
        --config.data.options.reduce_zero_label=False
    python main.py --config=configs/segment.py:digit_scenes
    python main.py --config=configs/segment.py:smoke

`init` is a run directory, a step inside it, or a file of weights. Variants: nothing,
the paper's Semantic FPN on features of four blocks, the encoder fine-tuned; `linear`, a
linear layer on the patch tokens of the frozen encoder; `linear_ms`, the same on the
tokens of its last four blocks; `linear_each`, one `linear` for each block, trained
together, to see which block to take. Data: `ade20k`, the folder ADEChallengeData2016
as it is unpacked; `folder`, images and label maps of yours or of PASCAL VOC
(docs/dense.md); `data=packed`; `digit_scenes`, digits on photographs that come with the
package, where `init` is random unless you name a run.

ADE20K: 160,000 updates of 16 crops of 512 pixels (linear heads: 40,000); not timed by
us on accelerators. The authors' README has 38.0 % mIoU for DeiT-Tiny and 39.0 for
D2-MAE-Tiny. Digit scenes: a few minutes on a CPU core.
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common

_LINEAR = ("linear", "linear_each", "linear_ms")


def get_config(arg=None):
    """`arg`: linear, linear_each, linear_ms; ade20k, digit_scenes, smoke, path=DIR."""
    given = common.parse_arg(arg, flags=("ade20k", *_LINEAR))
    heads = [name for name in _LINEAR if given[name]]
    if len(heads) > 1:
        raise ValueError(f"variants {' and '.join(heads)}: give one head")
    head = heads[0] if heads else "sem_fpn"
    if given["smoke"] and given["data"] is None:
        given["data"] = "digit_scenes"
    config = common.base("-".join(["segment", *heads]))
    config.init_required = True  # nothing is pre-trained here; or random
    config.update(batch_size=16)
    _objective(config, head)
    _data(config, given, head)
    config.fallback.update(
        channels=3, mean=common.IMAGENET_MEAN, std=common.IMAGENET_STD
    )
    config.fallback.encoder = {"variant": "tiny"}
    config.augment.normalize = common.open_normalize()
    config.data.channels = placeholder(int)  # None: as the model was trained
    if common.is_embedded(config) or given["smoke"]:
        _small(config, head)
    if given["smoke"]:
        common.use_smoke(config)
        config.update(batch_size=8)
        if common.is_embedded(config):
            config.data.options.update(scenes=64, test_scenes=16)
    return config.lock()


def _objective(config, head):
    frozen = head in _LINEAR
    config.objective = {
        "name": "segmentation",
        "encoder": common.encoder_block()
        | {
            "pos_embed": "learned_sincos",
            "rpe_style": "none" if frozen else "dense",  # relative positions
        },
        "head": head,  # sem_fpn, linear, linear_each or linear_ms
        "num_classes": placeholder(int),  # None: the data's
        # Blocks that the head reads, from 1 (the last is -1); (): 4, 6, 8 and 12 of
        # twelve for sem_fpn, the last one or the last four for linear heads.
        "out_blocks": (),
        "channels": 128,  # of the convolutions of sem_fpn
        "dropout": 0.1,  # share of channels left out before the last layer
        "mean_over": "all",  # all pixels, or valid ones alone: those with a label
        "frozen_encoder": frozen,
        "drop_path": 0.0 if frozen else 0.1,  # of the last block; less before
        "dtype": "auto",
    }
    # Peak 1e-4 of a batch of 16, and 1e-3 of linear heads.
    config.lr = {
        "base": 1.6e-2 if frozen else 1.6e-3,
        "warmup_epochs": 1.2,  # epochs in which it rises; on ADE20K 1,500 updates
        "start": 1e-9 if frozen else 1e-10,
        "end": 0.0,
        "decay": "cosine" if frozen else "linear",  # after the warm-up
    }
    config.optimizer = {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 1e-3 if frozen else 0.05,
        "layer_decay": 1.0 if frozen else 0.8,
        "freeze": ("encoder/.*",) if frozen else (),
        "no_decay": (),
    }
    config.update(epochs=32 if frozen else 128)
    # Relative positions and scales of layers start anew where `init` has none.
    tables, scales = "encoder/.*relative_position_bias_table", "encoder/.*gamma_[12]"
    own = f"({tables}|{scales})"
    config.init_load = ("encoder/.*",) if frozen else (f"(?!{own})encoder/.*",)
    config.init_load_if_there = () if frozen else (tables, scales)
    config.init_skip = ("(?!encoder/).*", *(() if frozen else ("encoder/norm/.*",)))
    config.evals.test = {
        "name": "segmentation",
        "split": "eval",
        "every_steps": 0 if frozen else 16_000,
        "images": 4,  # that are drawn; 0: none
        # Sizes at which each image is predicted, and whether swapped left and right,
        # too; DINOv2's test of four blocks.
        "scales": (1.0, 1.32, 1.73, 2.28, 3.0) if head == "linear_ms" else (1.0,),
        "flip": head == "linear_ms",
        "each_block": head == "linear_each",  # whether it has a head on each block
    }


def _data(config, given, head):
    """Images with label maps; ADE20K's unless other data are named."""
    if given["data"] in (None, "folder"):
        given["data"] = "segfolder"
        given["ade20k"] = given["ade20k"] or given["path"] is None
    common.use_data(config, given)
    config.name = config.name.replace(
        "segfolder", "ade20k" if given["ade20k"] else "folder"
    )
    config.data.update(image_size=512, crop_scale=(0.08, 1.0), flip=0.5)
    config.data.joint.annotations = ("label_map",)
    if given["ade20k"]:
        config.data.update(
            name="ade20k", train_split="training", eval_split="validation"
        )
        config.data.options.reduce_zero_label = True
        config.steps = 40_000 if head in _LINEAR else 160_000
    if head == "sem_fpn" and given["data"] != "digit_scenes":
        config.augment.photometric = {
            "brightness": 32.0,  # levels, at most
            "contrast": (0.5, 1.5),  # factor
            "saturation": (0.5, 1.5),  # factor
            "hue": 18,  # steps of 180, at most
            "each": 0.5,  # probability of each of them
        }


def _small(config, head):
    """A small encoder on small scenes, which need not be pre-trained."""
    config.init = "random"
    config.fallback.encoder = common.small_model(config)
    config.objective.update(drop_path=0.0, channels=32)
    # At random: initial values of 0.02 are too small for 64 channels to learn from.
    config.objective.encoder.init_style = "mae"
    if not common.is_embedded(config):
        return
    # A digit has a left and a right.
    config.data.update(
        image_size=48,
        flip=0.0,
    )
    config.data.joint.update(
        short_side=48,
        long_side=48,
        ratio=(1.0, 1.0),
        most_of_one_class=1.0,  # most of every scene is background
    )
    # Classes show late, after some hundred updates: many small ones at a high rate.
    config.update(batch_size=8, epochs=3)
    config.lr.update(base=0.16, warmup_epochs=0.3)
    config.optimizer.update(b2=0.95, layer_decay=1.0)
    config.checkpoint.every_steps = 500
    config.evals.test.update(every_steps=500, scales=(1.0,), flip=False)
    if head == "sem_fpn":
        config.objective.out_blocks = (-1, -1, -1, -1)  # the last one alone
