"""Several processes, one job: who they are, what they agree on, how they end."""

from litevit_jax.distributed.processes import (
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
    together,
    wait_for_verdict,
)

__all__ = [
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
    "together",
    "wait_for_verdict",
]
