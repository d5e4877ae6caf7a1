"""Manifests: schemas where there are some, and what must agree between files."""

import copy
import importlib
import math
import pathlib
import re
import warnings

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from litevit_jax import cli

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


def test_the_image_installs_an_extra_that_exists():
    text = (LAUNCH / "Dockerfile").read_text()
    extras = (ROOT / "setup.py").read_text()
    said = (LAUNCH / "README.md").read_text()
    named = {"tpu", "cuda12", "plan"}
    for extra in named:
        assert f'"{extra}":' in extras and f"`{extra}`" in said
    assert re.search(r"^ARG EXTRA=tpu$", text, re.M)
    assert 'ENTRYPOINT ["python", "main.py"]' in text  # no shell between it and SIGTERM
    for source in re.findall(r"^COPY (.*) \S+$", text, re.M):
        assert all((ROOT / part).exists() for part in source.split())


SKY = {"name", "workdir", "num_nodes", "resources", "envs", "setup", "run"}
SKY_RESOURCES = {"infra", "accelerators", "accelerator_args", "use_spot"}


@pytest.mark.parametrize("name", ["tpu.yaml", "gpu.yaml"])
def test_a_skypilot_task_has_fields_that_skypilot_knows(name):
    [task] = documents(f"skypilot/{name}")
    assert task.keys() <= SKY and task["resources"].keys() <= SKY_RESOURCES
    used = set(re.findall(r"\$(\w+)", task["run"]))
    given = {"SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"}
    assert used <= task["envs"].keys() | given
    assert task["envs"]["RUN"].startswith("gs://")
    # SkyPilot's own parser, where it is installed: it is too large for [dev].
    try:
        import sky
    except ImportError:
        return
    sky.Task.from_yaml(str(LAUNCH / "skypilot" / name))
