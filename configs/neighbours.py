"""The nearest images of a folder for pictures: what an encoder knows, at a glance.

    python main.py --config=configs/neighbours.py --config.init=RUN_OR_FILE \\
        --config.images=PICTURE_OR_FOLDER --config.among=FOLDER
    python main.py --config=configs/neighbours.py --config.init=RUN_OR_FILE \\
        --config.images='DIR/*.jpg' --config.among=EMBEDDING.parquet
    python main.py --config=configs/neighbours.py:digits --config.init=RUN_DIR

`init` is any run, a step inside it, or a file of weights; no labels and no head are
needed. `images` and `among` are a picture, a folder, a pattern, or a list: a file
LIST.txt with a path a line. `among` may also be a .parquet or .npz file that
configs/embed.py has written with the same encoder, pool and block; any other is
refused. Else the features are computed, and kept in the workdir for the next command.

Every pair is compared by the cosine of its features. Columns: `path`, `label`, `error`,
then the neighbours, their labels and cosines. The first rows are printed; a page beside
the target, with the ending .html, shows pictures and neighbours. Of other data sets, as
the digits, it is the neighbours of test images among training images. As fast as
embedding both: less than a minute for the digits on 2 CPU cores, most of it to compile.
"""

from ml_collections import config_dict

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR."""
    config = common.of_pictures("neighbours", common.parse_arg(arg))
    config.among = config_dict.placeholder(str)  # images to search, or their embedding
    # .csv or .jsonl; None: neighbours.csv in the workdir, which is replaced
    config.target = config_dict.placeholder(str)
    config.top = 5  # neighbours of an image, the nearest first
    # cls, avg or cls_avg; None: what the model's own evaluations read
    config.pool = config_dict.placeholder(str)
    config.block = config_dict.placeholder(int)  # from 1; None: last, with final norm
    config.sheet_images = 50  # whose neighbours the page shows; 0: no page
    names = ("among", "target", "top", "pool", "block")
    fields = {name: config.get_ref(name) for name in names}
    config.evals.neighbours = {"name": "neighbours", "split": "eval", **fields}
    if config.data.source == "files":
        config.data.train_split = "among"  # the images to search
        config.data.options = {"among": config.get_ref("among")}
    return config.lock()
