"""What the recipes share: parsing `file.py:variant`, data variants, sizes."""

import difflib
from typing import Any

import ml_collections
from ml_collections import config_dict

from litevit_jax import plugins

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# When one of several processes counts as stuck or gone (docs/distributed.md).
WATCHDOG = {
    "stuck_s": 600.0,  # seconds that a step or its data may take at most
    "grace_s": 3600.0,  # seconds that compiling, evaluating or saving may take
    "peer_s": 60.0,  # seconds without a sign from a process until it counts as gone
}

# Where compiled programs are kept: auto (the user's cache), off or a directory.
COMPILATION_CACHE = "auto"

# Fields of the data block that an evaluation takes from the run it evaluates.
OPEN_DATA = (
    "source",
    "name",
    "train_split",
    "eval_split",
    "image_size",
    "channels",
    "crop_scale",
    "crop_ratio",
    "flip",
    "eval_crop_fraction",
)

# Variants with a place: data=NAME,path=DIR.
PLACED = ("folder", "arrays", "packed", "tar", "segfolder")
TABLED = ("folder", "tar", "packed")  # those of them that take labels=FILE
_EMBEDDED = ("digits", "digit_scenes")
_OWN_PLACE = ("imagenet2012", *_EMBEDDED)  # variants that have one


def data_variants():
    """Names of the data variants: data sets, and every source of images."""
    others = [x for x in plugins.choices("data.sources") if x not in PLACED]
    return [*_OWN_PLACE, *PLACED, *(x for x in others if x not in _OWN_PLACE)]


def is_placed(config):
    """Whether the images are of a place that a variant named."""
    return config.data.source not in (None, "tfds", *_EMBEDDED)


def has_classes(config):
    """Whether each image is known to be of a class."""
    return config.data.source in (None, "tfds", "digits")


def is_embedded(config):
    """Whether the images are small ones that come with the package."""
    return config.data.source in _EMBEDDED


def parse_arg(arg, flags=(), values=()):
    """`digits,smoke` or `data=folder,path=DIR` -> dict of what was given.

    Quotes keep a comma in a value: `data=folder,path="A,B"`.

    Args:
      arg: text behind the colon of --config, or None.
      flags: words of this recipe, besides the data variants and `smoke`.
      values: names of this recipe that take a value (`name=value`), besides
        `data`, `path` and `labels`.

    Raises:
      ValueError: a word or name that the recipe does not know, with near matches.
    """
    data = data_variants()
    words = [*data, "smoke", *flags]
    names = ["data", "path", "labels", *values]
    given: dict[str, Any] = dict.fromkeys(("data", "path", "labels"))
    given["smoke"] = False
    given.update(dict.fromkeys(flags, False) | dict.fromkeys(values))
    before = ""  # the piece with a value that this one follows
    for piece in filter(None, _pieces(arg or "")):
        name, equals, value = piece.partition("=")
        known = names if equals else words
        if name not in known:
            listed = [*words, *(f"{n}=" for n in names)]
            message = _unknown(repr(piece), name, [*words, *names], listed)
            raise ValueError(message + _comma(before, piece))
        before = piece if equals else ""
        if equals and not value:
            raise ValueError(f"variant {name}= has no value; give one, or leave it out")
        if name in data:
            name, value = "data", name
        elif not equals:
            value = True
        if given[name] not in (None, False, value):
            raise ValueError(f"variants {given[name]} and {value}: give one {name}")
        given[name] = value
    return _check_data(given)


def _pieces(text):
    """Splits `text` at its commas, but for those of a quoted value (`a="b,c"`)."""
    pieces, quote = [""], ""
    for letter in text:
        if quote and letter == quote:
            quote = ""
        elif letter in "\"'" and pieces[-1].endswith("="):
            quote = letter
        elif letter == "," and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    if quote:
        raise ValueError(f"variant {text!r}: its quote {quote} is not closed")
    return pieces


def _comma(before, piece):
    """What to do if `piece` is the rest of the value before it, behind a comma."""
    name, _, value = before.partition("=")
    if not name:
        return ""
    whole = f"{value},{piece}"
    field = f", or use path=. and --config.data.dir='{whole}'" * (name == "path")
    return f'. If the comma belongs to {name}=, quote it: {name}="{whole}"{field}'


def unknown(name, value, known):
    """The message for `name=value` where `value` is none of `known`."""
    return _unknown(f"{name}={value!r}", value, known, known)


