"""Which pre-training for my images? Small encoders by several methods, compared.

    python main.py --config=configs/choose.py:data=folder,path=DIR --config.minutes=60
    python main.py --config=configs/choose.py:data=folder,path=DIR \\
        --config.init=FILE,RUN --config.methods="('mae','random')"
    python main.py --config=configs/choose.py:digits --config.minutes=20

`DIR` is a folder with a subfolder for each class, or `train/CLASS/`, or `labels=FILE`
is a table of labels: pre-training needs none, comparing does. A share of the training
images, `data.holdout.eval`, is held out; all numbers are of these, and no test image is
looked at.

Methods: `mae`, `moco` (MoCo v3), `distill` (MAE that follows a teacher: `teacher`, or
an MAE twice as wide that is trained in half of its time; without a named teacher it is
left out where that one would see the images less than ten times), `supervised` (from
random parameters, with as many labels as it is compared with) and `random`, the
baseline. `init` adds encoders of yours or public ones: runs, or files of weights. Each
encoder is evaluated by a linear probe and k-NN, after the block that training images
choose, and by fine-tuning, with the shares of the labels in `labels`. A seed draws anew
which images are held out, which labels are kept, and where training starts. A share
with fewer labelled images than classes is left out.

The best method is then pre-trained on the shares of the images in `fractions`, and
fine-tuned with fewer blocks. At the end: a table, what is recommended, with the command
of the full run and what it will take, in choose.json and report/index.html. What
differs by less than two standard errors is called the same.

At first a few updates of each method are timed. From these and the `minutes` follows
how many updates each part has; choose.json keeps it, and a stopped command goes on as
it was planned. Methods get equal time, not equal updates. The size of images (where
`data.image_size` is None: 32 pixels, or 64 if most images are larger than 48) and the
encoder are small, so that minutes suffice: what wins here need not win with a larger
one. It takes about the minutes given, longer where the machine gets busier after the
measurement; not timed by us on accelerators.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from litevit_jax.configs import common

# What all parts share of the data; the rest is as each method's recipe has it.
DATA = (
    *("source", "name", "dir", "options", "labels", "unlisted", "required"),
    *("train_split", "eval_split", "holdout", "long_tail"),
    *("image_size", "image_width", "channels", "range"),
    *("max_pixels", "max_bad_fraction", "decoder", "cache", "cache_gib"),
    *("workers", "threads"),
)


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR; labels=FILE."""
    given = common.parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.name = "choose"
    config.job = "choose"
    config.minutes = 60.0  # that all of it may take
    config.methods = ("mae", "moco", "distill", "supervised", "random")
    config.init = placeholder(str)  # encoders to compare with: RUN_OR_FILE,RUN_OR_FILE
    config.teacher = placeholder(str)  # of distill; None: an MAE twice as wide
    config.seeds = 3  # of each part, from `seed` on
    config.seed = 0  # the first of them
    config.labels = (1.0, 0.1, 0.01)  # shares of the labels
    config.fractions = (0.25, 0.5)  # shares of the images that the best one is given
    config.encoder = {
        "width": 64,  # numbers of a token
        "depth": 4,  # number of blocks
        "num_heads": 4,  # attention heads of a block
        # Side of a patch in pixels; None: 16 or 64 patches an image.
        "patch_size": placeholder(int),
    }
    config.batch_size = placeholder(int)  # None: at most 128, by the number of images
    config.augment = {
        "normalize": {"mean": common.IMAGENET_MEAN, "std": common.IMAGENET_STD}
    }
    _data(config, given)
    config.log = {"report": True}  # drawn at the end
    config.compilation_cache = common.COMPILATION_CACHE
    if given["smoke"]:
        config.update(name=f"{config.name}-smoke", methods=("mae", "random"), seeds=1)
        config.update(labels=(1.0,), fractions=(), minutes=1.0)
        config.encoder.update(width=32, depth=1, num_heads=2)
    return config.lock()


def _data(config, given):
    config.data = common.imagenet()
    config.data.image_size = placeholder(int)  # pixels, height; None: 32 or 64
    common.use_data(config, given)
    if not given["data"] and not given["smoke"]:
        config.data.source = placeholder(str)  # None: a variant names the images
    config.data.holdout.eval = 0.2  # share of the training images to choose by
    for field in set(config.data) - set(DATA):
        del config.data[field]
