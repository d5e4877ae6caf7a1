"""Every test sees 8 CPU devices; flags are parsed as `main.py` would."""

import gc
import importlib.metadata
import os
import pathlib
import signal

_CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax"  # of compiled programs

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Most of the suite's time is compiling small programs: this halves it. The laws and
# values that are tested do not depend on how hard XLA tries.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # nobody reads them
_OLDER = importlib.metadata.version("jaxlib").startswith("0.10.")
if _OLDER:  # compiles in half of the time; newer ones do not know it, or do not gain
    quick = " --xla_cpu_use_fusion_emitters=false"
    quick += " --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + quick
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest
from absl import flags

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, too: children inherit it
gc.set_threshold(100_000, 20, 20)  # tracing makes many objects and little garbage

# The files that take longest come first (and --no-loadscope-reorder keeps it so), or
# one process would be busy with the last of them while the others have nothing to do.
_LONG = ("runs_test", "configs_test", "colabs_test", "laws_test", "accelerator_test",
    "loop_test", "program_test", "kill_test", "programs_test")  # fmt: skip


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def _parsed_flags():
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Forgets compiled programs between files: Linux maps 65,530 pieces of memory into
    a process, of which each program takes several, and beyond them XLA crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        import jax

        from litevit_jax.evaluators import base
        from litevit_jax.train import state
        from tests import jobs

        jobs.forget_designs()
        state._shared.cache_clear()
        base._only.cache_clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def shared_designs():
    """Runs of one config share what is traced and compiled for them."""
    from litevit_jax.train import build
    from tests import jobs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_step", jobs.sharing_designs())
        yield


@pytest.fixture(scope="module")
def one_device():
    """Runs take one device, for which programs compile sooner."""
    from tests import jobs

    with jobs.on_one_device():
        yield


@pytest.fixture(scope="module")
def given_starts():
    """Models start from given values: random draws take long to compile."""
    from tests import jobs

    with jobs.given_starts():
        yield


@pytest.fixture(scope="module")
def no_steps(shared_designs):
    """Runs are only prepared: nobody needs the trace of their step."""
    from tests import jobs

    with jobs.without_steps():
        yield


@pytest.fixture
def image_folder(tmp_path):
    """(train=n, test=m) -> a folder with class folders a and b of small PNGs."""
    import numpy as np
    from PIL import Image

    def make(train=8, test=4, size=16):
        root = tmp_path / "images"
        rng = np.random.default_rng(0)
        for split, count in (("train", train), ("test", test)):
            for number in range(count):
                path = root / split / "ab"[number % 2] / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
        return root

    return make