def _unknown(variant, name, known, listed):
    """The message of litevit_jax/choices.py, which recipes do not import."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"variant {variant} unknown; {hint}choose from {', '.join(listed)}"


def _check_data(given):
    data, path = given["data"], given["path"]
    if path and not data:
        given["data"] = data = "folder"
    if data is not None and data not in data_variants():
        text = unknown("data", data, data_variants())
        raise ValueError(f"{text}; {plugins.HINT}")
    if data in PLACED and not path:
        raise ValueError(
            f"variant data={data} needs a place: data={data},path=DIR (with a comma in "
            'it: path="DIR", or path=. and --config.data.dir=DIR)'
        )
    if path and data in _OWN_PLACE:
        choices = ", ".join(f"data={name}" for name in PLACED)
        raise ValueError(f"variant path={path} goes with one of {choices}")
    if given["labels"] and data not in TABLED:
        choices = ", ".join(f"data={name}" for name in TABLED)
        raise ValueError(
            f"variant labels={given['labels']} goes with one of {choices}, and path=DIR"
        )
    return given


def base(name):
    """The fields every recipe has, with values that suit ImageNet."""
    config = ml_collections.ConfigDict()
    config.name = name  # of the run, and of its directory in runs/
    config.job = "train"  # what is done
    config.seed = 0  # of everything that is random
    config.batch_size = 4096  # images per update, over all devices and slices
    # Images that a device computes at once: auto, off or a number; gradients of the
    # slices of a batch are added up, so the update is the same and memory is saved.
    config.microbatch = "auto"
    # Updates in one call of the device, at most, where it holds the images: auto (by
    # the time that they take) or a number; no number of a run depends on it.
    config.steps_per_call = "auto"
    # How attention is computed (docs/performance.md).
    config.attention = "auto"  # auto (by platform and shape), plain, deferred or cudnn
    # Computes blocks again in the backward pass: less memory, for models too large
    # otherwise, and more time (docs/performance.md).
    config.remat = False
    config.epochs = 400  # passes over the images; ImageNet's are whole batches
    config.steps = config_dict.placeholder(int)  # overrides epochs
    config.extend_to = config_dict.placeholder(int)  # epochs: a run goes on up to them
    config.init = config_dict.placeholder(str)  # run, step in it, weights, random
    config.like = config_dict.placeholder(str)  # run to take encoder and data from
    config.init_ema = False  # its average of the parameters, not the last ones
    config.init_grid = config_dict.placeholder(str)  # of a file: patches, as 14x10
    # How its patch embedding is adapted to images of another number of channels: mean,
    # repeat or rgb (docs/weights.md).
    config.init_channels = config_dict.placeholder(str)
    config.init_rename = ()  # of its entries, as 'encoder/norm/=head/fc_norm/'
    config.init_load = (".*",)  # parameters that `init` must provide
    config.init_load_if_there = ()  # taken from `init` where it has them
    config.init_skip = ()  # its entries that may stay unused
    config.init_required = False  # there is no run without `init`; random is one
    config.init_donor = config_dict.placeholder(str)  # run or file that gives a part
    config.init_donor_load = ()  # patterns of what it gives
    config.teacher = config_dict.placeholder(str)  # run or file of a frozen teacher
    config.data = imagenet()
    config.augment = ml_collections.ConfigDict()
    config.augment.normalize = {
        "mean": IMAGENET_MEAN,  # of each channel, of values in 0..1
        "std": IMAGENET_STD,  # of each channel, of values in 0..1
    }
    config.mesh = {
        "data": -1,  # devices over which the batch is divided; -1: the rest
        "fsdp": 1,  # devices over which parameters are divided as well
    }
    config.checkpoint = {
        "every_steps": 1000,  # updates; and at the end
        "keep": 3,  # the last ones
        # EVALUATOR.METRIC whose best step is kept, too; on validation images.
        "keep_best": config_dict.placeholder(str),
    }
    config.stop = {
        # Evaluations without a better `checkpoint.keep_best` that end the run.
        "patience": config_dict.placeholder(int),
    }
    config.log = {
        "every_steps": 50,  # updates from line to line
        # Besides metrics.jsonl: tensorboard, wandb, mlflow, trackio.
        "writers": ("jsonl", "tensorboard"),
        "project": "litevit",  # of wandb, mlflow and trackio
        "health": True,  # statistics of the features, with every logged step
        "report": True,  # drawn at the end
        "report_images": 256,  # that the report's analysis looks at; 0: no analysis
    }
    config.nonfinite = {"max_in_a_row": 10}  # steps left out before a run gives up
    config.watchdog = dict(WATCHDOG)
    config.compilation_cache = COMPILATION_CACHE
    config.fallback = fallback()
    config.auto_batch = {
        "at_most": 4096,  # images of a batch that is chosen, as batch_size is None
        "lr_batch": config_dict.placeholder(int),  # lr.base times it; None: the batch
        "steps_at_least": 0,  # updates of a run whose batch is chosen
        # An open lr.base is recipe_lr, times the root of recipe_batch / batch_size.
        "recipe_batch": config_dict.placeholder(int),
        "recipe_lr": config_dict.placeholder(float),
    }
    config.evals = ml_collections.ConfigDict()
    return config


def fallback(mean=None, std=None):
    """What is taken for a field that is None and that no other run or file tells."""
    return {
        "encoder": {},  # fields of objective.encoder
        "image_size": config_dict.placeholder(int),  # pixels
        "channels": config_dict.placeholder(int),  # of an image
        "mean": config_dict.FieldReference(mean, field_type=tuple),  # of each channel
        "std": config_dict.FieldReference(std, field_type=tuple),  # of each channel
    }


def imagenet():
    """ImageNet-1k through TFDS at 224, cropped as the paper does (recipes 2.3)."""
    data = ml_collections.ConfigDict()
    data.source = "tfds"  # a file of litevit_jax/data/sources
    data.name = "imagenet2012"  # of TFDS, or as the source uses it
    data.dir = config_dict.placeholder(str)  # where the data is
    data.options = {}  # what the source takes besides, by name
    # Table of labels: .csv, .tsv, .jsonl or .parquet (docs/input.md).
    data.labels = config_dict.placeholder(str)
    data.unlisted = "refuse"  # images without a row in it: refuse or leave_out
    # How many classes images have that may be of several; the data say it.
    data.multi_hot = config_dict.placeholder(int)
    data.required = False  # False: a missing default location may start the digits
    data.train_split = "train"  # 'a+b' joins splits
    data.eval_split = "validation"  # what evaluations read; ".": all images of a folder
    data.holdout = holdout()
    data.shots = config_dict.placeholder(int)  # training images of each class
    data.fraction = 1.0  # of the training images, over all classes
    data.fraction_of = config_dict.placeholder(str)  # or balanced, classes
    data.long_tail = config_dict.placeholder(float)  # most frequent over rarest class
    # images: training reads each as often; classes: it reads each class as often.
    data.sampling = "images"
    data.subset_seed = 0  # seed of drawing subsets: shots, fraction, holdout...
    data.image_size = 224  # pixels, height; None: as the model was trained
    data.image_width = config_dict.placeholder(int)  # pixels; None: as the height
    data.channels = 3  # of an image; 1: grey, 3: RGB
    # Black and white of pixels of more than 8 bits (docs/input.md).
    data.range = config_dict.placeholder(str)  # full, LOW,HIGH, auto or auto_each
    data.crop_scale = (0.08, 1.0)  # share of the image's area
    data.crop_ratio = (3 / 4, 4 / 3)  # width over height
    data.interpolation = "random"  # of bilinear and bicubic, per image
    data.single_draw = False  # crops as MAE does for its probe
    data.flip = 0.5  # probability of left and right being swapped
    data.randaugment = randaugment(layers=0)
    data.joint = joint()
    data.views = 1  # random crops of each training image
    data.eval_crop_fraction = 0.875  # of the shorter side; None: as the run tells
    data.max_pixels = 100_000_000  # larger images count as unreadable
    data.max_bad_fraction = 0.001  # unreadable files beyond it (and one) end the run
    data.decoder = "auto"  # fast (libjpeg-turbo, OpenCV) if installed, else pillow
    # Small sets are decoded once and kept: device (cropped there), host, off, or auto:
    # the device, if they fit and nothing needs the host (docs/input.md).
    data.cache = "auto"
    data.cache_gib = 8.0  # memory in GiB that cached images may take
    data.workers = config_dict.placeholder(int)  # processes; None: by the cores
    data.threads = config_dict.placeholder(int)  # threads in all; None: by the cores
    return data


def holdout():
    """Images that are kept out of training, by the split that has them instead."""
    return {
        "test": 0.0,  # share of data without a test split, by a hash of their names
        "eval": 0.0,  # share of the training split, in place of eval_split
        "select": 0.0,  # share of the training images, to choose settings by
        "select_at_most": 20_000,  # images
    }


def joint():
    """Images that are resized, cropped and flipped with what is drawn on them."""
    return {
        "annotations": (),  # label_map, objects (masks and boxes), boxes; (): none
        "short_side": 512,  # pixels; an image is resized to fit both sides
        "long_side": 2048,  # pixels; an image is resized to fit both sides
        "ratio": (0.5, 2.0),  # times that size: drawn for each training image
        "most_of_one_class": 0.75,  # share of a crop's labels; beyond, another is drawn
        "crop_draws": 1,  # numbers that place a crop with objects: 1 for both axes, 2
        "max_objects": 100,  # of an image; the largest are kept
        "mask_size": 112,  # pixels on a side of an object's mask, laid over its box
    }


def randaugment(layers=2, magnitude=10.0):
    """RandAugment after crop and flip, as timm's `rand-m10-mstd0.5-inc1`; 0: off."""
    randaugment = {
        "layers": layers,  # operations on each image; 0: off
        "magnitude": magnitude,  # of 10
        "std": 0.5,  # of the magnitude
        "probability": 0.5,  # of each operation
    }
    return randaugment


