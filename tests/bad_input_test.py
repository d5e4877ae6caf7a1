"""Bad input is refused before anything compiles, and leaves nothing behind."""

import errno
import json
import math
import os
import pathlib
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from litevit_jax import checkpoint
from litevit_jax.jobs import train
from litevit_jax.train import build
from litevit_jax.train import workdir as workdirs
from litevit_jax.warm_start import read
from tests import jobs

COMPILED = []


def _count(event, _, **info):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(info)


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture
def refuse(tmp_path):
    """(config, message, workdir): `prepare` refuses it so and leaves no trace."""

    def check(config, message, workdir=None, error=(ValueError, OSError)):
        fresh = workdir is None
        workdir = tmp_path / "run" if fresh else workdir
        COMPILED.clear()
        with pytest.raises(error, match=message):
            train.prepare(config, workdir)
        assert COMPILED == []
        assert not fresh or not workdir.exists()

    return check


@pytest.fixture(autouse=True, scope="module")
def whole_run(tmp_path_factory):
    """What was compiled for a run that was prepared whole; later ones need no step."""
    COMPILED.clear()
    jobs.prepare(tmp_path_factory.mktemp("whole") / "run")
    compiled = COMPILED[:]
    with pytest.MonkeyPatch.context() as patch, jobs.without_steps():
        patch.setattr(build, "build_step", jobs.sharing_designs())
        yield compiled


def test_preparing_a_run_compiles_nothing_but_running_does(whole_run):
    assert whole_run == []
    COMPILED.clear()
    jax.jit(lambda x: x * 3.25)(jax.numpy.ones(7)).block_until_ready()
    assert COMPILED  # the counter counts


