"""Keeps the programs of a run: the same run starts again without tracing them.

JAX's cache saves compiling, but finds a program by its lowered text, and tracing and
lowering a step takes seconds of Python each time. Here the programs that create and
train the state are kept whole, with the shapes that tracing finds out, in the folder of
that cache. They are found by all that determines them: the sources of this package and
others of yours, the versions of the libraries, JAX's settings, the devices, the config.

Only the command line keeps programs, on CPUs, of one process and without plug-ins:
elsewhere code may change that the key does not see, or loading was never tried.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib
import json
import os
import pathlib
import pickle
import re
import site
import sys
import sysconfig
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable
from jax.sharding import Mesh
from jax.stages import Compiled

from litevit_jax import distributed, paths, terminal
from litevit_jax.train.state import Design, Shapes, Tracing
from litevit_jax.trees import PyTree

_PACKAGE = pathlib.Path(__file__).parents[1]
# Libraries whose code is in the programs, or writes them.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")
# Fields of a config that no program of these depends on.
_OUTSIDE = ("name", "evals", "checkpoint", "watchdog", "compilation_cache")
_VARIABLES = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "CUDA_", "NVIDIA_", "LITEVIT_")
_SETTINGS_OUTSIDE = ("jax_compilation_cache_dir", "jax_persistent_cache")
_HIT = "/jax/compilation_cache/cache_hits"
_CUSTOM_CALL = re.compile(r'custom_call_target="([^"]*)"')
_LAPACK = "lapack_"


class _Kept(NamedTuple):
    """A compiled program as it is written: the executable and its trees."""

    executable: bytes
    arguments: jax.tree_util.PyTreeDef
    results: jax.tree_util.PyTreeDef
    uses_lapack: bool


class Programs(Tracing):
    """The programs of one run that earlier starts kept, or that this one will keep.

    Reading them has begun where `design` is not None.
    """

    def __init__(self, folder: pathlib.Path, key: str) -> None:
        """Looks for programs in `folder`."""
        self._folder, self._key = folder, key
        self._loading: dict[str, concurrent.futures.Future[Compiled | None]] = {}
        self.design: Design | None = self._read("design")
        if self.design is not None:
            pool = concurrent.futures.ThreadPoolExecutor(2, "kept-programs")
            for name in ("step", "create"):  # the step takes longer
                self._loading[name] = pool.submit(self._load, name)
            pool.shutdown(wait=False)

    def loaded(self, name: str) -> Compiled | None:
        """Returns the program 'create' or 'step', or None if there is none."""
        future = self._loading.get(name)
        return None if future is None else future.result()

    def keep_design(self, design: Design) -> None:
        """Keeps what tracing has found out."""
        self._write("design", design)

    def wrap(self, name: str, jitted: jax.stages.Wrapped) -> jax.stages.Wrapped:
        """Returns the function "create" or "step" as a `Program`, used as it was."""
        return cast(jax.stages.Wrapped, Program(self, name, jitted))

    def eval_shape(self, function: Callable[..., Shapes], *arguments: PyTree) -> Shapes:
        """Returns the shapes of a result, as `jax.eval_shape`, or those that were kept.

        Args:
          function: what it computes follows from the config.
          arguments: by shape.
        """
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), arguments)
        name = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
        result = self._read(name)
        if result is None:
            result = jax.eval_shape(function, *arguments)
            self._write(name, result)
        return result

    def compile(self, name: str, lowered: jax.stages.Lowered) -> Compiled:
        """Compiles and keeps the program 'create' or 'step'.

        A program that JAX's cache had is not kept: on a CPU a program that was loaded
        cannot be written a second time.
        """
        with _cache_hits() as hits:
            compiled = lowered.compile()
        if not hits:
            write = functools.partial(self._keep, name, compiled)
            threading.Thread(target=write, name=f"keep-{name}").start()
        return compiled

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"litevit-{name}-{self._key}-cache"

    def _keep(self, name: str, compiled: Compiled) -> None:
        calls = set(_CUSTOM_CALL.findall(compiled.as_text() or ""))
        if not all(call.startswith(_LAPACK) for call in calls):
            return  # what another one needs before it is called is not known
        try:
            parts = serialize_executable.serialize(compiled)
        except jax.errors.JaxRuntimeError:
            return  # XLA cannot write each program; JAX's cache has it neither then
        self._write(name, _Kept(*parts, uses_lapack=bool(calls)))

    def _load(self, name: str) -> Compiled | None:
        kept: _Kept | None = self._read(name)
        if kept is None:
            return None
        with self._reporting(name):
            if kept.uses_lapack:  # JAX prepares it when a program is lowered
                matrix = jax.ShapeDtypeStruct((1, 1), jnp.float32)
                jax.jit(jnp.linalg.eigh).lower(matrix)
            return serialize_executable.deserialize_and_load(
                kept.executable, kept.arguments, kept.results
            )

    def _read(self, name: str) -> Any:
        """Returns the content of a file, or None if there is none that can be used."""
        path = self._path(name)
        with self._reporting(name):
            if not path.exists():
                return None
            content = pickle.loads(zlib.decompress(path.read_bytes()))
            os.utime(path)  # the least recently used are removed first
            return content

    def _write(self, name: str, content: object) -> None:
        path = self._path(name)
        try:
            paths.replace_bytes(path, zlib.compress(pickle.dumps(content), 1))
        except Exception as error:  # a full disk, or what cannot be written
            why = paths.reason(error)
            _say(f"{path} cannot be written ({why}); the next start traces again")

    @contextlib.contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """Names a file that cannot be used; the run then traces and compiles."""
        try:
            yield
        except Exception as error:  # cut short, or of a library that is gone
            why = paths.reason(error)
            _say(f"{self._path(name)} cannot be used ({why}); it is made anew")


class Program:
    """A jitted function whose program is loaded, or kept when it is compiled.

    Attributes:
      jitted: the function.
    """

    def __init__(
        self, programs: Programs, name: str, jitted: jax.stages.Wrapped
    ) -> None:
        self._programs, self._name, self.jitted = programs, name, jitted
        self._lowered: jax.stages.Lowered | None = None

    @property
    def kept(self) -> bool:
        """Whether an earlier start kept the program."""
        return self._programs.loaded(self._name) is not None

    def __call__(self, *arguments: PyTree) -> PyTree:
        """Calls the program; a jitted function would keep it for the next call."""
        return self.lower(*arguments).compile()(*arguments)

    def lower(self, *arguments: PyTree) -> Program:
        """Traces and lowers the function, unless its program was kept."""
        if not self.kept:
            self._lowered = self.jitted.lower(*arguments)
        return self

    def compile(self) -> Compiled:
        """Returns the program that `lower` prepared."""
        if self._lowered is None:
            compiled = self._programs.loaded(self._name)
            assert compiled is not None
            return compiled
        return self._programs.compile(self._name, self._lowered)


def find(folder: pathlib.Path, config: dict[str, Any], mesh: Mesh) -> Tracing:
    """Returns the programs of a run; where none may be kept, nothing but tracing.

    Args:
      folder: of kept programs.
      config: complete, with `derived`.
      mesh: of the run.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu" and distributed.process_count() == 1
    return Programs(folder, _key(config, mesh)) if on_cpu else Tracing()


