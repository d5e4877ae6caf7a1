"""SimMIM pre-training of ViT-Tiny/16: mask tokens in place, raw pixels, L1.

    python main.py --config=configs/simmim_tiny.py
    python main.py --config=configs/simmim_tiny.py:data=folder,path=DIR
    python main.py --config=configs/simmim_tiny.py:digits
    python main.py --config=configs/simmim_tiny.py:smoke

Mask, crop and optimizer are those of arXiv 2111.09886 (units of 32 pixels, ratio 0.6,
lr 1e-4 per 256 images); epochs are those of MAE's recipe, to compare. All tokens pass
through the encoder, so an update takes about four times MAE's multiply-accumulates.
The paper trains no ViT-Tiny: there is no number to expect, and it was not timed by us
on accelerators. Digits: about two minutes on 2 CPU cores.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    given = common.parse_arg(arg, values=("knn",))
    config = common.base("simmim_tiny")
    config.batch_size = 2048
    config.objective = {
        "name": "simmim",
        "encoder": common.encoder_block("tiny"),
        "mask_ratio": 0.6,
        "mask_unit": 2,  # patches of 16 pixels
        "dtype": "auto",
    }
    config.lr = {
        "base": 1e-4,
        "warmup_epochs": 20.0,
        "start": 0.0,
        "end": 0.0,
        "decay": "cosine",
    }
    config.optimizer = {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "freeze": (),
        "no_decay": (),
    }
    config.data.crop_scale = (0.67, 1.0)
    config.evals.knn = {"name": "knn", "split": "eval", "every_steps": 0}
    common.use_data(config, given)
    if common.is_placed(config):
        common.leave_length_open(config)
    if not common.has_classes(config):
        del config.evals.knn
    if common.is_embedded(config) or given["smoke"]:
        config.objective.update(mask_unit=1)
        config.objective.encoder.update(variant=None, **common.small_model(config))
        config.update(batch_size=128, epochs=100)
        config.lr.update(base=3e-3, warmup_epochs=5.0)
        config.checkpoint.every_steps = 500
    common.use_labelled(config, given)
    if given["smoke"]:
        common.use_smoke(config)
    return config.lock()
