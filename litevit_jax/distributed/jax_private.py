"""The private parts of JAX that this package needs, in one place.

`jax.distributed` starts and ends a job. Only `jax._src` has the number of this process
without initializing devices, and the key-value store that the processes share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def state() -> Any:
    """Returns JAX's record of the job: process_id, num_processes, client (store)."""
    from jax._src import distributed

    return distributed.global_state


def ask_scheduler(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    devices: Sequence[int] | None,
    timeout_s: int,
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Returns the first four arguments, each None completed by JAX's schedulers."""
    from jax._src import clusters

    return clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, num_processes, process_id, devices, None, timeout_s
    )
