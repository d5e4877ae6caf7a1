"""Linear probe of a frozen encoder: how good are its features as they are?

    python main.py --config=configs/linear_probe.py --config.init=RUN_DIR
    python main.py --config=configs/linear_probe.py:protocol=moco --config.init=RUN_DIR
    python main.py --config=configs/linear_probe.py:grid --config.init=RUN_DIR
    python main.py --config=configs/linear_probe.py --config.init=random \\
        --config.like=RUN_DIR

`init` is a run directory, a step inside it (RUN_DIR/checkpoints/STEP), or `random`.
Encoder and data are those of that run unless a variant or field says otherwise, image
size, channels and normalisation unless a field does.
Two published protocols (recipes 7): `mae` (default), BatchNorm without
affine and LARS, lr 0.1 per 256 images, 10 warm-up epochs of 90, batch 16384; `moco`,
a plain linear layer and SGD, lr 3 per 256 images, batch 1024. On small data the batch
is a power of two that leaves at least 16 updates an epoch, the LARS peak stays 6.4, and
there are at least 2,000 updates (`--config.steps=N` says how many instead).
A k-NN vote on the same features comes with both, by the images that are trained on.

`grid` (also with protocol=moco) trains a head for each of 12 learning rates
(`objective.lrs`, per 256 images) and of 4 choices of features (`objective.features`:
class token, mean of the patch tokens, and both of the last blocks, concatenated) at
once: every batch is encoded once. The winner is chosen on a tenth of the training
images, at most 20,000 (`data.holdout.select`). No head is
trained on them, and they have no vote in the k-NN beside (`bank_n` counts those that
have). The loss in the log is the mean of all heads; best_loss and best_top1 are those
of the best head on the batch. The winner's test accuracy and the table of all heads are
in evals/test/result.json.

On ImageNet the authors publish no linear-probe number for ViT-Tiny; on the digits it
takes about half a minute on 2 CPU cores.
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: grid, multi_label, protocol=mae|moco, imagenet2012, digits, smoke,
    data=folder,path=DIR."""
    given = common.parse_arg(arg, flags=("grid", "multi_label"), values=("protocol",))
    protocol = given["protocol"] or "mae"
    if protocol not in _PROTOCOLS:
        raise ValueError(common.unknown("protocol", protocol, list(_PROTOCOLS)))
    config = common.base("linear_probe")
    config.update(epochs=90, init_load=("encoder/.*",))
    config.init_load_if_there = ("head/fc_norm/.*",)  # of averaged tokens
    config.batch_size = placeholder(int)  # None: chosen by the size of the data
    config.auto_batch.steps_at_least = 2000  # few epochs of little data say little
    config.init_required = True  # nothing is probed that is not named
    config.init_skip = ("(?!encoder/).*", "encoder/norm/.*")
    config.objective = {
        "name": "supervised",
        "encoder": common.encoder_block(),
        "pool": "cls",
        "num_classes": placeholder(int),
        "class_weights": placeholder(str),
        "dtype": "auto",
    }
    config.objective.encoder.pos_embed = placeholder(str)
    config.data.update(interpolation="bicubic", single_draw=protocol == "mae")
    _PROTOCOLS[protocol](config)
    # The norm of averaged tokens, where there is one, is part of the features: MAE
    # trains BN and fc alone.
    config.optimizer.freeze = ("(?!head/fc/).*",)
    config.optimizer.no_decay = ()
    config.evals.test = {"name": "classification", "split": "eval", "every_steps": 0}
    config.evals.knn = {"name": "knn", "split": "eval", "every_steps": 0}
    config.evals.confusion = common.confusion()
    if given["grid"] and given["multi_label"]:
        raise ValueError("variants grid and multi_label: give one of them")
    if given["grid"]:
        _grid(config, protocol)
    if given["multi_label"]:
        common.use_multi_label(config)
    if given["data"] or given["smoke"]:
        common.use_data(config, given)
    else:
        common.leave_data_open(config)
    if given["data"] and not given["smoke"]:
        common.leave_images_open(config)
    config.fallback.encoder = _at_random(config, given)
    if given["smoke"]:
        config.init = "random"
        common.use_smoke(config)
    return config.lock()


def _at_random(config, given):
    """The encoder of a random start; with a checkpoint, its encoder is taken."""
    if common.is_embedded(config) or given["smoke"]:
        return {"pos_embed": "sincos", **common.small_model(config)}
    named = {"variant": "tiny"} if config.data.source == "tfds" else {}
    return {"pos_embed": "sincos", **named}


def _mae(config):
    config.auto_batch.update(
        at_most=16384,  # images
        lr_batch=16384,  # LARS normalises its updates: a smaller batch keeps the lr
    )
    config.objective.head = "probe_bn"
    config.lr = {
        "base": 0.1,
        "warmup_epochs": 10.0,
        "start": 0.0,
        "end": 0.0,
        "decay": "cosine",
    }
    config.optimizer = {
        "name": "lars",
        "momentum": 0.9,  # share of the last update that is kept
        "trust": 0.001,  # length of an update over that of its parameters
    }


def _moco(config):
    config.auto_batch.at_most = 1024
    config.objective.head = "probe"
    config.lr = {
        "base": 3.0,
        "warmup_epochs": 0.0,
        "start": 0.0,
        "end": 0.0,
        "decay": "cosine",
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9}


def _grid(config, protocol):
    """Heads for many learning rates and features in place of one."""
    config.name = f"{config.name}-grid"
    config.lr.base = 1.0  # the learning rates of the heads are its factors
    del config.objective.pool
    config.objective.update(
        name="probe_grid",
        lrs=_LRS[protocol],  # of the heads, per 256 images
        features=("cls", "avg", "cls_last4", "avg_last4"),  # that heads read
        final_norm=True,  # blocks' tokens go through the encoder's last norm
    )
    # What is given for one of them holds for all.
    lrs, features = (config.objective.get_ref(name) for name in ("lrs", "features"))
    config.optimizer.update(freeze=("encoder/.*",))
    config.optimizer.lr_factors = lrs  # of the heads, as objective.lrs
    config.data.holdout.select = 0.1
    del config.evals.confusion  # there are as many answers as heads
    config.evals.test = {
        "name": "probe_grid",
        "split": "eval",
        "select": "select",  # split by which the head is chosen
        "lrs": lrs,
        "features": features,
        "every_steps": 0,
    }


_PROTOCOLS = {"mae": _mae, "moco": _moco}
# Of the grid, per 256 images, around those of the protocols.
_LRS = {
    "mae": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    "moco": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0),
}
