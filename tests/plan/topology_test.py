"""Names of targets, and what is said of one that does not exist."""

import importlib.util
import os

import pytest

from litevit_jax import cpu
from litevit_jax.plan import topology


@pytest.mark.parametrize(
    ("name", "chips", "grid"),
    [
        ("v5e-8", 8, (2, 4)),
        ("v5litepod-8", 8, (2, 4)),
        ("v5e-256", 256, (16, 16)),
        ("V6E-1", 1, (1, 1)),
        ("v4-8", 4, (2, 2, 1)),  # the name counts cores
        ("v5p-1024", 512, (8, 8, 8)),
        ("cpu", 1, ()),
        ("cpu-4", 4, ()),
    ],
)
def test_names_are_those_of_the_maker(name, chips, grid):
    target = topology.find(name)
    assert (target.chips, target.grid) == (chips, grid)


def test_every_slice_has_the_chips_that_its_name_counts():
    for kind, cores in (("v4", 2), ("v5e", 1), ("v5p", 2), ("v6e", 1)):
        names = [name for name in topology.known() if name.startswith(f"{kind}-")]
        assert names
        for name in names:
            assert topology.find(name).chips * cores == int(name.split("-")[1])


@pytest.mark.parametrize(
    "name", ["v5e", "v5e-7", "v9-8", "h100-3", "cpu-0", "cpu-9999"]
)
def test_an_unknown_one_is_refused_with_all_there_are(name):
    with pytest.raises(ValueError) as refused:
        topology.find(name)
    text = str(refused.value)
    assert f"--plan={name}: no such topology; choose from cpu, cpu-N" in text
    assert "v5e- and one of 1, 4, 8, 16, 32, 64, 128, 256" in text
    assert "v4- and one of 8, 16" in text


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "libtpu" else find(n)
    )
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(ValueError, match=r"pip install -e '\.\[plan\]'"):
        topology.prepare(topology.find("v5e-8"))
    topology.prepare(topology.find("cpu"))


def test_more_cpu_devices_than_there_are_is_an_error_that_says_how():
    with pytest.raises(ValueError, match=r"JAX has 8 CPU.*JAX_NUM_CPU_DEVICES=16"):
        topology.devices(topology.find("cpu-16"))


def test_a_plan_for_gpus_is_compiled_as_runs_there_are(monkeypatch):
    """XLA's flags as litevit_jax/cpu.py sets them, and what takes no card to time."""
    monkeypatch.setenv("XLA_FLAGS", "")
    options = topology.compiler_options(topology.find("h100-8"))
    assert options.pop("xla_gpu_autotune_level") == 0
    assert not options.pop("xla_gpu_enable_triton_gemm")
    assert options == cpu.xla_flags() != {}
    assert not topology.compiler_options(topology.find("v5e-8"))
