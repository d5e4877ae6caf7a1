"""What a user may choose from: fields of a config that no longer exist."""

from __future__ import annotations

from typing import Any, NamedTuple


class Removed(NamedTuple):
    """A field that configs of earlier versions have.

    Attributes:
      off: its value in a run that did not use it, which goes on as before.
      instead: why it is gone, and what to use now.
    """

    off: Any
    instead: str


REMOVED = {
    "scan": Removed(
        off=False,
        instead="looping over one compiled block was slower and took more memory; to "
        "save memory use --config.remat=True",
    )
}
