"""MAE pre-training of ViT-Base/16, the teacher of distillation (recipes 2).

    python main.py --config=configs/mae_base.py
    python main.py --config=configs/mae_base.py:data=folder,path=DIR
    python main.py --config=configs/mae_base.py:digits
    python main.py --config=configs/mae_base.py:smoke

ImageNet: mae_tiny's recipe with the larger networks, a decoder of 8 blocks, and 28x
the multiply-accumulates; not timed by us on accelerators. The teacher of the paper was
trained for 1600 epochs: --config.epochs=1600; its weights can be given to
distillation as a file instead. Expected: the official MAE reports 83.6 % ImageNet
top-1 after its own fine-tuning. Digits: an encoder twice as wide as mae_tiny's there,
about a minute on 2 CPU cores.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    config = common.mae("mae_base", "base", arg)
    if config.objective.encoder.variant is None:  # digits or smoke
        with config.unlocked():
            config.objective.encoder.width = 128
    return config
