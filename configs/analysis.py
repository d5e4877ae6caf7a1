"""What encoders attend to and how alike their layers are: several checkpoints at once.

    python main.py --config=configs/analysis.py --config.models=mae=RUN,moco=RUN
    python main.py --config=configs/analysis.py:data=folder,path=DIR \\
        --config.models=mae=RUN,deit=FILE --workdir=DIR
    python main.py --config=configs/analysis.py:compat=paper --config.models=mae=RUN
    python main.py --config=configs/analysis.py:report --config.models=RUN
    python main.py --config=configs/analysis.py:compare --config.models=a=RUN,b=RUN
    python main.py --config=configs/analysis.py:advice --config.models=a=PROBE,b=PROBE

`models` names checkpoints: a run directory, a step inside it (RUN/checkpoints/STEP),
a file of weights (timm, DeiT, MAE, MoCo v3, Hugging Face), or `random:RUN`, the model
of a run before its training. All see the same images, each at its own size: those of
the first run, its test split, unless a variant or field says otherwise.

In the workdir: `analysis.json` with every number, and the page `report/index.html`,
which needs no network: CKA within and between models (minibatches of `batch_size`),
attention distance and entropy of every head, attention maps, spectrum, effective rank,
token similarity, reconstructions of those with a decoder; of runs also their curves and
evaluations, side by side. `report` leaves out what needs the models: of one run it
draws the page into the run's own directory, as the end of its training did. `compare`
is the same of several runs, side by side in one page of `runs/compare`.

`advice` reads directories that configs/layer_probe.py wrote on your own images, one for
each encoder, and says in two sentences which one to start from and how many layers to
tune, with the numbers that this rests on. It knows their standard errors, and if one of
them is of `--config.init=random`, the others must beat it to be advised.

`compat=paper` takes the authors' protocol: distances of patches times 14 in place of
the patch size, their logarithm, the first 1,152 images in order, minibatches of 128.

1,024 images of ViT-Tiny at 224 pixels: benchmarks/analysis.py has the minutes on 2 CPU
cores; not timed by us on accelerators. Expected (the paper's figures, read by eye): MAE
attends more locally than supervised training does, in its lower layers above all.
"""

from ml_collections.config_dict import placeholder

from litevit_jax.configs import common

_JOBS = {"advice": "advise", "compare": "report", "report": "report"}


def get_config(arg=None):
    """`arg`: report, compare, advice; compat=paper; imagenet2012, digits, smoke,
    data=folder,path=DIR."""
    given = common.parse_arg(arg, flags=tuple(_JOBS), values=("compat",))
    if given["compat"] not in (None, "exact", "paper"):
        raise ValueError(common.unknown("compat", given["compat"], ("exact", "paper")))
    config = common.evaluation("analysis", given)
    for name in ("init", "like", "objective", "augment", "evals", "log"):
        del config[name]
    if not (given["data"] or given["smoke"]):
        config.data.eval_crop_fraction = placeholder(float)
    config.job = _job(config, given)
    config.models = placeholder(str)  # NAME=PATH,NAME=PATH
    # Of `advice`: layers or layers_avg; None: of each encoder the better one on the
    # training images that its probe held out.
    config.probe = placeholder(str)
    config.num_heads = placeholder(int)  # of files that do not tell
    config.decoder_num_heads = placeholder(int)  # of their decoders
    config.split = "eval"  # of the data
    config.images = 1024  # that every model sees
    config.order = "random"  # drawn by seed; or 'first'
    config.batch_size = 64  # images of a minibatch, by which CKA is estimated
    config.cka = {"on": True}  # similarity of layers
    config.attention = {
        "on": True,  # distance and entropy of every head
        "compat": "exact",  # or paper
    }
    config.features = {
        "on": True,  # spectrum, effective rank, token similarity
        "place": "norm1",  # of a block, where they are taken
        "pool": "avg",  # or cls
    }
    # Images of maps and reconstructions by number in the split; none: the first drawn.
    config.rows = ()
    config.maps = {
        "images": 4,  # of attention maps and patch tokens; 0: none
        "layers": (-1,),  # from 1; -1 is the last
        "heads": (),  # from 1; none: all
        "queries": ("cls", "center"),  # or 'ROW/COLUMN' of a patch, from 0
    }
    config.reconstruction = {"images": 8}  # 0: none
    if given["compat"] == "paper":
        config.update(order="first", images=1152, batch_size=128)
        config.attention.compat = "paper"
    if given["smoke"]:
        config.update(images=48, batch_size=16)
        config.maps.images = 2
        config.reconstruction.images = 2
    return config.lock()


def _job(config, given):
    """What is done; a comparison has a directory of its own."""
    words = [word for word in _JOBS if given[word]]
    if len(words) > 1:
        raise ValueError(f"variants {' and '.join(words)}: give one of them")
    if given["compare"]:
        config.name = "compare"
    return _JOBS[words[0]] if words else "analyse"
