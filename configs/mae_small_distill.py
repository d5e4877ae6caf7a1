"""D-MAE-Small: MAE of ViT-Small/16 that follows a teacher's attention (recipes 3).

    python main.py --config=configs/mae_small_distill.py --config.teacher=TEACHER
    python main.py --config=configs/mae_small_distill.py:digits \\
        --config.teacher=runs/mae_base-digits

Teacher and settings are those of mae_tiny_distill; not timed by us on accelerators.
Expected: 82.5 % ImageNet top-1 after the 300-epoch fine-tuning with layer decay 0.75,
0.4 above plain MAE (the authors' README). The digits and smoke variants use the same
small encoder as mae_tiny's.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    return common.distilled_mae("mae_small_distill", "small", arg)
