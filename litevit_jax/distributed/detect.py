"""Detects from flags and the environment whether this process is one of several.

It needs no JAX, and of the network only a Cloud TPU's metadata server.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import urllib.request
from collections.abc import Mapping

# Flag -> the environment variable with the same meaning.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
ALONE = "to run this process alone, give --num_processes=1"

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = (
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
)
_TPU_PORT = "8476"
_METADATA_S = 3.0


@dataclasses.dataclass(frozen=True)
class Launch:
    """One process of a launch of several; JAX completes what is None.

    Attributes:
      source: who announced the launch ('flags', 'SLURM', ...), for messages.
      coordinator: 'host:port' of process 0.
      count: number of processes.
      index: number of this process.
      devices: this host's devices that belong to this process; None: all.
    """

    source: str
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    devices: tuple[int, ...] | None = None


def find(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Launch | None:
    """Returns the launch that this process belongs to, or None if it is alone.

    Flags win over the JAX_* variables, and both over a scheduler's variables.

    Raises:
      ValueError: a part is missing or wrong; the message names it.
    """
    coordinator = coordinator or environ.get(VARIABLES["coordinator"]) or None
    num_processes = _count("num_processes", num_processes, environ)
    process_id = _count("process_id", process_id, environ)
    if num_processes == 1:
        return None
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    detected = _scheduler(environ) if missing else Launch("flags")
    if detected is None:
        if len(missing) == len(given):
            return None
        raise ValueError(
            "several processes: "
            + " and ".join(f"--{name} (or {VARIABLES[name]})" for name in missing)
            + f" missing, only {_listed(given)} given; every process needs all three, "
            "for example --coordinator=HOST_OF_PROCESS_0:8476 --num_processes=2 "
            f"--process_id=0; {ALONE}"
        )
    launch = dataclasses.replace(
        detected,
        coordinator=coordinator or detected.coordinator,
        count=detected.count if num_processes is None else num_processes,
        index=detected.index if process_id is None else process_id,
    )
    check(launch)
    return launch


def check(launch: Launch) -> None:
    """Raises ValueError unless the known numbers of `launch` are possible."""
    if launch.coordinator is not None:
        host, _, port = launch.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(
                f"--coordinator={launch.coordinator}: expected HOST:PORT of process 0, "
                "with a port from 1 to 65535"
            )
    count, index = launch.count, launch.index
    if count is not None and count < 1:
        raise ValueError(f"--num_processes={count}; expected 1 or more")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(
            f"--process_id={index}; expected 0 to {count - 1} with "
            f"--num_processes={count}"
        )


def _count(name: str, flag: int | None, environ: Mapping[str, str]) -> int | None:
    text = environ.get(VARIABLES[name])
    if flag is not None or not text:
        return flag
    if not text.isdecimal():
        raise ValueError(f"{VARIABLES[name]}={text!r}; expected a whole number")
    return int(text)


def _listed(given: Mapping[str, str | int | None]) -> str:
    return ", ".join(f"{k}={v}" for k, v in given.items() if v is not None)


def _scheduler(environ: Mapping[str, str]) -> Launch | None:
    """Reads a scheduler's variables; returns None if it starts one process."""
    names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if names:
        return _gke_tpu(names.split(","), environ)
    if _number(environ, "SLURM_NTASKS") > 1:
        how = "start the command with srun, one task for each process"
        _require(_SLURM, environ, "SLURM_NTASKS", how)
        hosts = _number(environ, "SLURM_STEP_NUM_NODES")
        here = _even(_number(environ, "SLURM_NTASKS"), hosts)
        return Launch("SLURM", devices=_gpus("SLURM_LOCALID", here, environ))
    if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        _require(_OPEN_MPI, environ, "OMPI_COMM_WORLD_SIZE", "start with mpirun")
        local, here = "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
        count = _number(environ, here) or None
        return Launch("Open MPI", devices=_gpus(local, count, environ))
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        if importlib.util.find_spec("kubernetes") is None:
            raise ValueError(
                f"JOB_COMPLETION_INDEX={environ['JOB_COMPLETION_INDEX']} marks a pod "
                "of an indexed Kubernetes job; to locate the other pods the package "
                "'kubernetes' is missing: pip install 'jax[k8s]', or give "
                "--coordinator, --num_processes and --process_id; " + ALONE
            )
        return Launch("Kubernetes")
    return Launch("Cloud TPU") if _on_tpu_pod(environ) else None


