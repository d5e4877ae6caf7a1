"""Saves and resumes a TrainState.

On disk, under `<workdir>/checkpoints/<step>/`: one item for each part of the state
(`params`, `opt_state`, ...), a flat dict 'encoder.norm.scale' -> array, and `meta`
(JSON): the resolved config; shape, dtype and fingerprint of every array, by which
damage is noticed. Writing is asynchronous and atomic: a complete step has its name.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from absl import logging

from litevit_jax import distributed, paths, sharding, trees
from litevit_jax.trees import fingerprint as fingerprint
from litevit_jax.trees import flatten as flatten

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

PARTS = ("step", "params", "model_state", "teacher", "opt_state")
# Every device saves its own slice of a replicated array if the slice is at least this
# large; slicing smaller arrays takes longer than writing them.
_MIN_SLICE_BYTES = 1 << 20


class CorruptCheckpoint(ValueError):
    """A checkpoint whose files cannot be read, or whose bits are not those saved."""


@functools.cache
def _orbax() -> Any:
    """Imports Orbax, when there is something to read or write: it is slow to import."""
    import orbax.checkpoint as ocp

    logging.get_absl_logger().addFilter(_is_news)
    handlers = ocp.type_handlers
    handler = handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES
    )
    handlers.register_type_handler(jax.Array, handler, override=True)
    return ocp


class Checkpoints:
    """The checkpoints of one run: the last `keep` of them, in `workdir`/checkpoints.

    `fixed`: parts of the state (host arrays) that never change, like a frozen teacher.
    They are not saved; `restore` puts them back into the state.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int,
        fixed: dict[str, Any] | None = None,
    ) -> None:
        self._fixed = fixed or {}
        self.directory = paths.absolute(paths.path(workdir)) / "checkpoints"
        self._keep, self._best = keep, None
        if self.directory.is_file():
            raise ValueError(
                f"{self.directory} is a file, expected the folder of checkpoints; move "
                "it away"
            )
        if distributed.run_on_primary(self.directory.exists):
            self.steps()  # those that are there now are this run's

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(preservation_policy=self, create=True)
        return ocp.CheckpointManager(self.directory, options=options)

    @property
    def _unused(self) -> bool:
        return "_manager" not in vars(self)

    def steps(self) -> list[int]:
        """Returns the completely saved steps, oldest first."""
        if self._unused and not distributed.run_on_primary(self.directory.exists):
            return []
        return sorted(self._manager.all_steps())

    def should_preserve(self, checkpoints: Any, *, context: object) -> list[bool]:
        """Tells Orbax which checkpoints to keep: the last ones, and the best."""
        first = len(checkpoints) - self._keep
        steps = [info.step for info in checkpoints]
        return [i >= first or step == self._best for i, step in enumerate(steps)]

    def save(
        self,
        state: Any,
        *,
        config: dict[str, Any],
        best: dict[str, Any] | None = None,
        **meta: Any,
    ) -> None:
        """Starts writing `state` under its step; waits for the previous write.

        `best` is recorded; its 'step' is kept beside the last ones.

        Raises:
          FloatingPointError: the state is not finite; nothing is written.
          RuntimeError: this or the previous write failed.
        """
        step, first = int(state.step), self._unused
        self._best = None if best is None else best["step"]
        if step in self._manager.all_steps() and not first:
            self._drop_old()
            return
        ocp, parts = _orbax(), self._parts(state)
        prints, bad = trees.inspect_parts(parts)
        if bad:
            raise FloatingPointError(
                f"step {step}: the state is not finite in {', '.join(bad[:5])} "
                f"({len(bad)} arrays) and was not saved; the last good checkpoint "
                f"is step {self._manager.latest_step()}"
            )
        meta = {
            **meta,
            "best": best,
            "step": step,
            "config": config,
            "arrays": trees.describe(parts),
            "fingerprints": prints,
        }
        items = {name: ocp.args.StandardSave(flat) for name, flat in parts.items()}
        try:
            self.wait()
            self._set_aside_leftover(step)
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
            saved = self._manager.save(step, args=args, force=True)
        except OSError as error:
            raise RuntimeError(self._not_written(f"step {step}", error)) from error
        if not saved:
            raise RuntimeError(
                f"step {step} was not saved to {self.directory}: newer steps "
                f"{self.steps()[-3:]} are there already"
            )

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns (state, meta) of the newest readable step, or None if there is none.

        A step that cannot be read, or whose bits differ, is logged and moved to
        `<workdir>/corrupt/`; then the step before it is tried.

        Raises:
          ValueError: the saved arrays are not those of `abstract` (names listed).
          CorruptCheckpoint: there are checkpoints, none of them readable.
        """
        tried = []
        for step in reversed(self.steps()):
            restored, error = self._try_step(step, abstract)
            if error is None:
                return restored
            tried.append(step)
            moved_to = self._set_aside(step)
            logging.warning(
                "checkpoint of step %d is damaged (%s); moved to %s, trying the one "
                "before it", step, error, moved_to
            )  # fmt: skip
        if tried:
            raise CorruptCheckpoint(
                f"{self.directory}: no checkpoint can be read (steps {tried} are "
                "damaged and now in corrupt/ beside it); start again in a new "
                "--workdir"
            )
        return None

    def _try_step(self, step: int, abstract: Any) -> tuple[Any, str | None]:
        """Returns (state and meta, None), or (None, error) if a process cannot read."""
        restored, error = None, None
        try:
            restored = self._restore_step(step, abstract)
        except CorruptCheckpoint as damage:
            error = str(damage)
        errors = [e for e in distributed.gather(error) if e is not None]
        return (None, errors[0]) if errors else (restored, None)

    def _restore_step(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        ocp, parts = _orbax(), self._parts(abstract)
        meta = read_items(self._manager, step, {"meta": ocp.args.JsonRestore()})["meta"]
        _check_arrays(meta["arrays"], trees.describe(parts), self.directory / str(step))
        items = {name: ocp.args.StandardRestore(flat) for name, flat in parts.items()}
        flat = read_items(self._manager, step, items)
        check_bits(flat, meta)
        state = {
            name: jax.tree.unflatten(
                jax.tree.structure(getattr(abstract, name)),
                [flat[name][key] for key in parts.get(name, {})],
            )
            for name in PARTS
            if name not in self._fixed
        }
        state = abstract.replace(**state)
        return sharding.replace(state, self._fixed, abstract), meta

    def _parts(self, state: Any) -> dict[str, dict[str, Any]]:
        names = [name for name in PARTS if name not in self._fixed]
        parts = {name: trees.saved(getattr(state, name)) for name in names}
        return {name: flat for name, flat in parts.items() if flat}

    def _set_aside(self, step: int) -> str:
        """Moves the step's directory to corrupt/, once for all; returns the target."""

        def move() -> str:
            corrupt = self.directory.parent / "corrupt"
            paths.make_folder(corrupt)
            number = sum(1 for _ in corrupt.glob(f"{step}-*"))
            target = corrupt / f"{step}-{number}"
            (self.directory / str(step)).rename(target)
            return str(target)

        target = distributed.run_on_primary(move)
        self._manager.reload()
        return target

    def _set_aside_leftover(self, step: int) -> None:
        """Moves away a directory of this step that an unfinished save left behind.

        Raises:
          RuntimeError: it is complete: another program wrote it.
        """
        directory = self.directory / str(step)
        if distributed.run_on_primary(directory.exists):
            if distributed.run_on_primary((directory / "meta" / "metadata").exists):
                raise RuntimeError(
                    f"step {step} was not saved: {directory} is complete already, and "
                    "another program wrote it since this one began. Let one run "
                    "work in a --workdir at a time; the same command again goes on "
                    "from there"
                )
            logging.warning("moved an incomplete step %d to corrupt/", step)
            self._set_aside(step)

    def _drop_old(self) -> None:
        """Deletes steps that are no longer kept, as another one became the best."""
        old = [step for step in self.steps()[: -self._keep] if step != self._best]
        if old:
            self.wait()
        for step in old:
            self._manager.delete(step)

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          RuntimeError: it failed; the message says why and what is saved.
        """
        try:
            if not self._unused:
                self._manager.wait_until_finished()
        except Exception as error:
            # A full disk shows as almost any exception of the storage layers below.
            raise RuntimeError(self._not_written("the last step", error)) from error

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Explains disk errors inside the block: what is saved, what to do next.

        Raises:
          RuntimeError: instead of the OSError.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in paths.DISK_ERRORS:
                raise
            what = str(error.filename or "a file")
            raise RuntimeError(self._explain(what, error)) from error

    def _not_written(self, what: str, error: Exception) -> str:
        return self._explain(f"{what} could not be saved to {self.directory}", error)

    def _explain(self, what: str, error: BaseException) -> str:
        saved = self.steps() or "none"
        return (
            f"{what}: {paths.reason(error)}; complete are steps {saved}"
            f" in {self.directory}. Make room or mend the disk, then run the same "
            "command again to go on from there"
        )

    def close(self) -> None:
        """Waits for the last save and releases the directory."""
        if not self._unused:
            self._manager.close()


def _is_news(record: Any) -> bool:
    """Whether a record is no duplicate of an exception and not about our handler."""
    known = record.exc_info or record.filename == "type_handler_registry.py"
    return not (known and "orbax" in record.pathname)


def read_items(manager: ocp.CheckpointManager, step: int, items: dict[str, Any]) -> Any:
    """Reads the named items of a saved step.

    Raises:
      CorruptCheckpoint: they cannot be read.
    """
    try:
        return manager.restore(step, args=_orbax().args.Composite(**items))
    except Exception as error:
        # Damage shows as almost any exception of the storage layers below.
        raise CorruptCheckpoint(str(error).splitlines()[0][:200]) from error


def check_bits(flat: Any, meta: dict[str, Any]) -> None:
    """Raises CorruptCheckpoint unless arrays have the bits that `meta` recorded."""
    prints, _ = trees.inspect_parts(dict(flat.items()))
    wrong = [k for k, v in prints.items() if meta["fingerprints"].get(k) != v]
    if wrong:
        raise CorruptCheckpoint(f"bits differ from those saved in {wrong[0]}")


def _check_arrays(saved: dict, wanted: dict, path: pathlib.Path) -> None:
    problems = []
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            problems.append(f"{name}: not in the checkpoint")
        elif name not in wanted:
            problems.append(f"{name}: only in the checkpoint")
        elif list(saved[name]) != wanted[name]:
            problems.append(f"{name}: saved {saved[name]}, expected {wanted[name]}")
    refuse(f"{path} does not fit this model and optimizer", problems)


def refuse(what: str, problems: list[str]) -> None:
    """Raises ValueError with `what` and the first rows, if there are problems."""
    if problems:
        rows = "".join(f"\n  {row}" for row in problems[:10])
        raise ValueError(f"{what} ({len(problems)} differences):{rows}")
