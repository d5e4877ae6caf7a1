"""Object detection with masks: ViTDet Mask R-CNN on a pre-trained encoder.

    python main.py --config=configs/detect.py:folder,path=DIR --config.init=RUN_DIR
    python main.py --config=configs/detect.py:boxes,folder,path=DIR \\
        --config.init=RUN_DIR
    python main.py --config=configs/detect.py:coco,path=DIR --config.init=RUN_DIR
    python main.py --config=configs/detect.py:digit_scenes
    python main.py --config=configs/detect.py:smoke

`init` is a run directory, a step inside it, or a file of weights. Data: `folder`, a
folder of images with COCO's JSON files of objects, as labelling tools export them
(docs/dense.md); `coco`, that of COCO 2017; `data=packed`; `digit_scenes`, digits on
photographs that come with the package, where `init` is random unless you name a run.
`boxes`: objects have boxes alone. It needs pycocotools: `pip install
"litevit_jax[dense]"`.

On images of yours the batch follows from their number, at most 16, and the learning
rate from the batch; 100 epochs, but at least 2,000 updates.

COCO: 184,375 updates of 64 images of 640 pixels, 100 epochs; not timed and not run by
us. The authors publish box AP 39.9 and mask AP 35.4 for MAE-Tiny, 42.3 and 37.3 for
D-MAE-Tiny.
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: folder, coco or digit_scenes, smoke, path=DIR; boxes."""
    given = common.parse_arg(arg, flags=("coco", "boxes"))
    if given["smoke"] and given["data"] is None:
        given["data"] = "digit_scenes"
    config = common.base("detect-boxes" if given["boxes"] else "detect")
    # No run without `init`; "random" trains from random parameters.
    config.init_required = True
    config.update(batch_size=64, epochs=100)
    _objective(config)
    _data(config, given)
    config.fallback.update(
        channels=3, mean=common.IMAGENET_MEAN, std=common.IMAGENET_STD
    )
    config.fallback.encoder = {"variant": "tiny", "pos_grid": (14, 14)}
    config.augment.normalize = common.open_normalize()
    config.data.channels = placeholder(int)  # None: as the model was trained
    if given["boxes"]:
        config.objective.masks = config.evals.test.masks = False
        *others, _ = config.init_load_if_there  # all but the mask head
        config.init_load_if_there = tuple(others)
        config.data.joint.annotations = ("boxes",)
    if common.is_embedded(config) or given["smoke"]:
        _small(config)
    elif not given["coco"]:
        common.leave_length_open(config)
        config.auto_batch.update(at_most=16, steps_at_least=2000)
        config.evals.test.every_steps = 500
        config.epochs = 100
    if given["smoke"]:
        common.use_smoke(config)
        config.update(batch_size=8)
        if common.is_embedded(config):
            config.data.options.update(scenes=64, test_scenes=16)
    config.log.report_images = 0  # analyses look into encoders without windows
    return config.lock()


