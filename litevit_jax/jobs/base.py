"""The contract of a job: a file of this folder with `main(config, workdir, command)`.

`main` checks the config, does the work, prints its results and returns an `Ending`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Ending(NamedTuple):
    """The end of a job.

    Attributes:
      config: the config of what ran.
      result: directory or file that other jobs can use; None: nothing can follow.
      signal: number of the signal that stopped the job, or None.
    """

    config: Any
    result: str | None = None
    signal: int | None = None