def _gke_tpu(names: list[str], environ: Mapping[str, str]) -> Launch | None:
    """Reads GKE's description of a TPU slice; returns None for a single process."""
    slices, first = _number(environ, "MEGASCALE_NUM_SLICES"), names[0]
    count = len(names) * max(slices, 1)
    if count == 1:
        return None
    many, needed = "TPU_WORKER_HOSTNAMES", ["TPU_WORKER_ID"] * (len(names) > 1)
    if slices > 1:
        needed += ["MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS"]
        many = "MEGASCALE_NUM_SLICES"
    _require(needed, environ, many, "a TPU node pool of GKE sets it in every pod")
    if slices > 1:
        first = environ["MEGASCALE_COORDINATOR_ADDRESS"]
    index = _number(environ, "TPU_WORKER_ID")
    index += _number(environ, "MEGASCALE_SLICE_ID") * len(names)
    port = environ.get("JAX_COORDINATOR_PORT", _TPU_PORT)
    return Launch("GKE", f"{first.partition(':')[0]}:{port}", count, index)


def _gpus(
    name: str, count: int | None, environ: Mapping[str, str]
) -> tuple[int, ...] | None:
    """Returns the GPUs that belong to this process; None if that is unknown.

    JAX gives GPU i to task i of a host, which is right only where every task sees all
    GPUs. Here they are divided evenly, unless the scheduler has divided them already.

    Args:
      name: the variable with this task's number on its host.
      count: number of tasks on this host, if known.
      environ: the environment.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible in ("", "-1", "NoDevFiles"):
        return None
    seen, task = len(visible.split(",")), _number(environ, name)
    bound = environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2] == str(seen)
    if seen == 1 or bound or count == 1:
        return tuple(range(seen))
    share = _even(seen, count or seen)
    if share is None or (task + 1) * share > seen:
        if environ.get("JAX_PLATFORMS") == "cpu":
            return None
        tasks = "" if count is None else f" for {count} tasks on this host"
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={visible}{tasks}: {seen} GPUs cannot be divided "
            f"among the tasks, so none can be assigned to {name}={task}; start as many "
            "tasks as GPUs, and let each task see all of them (srun --gpu-bind=none) "
            "or its own (--gpus-per-task=1)"
        )
    return tuple(range(task * share, (task + 1) * share))


def _even(whole: int, parts: int) -> int | None:
    """Returns `whole` / `parts`, or None if it is not a whole number."""
    return whole // parts if parts and not whole % parts else None


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "0").strip()
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r}; expected a whole number")
    return int(text)


def _require(
    names: list[str] | tuple[str, ...],
    environ: Mapping[str, str],
    because: str,
    how: str,
) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        value = environ.get(because)
        raise ValueError(
            f"{because}={value} announces several processes, but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            f"{how}, or give --coordinator, --num_processes and --process_id; {ALONE}"
        )


def _on_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of a Cloud TPU, by its metadata server."""
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    known = "GCE_METADATA_IP" in environ
    if "TPU_SKIP_MDS_QUERY" in environ or not (
        known or (chips and importlib.util.find_spec("libtpu"))
    ):
        return False
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    path = "computeMetadata/v1/instance/attributes/worker-network-endpoints"
    request = urllib.request.Request(
        f"http://{server}/{path}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_S) as answer:
            return "," in answer.read().decode()
    except OSError:  # no metadata server: not a Cloud TPU
        return False
