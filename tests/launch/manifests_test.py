"""Manifests: schemas where there are some, and what must agree between files."""

import copy
import importlib
import math
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import warnings

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from litevit_jax import cli
from litevit_jax.distributed import watchdog
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
KUBERNETES = "1.30"
JOBSETS = ("jobset-tpu.yaml", "jobset-gpu.yaml")

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def validate(document):
    """Raises unless it is what Kubernetes takes, without unknown fields."""
    with warnings.catch_warnings():  # it subclasses what may not be, once imported
        warnings.simplefilter("ignore", DeprecationWarning)
        import kubernetes_validate
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def inner_job(jobset):
    """The Job that JobSet makes; JobSet itself is an extension without schema here."""
    [replicated] = jobset["spec"]["replicatedJobs"]
    metadata = {"name": replicated["name"]}
    spec = replicated["template"]["spec"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def pods(jobset):
    return inner_job(jobset)["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", JOBSETS)
def test_the_job_inside_a_jobset_is_a_valid_one(name):
    [jobset] = documents(f"gke/{name}")
    assert (jobset["apiVersion"], jobset["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    validate(inner_job(jobset))


def test_a_misspelled_field_of_a_job_is_found():
    job = copy.deepcopy(inner_job(documents("gke/jobset-tpu.yaml")[0]))
    job["spec"]["paralellism"] = job["spec"].pop("parallelism")
    with pytest.raises(Exception, match="paralellism"):
        validate(job)


def test_the_role_is_valid_and_is_that_of_the_pods():
    found = {d["kind"]: d for d in documents("gke/rbac.yaml")}
    for document in found.values():
        validate(document)
    account = found["ServiceAccount"]["metadata"]["name"]
    [subject] = found["RoleBinding"]["subjects"]
    assert subject["name"] == account
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    for name in JOBSETS:
        assert pods(documents(f"gke/{name}")[0])["serviceAccountName"] == account


def test_the_role_allows_what_jax_asks_to_find_its_peers():
    module = importlib.import_module("jax._src.clusters.k8s_cluster")
    source = pathlib.Path(module.__file__).read_text()
    asked = set(re.findall(r"_api\.(list|read)_namespaced_(\w+)\(", source))
    assert asked  # else JAX asks in another way, and the role is to be looked at
    [role] = [d for d in documents("gke/rbac.yaml") if d["kind"] == "Role"]
    allowed = {
        (verb, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    verbs = {"list": "list", "read": "get"}
    assert {(verbs[v], f"{kind}s") for v, kind in asked} <= allowed


@pytest.mark.parametrize("name", JOBSETS)
def test_one_pod_is_on_each_host_and_a_lost_one_starts_all_again(name):
    [jobset] = documents(f"gke/{name}")
    job = inner_job(jobset)["spec"]
    assert job["completions"] == job["parallelism"] and job["backoffLimit"] == 0
    assert job["completionMode"] == "Indexed"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [cli.EXIT_USAGE]
    container = pods(jobset)["containers"][0]["name"]
    assert rule["onExitCodes"]["containerName"] == container


def test_the_pods_of_a_tpu_job_fill_its_slice():
    [jobset] = documents("gke/jobset-tpu.yaml")
    grid = pods(jobset)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    [container] = pods(jobset)["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    hosts = inner_job(jobset)["spec"]["completions"]
    assert math.prod(map(int, grid.split("x"))) == chips * hosts


@pytest.mark.parametrize("name", JOBSETS)
def test_the_command_of_a_pod_is_one_that_main_takes(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    [container] = pods(documents(f"gke/{name}")[0])["containers"]
    argv = ["main.py", *container["args"]]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    cli.parse(argv, values)
    assert values.workdir.startswith("gs://")


ACCELERATORS = {"tpu": "tpu,cpu", "gpu": "cuda,cpu"}


def environment(container):
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize(("kind", "platforms"), ACCELERATORS.items())
def test_a_pod_without_its_accelerator_is_an_error(kind, platforms):
    """And a GPU's driver is found where GKE mounts it."""
    [container] = pods(documents(f"gke/jobset-{kind}.yaml")[0])["containers"]
    told = {"JAX_PLATFORMS": platforms}
    if kind == "gpu":
        told["LD_LIBRARY_PATH"] = "/usr/local/nvidia/lib64"
    assert environment(container) == told


@pytest.mark.parametrize("name", JOBSETS)
def test_a_pod_has_shared_memory_for_the_processes_that_read_data(name):
    """A container has 64 MB of it unless told otherwise."""
    pod = pods(documents(f"gke/{name}")[0])
    [container] = pod["containers"]
    [mount] = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    [volume] = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert volume["emptyDir"] == {"medium": "Memory"}


EXTRAS = {
    "tpu": {"JAX_PLATFORMS=tpu,cpu"},
    "cuda12": {"JAX_PLATFORMS=cuda,cpu", "LD_LIBRARY_PATH=/usr/local/nvidia/lib64"},
    "cuda13": {"JAX_PLATFORMS=cuda,cpu", "LD_LIBRARY_PATH=/usr/local/nvidia/lib64"},
    "plan": {"JAX_PLATFORMS=cpu"},
}


def stages():
    """Name of a stage of the image -> (what it starts from, its variables)."""
    text = (LAUNCH / "Dockerfile").read_text()
    parts = re.split(r"^FROM (\S+)(?: AS (\S+))?$", text, flags=re.M)
    return {
        name: (base, set(" ".join(re.findall(r"^ENV (.*)$", body, re.M)).split()))
        for base, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


@pytest.mark.parametrize(("extra", "expected"), EXTRAS.items())
def test_the_image_asks_for_the_accelerator_of_its_extra(extra, expected):
    known = stages()
    assert known[None][0] == "for-$EXTRA"
    name, variables = f"for-{extra}", set()
    while name in known:
        name, told = known[name]
        variables |= told
    assert name == "python:3.13-slim" and variables == expected


def test_the_image_installs_an_extra_that_exists():
    text = (LAUNCH / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    said = (LAUNCH / "README.md").read_text()
    for extra in EXTRAS:
        assert extra in extras and f"`{extra}`" in said
    assert re.search(r"^ARG EXTRA=tpu$", text, re.M)
    for source in re.findall(r"^COPY (.*) \S+$", text, re.M):
        assert all((ROOT / part).exists() for part in source.split())


def test_the_first_process_of_the_image_hands_sigterm_on():
    """The kernel drops it for a first process that does not handle it (yet)."""
    text = (LAUNCH / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["tini", "--", "python", "main.py"]' in text
    assert re.search(r"apt-get install .*\btini\b", text)


def test_main_itself_handles_sigterm_from_its_first_moments_on():
    """A first process without tini obeys it, too."""
    command = [sys.executable, "main.py", "--config=configs/mae_tiny.py:smoke"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        processes.until_sigterm_is_handled(process)
        process.terminate()
        assert process.wait(processes.PATIENCE_S) == cli.EXIT_PREEMPTED


def test_the_image_fetches_libraries_before_the_code_that_changes():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", "")
    steps = re.findall(r"^(COPY|RUN) (.*)$", text.partition("WORKDIR")[2], re.M)
    install = next(i for i, (_, what) in enumerate(steps) if "pip install" in what)
    before = [what for kind, what in steps[:install] if kind == "COPY"]
    assert before == [
        "constraints constraints",
        "pyproject.toml setup.py LICENSE ./",
        "litevit_jax/__init__.py litevit_jax/",  # the version
    ]


SKY = {"name", "workdir", "num_nodes", "resources", "envs", "setup", "run"}
SKY_RESOURCES = {
    "infra", "accelerators", "accelerator_args", "use_spot", "job_recovery",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "platforms"), ACCELERATORS.items())
def test_a_skypilot_task_has_fields_that_skypilot_knows(kind, platforms):
    [task] = documents(f"skypilot/{kind}.yaml")
    assert task.keys() <= SKY and task["resources"].keys() <= SKY_RESOURCES
    used = set(re.findall(r"\$(\w+)", task["run"]))
    given = {"SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"}
    assert used <= task["envs"].keys() | given
    assert task["envs"]["RUN"].startswith("gs://")
    assert task["envs"]["JAX_PLATFORMS"] == platforms
    # SkyPilot's own parser, where it is installed: it is too large for [dev].
    try:
        import sky
    except ImportError:
        return
    sky.Task.from_yaml(str(LAUNCH / "skypilot" / f"{kind}.yaml"))


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_skypilot_starts_a_run_again_that_can_go_on(kind):
    [task] = documents(f"skypilot/{kind}.yaml")
    recovery = task["resources"]["job_recovery"]
    codes = [cli.EXIT_PREEMPTED, watchdog.EXIT_STUCK]
    assert recovery == {"recover_on_exit_codes": codes}


PYTHON = """#!/usr/bin/env bash
[[ $1 == main.py ]] || exec "$PYTHON" "$@"
printf '%s\\n' "$@"
exit 42
"""


@pytest.fixture
def start(tmp_path):
    """(RUN, **environment) -> what launch/skypilot/run.sh did, with main.py told."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(place, **environ):
        told = {"RUN": str(place), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [LAUNCH / "skypilot" / "run.sh", "--config=a b"],
            cwd=tmp_path, env={**os.environ, **told, **environ},
            capture_output=True, text=True,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("starts", "environ", "goes_on"),
    [
        (None, {}, True),
        (100, {}, True),
        (101, {}, False),
        (3, {"LITEVIT_RESTARTS": "2"}, False),
        (2, {"LITEVIT_RESTARTS": "2"}, True),
    ],
)
def test_but_not_for_ever(starts, environ, goes_on, start, tmp_path):
    """The first start of a run is none of its restarts."""
    if starts is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "environment.jsonl").write_text("{}\n" * starts)
    done = start(tmp_path / "run", **environ)
    if goes_on:
        assert (done.returncode, done.stdout) == (42, "main.py\n--config=a b\n")
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert f"was started {starts} times" in done.stderr


def test_a_place_that_cannot_be_read_is_left_to_main(start):
    done = start("nowhere://bucket")
    assert (done.returncode, done.stdout) == (42, "main.py\n--config=a b\n")
