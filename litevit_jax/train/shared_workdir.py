"""Checks that all processes of a run see the same directory."""

from __future__ import annotations

import os
import pathlib
import time

from litevit_jax import distributed
from litevit_jax.train import workdir as workdirs

_PATIENCE_S = 15.0  # until a shared file system shows a new file


def check(workdir: pathlib.Path) -> None:
    """Raises ValueError unless all processes see what the first one writes there."""

    def leave_mark() -> str:
        workdirs.check_writable(workdir)
        name = f".mark-{os.getpid()}-{time.time_ns()}"
        (workdir / name).write_text(name)
        return name

    name = distributed.run_on_primary(leave_mark)
    seen = distributed.gather(_sees(workdir / name))
    distributed.run_on_primary((workdir / name).unlink)
    if not all(seen):
        blind = ", ".join(str(i) for i, visible in enumerate(seen) if not visible)
        raise ValueError(
            f"--workdir={workdir}: what process 0 writes there is not seen by "
            f"process {blind}: it is a directory of each host's own. All "
            "hosts need the same one: give a shared file system or a bucket (gs://...)"
        )


def _sees(mark: pathlib.Path) -> bool:
    """Whether `mark` appears; shared file systems take a while to show it."""
    until = time.monotonic() + _PATIENCE_S
    while not mark.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
        if mark.parent.exists():  # makes NFS list it anew
            list(mark.parent.iterdir())
    return True
