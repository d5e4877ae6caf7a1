"""Frozen features of any checkpoint, block by block and from few images; no training.

    python main.py --config=configs/layer_probe.py --config.init=RUN_DIR
    python main.py --config=configs/layer_probe.py --config.init=random \\
        --config.like=RUN_DIR
    python main.py --config=configs/layer_probe.py:data=folder,path=DIR \\
        --config.init=FILE

`init` is what configs/evaluate.py takes: a run directory, a step inside it
(RUN_DIR/checkpoints/STEP), a file of weights, or `random`. Data are those of that run
unless a variant or field says otherwise. Four evaluations, each in
evals/NAME/result.json:

    layers      linear (ridge regression) and k-NN accuracy after every block, from 1
    layers_avg  the same of the mean of the patch tokens
    fewshot     linear, from 1, 5, 10 and 25 images of each class; 5 drawings
    knn         20 nearest neighbours

The latter two are of the class token after the final norm; of a classifier, of what
its last layer reads. Regularisation and the best block are chosen on training images
that are not learned from. The same blocks can be put into `config.evals` of a
pre-training. A pass over the test and training images each; on ImageNet not timed by
us on accelerators, on the digits about a minute on 2 CPU cores. No published number is
known to us for ViT-Tiny with these probes.
"""

from litevit_jax.configs import common


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR."""
    given = common.parse_arg(arg)
    config = common.evaluation("layer_probe", given)
    config.evals.layers = _layers("cls")
    config.evals.layers_avg = _layers("avg")
    config.evals.fewshot = {
        "name": "fewshot",
        "split": "eval",
        "features": "features",
        "shots": (1, 5, 10, 25),  # images of each class
        "seeds": 5,  # drawings of them
        "held_out": 5,  # more of each class, to choose regularisation by
        "every_steps": 0,
    }
    config.evals.knn = {"name": "knn", "split": "eval", "k": 20, "every_steps": 0}
    return config.lock()


def _layers(pool):
    return {
        "name": "layers",
        "split": "eval",
        "pool": pool,
        "examples": 50_000,  # training images, at most
        "holdout": 0.1,  # share of them, to choose regularisation and block by
        "every_steps": 0,
    }
