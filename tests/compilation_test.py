"""Compiled programs are kept in one place, of this processor, whole and bounded."""

import os
import subprocess
import sys
import time
import zlib

import jax
import pytest

from litevit_jax import compilation

_FIELDS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """JAX's settings, as they were afterwards; nothing is registered for the end."""
    old = {name: getattr(jax.config, name) for name in _FIELDS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compilation.atexit, "register", lambda *_: None)
    yield
    for name, value in old.items():
        jax.config.update(name, value)


def program(folder, name, size=5000, age_s=0.0, cut=0):
    """A file as JAX writes one, used `age_s` ago; `cut` bytes of its end are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-cache"
    data = zlib.compress(os.urandom(size))
    path.write_bytes(data[: len(data) - cut])
    os.utime(path, times=(time.time() - age_s,) * 2)
    return path


def test_programs_go_to_the_users_cache_by_the_kind_of_processor(tmp_path):
    assert compilation.use("auto") is None
    folder = tmp_path / "cache/litevit_jax/compiled" / compilation.processor()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
    # The folder is given a kind, not JAX's settings of the environment.
    assert compilation.use(str(tmp_path / "own")) is None
    folder = tmp_path / "own" / compilation.processor()
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_what_the_user_told_jax_stays(monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "/users/choice")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/users/choice")
    assert compilation.use("auto") is None
    assert jax.config.jax_compilation_cache_dir == "/users/choice"
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilation.use("auto")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7


@pytest.mark.parametrize("word", ["off", "", "False", "none"])
def test_it_can_be_switched_off(word, tmp_path):
    compilation.use(word)
    assert not jax.config.jax_enable_compilation_cache
    assert not (tmp_path / "cache").exists()


def test_a_home_that_cannot_be_written_is_said_and_a_named_folder_refused(tmp_path):
    (tmp_path / "cache").write_text("a file")
    before = jax.config.jax_compilation_cache_dir
    said = compilation.use("auto")
    assert "compiled programs are not kept" in said
    assert "--config.compilation_cache=DIR" in said
    assert jax.config.jax_compilation_cache_dir == before
    with pytest.raises(OSError, match=r"compilation_cache=.* cannot be written"):
        compilation.use(str(tmp_path / "cache" / "inside"))


def test_no_home_at_all_is_said(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation.pathlib.Path, "home", no_home)
    assert "home directory" in compilation.use("auto")


CPUINFO = "processor: 0\nvendor_id : X\nflags : avx sse\ncpu MHz : {}\n\nprocessor: 1\n"


def test_processors_differ_by_their_features_and_not_by_their_clock():
    about = compilation._of_cpuinfo(CPUINFO.format(1000))
    assert about == ["vendor_id X", "flags avx sse"]
    assert compilation._of_cpuinfo(CPUINFO.format(2000)) == about
    more = CPUINFO.format(1000).replace("avx", "avx avx512f")
    assert compilation._of_cpuinfo(more) != about


def test_the_programs_unused_for_longest_go_first_whatever_their_processor(tmp_path):
    old = program(tmp_path / "one", "old", age_s=300)
    used = program(tmp_path / "two", "used", age_s=200)
    new = program(tmp_path / "one", "new", age_s=100)
    other = tmp_path / "one" / "notes.txt"
    other.write_text("x" * 10**5)
    size = compilation.size_of(path.stat() for path in (used, new))
    compilation.trim(tmp_path, size)
    assert not old.exists() and used.exists() and new.exists() and other.exists()
    compilation.trim(tmp_path, size - 1)
    assert not used.exists() and new.exists()


def test_it_is_kept_below_its_size_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "LIMIT", 20_000)
    folder = tmp_path / "own" / compilation.processor()
    paths = [program(folder, f"{i}", age_s=100 - i) for i in range(6)]
    compilation.use(str(tmp_path / "own"))
    kept = [path.exists() for path in paths]
    assert kept == sorted(kept) and 0 < sum(kept) < 6


def test_what_a_killed_run_wrote_in_part_is_removed(tmp_path):
    folder = tmp_path / "own" / compilation.processor()
    whole, cut = program(folder, "whole"), program(folder, "cut", cut=100)
    empty = folder / "empty-cache"
    empty.touch()
    compilation.use(str(tmp_path / "own"))
    assert whole.exists() and not cut.exists() and not empty.exists()
    # Each is looked at once: those from before are known.
    old = program(folder, "old", age_s=3600, cut=100)
    compilation.use(str(tmp_path / "own"))
    assert old.exists()


PROGRAM = """
import sys
from litevit_jax import compilation
compilation.use(sys.argv[1])
import jax, jax.numpy as jnp
from jax import monitoring
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(jax.jit(lambda x: jnp.tanh(x) @ x.T)(jnp.ones((8, 8))).sum())
print("hits", sum(name.endswith("cache_hits") for name in hits))
"""


def test_a_second_process_compiles_nothing_that_the_first_one_did(tmp_path):
    # As a user's: the tests' own keep no program that compiles in a moment.
    env = {k: v for k, v in os.environ.items() if "_CACHE" not in k}
    said = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "own")],
            env=env,
            capture_output=True,
            text=True,
            timeout=3600,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    (first, _, none), (second, _, some) = said
    assert first == second and int(none) == 0 and int(some) > 0
