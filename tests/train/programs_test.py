"""Kept programs: a repeated run traces nothing, and learns the same."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import zlib

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from litevit_jax import compilation, plugins, sharding
from litevit_jax.jobs import train
from litevit_jax.train import build, programs
from litevit_jax.train import state as states
from litevit_jax.warm_start import read
from tests import jobs, processes
from tests.records import same


@pytest.fixture(autouse=True, scope="module")
def _smallest():
    """Which model a program is of does not matter, but for those that need LAPACK."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, str(processes.ROOT / "tests" / "smallest"))
        yield


def config_of_two():
    return jobs.config("tests.smallest.recipe", steps=2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of two updates, and the folder in which it kept its programs."""
    base = tmp_path_factory.mktemp("kept")
    with no_cache():
        arrays = run(base / "run", base / "programs")
    return base / "programs", arrays


@contextlib.contextmanager
def no_cache():
    """Without JAX's own cache."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def run(workdir, folder):
    """Trains two updates; returns the parameters, once all programs are written."""
    train.run(config_of_two(), workdir, keep=folder)
    for thread in threading.enumerate():
        if thread.name.startswith("keep-"):
            thread.join()
    return read.read_params(str(workdir / "checkpoints/2")).params


def kinds(folder):
    return sorted(path.name.split("-")[1] for path in folder.iterdir())


def test_a_repeated_run_traces_nothing_and_learns_the_same(
    kept, tmp_path, monkeypatch, capsys
):
    folder, arrays = kept
    assert kinds(folder) == ["create", "design", "step"]

    def traced(*_, **__):
        raise AssertionError("traced")

    monkeypatch.setattr(build.states, "abstract_variables", traced)
    for name in ("init", "loss"):
        monkeypatch.setattr(plugins.load("objectives", "linear").Linear, name, traced)
    jax.clear_caches()
    with no_cache():
        same(run(tmp_path / "run", folder), arrays)
    text = capsys.readouterr().out
    assert "loading the step" in text and "(loaded in" in text
    assert "tracing" not in text and "compiling" not in text


def test_programs_that_are_not_kept_learn_the_same(kept, tmp_path):
    train.run(config_of_two(), tmp_path / "run")  # as from Python
    same(read.read_params(str(tmp_path / "run/checkpoints/2")).params, kept[1])


def test_a_damaged_program_is_named_and_made_anew(kept, tmp_path, capsys):
    folder = shutil.copytree(kept[0], tmp_path / "programs")
    (path,) = folder.glob("litevit-step-*")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with no_cache():
        same(run(tmp_path / "run", folder), kept[1])
    text = capsys.readouterr().out
    assert text.count("cannot be used") == 1 and f"{path} cannot be used" in text
    assert "tracing the step" in text
    assert len(path.read_bytes()) > len(whole) // 2


@pytest.mark.parametrize("content", [b"", b"no program", zlib.compress(b"cut")])
def test_a_damaged_design_is_none(content, tmp_path, capsys):
    (tmp_path / "litevit-design-key-cache").write_bytes(content)
    assert programs.Programs(tmp_path, "key").design is None
    assert "cannot be used" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    folder = tmp_path / "a file"
    folder.write_text("")
    store = programs.Programs(folder, "key")
    store.keep_design(programs.Design({}, {}, 1))
    text = capsys.readouterr().out
    assert f"{folder}/litevit-design-key-cache cannot be written" in text
    assert "the next start traces again" in text


def test_a_program_of_jaxs_cache_is_not_kept(tmp_path):
    # A CPU program that was loaded cannot be written again: it would lack functions.
    function = jax.jit(lambda x: (x * 2).sum())
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    old = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    try:
        for folder, expected in (("one", ["step"]), ("two", [])):
            jax.clear_caches()
            store = programs.Programs(tmp_path / folder, "key")
            (tmp_path / folder).mkdir()
            store.wrap("step", function).lower(np.ones(3)).compile()
            for thread in threading.enumerate():
                if thread.name.startswith("keep-"):
                    thread.join()
            assert kinds(tmp_path / folder) == expected
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", old)
        jax.config.update(
            "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
        )
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def config():
    return {"name": "a", "evals": {}, "objective": {"name": "mae"}, "seed": 0}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def test_the_key_is_the_same_where_no_program_differs(config, mesh):
    key = programs._key(config, mesh)
    assert programs._key({**config, "name": "b", "evals": {"knn": {}}}, mesh) == key


def test_the_key_differs_where_a_program_may(config, mesh, monkeypatch):
    keys = [programs._key(config, mesh), programs._key({**config, "seed": 1}, mesh)]
    keys.append(programs._key(config, sharding.make_mesh(devices=jax.devices()[:4])))
    keys.append(programs._key(config, sharding.make_mesh(fsdp=2)))
    with jax.default_matmul_precision("highest"):
        keys.append(programs._key(config, mesh))
    monkeypatch.setenv("XLA_FLAGS", "--xla_another=1")
    keys.append(programs._key(config, mesh))
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    keys.append(programs._key(config, mesh))
    assert len(set(keys)) == len(keys)


def test_the_key_differs_with_the_sources(config, mesh, tmp_path, monkeypatch):
    package = shutil.copytree(programs._PACKAGE, tmp_path / "litevit_jax")
    monkeypatch.setattr(programs, "_PACKAGE", package)
    keys = [programs._key(config, mesh)]
    with open(package / "objectives" / "mae.py", "a") as file:
        file.write("# another line\n")
    keys.append(programs._key(config, mesh))
    # A module of yours, which patches something, say.
    (tmp_path / "mine.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    keys.append(programs._key(config, mesh))
    pathlib.Path(mine.__file__).write_text("VALUE = 2\n")
    keys.append(programs._key(config, mesh))
    assert len(set(keys)) == len(keys)


def test_only_the_command_line_without_plug_ins_keeps_programs(
    config, mesh, tmp_path, monkeypatch
):
    monkeypatch.delenv(plugins.VARIABLE)
    monkeypatch.setattr(compilation, "_bounded", [tmp_path])
    assert train.folder_of_programs() == tmp_path
    assert programs.find(tmp_path, config, mesh)._folder == tmp_path
    assert type(build._kept(None, config, mesh)) is states.Tracing
    monkeypatch.setattr(programs.distributed, "process_count", lambda: 2)
    assert type(programs.find(tmp_path, config, mesh)) is states.Tracing
    monkeypatch.setattr(plugins, "roots", lambda: [plugins.Root("mine", ())])
    assert train.folder_of_programs() is None


def test_another_process_loads_what_one_has_kept(tmp_path):
    # With health metrics, which need LAPACK: JAX prepares it when a program is lowered,
    # and a program that is only loaded would crash.
    command = [sys.executable, "main.py", "--config=configs/mae_tiny.py:smoke"]
    command += ["--config.steps=1", "--config.log.every_steps=1"]
    command += ["--config.log.report=False", "--config.log.writers=('jsonl',)"]
    for part, fields in (
        ("encoder", {"width": 24, "depth": 1, "num_heads": 2}),
        ("decoder", {"width": 16, "depth": 1, "num_heads": 2}),
    ):
        command += [f"--config.objective.{part}.{k}={v}" for k, v in fields.items()]
    command += [f"--config.compilation_cache={tmp_path / 'programs'}"]
    env = {k: v for k, v in os.environ.items() if "_CACHE" not in k}
    del env[plugins.VARIABLE]  # with plug-ins no programs are kept
    env["JAX_NUM_CPU_DEVICES"] = "1"
    losses = []
    for name in ("one", "two"):
        done = subprocess.run(
            [*command, f"--workdir={tmp_path / name}"],
            cwd=processes.ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert ("loading the step" in done.stdout) == (name == "two")
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert '"effective_rank"' in rows[0]
        losses.append(rows[0].split('"loss": ')[1].split(",")[0])
    assert losses[0] == losses[1]
