"""MAE pre-training of ViT-Tiny/16 on ImageNet-1k (recipes 2).

    python main.py --config=configs/mae_tiny.py
    python main.py --config=configs/mae_tiny.py:data=folder,path=DIR
    python main.py --config=configs/mae_tiny.py:digits
    python main.py --config=configs/mae_tiny.py:smoke

ImageNet: batch 4096, 400 epochs = 124,800 steps. The authors' first release names
about 40 h on 8 GPUs of the 2080 class; not timed by us on accelerators. Expected:
78.0 % ImageNet top-1 after the 300-epoch fine-tuning (the authors' README).
Digits: about two minutes on 2 CPU cores.

`knn=DIR` (a folder with a subfolder for each class; or digits, imagenet2012) votes on a
labelled set of its own during training, every `evals.knn.every_steps`; it leaves the
numbers of training as they are, and metrics.jsonl says what it costs.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    return common.mae("mae_tiny", "tiny", arg)
