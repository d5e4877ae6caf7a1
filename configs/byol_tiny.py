"""BYOL pre-training of ViT-Tiny/16 on ImageNet-1k, beside MoCo v3's.

    python main.py --config=configs/byol_tiny.py
    python main.py --config=configs/byol_tiny.py:digits

Recipe and views are those of mocov3_tiny, loss and momentum of arXiv 2006.07733. No
paper reports it for ViT-Tiny, so no number is expected; not timed on accelerators.
"""

from litevit_jax.configs import mocov3_tiny


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    config = mocov3_tiny.get_config(arg)
    with config.unlocked():
        config.name = config.name.replace("mocov3", "byol")
        config.objective.name = "byol"
        config.objective.momentum = 0.996  # at the start; 1 at the end
        del config.objective.temperature
    return config
