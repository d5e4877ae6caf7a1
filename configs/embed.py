"""Features of all images of a folder, in one file, without training.

    python main.py --config=configs/embed.py:data=folder,path=DIR \\
        --config.init=RUN_OR_FILE --config.target=OUT.parquet
    python main.py --config=configs/embed.py:digits --config.init=RUN_DIR \\
        --config.target=digits.npz --config.pool=avg

`init` is a run directory, a step inside it, or a file of weights. The ending of the
target chooses the format: .parquet (needs pyarrow), .npz, .csv, or .npy with a .npy.csv
beside it. Columns: `path`, `label` (the name of its class, if it has one), `error`, and
the features. An image that cannot be read keeps its row; `error` says why.

A folder is read whole, whatever its subfolders are called; `data.eval_split` names one
of its splits instead. Images are resized and normalised as the model was trained. A
stopped command goes on where it was; memory does not grow with the number of images.
Of other data sets, without a name, it is the test split. As fast as an evaluation: a
minute for the digits on 2 CPU cores, most of it to compile.
"""

from ml_collections import config_dict

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR."""
    given = common.parse_arg(arg)
    config = common.evaluation("embed", given)
    config.target = "embedding.npz"  # file that is written
    # cls, avg, cls_avg (side by side) or tokens; None: as the model's own evaluations
    # read it, the class token or what a classifier's head reads.
    config.pool = config_dict.placeholder(str)
    config.block = config_dict.placeholder(int)  # from 1; None: last, with final norm
    fields = {name: config.get_ref(name) for name in ("target", "pool", "block")}
    fields["folder"] = config.data.get_ref("dir")  # the file records it
    config.evals.embed = {"name": "embed", "split": "eval", **fields}
    if given["data"] in ("files", "folder"):
        config.data.eval_split = "."
    if not common.is_embedded(config):
        config.data.eval_crop_fraction = config_dict.placeholder(float)
    config.data.max_bad_fraction = 1.0
    config.log.report = False
    return config.lock()
