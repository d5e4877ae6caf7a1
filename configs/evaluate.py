"""Numbers of a checkpoint or a file of weights, without training.

    python main.py --config=configs/evaluate.py --config.init=RUN_DIR
    python main.py --config=configs/evaluate.py:imagenet2012 --config.init=FILE
    python main.py --config=configs/evaluate.py:imagenet2012,real=real.json,v2=DIR \\
        --config.init=RUN_OR_FILE --workdir=DIR
    python main.py --config=configs/evaluate.py:knn,data=folder,path=DIR \\
        --config.init=RUN_DIR
    python main.py --config=configs/evaluate.py:label_maps,data=folder,path=DIR \\
        --config.init=RUN_DIR

`init` is a run directory (pre-trained, fine-tuned, a probe), a step inside it
(RUN_DIR/checkpoints/STEP), or a file of weights that the package reads; one without a
recorded head count needs --config.objective.encoder.num_heads=A. With
--config.init_ema=True it is the average that a run kept of its parameters, of which
its own evaluations were; `random`, with --config.like=RUN_DIR, is the model of a run
before its training. Without a variant the data are those of the run, its test split.
Image size, channels and normalisation are the model's; of a file that records none:
ImageNet's statistics.

Other data are matched with the classifier by the names of the classes. They may lack
some; one that the classifier does not know is refused, or its images are left out and
counted (`--config.evals.classification.unmatched=leave_out`).

What is measured: the evaluators given as variants, `classification`, `coco` (objects;
`coco,boxes` where data or model have no masks), `confusion`, `knn`, `reconstruction`,
`segmentation`; if none is given, those of the run (of a file: classification if it has
a head, else k-NN). `label_maps` measures nothing: it writes what a run of
configs/segment.py predicts for all images of a folder as PNG files, into
pictures/label_maps. `real=FILE` adds accuracy by the label sets of ImageNet-ReaL, a
JSON list in the order of the validation images; `v2` adds ImageNet-V2, prepared as the
TFDS data set imagenet_v2, or `v2=DIR` a folder of it (classes 0 to 999).
`--config.evals.NAME...` changes an evaluator that was given.

ImageNet images are resized to 256, bicubic, and cropped to the central 224. A minute
for the digits on 2 CPU cores, most of it to compile; ImageNet was not timed by us. To
expect: what the training run recorded at that step; 78.0 % top-1 for the fine-tuned
MAE-Tiny (the authors' README).
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common

EVALUATORS = (
    *("classification", "coco", "confusion", "knn", "label_maps", "reconstruction"),
    "segmentation",
)


def get_config(arg=None):
    """`arg`: evaluators; real=FILE, v2, v2=DIR; boxes; imagenet2012, digits, smoke,
    data=folder,path=DIR."""
    given = common.parse_arg(
        arg, flags=(*EVALUATORS, "v2", "boxes"), values=("real", "v2")
    )
    config = common.evaluation("evaluate", given)
    for name in EVALUATORS:
        if given[name]:
            config.evals[name] = _block(name)
    if given["coco"] and given["boxes"]:
        config.evals.coco.masks = False
    if given["real"]:
        config.evals.real = _block("real", labels=given["real"])
    if given["v2"]:
        config.evals.v2 = _block("classification", data=_imagenet_v2(given["v2"]))
    if set(config.evals) == {"label_maps"} and given["data"] == "folder":
        config.data.eval_split = "."
    if (given["real"] or given["v2"]) and not given["classification"]:
        config.evals.test = _block("classification")
    return config.lock()


def _block(name, **fields):
    if name == "confusion":
        fields |= {"k": 10, "images": 5}  # pairs in the table, images of each drawn
    if name in ("classification", "confusion"):
        fields["unmatched"] = "refuse"  # or leave_out
    if name in ("label_maps", "segmentation"):
        fields["stride"] = placeholder(int)  # of windows; None: 2/3 of one
        fields["scales"] = (1.0,)  # sizes at which each image is predicted
        fields["flip"] = False  # whether also swapped left and right
    if name == "coco":
        fields["masks"] = True  # whether masks are scored, too
    if name == "label_maps":
        fields["overlay"] = 0.5  # share of the classes' colours; 0: no such pictures
    if name in ("coco", "segmentation"):
        fields["images"] = 4  # that are drawn; 0: none
    return {"name": name, "split": "eval", "every_steps": 0, **fields}


def _imagenet_v2(path):
    """The data of an evaluator: TFDS' `imagenet_v2`, or a folder that is all of it."""
    if path is True:
        name = "imagenet_v2/matched-frequency"
        dir = placeholder(str)
        return {"source": "tfds", "name": name, "dir": dir, "eval_split": "test"}
    return {"source": "folder", "dir": path, "eval_split": "train"}
