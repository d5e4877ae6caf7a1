"""Saving and restoring: any mesh, every bit, every name; and what is refused."""

import errno
import json
import logging
import pathlib
import shutil
import subprocess
import sys

import absl.logging
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from litevit_jax import checkpoint, sharding, trees
from litevit_jax.train import state as states
from litevit_jax.warm_start import fill, read

ROOT = pathlib.Path(__file__).parents[1]

MESHES = {"1": (1, 1), "8": (8, 1), "4x2": (4, 2), "2x4": (2, 4)}


def values(step=0):
    rng = np.random.default_rng(step)
    return states.TrainState(
        step=np.int32(step),
        params={
            "encoder": {"w": rng.normal(size=(16, 24)).astype(np.float32)},
            "head": {"b": np.array([0.0, -0.0, 1e-45, 3e38], np.float32)},
        },
        model_state={"seen": rng.normal(size=(8,)).astype(ml_dtypes.bfloat16)},
        teacher={},
        opt_state=(rng.normal(size=(16, 24)).astype(np.float32), np.int32(7)),
    )


@pytest.fixture(autouse=True)
def small_arrays_are_split(monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_SIZE", 64)


def on_mesh(name, state):
    data, fsdp = MESHES[name]
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    return jax.device_put(state, sharding.tree_sharding(mesh, state))


def save(workdir, *saved, keep=3, **meta):
    checkpoints = checkpoint.Checkpoints(workdir, keep=keep)
    for state in saved:
        checkpoints.save(state, config={"seed": 0}, **meta)
    checkpoints.wait()
    checkpoints.close()


def abstract_of(state):
    """The ShapeDtypeStructs of a state, with shardings."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def restore(workdir, like):
    checkpoints = checkpoint.Checkpoints(workdir, keep=3)
    try:
        return checkpoints.restore(abstract_of(like))
    finally:
        checkpoints.close()


def same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 3 and 5, written from a mesh of 4 x 2."""
    workdir = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "_MIN_SHARDED_SIZE", 64)
        save(workdir, *(on_mesh("4x2", values(s)) for s in (3, 5)), skipped_steps=2)
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("mesh", MESHES)
def test_every_bit_is_restored_on_any_mesh(mesh, saved):
    like = on_mesh(mesh, values())
    got, meta = restore(saved, like)
    same_bits(got, values(5))
    assert (meta["step"], meta["skipped_steps"]) == (5, 2)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


@pytest.mark.parametrize("mesh", ["8", "1"])
def test_it_does_not_matter_on_which_mesh_a_state_was_saved(mesh, tmp_path):
    save(tmp_path, on_mesh(mesh, values(4)))
    like = on_mesh("2x4", values())
    got, meta = restore(tmp_path, like)
    same_bits(got, values(4))
    assert meta["step"] == 4
    assert got.params["encoder"]["w"].sharding == like.params["encoder"]["w"].sharding


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    assert restore(tmp_path, on_mesh("8", values())) is None


def rewrite_meta(workdir, step, change):
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_a_flipped_bit_is_noticed_and_the_step_before_is_used(copy, caplog):
    state = values(5)
    state.params["encoder"]["w"].view(np.uint32)[3, 4] ^= 1  # the smallest of changes
    shutil.rmtree(copy / "checkpoints" / "5")
    save(copy, on_mesh("8", state))
    good = json.loads((copy / "checkpoints/3/meta/metadata").read_text())
    assert good["fingerprints"]["params.encoder.w"]
    other = copy.parent / "other"
    save(other, on_mesh("8", values(5)))
    prints = json.loads((other / "checkpoints/5/meta/metadata").read_text())
    rewrite_meta(copy, 5, lambda m: m.update(fingerprints=prints["fingerprints"]))
    with caplog.at_level(logging.WARNING):
        got, _ = restore(copy, on_mesh("8", values()))
    same_bits(got, values(3))
    assert "step 5 is damaged (bits differ from those saved in params.encoder.w)" in (
        caplog.text
    )
    assert (copy / "corrupt" / "5-0").is_dir()
    assert not (copy / "checkpoints" / "5").exists()


