"""Several processes, one job: who they are, what they agree on, how they end."""

from litevit_jax.distributed.peers import (
    alone,
    beat,
    beats,
    check_joined,
    count,
    doing,
    from_primary,
    gather,
    index,
    leave,
    primary,
    start,
    together,
    wait_for_verdict,
)
from litevit_jax.distributed.watch import EXIT_STUCK, Limits

__all__ = [
    "EXIT_STUCK",
    "Limits",
    "alone",
    "beat",
    "beats",
    "check_joined",
    "count",
    "doing",
    "from_primary",
    "gather",
    "index",
    "leave",
    "primary",
    "start",
    "together",
    "wait_for_verdict",
]
