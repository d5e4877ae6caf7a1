"""D2-MAE-Tiny: distillation and reconstruction at different depths (recipes 3).

    python main.py --config=configs/mae_tiny_distill_d2.py --config.teacher=TEACHER
    python main.py --config=configs/mae_tiny_distill_d2.py:digits \\
        --config.teacher=runs/mae_base-digits

As mae_tiny_distill, but the decoder reads the tokens after block 8, and the layer that
matches the teacher's last is a 13th with attention logits alone. What is kept of a run
is a plain encoder of 12 blocks (`encoder/...`): probes and fine-tuning take it as any
other's, with `extra` and `adapter` among what they skip. It is from the authors' later
work (arXiv 2404.12210) and not in the ICML paper; not timed by us on accelerators.
Expected: 78.7 % ImageNet top-1 after the 300-epoch fine-tuning (the authors' later
README). Digits: the decoder reads block 3 of 4; about a minute on 2 CPU cores.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    return common.distilled_mae("mae_tiny_distill_d2", "tiny", arg, decoupled=(8, 3))
