"""What a run takes from other runs and from files: parameters, encoders, a teacher."""

import types

import jax
import ml_collections
import numpy as np
import pytest

from litevit_jax import array_digest, trees, weights
from litevit_jax.jobs import train
from litevit_jax.models import layers
from litevit_jax.warm_start import read, start
from litevit_jax.weights import positions
from tests import jobs

pytestmark = pytest.mark.usefixtures("no_steps", "one_device")


def arrays_like(job):
    """Random parameters of a job, by path."""
    rng = np.random.default_rng(0)
    flat = trees.flatten(job.state.params)
    return {
        name: rng.normal(size=x.shape).astype(np.float32) for name, x in flat.items()
    }


@pytest.fixture
def lend(monkeypatch, tmp_path):
    """(recipe, **fields) -> a Checkpoint that every run directory then seems to be."""

    def make(recipe, arg="smoke", **fields):
        job = jobs.prepare(tmp_path / "lender", jobs.tiny(recipe, arg, **fields))
        run = read.Checkpoint(arrays_like(job), job.config, 6, tmp_path)
        monkeypatch.setattr(read, "read_params", lambda _: run)
        return run

    return make


@pytest.fixture
def file_of(monkeypatch, tmp_path):
    """(Checkpoint, grid, **encoder) -> a path that reads as a file of its weights."""
    path = tmp_path / "weights.safetensors"

    def make(run, grid=(4, 4), **known):
        encoder = {k: run.config["objective"]["encoder"].get(k) for k in FIELDS} | known

        def fake_read(path, *, num_heads=None, **_):
            if num_heads is None and encoder["num_heads"] is None:
                raise weights.WeightsError(f"{path}: num_heads is not recorded")
            heads = encoder["num_heads"] or num_heads
            sizes = encoder | {"num_heads": heads}
            known = {"classes": [], "normalize": {}, "metadata": {}, "notes": ()}
            return types.SimpleNamespace(
                params=run.params,
                encoder=sizes,
                grid=grid,
                pool=None,
                windows=None,
                detector={},
                loss="softmax",
                **known,
            )

        monkeypatch.setattr(weights, "read", fake_read)
        path.write_bytes(b"")
        return str(path)

    return make


FIELDS = ("width", "depth", "num_heads", "patch_size", "pos_embed")
TEACHER = {"objective__encoder__width": 32, "objective__encoder__num_heads": 4}


def student(**fields):
    return jobs.tiny("mae_tiny_distill", teacher="RUN", **fields)


def test_a_teachers_open_fields_are_its_runs(lend, tmp_path):
    run = lend("mae_tiny", **TEACHER)
    job = jobs.prepare(tmp_path / "run", student())
    assert job.config["objective"]["teacher"] == run.config["objective"]["encoder"]
    assert job.config["objective"]["encoder"]["width"] == 24
    got = trees.flatten(job.fixed["teacher"])
    for name, value in got.items():
        np.testing.assert_array_equal(value, run.params[name])


def test_a_run_with_another_teacher_is_not_resumed(lend, tmp_path):
    run = lend("mae_tiny", **TEACHER)
    jobs.prepare(tmp_path / "run", student())
    elsewhere = jobs.tiny("mae_tiny_distill", teacher="ELSEWHERE")
    moved = jobs.prepare(tmp_path / "run", elsewhere)
    assert moved.resumes and moved.config["teacher"] == "ELSEWHERE"
    run.params["decoder/mask_token"][:] += 1  # no part of the teacher
    assert jobs.prepare(tmp_path / "run", student()).resumes
    bits = run.params["encoder/cls_token"].view(np.uint32)
    bits[0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"(?s)teacher_fingerprint: .* -> .*resume it"):
        jobs.prepare(tmp_path / "run", student())