def use_data(config, given):
    """Changes the data block (and what must go with it) to the variant given."""
    kind, path = given["data"], given["path"]
    if given["smoke"] and kind is None:
        kind = "digits"
    if kind == "imagenet2012":
        config.data.required = True
    elif kind == "tfds":
        config.data.update(dir=path, required=True)
    elif kind not in (None, *_EMBEDDED):
        config.data.update(
            source=kind, name="", dir=path, required=True, eval_split="test"
        )
        config.data.labels = given["labels"]
    elif kind == "digits":
        config.data.update(
            source="digits",
            name="",
            eval_split="test",
            image_size=8,
            channels=1,
            crop_scale=(0.6, 1.0),
            flip=0.0,
            eval_crop_fraction=1.0,
            workers=0,
            threads=2,
        )
        config.augment.normalize = {"mean": (0.305,), "std": (0.376,)}
    elif kind == "digit_scenes":
        _use_digit_scenes(config)
    if kind == "segfolder":
        config.data.options = {
            "classes": config_dict.placeholder(str),  # number, names, file; None: there
            "reduce_zero_label": config_dict.placeholder(bool),  # whether 0 is no class
        }
    if kind == "cocojson":
        config.data.options = {
            "json": config_dict.placeholder(str),  # file of objects; None: looked for
            "images": config_dict.placeholder(str),  # their folder; None: looked for
            "masks": not given.get("boxes"),  # whether objects have masks
            "keep_empty": config_dict.placeholder(bool),  # images without objects
            # Whether `iscrowd` marks crowds; False: objects, as CVAT exports masks.
            "crowds": True,
        }
    if kind and kind != "imagenet2012":
        config.name = f"{config.name}-{kind}"


