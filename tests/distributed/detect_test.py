"""Which process of which job this is, from flags and variables; what is missing."""

import http.server
import os
import re
import threading

import pytest

from litevit_jax.distributed import detect, start

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.svc,w-1.svc", "TPU_WORKER_ID": "1"}
SLICES = {
    **GKE,
    "MEGASCALE_NUM_SLICES": "3",
    "MEGASCALE_SLICE_ID": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-0.svc:8080",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


def find(environ=(), **flags):
    return detect.find(**flags, environ=dict(environ))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_PROCESS_ADDRESSES": "local"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_single_process_is_alone(environ):
    assert find(environ) is None


def test_flags_come_before_variables_and_those_before_a_scheduler():
    assert find(JAX) == detect.Launch("flags", "a:1", 2, 1)
    assert find(JAX | SLURM, process_id=0) == detect.Launch("flags", "a:1", 2, 0)
    assert find(SLURM, coordinator="b:2") == detect.Launch("SLURM", "b:2")
    assert find(SLURM, num_processes=1) is None


def test_the_environment_of_a_scheduler_is_known():
    assert find(SLURM) == detect.Launch("SLURM")
    assert find(OPEN_MPI) == detect.Launch("Open MPI")
    assert find(GKE) == detect.Launch("GKE", "w-0.svc:8476", 2, 1)
    assert find(SLICES) == detect.Launch("GKE", "job-0.svc:8476", 6, 5)


NODES = {"SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("visible", "local", "tasks", "more", "expected"),
    [
        ("0", 3, 16, NODES, (0,)),  # --gpus-per-task=1
        ("GPU-5ebe9fc9", 3, 16, {}, (0,)),
        ("0,1,2,3,4,5,6,7", 3, 16, NODES, (3,)),  # --gpus-per-node=8
        ("0,1,2,3,4,5,6,7", 3, 16, {}, (3,)),
        ("0,1", 3, 8, NODES | {"SLURM_GPUS_PER_TASK": "2"}, (0, 1)),
        ("0,1", 3, 8, NODES | {"SLURM_GPUS_PER_TASK": "h100:2"}, (0, 1)),
        ("0,1,2,3,4,5,6,7", 0, 2, NODES, (0, 1, 2, 3, 4, 5, 6, 7)),  # a task a node
        ("0,1,2,3,4,5,6,7", 3, 8, NODES, (6, 7)),
        ("0", 1, 4, NODES, (0,)),
        ("", 3, 16, NODES, None),  # CPUs, or GPUs that SLURM knows nothing of
        ("NoDevFiles", 3, 16, NODES, None),
    ],
)
def test_a_task_has_the_gpus_that_are_its_own(visible, local, tasks, more, expected):
    variables = {"SLURM_NTASKS": str(tasks), "SLURM_LOCALID": str(local)}
    found = find(SLURM | variables | {"CUDA_VISIBLE_DEVICES": visible} | more)
    assert found == detect.Launch("SLURM", devices=expected)


@pytest.mark.parametrize(
    ("visible", "local", "tasks", "more"),
    [("0,1,2", 3, 16, NODES), ("0,1,2,3", 4, 16, NODES), ("0,1", 3, 8, {})],
)
def test_gpus_that_cannot_be_divided_among_tasks_are_refused(
    visible, local, tasks, more
):
    variables = {"SLURM_NTASKS": str(tasks), "SLURM_LOCALID": str(local)}
    with pytest.raises(ValueError, match=rf"{visible}.*SLURM_LOCALID={local}; start"):
        find(SLURM | variables | {"CUDA_VISIBLE_DEVICES": visible} | more)
    on_cpu = {"CUDA_VISIBLE_DEVICES": visible, "JAX_PLATFORMS": "cpu"}
    assert find(SLURM | variables | on_cpu | more) == detect.Launch("SLURM")


def test_tasks_of_open_mpi_divide_the_gpus_too():
    variables = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    found = find(OPEN_MPI | variables | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert found == detect.Launch("Open MPI", devices=(2, 3))
    found = find(OPEN_MPI | variables | {"CUDA_VISIBLE_DEVICES": "3"})
    assert found == detect.Launch("Open MPI", devices=(0,))


@pytest.mark.parametrize(
    ("visible", "devices"), [("0", (0,)), ("0,1,2,3", (3,)), ("", (3,))]
)
def test_jax_is_told_of_these_gpus(visible, devices, monkeypatch):
    """As --gpus-per-task=1 shows task 3 of a node its own GPU, number 0."""
    for name in [name for name in os.environ if name.startswith("TPU_")]:
        monkeypatch.delenv(name)  # a plan's compiler has left them there
    variables = {"SLURM_LOCALID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "1"}
    for name, value in {**SLURM, **variables, "CUDA_VISIBLE_DEVICES": visible}.items():
        monkeypatch.setenv(name, value)
    assert start._completed(detect.find(), 1.0).devices == devices


@pytest.mark.parametrize("whole", [SLURM, GKE, SLICES, OPEN_MPI, JAX])
def test_what_is_missing_of_an_announcement_is_named(whole):
    announces = {
        "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES",
        "OMPI_COMM_WORLD_SIZE",
    }  # fmt: skip
    for name in whole.keys() - announces:
        rest = {k: v for k, v in whole.items() if k != name}
        with pytest.raises(ValueError, match=rf"{name}\b.*missing") as caught:
            find(rest)
        assert "--num_processes=1" in str(caught.value)


def test_a_pod_of_an_indexed_job_needs_the_package_that_finds_the_others(monkeypatch):
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"'kubernetes' is missing.*jax\[k8s\]"):
        find(environ)
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda _: object())
    assert find(environ) == detect.Launch("Kubernetes")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "a"}, "coordinator=a: expected HOST:PORT"),
        ({"coordinator": "a:99999"}, "with a port from 1 to 65535"),
        ({"process_id": 2}, "--process_id=2; expected 0 to 1"),
        ({"num_processes": 0}, "--num_processes=0; expected 1 or more"),
    ],
)
def test_impossible_places_are_refused(flags, message):
    whole = {"coordinator": "a:1", "num_processes": 2, "process_id": 1}
    with pytest.raises(ValueError, match=re.escape(message)):
        find(**(whole | flags))


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="JAX_PROCESS_ID='one'; expected a whole"):
        find(JAX | {"JAX_PROCESS_ID": "one"})
    with pytest.raises(ValueError, match="SLURM_NTASKS='2x'"):
        find(SLURM | {"SLURM_NTASKS": "2x"})


@pytest.fixture
def metadata():
    """(text) -> the address of a metadata server whose workers are `text`."""
    servers = []

    def serve(text):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.path.endswith("/attributes/worker-network-endpoints")
                known &= self.headers["Metadata-Flavor"] == "Google"
                self.send_response(200 if known else 404)
                self.end_headers()
                self.wfile.write(text.encode() if known else b"")

            def log_message(self, *_):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_hosts_of_a_cloud_tpu_are_known_by_its_metadata(metadata):
    pod = {"GCE_METADATA_IP": metadata("a:b:10.0.0.1,c:d:10.0.0.2")}
    assert find(pod) == detect.Launch("Cloud TPU")
    assert find(pod | {"TPU_SKIP_MDS_QUERY": "1"}) is None
    assert find({"GCE_METADATA_IP": metadata("a:b:10.0.0.1")}) is None
    assert find({"GCE_METADATA_IP": "127.0.0.1:9"}) is None  # nobody answers
