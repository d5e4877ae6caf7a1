"""Fine-tuning of a pre-trained encoder as a classifier (recipes 5.1 to 5.6).

    python main.py --config=configs/finetune.py --config.init=RUN_DIR
    python main.py --config=configs/finetune.py:imagenet2012 --config.init=FILE
    python main.py --config=configs/finetune.py:data=folder,path=DIR \\
        --config.init=RUN_DIR
    python main.py --config=configs/finetune.py:distill --config.init=RUN_DIR \\
        --config.teacher=RUN_DIR
    python main.py --config=configs/finetune.py:digits,shots=10 --config.init=RUN_DIR
    python main.py --config=configs/finetune.py:smoke

`init` is a run directory, a step inside it, or a file of weights; encoder, head count,
image size, channels and normalisation are its own unless a field says otherwise. So
are the data, if no variant names others. What a pre-training run holds besides the
encoder, and its final norm, stay unused: the classifier pools patches and has a norm of
its own. A fixed position embedding becomes a parameter that starts from the same table.

Variants: nothing, the recipe that the paper calls improved, for ViT-Tiny; `plain`, the
recipe of MAE with stronger augmentation; `small`, for ViT-Small (after MoCo-v3 too
the authors take `--config.optimizer.layer_decay=0.75`); `scratch`, no checkpoint;
`distill`, as `plain` with a second head that learns from `teacher`, any classifier of
ours or a file of one (a vision transformer; the authors' teacher is a RegNet).
`copy_norm` lets the classifier's norm start from the encoder's final norm, which the
authors do not. `shots=K` trains on K images of each class, drawn by
`--config.data.subset_seed`. With `--config.optimizer.ema_decay=0.9999` the evaluations
are those of an average of the parameters.

ImageNet: batch 1024, 300 epochs = 375,300 steps (`plain`: 100 epochs); not timed by us
on accelerators. Expected ImageNet top-1 (the authors' README): MAE-Tiny 78.0, distilled
MAE-Tiny 78.4, MAE-Small 82.1, from scratch 75.8 and 80.2. Digits: about a minute on 2
CPU cores; 97.5 % of the test digits after mae_tiny:digits. With 10 images of each
class, 400 updates and three seeds: 85.8 to 92.5 % after it, 50.7 to 58.5 % from
scratch.
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common

FLAGS = ("plain", "small", "scratch", "distill", "copy_norm", "multi_label")


def get_config(arg=None):
    """`arg`: plain, small, scratch, distill, copy_norm, multi_label, shots=K;
    imagenet2012, digits, smoke, data=folder,path=DIR."""
    given = common.parse_arg(arg, flags=FLAGS, values=("shots",))
    named = (f for f in FLAGS if given[f] and f != "multi_label")
    config = common.base("-".join(["finetune", *named]))
    common.use_finetuning(config)
    config.objective.encoder.pos_embed = "learned_sincos"
    config.init_required = True  # or random, to begin anew
    config.init_load = ("encoder/.*",)
    config.init_skip = ("(?!encoder/).*", "encoder/norm/.*")
    if given["plain"] or given["distill"]:
        _plain(config)
    if given["distill"]:
        _distill(config)
    if given["small"]:
        config.optimizer.layer_decay = 0.75
    if given["copy_norm"]:
        _copy_norm(config, given)
    if given["multi_label"]:
        common.use_multi_label(config)
    common.use_finetuning_data(config, given, at_random=given["scratch"])
    if given["shots"]:
        config.data.shots = _number("shots", given["shots"])
        config.name = f"{config.name}-{given['shots']}shots"
        if config.data.source == "digits":  # too few for epochs to mean much
            config.steps = 400
    if given["scratch"] or given["smoke"]:
        _start_at_random(config, given)
    if given["smoke"]:
        common.use_smoke(config)
    return config.lock()


def _plain(config):
    config.epochs = 100
    config.objective.update(drop_path=0.1, label_smoothing=0.1)
    config.data.randaugment.magnitude = 9.0
    config.augment.erase.probability = 0.25
    config.augment.mix.update(mixup=0.8, cutmix=1.0)


def _distill(config):
    config.epochs = 300
    config.objective.teacher = {
        **common.encoder_block(),
        "pos_embed": placeholder(str),
        "pool": placeholder(str),  # None: its own
    }
    config.objective.distill = {
        "alpha": 0.5,  # share of the teacher's loss
        "tau": 1.0,  # temperature of soft labels
        "hard": True,  # the teacher's class, not its probabilities
    }


def _copy_norm(config, given):
    if given["scratch"]:
        raise ValueError("variant copy_norm needs a checkpoint; leave scratch out")
    config.init_rename = ("encoder/norm/=head/fc_norm/",)
    config.init_load = ("encoder/.*", "head/fc_norm/.*")
    config.init_skip = ("(?!encoder/|head/fc_norm/).*",)


def _start_at_random(config, given):
    config.init = "random"
    encoder = config.objective.encoder
    if given["scratch"]:
        encoder.pos_embed = "learned"
    if common.is_embedded(config) or given["smoke"]:
        encoder.update(common.small_model(config))
    else:
        encoder.variant = "small" if given["small"] else "tiny"


def _number(name, value):
    if not value.isdigit() or not int(value):
        raise ValueError(f"variant {name}={value}: expected a number of images, from 1")
    return int(value)
