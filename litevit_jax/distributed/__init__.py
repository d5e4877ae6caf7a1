"""Several processes, one job: who they are, what they agree on, how they end."""

from litevit_jax.distributed.processes import (
    all_reach_here,
    alone,
    check_joined,
    doing,
    gather,
    heartbeat,
    heartbeats,
    is_primary,
    process_count,
    process_index,
    run_on_primary,
    shutdown,
    wait_for_verdict,
)

__all__ = [
    "all_reach_here",
    "alone",
    "check_joined",
    "doing",
    "gather",
    "heartbeat",
    "heartbeats",
    "is_primary",
    "process_count",
    "process_index",
    "run_on_primary",
    "shutdown",
    "wait_for_verdict",
]
