"""D-MAE-Tiny: MAE of ViT-Tiny/16 that follows a teacher's attention (recipes 3).

    python main.py --config=configs/mae_tiny_distill.py --config.teacher=TEACHER
    python main.py --config=configs/mae_base.py:digits
    python main.py --config=configs/mae_tiny_distill.py:digits \\
        --config.teacher=runs/mae_base-digits

TEACHER is a run directory, a step in it, or a file of weights; its encoder's sizes
are read there. The paper's is MAE-Base (1600 epochs); its last attention logits are
matched by the student's (`pairs`, `target`, `weight` in the objective's block).
ImageNet: as mae_tiny's, 400 epochs of batch 4096; the authors' first release names
about 44 h on 8 V100, where plain MAE took about 40 h on slower cards; not timed by us.
Expected: 78.4 % ImageNet top-1 after the 300-epoch fine-tuning, 0.4 above plain MAE
(the authors' README). Digits: about a minute on 2 CPU cores, the teacher as
long again.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    return common.distilled_mae("mae_tiny_distill", "tiny", arg)
