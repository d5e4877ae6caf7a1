"""ViT-Tiny/16 regresses the tokens of a frozen teacher, without masks.

    python main.py --config=configs/feature_tiny.py --config.teacher=TEACHER
    python main.py --config=configs/feature_tiny.py:digits \\
        --config.teacher=runs/mae_base-digits

TEACHER is a run directory, a step in it, or a file of weights, such as MAE-Base.
A baseline for distillation during pre-training: whitened tokens after the final norm
and a smooth L1 as in arXiv 2205.14141, optimizer and length as in MAE's recipe. No
paper reports it for ViT-Tiny, so there is no number to expect; not timed by us on
accelerators. Digits: about two minutes on 2 CPU cores.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; knn=LABELLED."""
    given = common.parse_arg(arg, values=("knn",))
    config = common.base("feature_tiny")
    config.batch_size = 1024
    config.objective = {
        "name": "feature",
        "encoder": common.encoder_block("tiny"),
        "teacher": common.frozen_encoder_block(),
        "distance": "smooth_l1",  # or cosine
        "dtype": "auto",
    }
    config.lr = {
        "base": 1.5e-4,
        "warmup_epochs": 40.0,
        "start": 0.0,
        "end": 0.0,
        "decay": "cosine",
    }
    config.optimizer = {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "freeze": (),
        "no_decay": (),
    }
    config.evals.knn = {"name": "knn", "split": "eval", "every_steps": 0}
    common.use_data(config, given)
    if common.is_placed(config):
        common.leave_length_open(config)
    if not common.has_classes(config):
        del config.evals.knn
    if common.is_embedded(config) or given["smoke"]:
        config.objective.encoder.update(variant=None, **common.small_model(config))
        config.update(batch_size=128, epochs=100)
        config.lr.update(base=3e-3, warmup_epochs=5.0)
        config.checkpoint.every_steps = 500
    common.use_labelled(config, given)
    if given["smoke"]:
        common.use_smoke(config)
    else:
        common.leave_images_open(config)
    return config.lock()