def _use_digit_scenes(config):
    config.data.update(
        source="digit_scenes",
        name="",
        eval_split="test",
        image_size=48,
        crop_scale=(0.5, 1.0),
        flip=0.0,
        eval_crop_fraction=1.0,
        workers=0,
        threads=2,
    )
    config.data.options = {
        "size": 48,  # pixels of a scene
        "scenes": 4000,  # to train on
        "test_scenes": 300,  # to evaluate on
        "seed": 0,  # of the scenes
    }


def use_labelled(config, given):
    """`knn=...`: a k-NN vote during pre-training, on a labelled set of its own.

    `digits`, `imagenet2012`, or a folder with a subfolder for each class.
    """
    path = given["knn"]
    if path is None:
        return
    data = {
        "source": "folder",
        "name": config_dict.placeholder(str),
        "dir": config_dict.placeholder(str),
        "train_split": "train",  # that is learned from
        "eval_split": "test",  # what evaluations read
        "holdout": {"test": 0.0},  # share of data without a test split
        "image_size": config_dict.placeholder(int),  # pixels; None: as the run trains
    }
    if path == "digits":
        data["source"] = "digits"
    elif path == "imagenet2012":
        data |= {"source": "tfds", "name": path, "eval_split": "validation"}
    else:
        data["dir"] = path
    every = 5000 if config.data.source == "tfds" else 500
    config.evals.knn = {
        "name": "knn",
        "split": "eval",  # whose images are told
        "bank": "train",  # split that is looked up
        "every_steps": every,  # 0: at the end
        "data": data,
    }


