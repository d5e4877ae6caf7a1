"""Steps compiled for four TPUs that are not here: memory, aliasing, traffic."""

import functools
import platform
import re
import sys

import jax
import pytest

from litevit_jax.plan import hlo, job, program, report, topology
from tests import jobs

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="libtpu, the compiler, has wheels for Linux on x86_64 alone",
)
RECIPES = ("mae_tiny", "mocov3_tiny", "mae_tiny_distill")
# Teacher's sizes alone: a plan reads no weights.
TEACHER = {"objective__teacher__width": 32, "objective__teacher__num_heads": 4}


def config(name, **changes):
    if "distill" not in name:
        return jobs.tiny(name, **changes)
    teacher = TEACHER | {
        "objective__teacher__depth": 1,
        "objective__teacher__patch_size": 2,
    }
    planned_config = jobs.tiny(name, teacher="nowhere", **teacher, **changes)
    planned_config.teacher = None
    return planned_config


@functools.cache
def planned(name):
    topology.prepare(target := topology.find("v5e-4"))
    made = config(name, log__health=name == "mae_tiny")
    # Augmentations take long to compile, and change none of these laws.
    made.augment = {"normalize": made.augment.normalize}
    return program.plan(made, target)


@functools.cache
def compiled(name):
    """(planned, compiled program, report)."""
    run = planned(name)
    executable, seconds = program.compile_step(run)
    numbers = report.design(run) | report.compiled(run, executable, seconds)
    return run, executable, numbers


@pytest.fixture(params=RECIPES)
def recipe(request):
    return compiled(request.param)


def test_slices_are_planned_by_the_memory_of_the_target(monkeypatch):
    asked = []
    monkeypatch.setattr(topology, "devices", lambda target: jax.devices()[:1])
    monkeypatch.setattr(
        program.build, "build_step", lambda *args: asked.append(args[3])
    )
    target = topology.find("h100-1")
    program.plan(config("mae_tiny"), target)
    assert asked == [target.chip.hbm]


def test_detection_is_planned_without_its_data_and_without_an_encoder():
    sizes = {"width": 24, "depth": 1, "num_heads": 2}
    sizes = {f"objective__encoder__{name}": size for name, size in sizes.items()}
    small = {"data__image_size": 64, "objective__channels": 8, "log__health": False}
    made = jobs.config("detect", "coco", **sizes, **small, objective__box_hidden=16)
    topology.prepare(target := topology.find("v5e-4"))
    run = program.plan(made, target)
    derived, detector = run.config.derived, run.design.objective.detector
    assert run.examples_from == "known" and run.config.batch_size == 64
    assert (derived.num_classes, derived.train_examples) == (80, 117_266)
    assert detector.encoder.remat and detector.rpn.dtype == "bfloat16"
    # Two convolutions before the proposals of 64 images on the finest level alone.
    assert program.model_flops(run) > 3 * 2 * 64 * 2 * 16 * 16 * 9 * 8 * 8


def test_segmentation_is_planned_without_its_data_and_without_an_encoder():
    sizes = {"width": 24, "depth": 1, "num_heads": 2}
    sizes = {f"objective__encoder__{name}": size for name, size in sizes.items()}
    small = {"data__image_size": 32, "objective__channels": 8, "log__health": False}
    made = jobs.config("segment", "ade20k", **sizes, **small)
    topology.prepare(target := topology.find("v5e-4"))
    run = program.plan(made, target)
    derived = run.config.derived
    assert run.examples_from == "known" and run.config.batch_size == 16
    assert (derived.num_classes, derived.train_examples) == (150, 20_210)
    # The last layer alone: 16 images, 8 x 8 pixels, 8 channels, forward and twice back.
    assert program.model_flops(run) > 3 * 2 * 16 * 8 * 8 * 8 * 150


def test_the_old_state_gives_its_memory_to_the_new_one(recipe):
    run, executable, numbers = recipe
    state = run.design.state
    leaves = jax.tree.leaves(state)
    # Every array of the state is updated in place, or handed through.
    assert numbers["aliased_outputs"] == len(leaves)
    assert numbers["memory"]["aliased"] >= numbers["state_bytes_per_chip"]
    assert "input_output_alias" in executable.as_text().partition("\n")[0]


def test_memory_is_the_state_the_batch_and_what_the_step_leaves_behind(recipe):
    _, _, numbers = recipe
    memory = numbers["memory"]
    assert numbers["state_bytes_per_chip"] < memory["needed"] < memory["available"]
    assert memory["fits"] and memory["available"] == 15.75 * 2**30
    assert memory["needed"] == (
        memory["arguments"]
        + memory["outputs"]
        - memory["aliased"]
        + memory["temporaries"]
        + memory["code"]
    )