def _objective(config):
    config.objective = {
        "name": "detect",
        "encoder": common.encoder_block()
        | {
            "pos_embed": "learned_sincos",
            "pos_grid": placeholder(tuple),  # patches of the table of positions
            "window": 14,  # side in patches of the windows of most blocks
            # Blocks, from 1, that see all patches; (): the last one of each quarter.
            "global_blocks": (),
        },
        "num_classes": placeholder(int),  # None: the data's
        "masks": True,  # whether masks are predicted, too
        "channels": 256,  # of the pyramid and of all convolutions
        "rpn_convs": 2,  # convolutions before the proposals
        "box_convs": 4,  # convolutions of the box head
        "box_hidden": 1024,  # width of the linear layer of the box head
        "mask_convs": 4,  # convolutions of the mask head
        "anchor_sizes": (2.0, 4.0, 8.0, 16.0, 32.0),  # of five levels, in patches
        "pooled": (7, 14),  # bins on a side of what box and mask head read
        "rules": {
            "train_per_level": 2000,  # best of a level, before NMS, in training
            "test_per_level": 1000,  # best of a level, before NMS, in evaluations
            "proposals": 1000,  # proposals of an image, after NMS
            "proposal_overlap": 0.7,  # IoU above which NMS drops a proposal
            "anchor_low": 0.3,  # an anchor of a lower IoU with all objects is negative
            "anchor_high": 0.7,  # an anchor of at least this IoU is positive
            "anchor_samples": 256,  # anchors of an image in the loss
            "anchor_positive": 128,  # positive anchors of an image in the loss, at most
            "box_overlap": 0.5,  # a proposal of at least this IoU is positive
            "box_samples": 512,  # proposals of an image in the loss
            "box_positive": 128,  # positive proposals of an image in the loss, at most
            "min_score": 0.05,  # lowest score of a detection
            "overlap": 0.5,  # IoU above which NMS drops a detection of the same class
            "detections": 100,  # detections of an image, at most
            "candidates": 2000,  # best (box, class) pairs of an image, before NMS
        },
        "drop_path": 0.0,  # of the last block; less before
        "dtype": "auto",
    }
    config.lr = {
        "base": 4e-4,  # peak, per 256 images of the batch
        "warmup_epochs": 0.1356,  # epochs in which it rises; on COCO 250 updates
        "start": 1e-7,
        "end": 0.0,
        "decay": "steps",  # a tenth after 8/9 and after 26/27 of the run
    }
    config.optimizer = {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "decay_1d": True,  # all but the encoder's norms and positions, as detectron2
        "layer_decay": 1.0,
        "freeze": (),
        "no_decay": (r"encoder/blocks_\d+/norm\d/.*", "encoder/pos_embed"),
    }
    # Relative positions and all else start anew, unless `init` is a detector.
    own = r"encoder/blocks_\d+/attn/rel_pos_[hw]"
    heads = ("rpn/.*", "box_head/.*", "mask_head/.*")
    config.init_load = (f"(?!{own})encoder/.*",)
    config.init_load_if_there = (own, r"neck/p\d/.*", *heads)
    config.init_skip = ("(?!encoder/).*", "encoder/cls_token", "encoder/norm/.*")
    config.evals.test = {
        "name": "coco",
        "split": "eval",
        "every_steps": 20_000,
        "masks": True,  # whether masks are scored, too
        "images": 4,  # that are drawn; 0: none
    }


def _data(config, given):
    """Images with objects; COCO's unless other data are named."""
    if given["data"] in (None, "folder"):
        given["data"] = "cocojson"
        given["coco"] = given["coco"] or given["path"] is None
    common.use_data(config, given)
    config.name = config.name.replace("cocojson", "coco" if given["coco"] else "folder")
    config.data.update(image_size=640, flip=0.5)
    config.data.joint.update(annotations=("objects",), ratio=(0.1, 2.0))
    if given["coco"]:
        config.data.update(name="coco", train_split="train2017", eval_split="val2017")
        config.update(steps=184_375, remat=True)  # as detectron2


def _small(config):
    """A small encoder on small scenes, which need not be pre-trained."""
    config.init = "random"
    side = 8 if common.is_embedded(config) else 4
    grid = (side, side)  # of images of 48 pixels, and of 16
    config.fallback.encoder = common.small_model(config) | {"pos_grid": grid}
    config.objective.encoder.window = 4
    config.objective.update(
        channels=32,
        box_convs=1,
        box_hidden=64,
        mask_convs=1,
        anchor_sizes=(1.5, 2.5, 3.5, 5.0, 7.0),
    )
    config.objective.rules.update(
        train_per_level=64,
        test_per_level=64,
        proposals=64,
        anchor_samples=64,
        anchor_positive=32,
        box_samples=32,
        box_positive=16,
        detections=20,
        candidates=640,
    )
    config.data.joint.update(max_objects=8, mask_size=56)
    if not common.is_embedded(config):
        return
    if config.data.source == "digit_scenes":
        config.data.options.objects = True  # in place of a class for each pixel
    # A digit has a left and a right.
    config.data.update(
        image_size=48,
        flip=0.0,
    )
    config.data.joint.ratio = (0.8, 1.25)
    config.update(batch_size=8, steps=700)
    config.lr.update(base=0.032, warmup_epochs=10.0, start=0.0)
    config.optimizer.b2 = 0.95
    config.checkpoint.every_steps = 350
    config.evals.test.every_steps = 350