def leave_length_open(config):
    """Batch, epochs and learning rate follow from how many images there are.

    The batch is one that a single machine can hold.
    """
    config.auto_batch.update(
        at_most=256, recipe_batch=config.batch_size, recipe_lr=config.lr.base
    )
    config.batch_size = config_dict.placeholder(int)
    config.lr.base = config_dict.placeholder(float)
    config.epochs = config_dict.placeholder(int)
    config.lr.warmup_epochs = config_dict.placeholder(float)  # a tenth of the epochs


def leave_data_open(config):
    """Data and normalisation are those of the run named by `init` or `like`."""
    for name in OPEN_DATA:
        config.data[name] = config_dict.placeholder(type(config.data[name]))
    config.data.holdout.test = config_dict.placeholder(float)
    config.data.unlisted = config_dict.placeholder(str)
    config.augment.normalize = open_normalize()


def leave_images_open(config):
    """Size, channels and normalisation of images are those that the encoder knows.

    That is the one of `init`, `like` or `teacher`. `fallback` has what they are where
    there is none, or a file of weights does not tell.
    """
    data, normalize = config.data, config.augment.normalize
    fields = {name: data[name] for name in ("image_size", "channels")}
    config.fallback.update(fields, mean=normalize.mean, std=normalize.std)
    for name in fields:
        data[name] = config_dict.placeholder(int)
    config.augment.normalize = open_normalize()


def open_normalize():
    """Normalisation that a run, a file or `fallback` fills."""
    return {key: config_dict.placeholder(tuple) for key in ("mean", "std")}


def evaluation(name, given):
    """The fields of recipes that evaluate and do not train: the job 'evaluate'."""
    config = ml_collections.ConfigDict()
    config.name = name
    config.job = "evaluate"
    config.seed = 0
    config.batch_size = 256  # images read at once; no number depends on it
    config.init = config_dict.placeholder(str)  # run, step in it, file, or random
    config.init_ema = False  # a run's average of its parameters, not the last ones
    config.init_grid = config_dict.placeholder(str)  # of a file: patches, as 14x10
    config.like = config_dict.placeholder(str)  # run whose model starts at random
    config.objective = {
        "encoder": {
            # Attention heads; None: as the variant or the file of weights says.
            "num_heads": config_dict.placeholder(int)
        },
        # Type to compute in; auto: bfloat16 on accelerators, float32 on CPUs; None: as
        # the run computed.
        "dtype": config_dict.placeholder(str),
    }
    config.data = imagenet()
    # As the run has them, if it read annotations.
    config.data.joint = {
        "annotations": config_dict.placeholder(tuple),
        "short_side": config_dict.placeholder(int),
        "long_side": config_dict.placeholder(int),
        "ratio": config_dict.placeholder(tuple),
        "most_of_one_class": config_dict.placeholder(float),
    }
    config.augment = {"normalize": {}}
    config.mesh = {"data": -1, "fsdp": 1}
    config.watchdog = dict(WATCHDOG)
    config.compilation_cache = COMPILATION_CACHE
    config.fallback = fallback(IMAGENET_MEAN, IMAGENET_STD)
    config.log = {"report": True}  # at the end
    config.evals = {}
    if given["data"] or given["smoke"]:
        use_data(config, given)
        config.data.image_size = config_dict.placeholder(int)
        config.data.channels = config_dict.placeholder(int)
        config.augment.normalize = open_normalize()
    else:
        leave_data_open(config)
        config.data.update(flip=0.0, crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3))
    if given["smoke"]:
        config.update(name=f"{config.name}-smoke", batch_size=32)
    return config


def of_pictures(name, given):
    """As `evaluation`, of images that `images` names unless a variant names data.

    It reads all of a folder, and an image that it cannot read has a row that says so.
    """
    other = given["data"] or given["smoke"]
    config = evaluation(name, given if other else given | {"data": "files"})
    config.images = config.data.get_ref("dir")  # picture, folder, pattern, LIST.txt
    if not other:
        config.name = name
        config.data.eval_split = "."
    elif given["data"] in ("files", "folder"):
        config.data.eval_split = "."
    if not is_embedded(config):
        config.data.eval_crop_fraction = config_dict.placeholder(float)
    config.data.max_bad_fraction = 1.0
    config.log.report = False
    return config