def test_a_fingerprint_sees_bits_and_places():
    x = np.arange(6, dtype=np.float32)
    prints = {
        int(trees._fingerprint(jnp.asarray(v)))
        for v in (x, x[::-1].copy(), -x, np.where(x == 0, -0.0, x).astype(np.float32))
    }
    assert len(prints) == 4
    for dtype in (np.int8, np.bool_, ml_dtypes.bfloat16, np.uint32):
        trees._fingerprint(jnp.asarray(x.astype(dtype)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_never_saved(bad, copy):
    state = values(6)
    state.params["encoder"]["w"][0, 0] = bad
    message = r"step 6: .*not finite in params.encoder.w \(1 arrays\).* is step 5"
    with pytest.raises(FloatingPointError, match=message):
        save(copy, on_mesh("8", state))
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["3", "5"]


def refused(workdir, state, *messages):
    with pytest.raises(ValueError) as caught:
        restore(workdir, on_mesh("8", state))
    assert "does not fit this model and optimizer" in str(caught.value)
    for message in messages:
        assert message in str(caught.value)
    assert (workdir / "checkpoints" / "5").is_dir()  # not taken for damage


def test_arrays_that_do_not_fit_are_named(saved):
    state = values()
    state.params["encoder"] = {"v": state.params["encoder"]["w"]}
    refused(
        saved,
        state,
        "(2 differences)",
        "params.encoder.v: not in the checkpoint",
        "params.encoder.w: only in the checkpoint",
    )
    state = values()
    state.params["encoder"]["w"] = np.zeros((16, 32), np.float32)
    wrong = "params.encoder.w: saved [[16, 24], 'float32'], expected [[16, 32], "
    refused(saved, state, wrong)
    state = values()
    state.params["head"]["b"] = np.zeros(4, ml_dtypes.bfloat16)
    refused(saved, state, "params.head.b: saved [[4], 'float32'], expected [[4], 'bfl")


def test_a_step_that_is_saved_already_is_left_as_it_is(copy):
    changed = values(5)
    changed.params["head"]["b"][:] = 1.0
    save(copy, on_mesh("8", changed))
    same_bits(restore(copy, on_mesh("8", values()))[0], values(5))
    assert checkpoint.Checkpoints(copy, keep=3).steps() == [3, 5]
    assert not (copy / "corrupt").exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_directory_that_no_save_finished_is_moved_away(when, copy):
    if when == "before":
        (copy / "checkpoints" / "6").mkdir()
    checkpoints = checkpoint.Checkpoints(copy, keep=3)
    like = on_mesh("8", values())
    same_bits(checkpoints.restore(abstract_of(like))[0], values(5))
    if when == "after":
        (copy / "checkpoints" / "6").mkdir()
    checkpoints.save(on_mesh("8", values(6)), config={})
    checkpoints.close()
    assert (copy / "corrupt" / "6-0").is_dir()
    same_bits(restore(copy, like)[0], values(6))


@pytest.mark.parametrize("folder", ["copy", "tmp_path"])  # a run, a new one
def test_a_step_that_another_program_finished_is_left_alone(folder, request):
    where = request.getfixturevalue(folder)
    checkpoints = checkpoint.Checkpoints(where, keep=3)
    save(where, on_mesh("8", values(6)))
    with pytest.raises(RuntimeError, match="6 is complete already, and another"):
        checkpoints.save(on_mesh("8", values(6)), config={})
    checkpoints.close()
    assert not (where / "corrupt").exists()
    same_bits(restore(where, on_mesh("8", values()))[0], values(6))


def test_importing_it_does_not_import_orbax():
    code = "import sys; from litevit_jax import checkpoint; "
    code += "sys.exit('orbax.checkpoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_leftover_of_a_killed_save_does_not_stop_the_next(copy):
    leftover = copy / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(copy / "checkpoints" / "5", leftover)
    same_bits(restore(copy, on_mesh("8", values()))[0], values(5))
    save(copy, on_mesh("8", values(6)))
    same_bits(restore(copy, on_mesh("8", values()))[0], values(6))
    assert not leftover.exists()


def test_the_last_few_steps_are_kept(tmp_path):
    save(tmp_path, *(on_mesh("8", values(s)) for s in (1, 2, 3, 4)), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_a_write_that_fails_in_the_background_is_told(copy, monkeypatch):
    checkpoints = checkpoint.Checkpoints(copy, keep=3)

    def full():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", full)
        message = (
            r"could not be saved to .*checkpoints: .*No space left on device; complete "
            r"are steps \[3, 5\] in .*\. Make room .*run the same command again"
        )
        with pytest.raises(RuntimeError, match=message):
            checkpoints.wait()
        with pytest.raises(RuntimeError, match=message):  # at the next save, too
            checkpoints.save(on_mesh("8", values(6)), config={})
    checkpoints.close()


@pytest.mark.parametrize("place", ["", "checkpoints/5", "5"])
def test_parameters_are_read_from_a_run_or_a_step_in_it(place, saved):
    found = read.read_params(str(saved / place))
    assert set(found.params) == {"encoder/w", "head/b"}
    np.testing.assert_array_equal(
        found.params["encoder/w"], values(5).params["encoder"]["w"]
    )
    assert (found.step, found.config, found.directory) == (5, {"seed": 0}, saved)


def test_an_earlier_step_has_its_own_parameters(saved):
    found = read.read_params(str(saved / "checkpoints" / "3"))
    want = values(3).params["encoder"]["w"]
    np.testing.assert_array_equal(found.params["encoder/w"], want)


def test_reading_says_where_there_is_no_run_or_no_such_step(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"w\.pth: no such file; .*--workdir"):
        read.read_params(str(tmp_path / "w.pth"))
    with pytest.raises(FileNotFoundError, match=r"no run directory there .*--workdir"):
        read.read_params(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"step 4 is not saved; .*\[3, 5\]"):
        read.read_params(str(saved / "checkpoints" / "4"))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has steps none"):
        read.read_params(str(tmp_path))


def test_reading_damaged_parameters_is_refused(copy):
    def flip(meta):
        meta["fingerprints"]["params.head.b"] ^= 1

    rewrite_meta(copy, 5, flip)
    damaged = r"step 5 is damaged .*params\.head\.b.*; others: .*checkpoints/3"
    with pytest.raises(checkpoint.CorruptCheckpoint, match=damaged):
        read.read_params(str(copy))
    shutil.rmtree(copy / "checkpoints" / "3" / "params")
    with pytest.raises(checkpoint.CorruptCheckpoint, match=r"3"):
        read.read_params(str(copy / "checkpoints" / "3"))


OURS = {"encoder": {"w": np.zeros((2, 3), np.float32)}, "head": {"b": np.zeros(4)}}


def filled(found, load=("encoder/.*",), skip=()):
    return fill.fill_leaves(OURS, found, load=load, skip=skip)


def test_what_is_asked_for_is_filled_and_nothing_else():
    found = {"encoder/w": np.ones((2, 3)), "decoder/x": np.ones(1)}
    got = filled(found, skip=("decoder/.*",))
    assert (got["encoder"]["w"] == 1).all()
    assert got["encoder"]["w"].dtype == np.float32
    assert (got["head"]["b"] == 0).all()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, r"encoder/w \[2, 3\]: not in the checkpoint"),
        ({"encoder/w": np.ones((3, 2))}, r"encoder/w: .*has \[3, 2\], .*\[2, 3\]"),
        (
            {"encoder/w": np.ones((2, 3)), "x": np.ones(1)},
            r"x \[1\]: in the checkpoint",
        ),
        ({"encoder/w": np.ones((2, 3)), "head/b": np.ones(4)}, r"head/b .*only"),
    ],
)
def test_what_does_not_fit_is_refused_both_ways(found, message):
    with pytest.raises(ValueError, match=r"(?s)1 differences.*" + message):
        filled(found)


