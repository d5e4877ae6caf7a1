"""The likeliest classes of pictures, or the objects on them, without training.

    python main.py --config=configs/predict.py --config.init=RUN_OR_FILE \\
        --config.images=PICTURE_OR_FOLDER
    python main.py --config=configs/predict.py --config.init=RUN_OR_FILE \\
        --config.images='DIR/*.jpg' --config.target=OUT.jsonl
    python main.py --config=configs/predict.py:digits --config.init=RUN_DIR

`init` is a run with a classifier (fine-tuned, a probe), a run of configs/detect.py, a
step inside either, or a file of weights. `images` is a picture, a folder, a pattern, or
a list: a file LIST.txt with a path a line. Images are resized, cropped and
normalised as the model's own evaluations do it. The first rows are printed; the target
has all of them, and a page beside it, with the ending .html, shows the images.

Columns: `path`, `label` (of data that have labels), `error`, then classes and their
probabilities; of a detector a row for each object, with class, score, box and mask
(docs/use.md), and a folder of pictures that show them. An image that cannot be read
keeps its row; `error` says why. A stopped command goes on where it was. As fast as an
evaluation: less than a minute for the digits on 2 CPU cores, most of it to compile.
"""

from ml_collections import config_dict

from litevit_jax.configs import common

_FIELDS = ("target", "top", "min_score", "overlay")


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR."""
    config = common.of_pictures("predict", common.parse_arg(arg))
    # .csv or .jsonl, of objects also .json, COCO's; None: predictions.csv in the
    # workdir, which is replaced
    config.target = config_dict.placeholder(str)
    # classes or objects of an image, the likeliest first; None: 5 classes, all objects
    config.top = config_dict.placeholder(int)
    config.min_score = config_dict.placeholder(float)  # of an object; None: 0.5
    config.overlay = 0.5  # opacity of masks in pictures of objects; 0: no pictures
    config.sheet_images = 200  # that the page shows, the first ones; 0: no page
    fields = {name: config.get_ref(name) for name in _FIELDS}
    config.evals.predict = {"name": "predict", "split": "eval", **fields}
    return config.lock()
