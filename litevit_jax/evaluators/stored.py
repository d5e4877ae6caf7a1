"""Features of frozen encoders on the disk, for runs of one sweep that need the same.

A file's name is a digest of all that its numbers follow from: the program, the values
of the parameters that it reads, how images are prepared, and which images these are.
What has changed therefore has another name, and no file is ever out of date.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from litevit_jax import distributed, paths, sharding, terminal
from litevit_jax.evaluators import base

LIMIT = 4 * 2**30  # bytes of a folder; the least recently used files go first
Gathered = tuple[np.ndarray, np.ndarray, np.ndarray]

_folder: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar(
    "folder of features", default=None
)
_NAMES = ("features", "label", "index")


@contextlib.contextmanager
def under(folder: Any) -> Iterator[None]:
    """Lets evaluations meanwhile keep features in `folder`, and read those kept there.

    In a store such as gs://, or with several processes, nothing is kept.
    """
    usable = paths.is_local(folder) and distributed.process_count() == 1
    token = _folder.set(folder if usable else None)
    try:
        yield
    finally:
        _folder.reset(token)


def gathered(
    context: base.Context,
    state: Any,
    split: str,
    name: str,
    compute: Callable[[], Gathered],
) -> Gathered:
    """Returns (features [n, ...], labels [n], indices [n]), kept ones if there are any.

    Args:
      context: of the evaluator.
      state: whose parameters are evaluated.
      split: of the images.
      name: of the prediction.
      compute: encodes the images.
    """
    folder = _folder.get()
    if folder is None or not context.images or _annotated(context):
        return compute()
    source = context.source(split)
    about = _about(context, state, source, name)
    digest = hashlib.sha256(about.encode()).hexdigest()[:32]
    path, say = folder / f"{digest}.npz", terminal.ConsoleLine().say
    kept = _read(path, about, len(source))
    if kept is not None:
        say(f"{name} of split {split!r}, {len(kept[1]):,} images: read from {path}")
        return kept
    computed = compute()
    if len(computed[2]) == len(source):  # none is unlabelled or cannot be read
        _write(path, about, computed)
    return computed


def _annotated(context: base.Context) -> bool:
    """Whether images have annotations: batches then have more than `_about` knows."""
    how = json.loads(context.images).get("joint") or {}
    return bool(how.get("annotations"))


def _about(context: base.Context, state: Any, source: Any, name: str) -> str:
    """Returns all that the features follow from, as text."""
    rows, channels = context.rows, len(context.mean)
    shapes = {
        "image": ((rows, *context.size, channels), np.uint8),
        "label": ((rows,), np.int32),
        "index": ((rows,), np.int32),
        "mask": ((rows,), np.float32),
    }
    batch = {key: jax.ShapeDtypeStruct(*shape) for key, shape in shapes.items()}

    def predict(params: Any, model_state: Any, batch: Any) -> Any:
        return context.predict(params, model_state, batch)[name]

    variables = (state.params, state.model_state)
    out = sharding.replicated(context.mesh)
    traced = jax.jit(predict, out_shardings=out).trace(*variables, batch)
    leaves = jax.tree.leaves(variables)
    read = _read_by(traced.jaxpr.jaxpr, [True])[: len(leaves)]
    values = hashlib.sha256()
    for number, (leaf, used) in enumerate(zip(leaves, read, strict=True)):
        if used:
            value = np.ascontiguousarray(jax.device_get(leaf))
            values.update(f"{number} {value.dtype} {value.shape};".encode())
            values.update(value.tobytes())
    for constant in traced.jaxpr.consts:
        values.update(np.ascontiguousarray(constant).tobytes())
    devices = context.mesh.devices.ravel()
    facts = {
        "program": hashlib.sha256(traced.lower().as_text().encode()).hexdigest(),
        "values": values.hexdigest(),
        "images": context.images,
        "listing": source.fingerprint(),
        "count": len(source),
        "prediction": name,
        "devices": [d.device_kind for d in devices],
        "jax": jax.__version__,
    }
    return json.dumps(facts, sort_keys=True)


def _read_by(jaxpr: Any, wanted: list[bool]) -> list[bool]:
    """Tells which inputs of a jaxpr its wanted outputs can depend on."""
    live = {
        var
        for var, want in zip(jaxpr.outvars, wanted, strict=True)
        if want and not hasattr(var, "val")  # else it is a constant
    }
    for equation in reversed(jaxpr.eqns):
        needed = [var in live for var in equation.outvars]
        if not any(needed):
            continue
        used = [True] * len(equation.invars)
        if equation.primitive.name in ("jit", "pjit"):
            used = _read_by(equation.params["jaxpr"].jaxpr, needed)
        inputs = zip(equation.invars, used, strict=True)
        live |= {var for var, use in inputs if use and not hasattr(var, "val")}
    return [var in live for var in jaxpr.invars]


def _read(path: pathlib.Path, about: str, most: int) -> Gathered | None:
    """Reads what is kept; None without it. A file that is damaged gets a line."""
    try:
        with open(path, "rb") as stream, np.load(stream) as file:
            kept = tuple(file[name] for name in _NAMES)
            if str(file["about"]) != about or {len(x) for x in kept} != {most}:
                raise ValueError("it holds other features")
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        why = paths.reason(error)
        say = terminal.ConsoleLine().say
        say(f"{path} cannot be used ({why}); its features are computed anew")
        return None
    return kept


def _write(path: pathlib.Path, about: str, computed: Gathered) -> None:
    """Keeps what was computed; without room for it there is a line instead."""
    say = terminal.ConsoleLine().say
    size = sum(x.nbytes for x in computed)
    if size > LIMIT:
        say(f"{size:,} bytes of features are not kept in {path.parent}: too many")
        return
    buffer = io.BytesIO()
    features, label, index = computed
    text = np.array(about)
    np.savez(buffer, about=text, features=features, label=label, index=index)
    # Other processes may write the same one.
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _trim(path.parent, LIMIT - buffer.tell())
        temporary.write_bytes(buffer.getvalue())
        paths.rename(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        say(f"features are not kept in {path.parent}: {paths.reason(error)}")
        return
    say(f"features of {len(computed[1]):,} images are kept in {path}")


def _trim(folder: pathlib.Path, most: int) -> None:
    """Removes the least recently used files until at most `most` bytes are left."""
    files = []
    for path in folder.glob("*.npz"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    left = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if left <= most:
            return
        path.unlink(missing_ok=True)
        left -= size
