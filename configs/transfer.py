"""Transfer of a pre-trained encoder to another data set (recipes 6).

    python main.py --config=configs/transfer.py:pets --config.init=RUN_OR_FILE
    python main.py --config=configs/transfer.py:cifar100 --config.init=RUN_OR_FILE \\
        --config.sweep.on=False
    python main.py --config=configs/transfer.py:data=folder,path=DIR \\
        --config.init=RUN_DIR --config.sweep.lr_base="(0.015, 0.05)"

Variants: cifar100 (also if nothing is given), cifar10, flowers102, pets, cars,
aircraft, inat2018, imagenet2012, digits, or your own folder. All are read through TFDS,
prepared as ImageNet is, but FGVC-Aircraft, which TFDS lacks: unpack its archive and
give --config.data.dir. The training data are all that is not the test split, as in the
paper (Flowers: train + validation; Aircraft: trainval, variants); iNaturalist's test
labels are secret, its validation split is the test.

SGD with Nesterov momentum 0.9, gradients clipped at norm 1, no weight decay, batch 512,
crop and flip only, bicubic. Image size, channels and normalisation are those that the
encoder was trained on (224 pixels in the paper) unless a field says otherwise. Only
CIFAR-100's setting is published: 50 epochs, 10 of warm-up, lr 0.1, layer decay 0.75.
The grids below are OUR choice for the rest, not the authors'. A sweep trains every
point on a part of the training data, chooses by the last evaluation on the other part
(`sweep.holdout`, drawn by data.subset_seed; Flowers and Aircraft have a
validation split of their own), trains the winner again on all training data and reports
it on the test split. In the names of points and in the table `lr` is per 256 images. It
goes on where it was stopped; a larger grid runs only what is new. `sweep.json` and a
table tell all points. `--config.sweep.on=False` makes one run of `lr`,
`optimizer.layer_decay` and `epochs`.

top1 is primary for every data set, as in the paper. For Flowers, Pets and Aircraft the
mean over classes is customary elsewhere: it is always reported beside, and
--config.evals.test.metric=mean_per_class chooses and reports by it.

Not timed by us on accelerators: a point of CIFAR-100 is 4,850 updates of 512, its sweep
12 points. Digits: a few minutes on 2 CPU cores. The authors' repository publishes no
accuracy of transfer to expect: compare encoders by the same grid.
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common

# lr per 256 images: peaks 0.01, 0.03, 0.1 (CIFAR 0.03, 0.1, 0.3) at batch 512.
LR, LR_CIFAR = (0.005, 0.015, 0.05), (0.015, 0.05, 0.15)
# What the data are called; lr; (epochs, warm-up) of the grid, shorter ones first.
DATA_SETS = {
    "cifar10": ({"name": "cifar10"}, LR_CIFAR, (25, 50), (5.0, 10.0)),
    "cifar100": ({"name": "cifar100"}, LR_CIFAR, (25, 50), (5.0, 10.0)),
    "flowers102": (
        {"name": "oxford_flowers102", "train_split": "train+validation"},
        LR,
        (150, 250),
        (30.0, 50.0),
    ),
    "pets": ({"name": "oxford_iiit_pet"}, LR, (70, 150), (14.0, 30.0)),
    "cars": ({"name": "cars196"}, LR, (50, 100), (10.0, 20.0)),
    "aircraft": (
        {"source": "fgvc_aircraft", "name": "variant", "train_split": "trainval"},
        LR,
        (50, 100),
        (10.0, 20.0),
    ),
    "inat2018": (
        {"name": "i_naturalist2018", "eval_split": "validation"},
        LR,
        (50, 100),
        (10.0, 20.0),
    ),
    "imagenet2012": ({"eval_split": "validation"}, LR, (50, 100), (10.0, 20.0)),
}
# Validation splits that the data come with: where to train, where to choose.
OWN_SPLITS = {"flowers102": ("train", "validation"), "aircraft": ("train", "val")}


def get_config(arg=None):
    """`arg`: cifar100, cifar10, flowers102, pets, cars, aircraft, inat2018;
    imagenet2012, digits, smoke, data=folder,path=DIR."""
    names = tuple(name for name in DATA_SETS if name not in common.data_variants())
    given = common.parse_arg(arg, flags=names)
    chosen = [name for name in names if given[name]] + [given["data"]] * bool(
        given["data"]
    )
    if len(chosen) > 1:
        raise ValueError(f"variants {', '.join(chosen)}: expected one data set")
    config = common.base("transfer")
    config.job = "transfer"
    config.batch_size = 512
    _recipe(config)
    if given["data"] or given["smoke"]:
        common.use_data(config, given)
    if given["data"] in (None, "imagenet2012") and not given["smoke"]:
        _use(config, chosen[0] if chosen else "cifar100", named=bool(chosen))
    if config.data.source in ("folder", "arrays"):
        config.batch_size = 256
    if common.is_embedded(config) or given["smoke"]:
        _small(config)
    if given["smoke"]:
        _smoke(config)
    else:
        common.leave_images_open(config)
    return config.lock()


def _recipe(config):
    config.epochs = 50
    config.init_required = True  # or random, to begin anew
    config.init_load = ("encoder/.*",)
    config.init_load_if_there = ("head/fc_norm/.*",)  # a classifier's, not its head
    config.init_skip = ("(?!encoder/).*", "encoder/norm/.*")
    config.objective = {
        "name": "supervised",
        "encoder": {**common.encoder_block(), "pos_embed": "learned_sincos"},
        "pool": "avg",
        "head": "linear",
        "num_classes": placeholder(int),
        "label_smoothing": 0.0,
        "drop_path": 0.0,
        "dtype": "auto",
    }
    config.data.update(interpolation="bicubic", required=True, eval_split="test")
    config.lr = {
        "base": 0.05,
        "warmup_epochs": 10.0,
        "start": 0.0,
        "end": 1e-6,
        "decay": "cosine",
    }
    config.optimizer = {
        "name": "sgd",
        "momentum": 0.9,  # share of the last update that is kept
        "nesterov": True,  # its form of momentum
        "weight_decay": 0.0,
        "layer_decay": 0.75,
        "clip_norm": 1.0,
        "freeze": (),
        "no_decay": (),
    }
    config.evals.test = {
        "name": "classification",
        "split": "eval",
        "metric": "top1",  # or mean_per_class
        "every_steps": 0,
    }
    config.sweep = {
        "on": True,  # False: one run of lr, optimizer.layer_decay and epochs
        "lr_base": LR,  # learning rates of the grid, per 256 images
        "layer_decay": (0.75, 1.0),  # of the grid
        "epochs": (50, 100),  # pairs: the first with the first warm-up ...
        "warmup_epochs": (10.0, 20.0),  # one for each of epochs
        "train_split": placeholder(str),  # of the points; None: a part of all
        "eval_split": placeholder(str),  # by which they are chosen
        "holdout": 0.2,  # share to choose by, where there are no such splits
        "evaluator": "test",  # the block of evals whose metric chooses
    }


def _use(config, name, *, named):
    data, lr, epochs, warmup = DATA_SETS[name]
    config.data.update(data)
    config.sweep.update(lr_base=lr, epochs=epochs, warmup_epochs=warmup)
    if name in OWN_SPLITS:
        train_split, eval_split = OWN_SPLITS[name]
        config.sweep.update(train_split=train_split, eval_split=eval_split)
    if named:
        config.name = f"transfer-{name}"
    if not name.startswith("cifar"):
        config.epochs = 100
        config.lr.update(base=0.015, warmup_epochs=20.0)


def _small(config):
    config.update(batch_size=64, epochs=20)
    config.lr.warmup_epochs = 2.0
    config.checkpoint.every_steps = 500
    config.sweep.update(
        lr_base=(0.05, 0.2), layer_decay=(0.75,), epochs=(20,), warmup_epochs=(2.0,)
    )


def _smoke(config):
    config.init = "random"
    config.objective.encoder.update(common.small_model(config))
    common.use_smoke(config)
    for block in config.evals.values():
        block.every_steps = 3