def small_model(config):
    """The quick start's encoder: 16 patches an image, 64 wide, 4 deep."""
    patch_size = {"digits": 2, "digit_scenes": 6}.get(config.data.source, 4)
    return {"width": 64, "depth": 4, "num_heads": 4, "patch_size": patch_size}


def use_smoke(config):
    """A minute on a CPU: the same code, few steps, a small model on small images."""
    config.update(name=f"{config.name}-smoke", batch_size=32, steps=6)
    config.checkpoint.every_steps = 3
    config.log.update(every_steps=1, report_images=16)
    if not is_embedded(config):
        config.data.update(image_size=16, image_width=None)
    for block in config.evals.values():
        block.every_steps = 3


def mae(name, size, arg):
    """The MAE recipe of the paper for an encoder `size` (recipes 2.1 and 2.2)."""
    given = parse_arg(arg, values=("knn",))
    config = base(name)
    config.objective = {
        "name": "mae",  # a file of litevit_jax/objectives
        "encoder": encoder_block(size),
        "decoder": {
            # As its encoder's recipe has it; half as wide beside sizes of your own.
            "variant": _text("auto"),
            "width": config_dict.placeholder(int),
            "depth": config_dict.placeholder(int),
            "num_heads": config_dict.placeholder(int),
        },
        "mask_ratio": 0.75,  # share of the patches that the encoder does not see
        "norm_pix_loss": True,  # patches are normalised before they are compared
        "dtype": "auto",  # bfloat16 on accelerators, float32 on CPUs
    }
    config.lr = {
        "base": 1.5e-4,  # peak, per 256 images of the batch
        "warmup_epochs": 40.0,  # in which it rises from start to peak
        "start": 0.0,  # learning rate of the first update
        "end": 0.0,  # learning rate of the last update
        "decay": "cosine",  # from the peak to the end: cosine or linear
    }
    config.optimizer = {
        "name": "adamw",  # adamw, sgd or lars
        "b1": 0.9,  # decay of the mean of gradients
        "b2": 0.95,  # decay of the mean of their squares
        "eps": 1e-8,  # added to the root of the latter
        "weight_decay": 0.05,  # times the learning rate, off the parameter
        "freeze": (),  # patterns of parameters that are not trained
        "no_decay": (),  # patterns of parameters without weight decay
    }
    config.evals.reconstruction = {
        "name": "reconstruction",  # a file of litevit_jax/evaluators
        "split": "eval",  # eval, train or select
        "every_steps": 5000,  # 0: at the end
        "images": 8,  # in a picture
    }
    use_data(config, given)
    if is_placed(config):
        leave_length_open(config)
        config.evals.reconstruction.update(split="train", every_steps=500)
    if is_embedded(config) or given["smoke"]:
        _small_mae(config)
    use_labelled(config, given)
    if given["smoke"]:
        use_smoke(config)
    return config.lock()


def _small_mae(config):
    config.objective.encoder.update(variant=None, **small_model(config))
    config.objective.decoder.update(variant=None, width=32, depth=1, num_heads=2)
    config.update(batch_size=128, epochs=100)
    config.lr.update(base=3e-3, warmup_epochs=5.0)
    config.checkpoint.every_steps = 500
    config.evals.reconstruction.every_steps = 500