def test_a_teacher_that_does_not_fit_is_refused_with_its_entries(lend, tmp_path):
    run = lend("mae_tiny", **TEACHER)
    table = run.params.pop("encoder/cls_token")
    kernel = "encoder/blocks_0/attn/qkv/kernel"
    run.params[kernel] = run.params[kernel][:5]
    with pytest.raises(ValueError) as caught:
        train.prepare(student(), tmp_path / "run")
    text = str(caught.value)
    assert text.startswith("--config.teacher=RUN: ") and "2 differences" in text
    assert "encoder/cls_token [1, 1, 32]: not in the checkpoint" in text
    assert f"{kernel}: checkpoint has [5, 96], this model [32, 96]" in text
    run.params["encoder/pos_embed"] = table  # which a fixed table would ignore
    with pytest.raises(ValueError, match=r"pos_embed \[1, 1, 32\]: in the checkpoint"):
        train.prepare(student(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


REFUSED = {
    "none given": ({"teacher": None}, r"'distill' learns from a teacher: which\? G"),
    "width": ({"objective__teacher__width": 48},
        r"objective.teacher.width=48, but the checkpoint RUN has width=32"),
    "heads": ({"objective__teacher__num_heads": 2},
        r"objective.teacher.num_heads=2, but the checkpoint RUN has num_heads=4"),
    "patches": ({"objective__encoder__patch_size": 4}, r"teacher's patch_size=2, the "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_teacher_that_cannot_teach_is_refused(name, lend, tmp_path):
    lend("mae_tiny", **TEACHER)
    fields, message = REFUSED[name]
    made = student(**{k: v for k, v in fields.items() if k != "teacher"})
    made.teacher = fields.get("teacher", "RUN")
    with pytest.raises(ValueError, match=message):
        train.prepare(made, tmp_path / "run")


def test_a_teacher_nobody_asks_or_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"teacher=RUN: objective 'mae' has no frozen"):
        train.prepare(jobs.tiny(teacher="RUN"), tmp_path / "run")
    made = jobs.tiny("mae_tiny_distill", teacher=str(tmp_path / "nope"))
    message = r"--config.teacher=.*nope: no run directory there"
    with pytest.raises(FileNotFoundError, match=message):
        train.prepare(made, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value"), [("ema", True), ("grid", "4x4"), ("donor", "RUN")]
)
def test_how_a_start_is_read_goes_with_a_start(name, value, tmp_path):
    made = jobs.tiny(**{f"init_{name}": value})
    with pytest.raises(ValueError, match=rf"--config.init_{name}={value} goes with"):
        train.prepare(made, tmp_path / "run")


def test_a_file_of_weights_teaches(lend, file_of, tmp_path):
    path = file_of(lend("mae_tiny", **TEACHER))
    job = jobs.prepare(tmp_path / "run", jobs.tiny("mae_tiny_distill", teacher=path))
    assert job.config["objective"]["teacher"]["num_heads"] == 4
    assert job.config["derived"]["teacher_fingerprint"]


def test_a_file_that_records_no_heads_needs_them_given(lend, file_of, tmp_path):
    path = file_of(lend("mae_tiny", **TEACHER), num_heads=None)
    made = jobs.tiny("mae_tiny_distill", teacher=path)
    message = r"teacher=.*num_heads .*; here: --config.objective.teacher.num_heads=A"
    with pytest.raises(ValueError, match=message):
        train.prepare(made, tmp_path / "run")
    made.objective.teacher.num_heads = 4
    assert train.prepare(made, tmp_path / "run").fixed
    made = jobs.config("linear_probe", "digits", init=path)
    message = r"init=.*num_heads .*; here: --config.objective.encoder.num_heads=A"
    with pytest.raises(ValueError, match=message):
        train.prepare(made, tmp_path / "probe")


def loaded_into(made, workdir):
    """(parameters that `init` gives, by path; the job) of a config."""
    job = train.prepare(made, workdir)
    config = ml_collections.ConfigDict(job.config)
    run = read.read(config.init, num_heads=config.objective.encoder.num_heads)
    filled = start.WarmStart(0, "", [], config, run, None).fill(job.state.params)
    return trees.flatten(filled), job


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_probe_takes_encoder_and_parameters(kind, lend, file_of, tmp_path):
    run = lend("mae_tiny", **TEACHER)
    init = "RUN" if kind == "run" else file_of(run)
    arg = None if kind == "run" else "digits"
    made = jobs.config("linear_probe", arg, init=init)
    got, job = loaded_into(made, tmp_path / "run")
    assert job.config["objective"]["encoder"]["num_heads"] == 4
    np.testing.assert_array_equal(
        got["encoder/blocks_0/mlp/fc1/kernel"],
        run.params["encoder/blocks_0/mlp/fc1/kernel"],
    )


def test_a_file_of_weights_lends_no_data(lend, file_of, tmp_path):
    made = jobs.config("linear_probe", None, init=file_of(lend("mae_tiny")))
    with pytest.raises(ValueError, match=r"says nothing about data; name some: .*:dig"):
        train.prepare(made, tmp_path / "run")


def finetune(init, **fields):
    return jobs.config("finetune", "digits", init=init, **fields)


@pytest.mark.parametrize("table", ["sincos", "sincos_moco"])
def test_a_classifiers_positions_start_from_the_fixed_table(table, lend, tmp_path):
    lend("mae_tiny", objective__encoder__pos_embed=table)
    got, job = loaded_into(finetune("RUN"), tmp_path / "run")
    assert job.config["objective"]["encoder"]["pos_embed"] == "learned_sincos"
    want = layers.sincos_table((4, 4), 24, table)[None]
    np.testing.assert_array_equal(got["encoder/pos_embed"], want)


@pytest.mark.parametrize("kind", ["run", "file", "rectangle"])
def test_positions_of_another_grid_are_resized(kind, lend, file_of, tmp_path):
    sizes = {"data__image_width": 12} if kind == "rectangle" else {}
    run = lend("deit_tiny", **sizes)
    grid = (4, 6) if sizes else (4, 4)
    init = "RUN" if kind == "run" else file_of(run, grid)
    made = finetune(init, data__image_size=12, data__image_width=8)
    got, _ = loaded_into(made, tmp_path / "run")
    want = positions.resize(run.params["encoder/pos_embed"], grid, (6, 4))
    np.testing.assert_array_equal(got["encoder/pos_embed"], want)


def test_a_fixed_table_of_another_grid_is_resized_as_a_learned_one(lend, tmp_path):
    lend("mae_tiny")
    made = finetune("RUN", data__image_size=12, data__image_width=8)
    got, _ = loaded_into(made, tmp_path / "run")
    want = positions.resize(
        layers.sincos_table((4, 4), 24, "sincos")[None], (4, 4), (6, 4)
    )
    np.testing.assert_array_equal(got["encoder/pos_embed"], want)


@pytest.mark.parametrize("style", ["fused", "qv_bias", "v2023"])
def test_dense_blocks_take_those_of_every_style(style, lend, tmp_path):
    """Tables are stretched, two biases become one; gammas are taken where they are."""
    run = lend("finetune_rpe", arg=f"smoke,style={style}")
    made = jobs.config(
        "finetune_rpe",
        "digits",
        init="RUN",
        init_load=(r"encoder/(?!.*/gamma_[12]$).*",),
        init_load_if_there=(r"encoder/.*/gamma_[12]",),
        objective__encoder__rpe_style="dense",
        data__image_size=12,
    )
    got, _ = loaded_into(made, tmp_path / "run")
    table = "encoder/blocks_0/attn/relative_position_bias_table"
    want = positions.stretch_bias(run.params[table], (4, 4), (6, 6))
    np.testing.assert_array_equal(got[table], want)
    bias = got["encoder/blocks_0/attn/qkv/bias"]
    if style == "fused":
        np.testing.assert_array_equal(
            bias, run.params["encoder/blocks_0/attn/qkv/bias"]
        )
    else:
        q, v = (run.params[f"encoder/blocks_0/attn/{k}_bias"] for k in "qv")
        np.testing.assert_array_equal(bias, np.concatenate([q, 0 * q, v]))
    for name in ("encoder/blocks_0/gamma_1", "encoder/blocks_0/gamma_2"):
        if style == "v2023":
            np.testing.assert_array_equal(got[name], run.params[name])
        else:
            assert isinstance(got[name], jax.ShapeDtypeStruct)  # as it starts


def segment(**fields):
    """A small segmentation run that starts from RUN, on a larger grid of patches."""
    scenes = {"size": 32, "scenes": 16, "test_scenes": 4, "seed": 0}
    made = jobs.config("segment", "smoke", init="RUN", data__image_size=12, **fields)
    with made.unlocked():
        made.data.options.update(scenes)
        made.data.joint.update(short_side=12, long_side=12)
    return made


FRESH_IN_DENSE = ("relative_position_bias_table", "gamma_1", "gamma_2")


@pytest.mark.parametrize("recipe", ["mae_tiny", "mocov3_tiny", "mae_tiny_distill_d2"])
def test_segmentation_takes_all_of_a_pre_trained_encoder_but_its_last_norm(
    recipe, lend, tmp_path
):
    table = {"mocov3_tiny": "sincos_moco"}.get(recipe, "sincos")
    run = lend(recipe)
    got, job = loaded_into(segment(), tmp_path / "run")
    depth = job.config["objective"]["encoder"]["depth"]
    wanted = {n for n in got if n.startswith("encoder/")}
    fresh = {n for n in wanted if n.endswith(FRESH_IN_DENSE)}
    assert len(fresh) == 3 * depth and "encoder/norm/scale" not in wanted
    for name in wanted - fresh - {"encoder/pos_embed"}:
        np.testing.assert_array_equal(got[name], run.params[name], err_msg=name)
    old = layers.sincos_table((4, 4), 24, table)[None]
    want = positions.resize(old, (4, 4), (6, 6))
    np.testing.assert_array_equal(got["encoder/pos_embed"], want)
    untouched = [n for n, x in got.items() if isinstance(x, jax.ShapeDtypeStruct)]
    parts = {name.partition("/")[0] for name in set(untouched) - fresh}
    assert parts == {"neck", "decode_head"} and fresh <= set(untouched)


def test_segmentation_refuses_what_does_not_fit_by_name(lend, tmp_path):
    run = lend("mae_tiny")
    cases = {
        "num_heads": (segment(objective__encoder__num_heads=4), "has num_heads=2"),
        "patch_size": (segment(objective__encoder__patch_size=3), "has patch_size=2"),
    }
    for field, (made, message) in cases.items():
        with pytest.raises(ValueError, match=rf"objective.encoder.{field}=.*{message}"):
            train.prepare(made, tmp_path / field)
    run.params["encoder/blocks_0/extra"] = run.params.pop("encoder/cls_token")
    with pytest.raises(ValueError) as caught:
        train.prepare(segment(), tmp_path / "entries")
    text = str(caught.value)
    assert "encoder/cls_token [1, 1, 24]: not in the checkpoint" in text
    assert "encoder/blocks_0/extra [1, 1, 24]: in the checkpoint only" in text


def test_a_head_that_labels_other_classes_is_refused(lend, tmp_path):
    run = lend("segment", data__image_size=48)
    kernel = "decode_head/fc/kernel"
    run.params[kernel] = run.params[kernel][:, :5]
    everything = {"init_load": (".*",), "init_skip": (), "init_load_if_there": ()}
    made = jobs.tiny("segment", init="RUN", **everything)
    with pytest.raises(
        ValueError, match=f"{kernel} tells 5 classes apart, this run 11"
    ):
        train.prepare(made, tmp_path / "run")


def test_learned_positions_do_not_become_a_fixed_table(lend, tmp_path):
    run = lend("mae_tiny")
    run.config["objective"]["encoder"]["pos_embed"] = "sincos_moco"
    message = r"pos_embed=sincos, but the checkpoint RUN has pos_embed=sincos_moco"
    with pytest.raises(ValueError, match=message):
        train.prepare(jobs.tiny(init="RUN"), tmp_path / "run")
    named = jobs.tiny(init="RUN", objective__encoder__variant="tiny")
    message = r"encoder has pos_embed=sincos_moco, objective.encoder has sincos; give "
    with pytest.raises(ValueError, match=message):
        train.prepare(named, tmp_path / "run")


def test_a_fingerprint_is_of_names_shapes_and_bits():
    x = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    same = {"b": x["b"].copy(), "a": np.zeros((3, 2), np.float32).T}
    others = [
        {"a": x["b"], "b": x["a"]},
        {**x, "a": -x["a"]},
        {**x, "a": x["a"].reshape(3, 2)},
        {"a": x["a"]},
    ]
    prints = {array_digest.digest(tree) for tree in (x, same)}
    assert len(prints) == 1
    assert len(prints | {array_digest.digest(tree) for tree in others}) == 5


def names_of(run):
    """The names of the digits' classes in a saved config, to be changed."""
    names = run.config["derived"]["classes"]
    assert len(names) == 10
    return names


WHOLE = {"init_load": (".*",), "init_skip": (), "init_rename": ()}


def test_a_head_is_not_taken_for_other_classes(lend, tmp_path):
    run = lend("deit_tiny")
    jobs.prepare(tmp_path / "run", finetune("RUN", **WHOLE))
    names = names_of(run)
    names[3], names[4] = names[4], names[3]
    message = (
        r"init=RUN: its head/fc/kernel knows class 3 as '4', the data as '3' \(2 cl"
    )
    with pytest.raises(ValueError, match=message):
        jobs.prepare(tmp_path / "other", finetune("RUN", **WHOLE))
    jobs.prepare(tmp_path / "other", finetune("RUN"))  # a fresh head knows nothing


def test_a_classifier_that_teaches_has_the_classes_of_the_data(lend, tmp_path):
    run = lend("deit_tiny")
    fields = {"init": "random", "teacher": "RUN"}
    fields |= {f"objective__encoder__{k}": v for k, v in (
        ("width", 24), ("depth", 1), ("num_heads", 2), ("patch_size", 2))}  # fmt: skip
    job = jobs.prepare(
        tmp_path / "run", jobs.config("finetune", "digits,distill", **fields)
    )
    assert "head" in job.fixed["teacher"]
    names_of(run).reverse()
    with pytest.raises(ValueError, match=r"teacher=RUN: its head knows class 0 as '9'"):
        jobs.prepare(
            tmp_path / "other", jobs.config("finetune", "digits,distill", **fields)
        )