def _key(config: dict[str, Any], mesh: Mesh) -> str:
    """Returns a digest of all that determines the programs."""
    settings = {
        name: repr(value)
        for name, value in jax.config.values.items()
        if not name.startswith(_SETTINGS_OUTSIDE)
    }
    variables = {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    devices = mesh.devices.flat
    about = {
        "config": {k: v for k, v in config.items() if k not in _OUTSIDE},
        "libraries": [getattr(m, "__version__", "") for m in map(_module, _LIBRARIES)],
        "python": sys.version,
        "settings": settings,
        "variables": variables,
        "mesh": [repr(mesh.shape), *((d.id, d.device_kind) for d in devices)],
        "platform": [devices[0].platform, devices[0].client.platform_version],
        "sources": _digest(_sources()),
    }
    text = json.dumps(about, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _sources() -> list[pathlib.Path]:
    """Lists the files of this package, and of loaded modules that are not installed."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    installed += [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    installed += [site.getusersitepackages(), *site.getsitepackages()]
    files = set(_PACKAGE.rglob("*.py"))
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if name and name.endswith(".py") and not name.startswith(tuple(installed)):
            files.add(pathlib.Path(name))
    return sorted(files)


def _digest(files: Iterable[pathlib.Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@contextlib.contextmanager
def _cache_hits() -> Iterator[list[str]]:
    """Collects the programs that JAX's cache had, inside the block."""
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == _HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _say(text: str) -> None:
    terminal.ConsoleLine().say(text)
