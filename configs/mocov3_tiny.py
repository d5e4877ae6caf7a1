"""MoCo v3 pre-training of ViT-Tiny/16 on ImageNet-1k (recipes 4).

    python main.py --config=configs/mocov3_tiny.py
    python main.py --config=configs/mocov3_tiny.py:data=folder,path=DIR
    python main.py --config=configs/mocov3_tiny.py:digits
    python main.py --config=configs/mocov3_tiny.py:smoke

ImageNet: batch 1024, 400 epochs = 500,400 steps; the authors name no time for it, and
it is not timed by us on accelerators. Expected: 76.8 % ImageNet top-1 after the
300-epoch fine-tuning with layer decay 0.75 (the authors' notes on MoCo v3).
Weight decay is on every parameter, as the authors have it; the usual choice is
--config.optimizer.decay_1d=False. The patch embedding is trained, unlike that of the
official ViT runs; to fix it at its random start, for both branches:
--config.optimizer.freeze="('encoder/patch_embed/.*',)". Sizes of ViT-Small:
--config.objective.encoder.variant=small (12 heads; no published result).
Images that are not RGB (data.channels other than 3) keep brightness and contrast; what
needs colours is left out. Digits: two crops and brightness and contrast alone; about
three minutes on 2 CPU cores.
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    given = common.parse_arg(arg, values=("knn",))
    config = common.base("mocov3_tiny")
    config.update(batch_size=1024, epochs=400)
    config.objective = {
        "name": "moco_v3",
        "encoder": common.encoder_block("tiny"),
        "mlp_dim": 4096,  # of projector and predictor
        "embed_dim": 256,  # of what is compared
        "temperature": 0.2,  # of the contrastive loss
        "momentum": 0.99,  # at the start; 1 at the end
        "momentum_steps": placeholder(int),  # None: the run's length
        "dtype": "auto",
    }
    config.objective.encoder.pos_embed = "sincos_moco"
    config.lr = {
        "base": 1.5e-4,
        "warmup_epochs": 40.0,
        "start": 1e-6,
        "end": 0.0,
        "decay": "cosine",
    }
    config.optimizer = {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "decay_1d": True,  # weight decay on biases and norms as well
        "freeze": (),
        "no_decay": (),
    }
    config.data.update(views=2, interpolation="bilinear", flip=0.0)
    _views(config.augment)
    common.use_data(config, given)
    if common.is_placed(config):
        common.leave_length_open(config)
    if config.data.source == "digits":
        _digits(config)
    if common.is_embedded(config) or given["smoke"]:
        _small(config)
    common.use_labelled(config, given)
    if given["smoke"]:
        common.use_smoke(config)
    return config.lock()


def _views(augment):
    """Probabilities are those of the first and the second view (recipes 4.4)."""
    augment.color_jitter = {
        "brightness": 0.4,  # changed by up to this share
        "contrast": 0.4,  # changed by up to this share
        "saturation": 0.2,  # changed by up to this share
        "hue": 0.1,  # of the circle of hues, at most 0.5
        "probability": (0.8, 0.8),  # of the first and of the second view
    }
    augment.gaussian_blur = {
        "sigma": (0.1, 2.0),  # pixels
        "probability": (1.0, 0.1),  # of the first and of the second view
    }
    augment.grayscale = {
        "probability": (0.2, 0.2),  # of the first and of the second view
    }
    augment.flip = {
        "probability": (0.5, 0.5),  # of the first and of the second view
    }
    augment.solarize = {
        "threshold": 128,  # of 256, from which on values are inverted
        "probability": (0.0, 0.2),  # of the first and of the second view
    }


def _digits(config):
    """A digit has one channel and changes its meaning with its orientation."""
    for name in ("gaussian_blur", "grayscale", "flip", "solarize"):
        del config.augment[name]
    config.augment.color_jitter.update(saturation=0.0, hue=0.0)
    config.data.crop_scale = (0.5, 1.0)
    config.evals.knn = {"name": "knn", "split": "eval", "every_steps": 500}


def _small(config):
    config.objective.encoder.update(variant=None, **common.small_model(config))
    config.objective.update(mlp_dim=256, embed_dim=64)
    config.update(batch_size=256, epochs=100)
    config.lr.update(base=1.5e-3, warmup_epochs=10.0)
    config.checkpoint.every_steps = 500
