"""The private parts of JAX that the package uses are where it looks for them."""

import inspect

import jax
import pytest
from jax._src.lib import _jax

from litevit_jax.distributed import jax_private

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}


def test_the_state_of_a_lone_process_is_known_without_devices():
    state = jax_private.state()
    assert (state.process_id, state.num_processes, state.client) == (0, 1, None)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    "name", ["key_value_set", "blocking_key_value_get", "wait_at_barrier"]
)
def test_the_store_can_do_what_is_asked_of_it(name):
    assert callable(getattr(_jax.DistributedRuntimeClient, name))


def test_a_scheduler_fills_in_what_is_open(monkeypatch):
    assert jax_private.ask_scheduler("a:1", 2, 1, (0,), 5) == ("a:1", 2, 1, (0,))
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    address, *rest = jax_private.ask_scheduler(None, None, None, None, 5)
    assert address.startswith("node1:") and rest == [4, 2, [1]]


def test_jax_starts_a_job_with_the_arguments_that_it_is_given():
    known = inspect.signature(jax.distributed.initialize).parameters
    assert {
        "local_device_ids", "cluster_detection_method", "initialization_timeout",
        "heartbeat_timeout_seconds",
    } <= known.keys()  # fmt: skip