def test_a_full_disk_is_one_message_with_what_is_saved_and_what_to_do(saved):
    checkpoints = checkpoint.Checkpoints(saved, keep=3)
    full = OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl")
    with pytest.raises(RuntimeError) as caught, checkpoints.disk_errors():
        raise full
    text = str(caught.value)
    assert text.startswith("run/metrics.jsonl: No space left on device; complete are")
    assert f"steps {checkpoints.steps()} in {saved}" in text
    assert "Make room" in text and "the same command" in text
    with pytest.raises(FileNotFoundError), checkpoints.disk_errors():
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")
    checkpoints.close()


def test_what_orbax_raises_it_does_not_log_as_well(saved, caplog):
    checkpoint.Checkpoints(saved, keep=3).close()
    logger = absl.logging.get_absl_logger()
    where = checkpoint._orbax().__file__
    for line, trace in (("raised", (OSError, OSError(), None)), ("said", None)):
        record = logger.makeRecord("absl", 40, where, 1, line, (), trace)
        logger.handle(record)
    assert "said" in caplog.text and "raised" not in caplog.text


def test_a_file_in_place_of_the_folder_is_refused_at_once(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ValueError, match="checkpoints is a file, expected the folder"):
        checkpoint.Checkpoints(tmp_path, keep=1)
