"""MAE pre-training of ViT-Small/16 on ImageNet-1k (recipes 2).

    python main.py --config=configs/mae_small.py
    python main.py --config=configs/mae_small.py:data=folder,path=DIR
    python main.py --config=configs/mae_small.py:digits
    python main.py --config=configs/mae_small.py:smoke

ImageNet: batch 4096, 400 epochs = 124,800 steps; 3.7x the multiply-accumulates of
ViT-Tiny; not timed by us on accelerators. Expected: 82.1 % ImageNet top-1 after the
300-epoch fine-tuning with layer decay 0.75 (the authors' README). The digits and
smoke variants use the same small encoder as mae_tiny's.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    return common.mae("mae_small", "small", arg)