def use_finetuning(config):
    """The paper's fine-tuning and supervised training from scratch (recipes 5.1)."""
    config.update(batch_size=1024, epochs=300)
    config.objective = {
        "name": "supervised",  # a file of litevit_jax/objectives
        "encoder": encoder_block(),
        "pool": "avg",  # avg: of the patches' tokens; cls: the class token
        "head": "linear",  # how the classifier starts, and what is before it
        "num_classes": config_dict.placeholder(int),  # None: the data's
        "label_smoothing": 0.0,  # share of the label given to all classes
        "loss": "softmax",  # over the classes; bce: each class by itself
        # balanced: rare classes weigh more; None: all images alike.
        "class_weights": config_dict.placeholder(str),
        "drop_path": 0.0,  # of the last block; less before
        "dtype": "auto",  # bfloat16 on accelerators, float32 on CPUs
    }
    config.data.update(interpolation="bicubic", randaugment=randaugment())
    config.augment.erase = {"probability": 0.0}  # of a part of an image
    config.augment.mix = {
        "mixup": 0.2,  # alpha of its Beta distribution; 0: off
        "cutmix": 0.0,  # alpha of its Beta distribution; 0: off
        "switch": 0.5,  # probability of cutmix where both are on
    }
    config.lr = {
        "base": 1e-3,
        "warmup_epochs": 5.0,
        "start": 0.0,
        "end": 1e-6,
        "decay": "cosine",
    }
    config.optimizer = {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "layer_decay": 0.85,  # of the learning rate from a block to the one below
        "clip_norm": config_dict.placeholder(float),  # of all gradients; None: no limit
        "ema_decay": config_dict.placeholder(float),  # of an average, which is tested
        "freeze": (),
        "no_decay": ("encoder/(cls_token|pos_embed)",),
    }
    # Every 10 epochs of ImageNet.
    config.evals.test = {
        "name": "classification",  # a file of litevit_jax/evaluators
        "split": "eval",  # eval, train or select
        "every_steps": 12_510,  # 0: at the end
    }
    config.evals.confusion = confusion()


def use_multi_label(config):
    """Images of several labels: each class by itself, told by average precision."""
    config.name = f"{config.name}-multi_label"
    config.objective.loss = "bce"
    if "label_smoothing" in config.objective:
        config.objective.label_smoothing = 0.0
    every = config.evals.test.every_steps
    for name in ("test", "confusion", "knn"):  # they tell one class an image
        if name in config.evals:
            del config.evals[name]
    config.evals.test = {"name": "multi_label", "split": "eval", "every_steps": every}


def confusion():
    """The evaluator of each class, and of which is taken for which."""
    return {
        "name": "confusion",
        "split": "eval",
        "k": 10,  # pairs in the table
        "images": 5,  # of each pair in the picture; 0: no picture
        "every_steps": 0,
    }


def use_finetuning_data(config, given, *, at_random=False):
    """As `use_data`; fine-tuning on data smaller than ImageNet has other sizes.

    Unless the encoder starts `at_random`, images are as it knows them; if no data are
    given, they are those of `init`'s run, as is their preparation.
    """
    if given["smoke"] or at_random:
        use_data(config, given)
    elif given["data"]:
        use_data(config, given)
        leave_images_open(config)
    else:
        leave_data_open(config)
    if is_placed(config):
        config.update(batch_size=256)
        config.evals.test.every_steps = 500
    if is_embedded(config) or given["smoke"]:
        config.update(batch_size=64, epochs=50)
        config.lr.update(base=4e-3, warmup_epochs=5.0)
        config.data.randaugment.layers = 0
        config.checkpoint.every_steps = 500
        config.evals.test.every_steps = 200


def encoder_block(size=None):
    """A named encoder; a number given beside the name overrides the name's."""
    return {
        "variant": _text(size),  # a name; a size beside it overrides the name's
        "width": config_dict.placeholder(int),  # numbers of a token
        "depth": config_dict.placeholder(int),  # number of blocks
        "num_heads": config_dict.placeholder(int),  # attention heads of a block
        "patch_size": config_dict.placeholder(int),  # side of a patch in pixels
        "pos_embed": "sincos",  # sincos, sincos_moco; learned, learned_sincos
    }


def _text(value):
    """A field of text, which may be None."""
    return config_dict.FieldReference(value, field_type=str)


def distilled_mae(name, size, arg, decoupled=(None, None)):
    """The MAE recipe with attention distillation (recipes 3).

    Args:
      name, size, arg: see `mae`.
      decoupled: blocks before the decoder, of the paper's and of the small encoder.
    """
    config = mae(name, size, arg)
    small = config.objective.encoder.variant is None
    with config.unlocked():
        config.objective.update(
            name="distill",
            teacher=frozen_encoder_block(),
            pairs=config_dict.placeholder(tuple),  # None: last layer with last layer
            target="logits",  # what of the attention is compared
            adapter=True,  # maps heads to those of the teacher
            weight=1.0,  # of the distance, beside the loss of MAE
            decoupled=config_dict.placeholder(int),  # blocks before the decoder
        )
        config.objective.decoupled = decoupled[small]
        if not parse_arg(arg, values=("knn",))["smoke"]:
            leave_images_open(config)
    return config


def frozen_encoder_block():
    """An encoder that is all as its checkpoint says."""
    return encoder_block() | {"pos_embed": config_dict.placeholder(str)}
