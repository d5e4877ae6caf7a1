"""What a large step on CPUs sets before JAX starts."""

import os
import subprocess
import sys

import pytest

from litevit_jax import cpu

REPORT = (
    "from litevit_jax import cpu; cpu.prepare({}, {}); import jax; "
    "print(jax.device_count(), jax.config.read('jax_cpu_enable_async_dispatch'))"
)


def prepared(batch_size, values, **env):
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"} | env
    command = [sys.executable, "-c", REPORT.format(batch_size, values)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_a_large_step_gets_a_device_for_each_core():
    expected = [str(cpu.count_devices(8)), "False"]
    assert prepared(8, 224 * 224 * 3, JAX_PLATFORMS="cpu") == expected


@pytest.mark.parametrize(
    ("batch_size", "platforms"), [(7, "cpu"), (512, "tpu,cpu")], ids=["small", "tpu"]
)
def test_others_are_left_alone(batch_size, platforms, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(cpu, "_keep_freed_memory", lambda: pytest.fail("touched"))
    cpu.prepare(batch_size, 224 * 224 * 3)


def test_a_number_of_devices_that_was_asked_for_stays():
    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}
    assert prepared(9, 224 * 224 * 3, **env) == ["3", "False"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_the_memory_of_a_step_beyond_two_gigabytes_is_kept():
    code = (
        "import ctypes; from litevit_jax import cpu; cpu._keep_freed_memory()\n"
        "libc = ctypes.CDLL(None)\n"
        "for f in (libc.malloc, libc.sbrk): f.restype = ctypes.c_void_p\n"
        "block = libc.malloc(ctypes.c_size_t(3 << 30)); top = libc.sbrk(0)\n"
        "libc.free(ctypes.c_void_p(block)); print(top - libc.sbrk(0))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0"]


@pytest.mark.parametrize(
    ("cores", "batch_size", "expected"),
    [(1, 64, 1), (2, 64, 2), (6, 64, 4), (64, 64, 8), (8, 12, 4), (8, 7, 1)],
)
def test_devices_divide_the_batch(cores, batch_size, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), False)
    assert cpu.count_devices(batch_size) == expected


@pytest.mark.parametrize(
    ("installed", "here", "expected"),
    [
        ([], None, True),
        (["libtpu"], None, True),  # its compiler alone is used
        (["libtpu"], "accel0", False),
        (["libtpu"], "vendor", False),
        (["jax_plugins"], None, False),
    ],
)
def test_a_library_for_tpus_without_one_leaves_this_a_machine_of_cpus(
    installed, here, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(
        cpu.importlib.util, "find_spec", lambda n: n if n in installed else None
    )
    monkeypatch.setattr(cpu, "_TPU_FILES", (str(tmp_path / "accel*"),))
    monkeypatch.setattr(cpu, "_PCI_VENDORS", str(tmp_path / "vendor"))
    if here:
        (tmp_path / here).write_text("0x1ae0\n")
    cpu.choose()
    assert os.environ["JAX_PLATFORMS"] == ("cpu" if expected else "")
