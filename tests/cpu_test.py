"""Which platform JAX is told to use, and what a large step on CPUs needs."""

import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import pytest

from litevit_jax import cpu

ROOT = pathlib.Path(__file__).parents[1]
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
    ("batch_size", "platforms", "expected"),
    [(7, "cpu", [cpu._GIVE_BACK]), (512, "tpu,cpu", [])],
    ids=["small", "tpu"],
)
def test_others_keep_no_memory(batch_size, platforms, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    calls = []
    monkeypatch.setattr(cpu, "_set_malloc", calls.append)
    cpu.prepare(batch_size, 224 * 224 * 3)
    assert calls == expected


def test_a_number_of_devices_that_was_asked_for_stays():
    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}
    assert prepared(9, 224 * 224 * 3, **env) == ["3", "False"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_the_memory_of_a_step_beyond_two_gigabytes_is_kept():
    code = (
        "import ctypes; from litevit_jax import cpu; cpu._set_malloc(cpu._KEEP)\n"
        "libc = ctypes.CDLL(None)\n"
        "for f in (libc.malloc, libc.sbrk): f.restype = ctypes.c_void_p\n"
        "block = libc.malloc(ctypes.c_size_t(3 << 30)); top = libc.sbrk(0)\n"
        "libc.free(ctypes.c_void_p(block)); print(top - libc.sbrk(0))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
@pytest.mark.parametrize("given_back", [True, False])
def test_the_freed_blocks_of_a_small_step_leave_no_gaps_in_the_heap(given_back):
    # glibc by itself takes blocks from the heap once a larger one has been freed.
    code = (
        "import ctypes; from litevit_jax import cpu\n"
        f"if {given_back}: cpu._set_malloc(cpu._GIVE_BACK)\n"
        "class Info(ctypes.Structure):\n"
        "  _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "libc.mallinfo2.restype = Info\n"
        "libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(8 << 20))))\n"
        "before = getattr(libc.mallinfo2(), '4')  # bytes outside of the heap\n"
        "libc.malloc(ctypes.c_size_t(2 << 20))\n"
        "print(getattr(libc.mallinfo2(), '4') - before >= 2 << 20)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(given_back)]


@pytest.mark.parametrize(
    ("cores", "batch_size", "expected"),
    [(1, 64, 1), (2, 64, 2), (6, 64, 4), (64, 64, 8), (8, 12, 4), (8, 7, 1)],
)
def test_devices_divide_the_batch(cores, batch_size, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), False)
    assert cpu.count_devices(batch_size) == expected


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """(libraries, files of devices, **environment) -> what JAX is told to use."""
    # What JAX's plugin needs of NVIDIA's driver; this library is on every Linux.
    monkeypatch.setattr(cpu, "_DRIVER", "libc.so.6")
    monkeypatch.setattr(cpu, "_set_malloc", lambda _: None)
    monkeypatch.setattr(cpu, "_TPU_FILES", (str(tmp_path / "accel[0-9]*"),))
    monkeypatch.setattr(cpu, "_PCI_VENDORS", str(tmp_path / "*" / "vendor"))
    monkeypatch.setattr(cpu, "_NVIDIA_FILES", (str(tmp_path / "nvidia0"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LITEVIT_XLA_FLAGS", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")  # set for GPUs; given back after the test

    def platforms(installed=(), here=(), platforms="", **environ):
        for name, value in {**environ, "JAX_PLATFORMS": platforms}.items():
            monkeypatch.setenv(name, value)
        plugins = [name for name in installed if name != "libtpu"]
        monkeypatch.setattr(cpu, "_plugins", lambda: plugins)
        monkeypatch.setattr(
            cpu.importlib.util, "find_spec", lambda n: n if n in installed else None
        )
        for name in here:
            folder = tmp_path / "bus" if name.startswith("0x") else tmp_path
            folder.mkdir(exist_ok=True)
            if name.startswith("0x"):  # a device of Google's on the bus
                (folder / "vendor").write_text("0x1ae0\n")
                (folder / "device").write_text(f"{name}\n")
            else:
                (folder / name).touch()
        cpu.choose()
        return os.environ["JAX_PLATFORMS"]

    return platforms


@pytest.mark.parametrize(
    ("installed", "here", "expected"),
    [
        ([], [], "cpu"),
        (["libtpu"], [], "cpu"),  # its compiler alone is used
        (["libtpu"], ["accel"], "cpu"),  # Linux has a folder of this name
        (["libtpu"], ["0x0042"], "cpu"),  # Google's network card
        (["libtpu"], ["accel0"], "tpu,cpu"),
        (["libtpu"], ["0x0063"], "tpu,cpu"),
        (["xla_cuda13"], ["nvidia0"], "cuda,cpu"),
        (["libtpu", "xla_cuda12"], ["nvidia0"], "cuda,cpu"),
        (["libtpu", "xla_cuda12"], ["accel0"], "tpu,cpu"),
        (["xla_rocm7"], [], "rocm,cpu"),
        (["a_new_one"], [], ""),  # JAX knows what that is
    ],
)
def test_what_is_installed_and_here_is_used(installed, here, expected, machine):
    assert machine(installed, here) == expected


def test_platforms_that_are_named_are_obeyed(machine):
    assert machine(["xla_cuda13"], ["nvidia0"], "cpu") == "cpu"
    assert machine(["libtpu"], [], "tpu,cpu") == "tpu,cpu"


def test_threads_share_one_heap_on_cpus_alone(machine, monkeypatch):
    given = []
    monkeypatch.setattr(cpu, "_set_malloc", given.append)
    machine([], [])
    machine(["libtpu"], ["accel0"], "tpu,cpu")
    assert given == [cpu._ONE_HEAP]


MISSING = {
    "plugin": ([], ["nvidia0"], "cuda,cpu", r"cuda13\]', or '\.\[cuda12"),
    "card": (["xla_cuda13"], [], "", r"none is visible.*nvidia-smi.*--gpus=all"),
    "asked for": (["xla_cuda12"], [], "cuda", "none is visible"),
    "libtpu": ([], ["0x0063"], "tpu", r"not installed: pip install -e '\.\[tpu\]'"),
}


@pytest.mark.parametrize("name", MISSING)
def test_an_accelerator_that_is_asked_for_and_missing_is_an_error(name, machine):
    *where, message = MISSING[name]
    with pytest.raises(ValueError, match=message) as caught:
        machine(*where)
    assert "JAX_PLATFORMS=cpu runs on CPUs all the same" in str(caught.value)


def test_a_driver_that_cannot_be_loaded_is_an_error(machine, monkeypatch):
    monkeypatch.setattr(cpu, "_DRIVER", "libnowhere.so.1")
    with pytest.raises(ValueError, match=r"libnowhere.*LD_LIBRARY_PATH") as caught:
        machine(["xla_cuda13"], ["nvidia0"])
    assert "/usr/local/nvidia/lib64" in str(caught.value)


def test_an_idle_accelerator_is_told_of(machine, capsys):
    assert machine([], ["nvidia0"]) == "cpu"
    assert "has an NVIDIA GPU, but JAX's library for it" in capsys.readouterr().err
    assert machine([], ["nvidia0"], "cpu") == "cpu"
    assert not capsys.readouterr().err


def test_an_idle_tpu_is_told_of(machine, capsys):
    assert machine([], ["0x0063"]) == "cpu"
    assert "has a TPU, but" in capsys.readouterr().err


def test_a_gpu_of_the_job_is_not_left_idle(machine):
    with pytest.raises(
        ValueError, match=r"\(CUDA_VISIBLE_DEVICES=0\), .* not installed"
    ):
        machine([], ["nvidia0"], CUDA_VISIBLE_DEVICES="0")
    assert machine([], CUDA_VISIBLE_DEVICES="") == "cpu"


OURS = "--xla_gpu_enable_latency_hiding_scheduler=true"
GPU = ["xla_cuda13"], ["nvidia0"]


@pytest.mark.parametrize(
    ("where", "given", "expected"),
    [
        (GPU, "", OURS),
        (GPU, "--xla_dump_to=/tmp", f"--xla_dump_to=/tmp {OURS}"),
        (GPU, OURS.replace("true", "false"), OURS.replace("true", "false")),
        (GPU, "flags.txt", "flags.txt"),  # XLA reads them from a file of that name
        (([], []), "", ""),
        ((["libtpu"], ["accel0"]), "", ""),
    ],
)
def test_xla_gets_flags_for_gpus_beside_those_of_the_user(
    where, given, expected, machine
):
    machine(*where, XLA_FLAGS=given)
    assert os.environ["XLA_FLAGS"] == expected


def test_flags_for_gpus_can_be_switched_off(machine):
    machine(*GPU, LITEVIT_XLA_FLAGS="off")
    assert os.environ["XLA_FLAGS"] == ""
    machine(*GPU, LITEVIT_XLA_FLAGS="auto")
    assert os.environ["XLA_FLAGS"] == OURS
    with pytest.raises(ValueError, match="LITEVIT_XLA_FLAGS=no: expected auto"):
        machine(*GPU, LITEVIT_XLA_FLAGS="no")


@pytest.mark.parametrize(
    ("release", "flags"),
    [("0.9.2", ""), ("0.10.0", OURS), ("0.12.0.1", OURS), ("0.13.0", "")],
)
def test_flags_are_set_for_releases_that_know_them(
    release, flags, machine, monkeypatch
):
    monkeypatch.setattr(cpu.importlib.metadata, "version", lambda name: release)
    machine(*GPU)
    assert os.environ["XLA_FLAGS"] == flags


def test_the_installed_xla_knows_our_flags():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": OURS}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CPUS = jax.devices


@pytest.mark.parametrize("platforms", ["cuda", "cuda,cpu", "tpu", "tpu,cpu", ""])
@pytest.mark.parametrize(
    "answer",
    [CPUS, AssertionError(), RuntimeError("no backend")],
    ids=["CPUs", "a failed check", "no backend"],
)
def test_cpus_do_not_stand_in_for_an_accelerator(platforms, answer, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(cpu, "_plugins", lambda: ["a_new_one"])
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=answer))
    name = platforms.partition(",")[0].upper() or "a_new_one"
    with pytest.raises(RuntimeError, match=f"{name} is asked for .*JAX"):
        cpu.devices()


def test_cpus_are_used_where_nothing_else_is_asked_for(monkeypatch):
    for platforms in ("cpu", ""):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert cpu.devices() == CPUS()


def test_devices_of_what_was_asked_for_are_given(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    gpus = [mock.Mock(platform="gpu")]
    monkeypatch.setattr(jax, "devices", lambda: gpus)
    assert cpu.devices() is gpus


@pytest.mark.parametrize(
    ("plugin", "platforms", "words"),
    [
        # As launchers start it: JAX alone would run on CPUs without a word.
        (False, "cuda,cpu", "(JAX_PLATFORMS=cuda,cpu), but JAX's plugin for it is not"),
        (True, "", "(JAX's plugin for it is installed), but none is visible here"),
    ],
)
def test_a_run_without_its_accelerator_does_not_start(
    plugin, platforms, words, tmp_path
):
    if plugin:
        (tmp_path / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
        (tmp_path / "jax_plugins" / "xla_cuda13" / "__init__.py").touch()
    command = [sys.executable, "main.py", "--config=configs/mae_tiny.py:smoke"]
    env = {**os.environ, "JAX_PLATFORMS": platforms, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"error: a GPU is asked for {words}" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_look_inside_says_nothing_of_a_tpu_that_is_not_here():
    """libtpu is installed for its compiler; an analysis starts JAX as training does."""
    command = [sys.executable, "main.py", "--config=configs/analysis.py"]
    env = {**os.environ, "JAX_PLATFORMS": ""}
    done = subprocess.run(
        [*command, "--config.models=a=nowhere"],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert "CPU device" in done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --config.models=a=nowhere")


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    limit, none = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    none.write_text("max\n")
    monkeypatch.setattr(cpu, "_MEMORY_LIMITS", (str(limit), str(none)))
    whole = cpu.memory()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit.write_text(f"{2**30}\n")
    assert cpu.memory() == min(2**30, whole)
