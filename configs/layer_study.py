"""Which layers of a pre-trained encoder matter, with many labels and with few.

    python main.py --config=configs/layer_study.py --config.init=RUN
    python main.py --config=configs/layer_study.py:data=folder,path=DIR \\
        --config.init=RUN_OR_FILE --config.init_donor=OTHER_RUN
    python main.py --config=configs/layer_study.py:digits --config.init=RUN

Each part tells the test images, all but the first after one short fine-tuning:

    probe       nothing is trained: what a linear classifier and k-NN read from every
                block of the checkpoint (configs/layer_probe.py)
    keep_first  the first k blocks are the checkpoint's, the others start at random
    keep_last   the last k blocks are the checkpoint's, the others start at random
    freeze      all are the checkpoint's; the first k and the embeddings never change
    swap        the first k blocks are the checkpoint's, the others those of
                `init_donor`, another one of the same sizes (if it is given)

Whether the probe reads the class token or the mean of the patches, and after which
block, is chosen by training images held out; the test images choose nothing.

The embeddings of patches, positions and class token are always the checkpoint's, but in
`random`, the encoder that starts at random altogether. k goes from 0 to the depth, or
over `study.depths`. All is done twice: with the share `study.rich` of the training
images, and with `study.poor` of them. Both have the same number of updates, that of
`epochs` with the many, and the same warm-up.

The experiment of the paper's section on layers (arXiv 2205.14443) has no code and no
setting published (recipes 8.4); recipe and shares are OUR choice: fine-tuning for
`epochs` 20, as configs/finetune.py otherwise; so are data and images chosen. Expected,
as the paper describes it: with enough data the lower layers carry the gain; with few,
the higher ones matter too.

In the workdir: `layers.json`, a run directory for each part, and `report/index.html`
with curves over k, and sentences that draw no conclusion inside two standard errors of
the test images. `study.metric` is top1 or mean_per_class. It goes on where it was
stopped. ViT-Tiny has 12 blocks and 2 x 38 parts without a donor; not timed by us on
accelerators. Digits: about 15 minutes on 2 CPU cores.
"""

from litevit_jax.configs import common

KINDS = ("probe", "keep_first", "keep_last", "freeze", "swap")


def get_config(arg=None):
    """`arg`: imagenet2012, digits, smoke, data=folder,path=DIR."""
    given = common.parse_arg(arg)
    config = common.base("layer_study")
    config.job = "layers"
    common.use_finetuning(config)
    config.objective.encoder.pos_embed = "learned_sincos"
    config.init_required = True  # there is nothing to study without
    config.init_load = ("encoder/.*",)
    config.init_skip = ("(?!encoder/).*", "encoder/norm/.*")
    config.epochs = 20
    config.study = {
        "kinds": KINDS,  # of the parts above
        "depths": (),  # k; none: all from 0 to the depth
        "rich": 1.0,  # share of the training images
        "poor": 0.1,  # share of the training images
        "metric": "top1",  # that the curves show
    }
    common.use_finetuning_data(config, given)
    config.evals.test.every_steps = 0
    config.log.report = False  # of every part; the study draws its own
    if common.is_embedded(config) or given["smoke"]:
        config.update(epochs=10)
        config.lr.warmup_epochs = 1.0
    if given["smoke"]:
        _smoke(config)
    return config.lock()


def _smoke(config):
    config.init = "random"
    config.objective.encoder.update(common.small_model(config))
    common.use_smoke(config)
    config.update(steps=1)
    config.evals.test.every_steps = 0
    config.study.update(kinds=("freeze",), depths=(1,), rich=1.0, poor=0.5)