FIELDS = {
    "batch and devices": ({"batch_size": 100},
        r"batch_size=100 is not a multiple of 8 devices \(mesh data=8 x fsdp=1\); try "
        r"--config.batch_size=96"),
    "slice": ({"batch_size": 96, "microbatch": "5"},
        r"microbatch=5 does not divide the 12 images of a device \(batch_size=96 over "
        r"8\); the nearest that does is 4: set --config.microbatch=4"),
    "slice's name": ({"microbatch": "of"}, r"microbatch=of: did you mean off"),
    "attention": ({"attention": "cuddn"},
        r"attention 'cuddn' unknown; did you mean cudnn\? choose from auto, plain, "
        "deferred, cudnn"),
    "attention of GPUs": ({"attention": "cudnn"},
        r"attention=cudnn .* of platform 'cpu'; set --config.attention=auto, or plain"),
    "no batch": ({"batch_size": 0}, r"config.batch_size=0; expected 1 or more"),
    "mesh": ({"mesh__data": 3}, r"mesh data=3 x fsdp=1 needs 3 devices, found 8"),
    "patch": ({"objective__encoder__patch_size": 3}, r"8.*patch.*3|patch.*3.*8"),
    "image": ({"data__image_size": 9}, r"9.*patch.*2|patch.*2.*9"),
    "model": ({"objective__encoder__variant": "tinny"},
        r"'tinny' unknown; did you mean tiny"),
    "decoder": ({"objective__decoder__variant": "smal"},
        r"'smal' unknown; did you mean small"),
    "heads": ({"objective__encoder__num_heads": 5}, r"24.*5|5.*24"),
    "objective": ({"objective__name": "meo"},
        r"objective 'meo' unknown; .*choose from .*mae, .*supervised"),
    "source": ({"data__source": "digts"}, r"source 'digts' unknown; did you mean dig"),
    "split": ({"data__train_split": "trian"}, r"'trian' unknown; did you mean train"),
    "eval split": ({"data__eval_split": "tets"}, r"'tets' unknown; did you mean test"),
    "optimizer": ({"optimizer__name": "adam"}, r"optimizer 'adam' .*mean adamw"),
    "evaluator": ({"evals__reconstruction__name": "recon"},
        r"evaluator 'recon' unknown; .*classification, .*fewshot, knn, label_maps, la"),
    "evaluator's split": ({"evals__reconstruction__split": "test"},
        r"split 'test' unknown; choose from eval, train"),
    "wrong evaluator": ({"evals": {"t": {"name": "classification", "every_steps": 0}}},
        r"evaluator 'classification' reads 'logits', objective 'mae' predicts feat"),
    "evaluator's field": (
        {"evals": {"k": {"name": "knn", "every_steps": 0, "neighbours": 1}}},
        r"evaluator 'knn': .*neighbours"),
    "augmentation": ({"augment": {"normalise": {}}},
        r"augment 'normalise' unknown; did you mean normalize"),
    "mean and std": ({"augment__normalize__std": (1.0, 1.0)}, r"one value per channel"),
    "channels": ({"data__channels": 3}, r"1 means, data.channels is 3"),
    "mask nothing": ({"objective__mask_ratio": 0.0},
        r"mask_ratio=0.0; expected more than 0, below 1"),
    "mask all": ({"objective__mask_ratio": 1.0},
        r"mask_ratio=1.0; expected more than 0, below 1"),
    "mask more": ({"objective__mask_ratio": 1.5},
        r"mask_ratio=1.5; expected more than 0, below 1"),
    "mask less": ({"objective__mask_ratio": -0.5},
        r"mask_ratio=-0.5; expected more than 0, below 1"),
    "mask too much": ({"objective__mask_ratio": 0.99}, r"keeps 0 of 16 patches"),
    "dtype": ({"objective__dtype": "bfloat"}, r"'bfloat' unknown; did you mean bfloa"),
    "steps": ({"steps": 0}, r"--config.steps=0; expected 1 or more"),
    "epochs": ({"steps": None, "epochs": 0}, r"--config.epochs=0; expected 1 or more"),
    "warm-up": ({"lr__warmup_epochs": 1e4},
        r"warm-up of \d+ steps does not fit a run of 6: lr.warmup_epochs=10000, "
        r"epochs=100; set --config.lr.warmup_epochs=10 \(a tenth"),
    "freeze": ({"optimizer__freeze": ("encoder/block/.*",)},
        r"pattern 'encoder/block/.\*' matches no parameter"),
    "save interval": ({"checkpoint__every_steps": 0}, r"every_steps=0; expected 1"),
    "keep": ({"checkpoint__keep": 0}, r"checkpoint.keep=0; expected 1 or more"),
    "log interval": ({"log__every_steps": 0}, r"log.every_steps=0; expected 1 or more"),
    "evaluation interval": ({"evals__reconstruction__every_steps": -1},
        r"evals.reconstruction.every_steps=-1; expected 0 or more"),
    "seed": ({"seed": -1}, r"seed=-1; expected 0 or more"),
    "threads": ({"data__threads": 0}, r"data.threads=0; expected 1 or more"),
    "workers": ({"data__workers": -1}, r"data.workers=-1; expected 0 or more"),
    "no view": ({"data__views": 0}, r"data.views=0; expected 1 or more"),
    "views": ({"data__views": 2},
        r"'mae' reads 1 view\(s\) .*data.views=2; set --config.data.views=1"),
    "teacher": ({"teacher": "RUN"}, r"objective 'mae' has no frozen teacher; leave"),
    "crop": ({"data__crop_scale": (1.0, 0.5)}, r"crop_scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_field_is_refused_before_compiling(name, refuse):
    overrides, message = FIELDS[name]
    refuse(jobs.tiny(**overrides), message)


IMPOSSIBLE = {
    "lr": ({"lr__base": math.nan}, r"config.lr.base=nan; expected a finite numb"),
    "negative lr": ({"lr__base": -1.0}, r"--config.lr.base=-1.0; expected 0 or more"),
    "infinite lr": ({"lr__end": math.inf}, r"lr.end=inf; expected a finite number"),
    "weight decay": ({"optimizer__weight_decay": -0.1}, r"decay=-0.1; expected 0 or"),
    "b1": ({"optimizer__b1": 1.0}, r"optimizer.b1=1.0; expected 0 or more, below 1"),
    "eps": ({"optimizer__eps": 0.0}, r"optimizer.eps=0.0; expected more than 0"),
    "warm-up": ({"lr__warmup_epochs": -1.0}, r"lr.warmup_epochs=-1.0; expected 0 or m"),
    "limit": ({"data__max_bad_fraction": math.nan},
        r"max_bad_fraction=nan; expected a finite number, 0 to 1"),
    "patch": ({"objective__encoder__patch_size": 0}, r"patch_size=0; expected 1 or"),
    "heads": ({"objective__encoder__num_heads": 0}, r"num_heads=0; expected 1 or more"),
    "depth": ({"objective__encoder__depth": -1}, r"depth=-1; expected 1 or more"),
    "width": ({"objective__encoder__width": 0}, r"width=0; expected 1 or more"),
    "image": ({"data__image_size": -8}, r"image_size=-8; expected 1 or more"),
    "seed": ({"seed": 2**70}, r"seed=118\d+; expected 0 to 4294967295"),
    "mean": ({"augment__normalize__mean": (math.nan,)}, r"expected a finite number"),
    "range": ({"data__crop_scale": ("a", "b")}, r"expected a finite number, more th"),
    "pattern": ({"optimizer__freeze": ("(",)}, r"'\(' is no regular expression: miss"),
    "no pattern": ({"init_load": (1,)}, r"expected text in quotes, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_number_is_refused_before_anything_is_read(name, refuse):
    overrides, message = IMPOSSIBLE[name]
    refuse(jobs.tiny(**overrides), message)


def folder_run(path, **overrides):
    return jobs.tiny("mae_tiny", f"smoke,data=folder,path={path}", **overrides)


def test_an_empty_folder_is_refused(refuse, tmp_path):
    (tmp_path / "images").mkdir()
    refuse(folder_run(tmp_path / "images"), r"no image below .*; found no file at all")


def test_a_folder_without_images_is_refused(refuse, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "notes.txt").write_text("no image")
    refuse(
        folder_run(tmp_path / "images"), r"no image .*; found 1 .txt, expected one of"
    )


def test_a_folder_that_is_not_there_is_refused(refuse, tmp_path):
    refuse(folder_run(tmp_path / "nope"), r"nope' does not exist; expected a folder")


def test_a_file_in_place_of_a_folder_is_refused(refuse, tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    refuse(folder_run(tmp_path / "images.zip"), r"is a file; expected a folder of im")


def test_a_probe_of_images_without_labels_is_refused(refuse, image_folder, tmp_path):
    root = image_folder(train=8, test=4)
    for split in ("train", "test"):
        for path in list((root / split).rglob("*.png")):
            path.rename(root / split / path.name)
        shutil.rmtree(root / split / "a")
        shutil.rmtree(root / split / "b")
    made = jobs.tiny("linear_probe", f"smoke,data=folder,path={root}", batch_size=8)
    refuse(made, r"needs labels.*one subfolder per class")


def test_data_of_one_class_are_refused(refuse, image_folder):
    root = image_folder(train=8, test=4)
    for split in ("train", "test"):
        for path in list((root / split / "b").iterdir()):
            path.rename(root / split / "a" / path.name)
        (root / split / "b").rmdir()
    made = jobs.tiny("deit_tiny", f"smoke,data=folder,path={root}", batch_size=8)
    message = r"'supervised', split 'train': all images are of one class, 'a'; .* two c"
    refuse(made, message)
    made = folder_run(root, batch_size=8)
    with made.unlocked():
        made.evals.knn = {"name": "knn", "split": "eval", "every_steps": 0}
    refuse(made, r"evals.knn: split 'train': all images are of one class, 'a'")


def test_a_test_split_without_labels_is_refused(refuse, image_folder):
    root = image_folder(train=8, test=4)
    for path in list((root / "test").rglob("*.png")):
        path.rename(root / "test" / path.name)
    for name in "ab":
        (root / "test" / name).rmdir()
    made = jobs.tiny("deit_tiny", f"smoke,data=folder,path={root}", batch_size=8)
    message = r"evals.confusion: split 'eval' needs labels, but none of its 4 .*000"
    refuse(made, message)


def arrays_file(tmp_path, **arrays):
    """A variant of data whose images are noise; `train` and `test` are labels."""
    rng = np.random.default_rng(0)
    found = {}
    for split, label in arrays.items():
        found[f"{split}_image"] = rng.integers(
            0, 256, (len(label), 16, 16, 3), np.uint8
        )
        if min(label) >= 0:
            found[f"{split}_label"] = np.asarray(label)
    np.savez(tmp_path / "noise.npz", **found)
    return f"smoke,data=arrays,path={tmp_path / 'noise.npz'}"


LAYERS = {
    "layers": {"name": "layers", "holdout": 0.1, "every_steps": 0},
    "fewshot": {"name": "fewshot", "every_steps": 0},
}
FROZEN = pytest.mark.parametrize("evals", [{}, LAYERS], ids=["probe", "layers"])


def frozen(arg="smoke", evals=(), **overrides):
    """A probe; with `evals`, or with its own evaluations."""
    given = {"evals": dict(evals)} if evals else {}
    return jobs.tiny("linear_probe", arg, **(given | overrides))


@FROZEN
def test_a_probe_on_test_images_without_labels_is_refused(evals, refuse, tmp_path):
    arg = arrays_file(tmp_path, train=np.arange(80) % 2, test=np.full(9, -1))
    message = r"split 'eval' needs labels, but none of its 9 .*config.data.eval_split="
    refuse(frozen(arg, evals, batch_size=8), message)


@pytest.mark.parametrize("label", [0, 3])
def test_a_probe_of_a_single_class_is_refused(label, refuse, tmp_path):
    arg = arrays_file(tmp_path, train=np.full(80, label), test=np.full(9, label))
    message = rf"split 'train': all images are of one class, '{label}'.*two classes"
    refuse(frozen(arg, batch_size=8), message)


def test_more_shots_than_images_are_refused(refuse, tmp_path):
    label = np.arange(80) % 2
    label[:3] = 2
    arg = arrays_file(tmp_path, train=label, test=np.arange(9) % 3)
    message = r"shots=25 and held_out=5 .*class '2' has only 3 images \(1 of 3 classes"
    refuse(frozen(arg, LAYERS, batch_size=8), message)


GRID = {
    "features": ({"objective__features": ("cls", "token")},
        r"feature 'token' unknown; the encoder has cls, avg, cls_last1 to cls_last1,"),
    "blocks": ({"objective__features": ("cls_last4",)},
        r"'cls_last4' reads the last 4 blocks, but the encoder has 1"),
    "held-out share": ({"data__holdout__select": 0.001},
        r"holdout.select=0.001 of 1438 .* 10 classes leaves nothing .*raise --config"),
    "no held-out share": ({"data__holdout__select": 0.0},
        r"'select' is a part of the training images.*data.holdout.select=0.1"),
    "too large a share": ({"data__holdout__select": 0.9}, r"a share in \(0, 0.5"),
    "the test images": ({"evals__test__select": "eval"}, r"select are both 'eval'"),
    "other features": (
        {"evals__knn": {"name": "knn", "features": "cls", "every_steps": 0}},
        r"reads 'cls', objective 'probe_grid' predicts features, features_avg, feat"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRID)
def test_a_bad_grid_of_probes_is_refused(name, refuse):
    overrides, message = GRID[name]
    refuse(jobs.tiny("linear_probe", "smoke,grid", **overrides), message)


def test_layers_without_images_to_choose_by_are_refused(refuse):
    layers = {"name": "layers", "holdout": 1e-4, "every_steps": 0}
    made = frozen(evals={"layers": layers})
    refuse(made, r"layers: holdout=0.0001 of 1438 images .*leaves nothing")


def test_a_probe_of_nothing_is_refused(refuse):
    made = jobs.config("linear_probe", None)
    refuse(made, r"starts from a pre-trained encoder: .*--config.init=RUN_DIR .*random")
    made = jobs.config("linear_probe", None, init="random")
    refuse(made, r"which encoder and data\? Give .*init=RUN_DIR.*like=RUN_DIR.*:digits")


def test_a_checkpoint_that_is_not_there_is_refused(refuse, tmp_path):
    made = jobs.config("linear_probe", None, init=str(tmp_path / "nope"))
    refuse(made, r"nope: no run directory there .*--workdir of a run that has begun")
    made = jobs.config("linear_probe", None, init="random", like=str(tmp_path / "nope"))
    refuse(made, r"--config.like=.*nope: no run directory there")


@pytest.fixture
def lend(monkeypatch, tmp_path):
    """(**fields) -> entries of a tiny run (MAE's by default), which `init` then is."""

    def make(name="mae_tiny", **overrides):
        job = jobs.prepare(tmp_path / "lender", jobs.tiny(name, **overrides))
        flat = checkpoint.flatten(job.state.params)
        found = {k: np.zeros(x.shape) for k, x in flat.items()}
        run = read.Checkpoint(found, job.config, 6, tmp_path / "lender")
        monkeypatch.setattr(read, "read_params", lambda _: run)
        return found

    return make


def finetune(arg="digits", **overrides):
    return jobs.config("finetune", arg, init="RUN", **overrides)


def test_a_head_of_other_classes_is_not_loaded(lend, refuse, tmp_path):
    lend(name="deit_tiny", objective__num_classes=12)
    every = {"init_load": (".*",), "init_skip": ()}
    message = (
        r"--config.init=RUN: its head/fc/kernel tells 12 classes apart, this run 10; "
        r"leave the head out of --config.init_load .*objective.num_classes=12"
    )
    refuse(finetune(**every), message)
    twelve = finetune(**every, objective__num_classes=12)
    job = train.prepare(twelve, tmp_path / "accepted")
    assert job.objective.head.num_classes == 12


def test_entries_that_are_missing_or_too_many_are_listed(lend, refuse):
    found = lend()
    table = found.pop("encoder/blocks_0/mlp/fc1/kernel")
    found["encoder/blocks_0/attn/extra"] = table
    message = (
        r"(?s)--config.init=RUN: .*\(2 differences\):\n"
        r"  encoder/blocks_0/mlp/fc1/kernel \[24, 96\]: not in the checkpoint\n"
        r"  encoder/blocks_0/attn/extra \[24, 96\]: in the checkpoint only"
    )
    refuse(finetune(), message)
    refuse(jobs.config("finetune_rpe", "digits", init="RUN"), message)


def test_position_tables_of_a_grid_with_more_columns_are_not_loaded(lend, refuse):
    lend(name="finetune_rpe", data__image_width=12)
    made = finetune(data__image_size=12, data__image_width=8)
    message = (  # a table of 4x6 has the size of one of 6x4
        r"init=RUN: its encoder/blocks_0/attn/relative_position_bias_table is for "
        r"4x6 patches, this run has 6x4; .*never to fewer.*data.image_size"
    )
    refuse(made, message)


def test_position_tables_are_loaded_only_where_the_config_says(lend, refuse, tmp_path):
    lend(name="finetune_rpe")
    made = jobs.config("finetune_rpe", "digits", init="RUN")
    message = r"relative_position_bias_table \[52, 2\]: in the checkpoint only"
    refuse(made, message)
    job = train.prepare(finetune(), tmp_path / "accepted")  # takes all of the encoder
    assert job.config["objective"]["encoder"]["rpe_style"] == "fused"


def test_a_masked_encoder_has_no_position_bias(lend, refuse):
    made = jobs.tiny()
    with made.unlocked():
        made.objective.encoder.rpe_style = "fused"
    refuse(made, r"rpe_style='fused' needs all patches, but some are left out")


def test_an_odd_batch_is_not_mixed(refuse, monkeypatch):
    make_mesh = build.sharding.make_mesh
    one = lambda **_: make_mesh(1, 1, jax.devices()[:1])  # noqa: E731
    monkeypatch.setattr(build.sharding, "make_mesh", one)
    made = jobs.tiny("finetune_rpe", batch_size=33)
    refuse(made, r"batch_size=33 is odd.*augment.mix pairs .*--config.batch_size=34")


def test_colour_jitter_beside_randaugment_is_refused(refuse):
    made = jobs.tiny("deit_tiny")
    with made.unlocked():
        made.augment.color_jitter = {"brightness": 0.3}
        made.data.randaugment.layers = 2
    refuse(made, r"color_jitter beside data.randaugment.layers=2: .*leave color_jit")


def probe(**overrides):
    return jobs.config("linear_probe", None, init="RUN", **overrides)


def test_a_probe_takes_encoder_and_data_of_the_run(lend, tmp_path):
    lend()
    job = train.prepare(probe(), tmp_path / "run")
    assert job.config["objective"]["encoder"]["width"] == 24
    assert job.config["data"]["source"] == "digits"


def test_a_checkpoint_of_another_width_is_refused(lend, refuse):
    lend()
    message = r"width=48, but the checkpoint RUN has width=24: another architecture"
    refuse(probe(objective__encoder__width=48), message)


def test_a_checkpoint_with_other_heads_is_refused(lend, refuse):
    lend()
    refuse(probe(objective__encoder__num_heads=3), r"num_heads=3, but .* num_heads=2")


def test_a_named_encoder_keeps_its_heads_unless_it_is_refused(lend, refuse):
    sizes = dict.fromkeys(("width", "depth", "num_heads"))
    lend(
        objective__encoder__variant="tiny",
        **{f"objective__encoder__{name}": None for name in sizes},
    )
    message = r"RUN: the checkpoint's encoder has \d+ heads, objective.encoder has 4"
    refuse(probe(objective__encoder__num_heads=4), message)
    message = r"(?s)--config.init=RUN: .*does not fit .*blocks_\d+/.* checkpoint only"
    refuse(probe(objective__encoder__depth=3), message)


def test_a_checkpoint_of_another_depth_is_refused(lend, refuse):
    lend(objective__encoder__depth=2)
    shallow = jobs.tiny("linear_probe", "smoke", init="RUN")
    refuse(shallow, r"depth=1, but the checkpoint RUN has depth=2: another archi")


def test_a_workdir_that_is_a_file_is_refused(refuse, tmp_path):
    (tmp_path / "file").write_text("kept")
    refuse(jobs.tiny(), r"file cannot be written: .*give a direct", tmp_path / "file")
    inside = tmp_path / "file" / "run"
    refuse(jobs.tiny(), r"--workdir=.*run cannot be written: Not a directory", inside)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_workdir_that_cannot_be_written_is_refused(number, tmp_path, monkeypatch):
    def deny(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pathlib.Path, "write_bytes", deny)
    message = rf"--workdir=.* cannot be written: {os.strerror(number)}; give a direc"
    with pytest.raises(OSError, match=message):
        workdirs.open_run(tmp_path, {})
    assert os.listdir(tmp_path) == []


def test_a_disk_too_small_for_the_checkpoints_is_refused(refuse, monkeypatch):
    def usage(_):
        return shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    refuse(
        jobs.tiny(), r"100 kB free, but 3 checkpoints of .* lower --config.checkpoint"
    )


def test_a_folder_that_is_no_run_is_left_alone(refuse, tmp_path):
    (tmp_path / "thesis.tex").write_text("kept")
    message = r"is not empty and not a run .*thesis.tex.*give a new directory"
    refuse(jobs.tiny(), message, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_run_with_another_config_is_left_alone(refuse, tmp_path):
    jobs.prepare(tmp_path)
    before = (tmp_path / "config.json").read_text()
    message = r"(?s)another config.*\n  objective.mask_ratio: 0.75 -> 0.5\nresume it"
    refuse(jobs.tiny(objective__mask_ratio=0.5), message, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def label_folder(root, labels):
    """A folder of 8 x 8 images, and of these label maps."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for name, label_map in labels.items():
            PIL.Image.new("RGB", (8, 8)).save(root / "images" / split / f"{name}.png")
            label_map.save(root / "labels" / split / f"{name}.png")
    return root


def segmentation(root, **fields):
    fields = {
        "batch_size": 8,
        "data__options__classes": "3",
        "data__options__reduce_zero_label": False,
    } | fields
    return jobs.tiny("segment", f"smoke,folder,path={root}", **fields)


LABEL_MAPS = {
    "colours": (
        PIL.Image.new("RGB", (8, 8)),
        r"b\.png: label map in colours .*indices",
    ),
    "transparency": (PIL.Image.new("RGBA", (8, 8)), r"b\.png: label map in colours"),
    "another size": (
        PIL.Image.new("L", (8, 9)),
        r"b\.png: label map of 8 x 9 pixels",
    ),
    "no class": (
        PIL.Image.new("L", (8, 8), 3),
        r"b\.png: label 3 in 64 of 64 ",
    ),
}


@pytest.mark.parametrize("kind", LABEL_MAPS)
def test_a_wrong_label_map_is_refused(kind, refuse, tmp_path):
    wrong, message = LABEL_MAPS[kind]
    labels = {"a": PIL.Image.new("L", (8, 8), 1), "b": wrong}
    refuse(segmentation(label_folder(tmp_path / "data", labels)), message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__options__reduce_zero_label": None}, r"is label 0 a class\?"),
        ({"data__options__classes": None}, r"no classes\.txt"),
        ({"data__options__classes": "300"}, "expected 1 to 255"),
        (
            {"data__joint__annotations": ()},
            r"reads label_map, but data\.joint",
        ),
        (
            {"data__joint__annotations": ("polygons",)},
            "annotations 'polygons' unknown; choose from label_map",
        ),
        ({"data__joint__short_side": 4096}, "0 < short_side <= long_side"),
        ({"data__joint__ratio": (0.0, 1.0)}, r"data\.joint\.ratio=\(0\.0, 1\.0\); exp"),
        ({"data__randaugment__layers": 1}, "which RandAugment would bend"),
        ({"objective__num_classes": 2}, "num_classes=2, but the data has 3 classes"),
    ],
    ids=str,
)
def test_wrong_settings_of_label_maps_are_refused(fields, message, refuse, tmp_path):
    root = label_folder(tmp_path / "data", {"a": PIL.Image.new("L", (8, 8), 1)})
    refuse(segmentation(root, **fields), message)


def object_folder(root, **changes):
    """Two images with an object each; `changes` are of the last one's annotation."""
    fields = {"category_id": 3, "bbox": [2, 2, 4, 4], "iscrowd": 0}
    fields |= {"segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]], "area": 16}
    rows = [{"id": i, "image_id": i, **fields} for i in (1, 2)]
    rows[-1] |= changes
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in (1, 2)
    ]
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for image in images:
            PIL.Image.new("RGB", (8, 8)).save(root / split / image["file_name"])
        content = {"images": images, "annotations": rows}
        content |= {"categories": [{"id": 3, "name": "car"}]}
        text = json.dumps({k: x for k, x in content.items() if x is not None})
        (root / split / "_annotations.coco.json").write_text(text)
    return root


OBJECTS = {
    "no mask": ({"segmentation": None}, r"annotation 2 .*no.*segmentation.*detect"),
    "runs of another size": (
        {"segmentation": {"size": [9, 8], "counts": [72]}},
        r"annotation 2 .*9.*8",
    ),
    "a box of NaN": ({"bbox": [2, float("nan"), 4, 4]}, "annotation 2 .*bbox"),
    "an unknown category": ({"category_id": 4}, "annotation 2 .*category.*4"),
    "an unknown image": ({"image_id": 7}, "annotation 2 .*image.*7"),
    "an id twice": ({"id": 1}, "two annotations have id 1"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_wrong_objects_are_refused(kind, refuse, tmp_path):
    changes, message = OBJECTS[kind]
    root = object_folder(tmp_path / "data", **changes)
    made = jobs.tiny("detect", f"smoke,folder,path={root}", batch_size=8)
    refuse(made, rf"_annotations\.coco\.json.*{message}")


def test_segmentation_of_images_without_label_maps_is_refused(refuse, image_folder):
    root = image_folder(train=8, test=4)
    fields = {"data__source": "folder", "data__dir": str(root), "data__options": {}}
    made = jobs.tiny("segment", "smoke", **fields)
    refuse(made, r"have no label_map; choose a source that has: segfolder")


def test_label_maps_are_no_labels_of_images(refuse):
    made = jobs.tiny("deit_tiny", "smoke,digit_scenes")
    refuse(made, r"'supervised', split 'train' needs labels, but none of its 4000 ima")