@pytest.mark.parametrize("name", ["mae_tiny", "mae_tiny_distill"])
def test_what_is_summed_over_chips_is_the_gradient(name):
    numbers = compiled(name)[2]
    summed = numbers["collectives"]["all-reduce"]["bytes"]
    assert summed == pytest.approx(numbers["gradient_bytes"], rel=0.1)


@pytest.mark.parametrize("name", ["mae_tiny", "mae_tiny_distill"])
def test_no_activation_of_mae_moves_between_chips(name):
    numbers = compiled(name)[2]
    assert numbers["collectives"].keys() == {"all-reduce"}


@pytest.mark.parametrize("name", ["mae_tiny", "mae_tiny_distill"])
def test_slices_are_summed_on_each_chip_before_chips_add_up(name):
    run = program.plan(config(name, microbatch="2"), topology.find("v5e-4"))
    assert run.design.slices == 4
    module = hlo.Module(program.compile_step(run)[0].as_text(), trips=4)
    moved = module.collectives()
    assert moved.keys() == {"all-reduce"}
    # The gradient once, not four times: behind the loop.
    assert moved["all-reduce"].bytes == pytest.approx(run.gradient_bytes, rel=0.1)


def test_programs_for_devices_that_are_not_here_are_not_cached(tmp_path):
    """They could be written, but not read again."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    old = {name: getattr(jax.config, name) for name in wanted}
    topology.prepare(target := topology.find("v5e-1"))
    placed = jax.sharding.SingleDeviceSharding(topology.devices(target)[0])
    number = jax.ShapeDtypeStruct((), "float32", sharding=placed)
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        with program.without_cache():
            jax.jit(lambda x: x + 1).lower(number).compile()
        assert not list(tmp_path.iterdir())
        jax.jit(lambda x: x + 1).lower(number).compile()
        assert list(tmp_path.iterdir())  # as it would be without that
    finally:
        for name, value in old.items():
            jax.config.update(name, value)
        program.compilation_cache.reset_cache()


def test_contrastive_negatives_are_gathered_from_all_chips():
    run, _, numbers = compiled("mocov3_tiny")
    moved = numbers["collectives"]
    assert moved["all-reduce"]["bytes"] >= numbers["gradient_bytes"]
    batch, width = run.config.batch_size, run.config.objective.embed_dim
    assert moved["all-gather"]["bytes"] >= batch * width * 2  # bfloat16, at least once


def test_the_program_computes_in_bfloat16_though_this_process_sees_cpus(recipe):
    run, executable, _ = recipe
    assert run.config.objective.dtype == "bfloat16"
    assert re.search(r"bf16\[[\d,]+\]", executable.as_text())


def test_a_split_state_takes_less_of_each_chip_and_is_gathered():
    """Mesh(data=2, fsdp=2): an encoder wide enough to be split."""
    wide = {"objective__encoder__width": 128}
    target = topology.find("v5e-4")
    run = program.plan(config("mae_tiny", mesh__fsdp=2, **wide), target)
    assert dict(run.mesh.shape) == {"data": 2, "fsdp": 2}
    module = hlo.Module(program.compile_step(run)[0].as_text())
    with jobs.without_steps():
        whole = program.plan(config("mae_tiny", **wide), target)
    assert report.state_bytes(run) < 0.7 * report.state_bytes(whole)
    assert module.collectives()["all-gather"].bytes > run.gradient_bytes / 4


def test_a_chip_that_is_too_small_gets_a_setting_that_fits(monkeypatch):
    """On this machine's CPUs, as if they had less memory than the step takes."""
    monkeypatch.setattr(program.build, "build_step", jobs.sharing_designs())
    target = topology.find("cpu-2")
    planned_config = config("mae_tiny", batch_size=64)
    numbers = job.run(planned_config, target)
    assert numbers["memory"]["fits"] and "advice" not in numbers
    need, state = numbers["memory"]["needed"], numbers["state_bytes_per_chip"]
    small = topology.Chip("small", state + (need - state) * 0.7, 0.0, 0.0, 0.0)
    monkeypatch.setattr(topology, "_this_machine", lambda count: small)
    numbers = job.run(planned_config, topology.find("cpu-2"))
    assert not numbers["memory"]["fits"]
    *_, last = numbers["advice"]
    images = re.fullmatch(r"--config.microbatch=(\d+) fits: .* as compiled", last)
    assert images, numbers["advice"]
    planned_config.microbatch = images[1]
    assert job.run(planned_config, topology.find("cpu-2"))["memory"]["fits"]


def test_what_the_compiler_says_of_too_little_memory_is_understood():
    refusal = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.50G of "
    )
    refusal += "15.75G hbm. Exceeded hbm capacity by 15.75G."
    memory = job._refused(refusal, topology.find("v5e-8"))
    assert memory["needed"] == 31.5 * 2**30 and not memory["fits"]
    assert memory["available"] == 15.75 * 2**30
