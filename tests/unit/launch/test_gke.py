"""gke.py: manifests against the published API, what they ask of the cluster, and what kubectl is given."""

import json
import re
import signal
import subprocess
import sys

import pytest

from .conftest import NASTY, ROOT
from .jobset_schema import check

TPU = ["start", "my-run", "--image", "img:1", "--accelerator", "tpu-v5p-slice", "--topology", "4x4x8"]
GPU = ["start", "my-run", "--image", "img:1", "--accelerator", "nvidia-h100-80gb", "--nodes", "16"]
PATHWAYS = [*TPU, "--slices", "2", "--pathways", "--pathways-dir", "gs://b/p", "--head-node-pool", "cpus"]
FULL = [
    "--spot", "--max-restarts", "3", "--service-account", "writer", "--context", "c-1", "--namespace", "team",
    "--volume", "gs://bucket=/gcs", "--volume", "/mnt/disk=/local", "--volume", "my-claim=/runs",
    "--env", "XLA_FLAGS=--a=1 --b=$(HOME)", "--env", "EMPTY=",
]  # fmt: skip
KINDS = {"tpu": TPU, "slices": [*TPU, "--slices", "3"], "gpu": GPU, "pathways": PATHWAYS}


def manifest(desk, *arguments: str, train=("configs/palm_8b.py",)) -> dict:
    done = desk.run("gke.py", *arguments, "--", *train)
    assert done.returncode == 0, done.stderr
    (call,) = desk.calls()
    assert call["argv"][-2:] == ["apply", "--filename=-"]
    return json.loads(call["stdin"])


def jobs(made: dict) -> dict[str, dict]:
    return {job["name"]: job for job in made["spec"]["replicatedJobs"]}


def pod(made: dict, name: str) -> dict:
    return jobs(made)[name]["template"]["spec"]["template"]["spec"]


def environment(container: dict) -> dict[str, str]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def expanded(text: str, variables: dict[str, str]) -> str:
    """Kubernetes' rule for $(NAME) in command, args and env: $$ is a $, an unknown name is left as it is."""
    one = lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0])  # noqa: E731
    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


@pytest.mark.parametrize("more", [[], FULL], ids=["plain", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_api_server_takes_the_manifest(desk, kind, more):
    check(manifest(desk, *KINDS[kind], *more))


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m["spec"].update(maxRestarts=3),
        lambda m: m["spec"]["failurePolicy"].update(maxRestarts="3"),
        lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda m: m["spec"]["replicatedJobs"][0].pop("template"),
        lambda m: pod(m, "slice")["containers"][0].pop("name"),
        lambda m: pod(m, "slice")["containers"][0].update(envs=[]),
        lambda m: pod(m, "slice")["containers"][0]["resources"]["limits"].update({"google.com/tpu": 4}),
        lambda m: pod(m, "slice").update(restartPolicy="OnFailure"),
    ],
)
def test_the_check_finds_what_is_wrong(desk, damage):
    made = manifest(desk, *TPU)
    check(made)
    damage(made)
    with pytest.raises(Exception):  # noqa: B017  jsonschema's, an assertion, or the model's ValueError
        check(made)


def test_tpu_slices_have_a_node_pool_and_all_their_hosts_each(desk):
    made = manifest(desk, *TPU, "--slices", "3")
    (job,) = jobs(made).values()
    assert (
        job["replicas"] == 3 and job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 32
    )
    assert made["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    inner = pod(made, "slice")
    assert inner["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "4x4x8",
    }  # fmt: skip
    assert inner["containers"][0]["resources"] == {"limits": {"google.com/tpu": "4"}}
    assert inner["hostNetwork"] and inner["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert "hostNetwork" not in pod(manifest(desk, *TPU), "slice")
    # JAX finds the processes by what GKE sets: nothing that could say otherwise is passed.
    assert inner["containers"][0]["env"] == [] and inner["containers"][0]["args"] == ["configs/palm_8b.py"]
    one_host = manifest(desk, *TPU[:-1], "2x4", "--per-host", "8")
    assert jobs(one_host)["slice"]["template"]["spec"]["parallelism"] == 1


def test_gpu_nodes_are_told_their_place(desk):
    made = manifest(desk, *GPU)
    job, inner = jobs(made)["node"], pod(made, "node")
    assert job["replicas"] == 1 and job["template"]["spec"]["completions"] == 16
    container = inner["containers"][0]
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    (name,) = [name for name, value in environment(container).items() if value == index]
    told = [expanded(word, {name: "7"}) for word in container["args"][1:]]
    # <jobSet>-<replicatedJob>-<job>-<pod>.<subdomain>, and the subdomain is the JobSet's name.
    assert told == ["--hosts.coordinator", "my-run-node-0-0.my-run:8482", "--hosts.count", "16", "--hosts.id", "7"]
    assert made["spec"]["network"]["enableDNSHostnames"]
    assert job["template"]["spec"]["completionMode"] == "Indexed"
    assert inner["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert inner["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


@pytest.mark.parametrize("kind, name", [("tpu", "slice"), ("gpu", "node"), ("pathways", "pathways-head")])
def test_arguments_and_values_arrive_whole(desk, kind, name):
    made = manifest(desk, *KINDS[kind], *FULL, train=NASTY)
    container = pod(made, name)["containers"][0]
    told = environment(container)
    assert container["command"] == ["paxlike", "train"]
    assert [expanded(word, {"HOME": "/root", "touch pwned": "bad"}) for word in container["args"]][
        : len(NASTY)
    ] == NASTY
    assert expanded(told["XLA_FLAGS"], {"HOME": "/root"}) == "--a=1 --b=$(HOME)" and told["EMPTY"] == ""


def test_restarts(desk):
    """A preempted or stopped pod starts the run again without limit; a crashed one at most --max-restarts times."""
    made = manifest(desk, *GPU, *FULL)
    policy, job = made["spec"]["failurePolicy"], jobs(made)["node"]["template"]["spec"]
    assert policy["maxRestarts"] == 3
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    ]
    codes = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes == [[128 + signal.SIGTERM]]
    conditions = [rule["onPodConditions"] for rule in job["podFailurePolicy"]["rules"] if "onPodConditions" in rule]
    assert [each["type"] for each in conditions[0]] == ["DisruptionTarget"]
    assert job["backoffLimit"] == 0


def test_volumes_and_spot_nodes(desk):
    made = manifest(desk, *GPU, *FULL)
    inner = pod(made, "node")
    paths = {mount["name"]: mount["mountPath"] for mount in inner["containers"][0]["volumeMounts"]}
    sources = {paths[volume.pop("name")]: volume for volume in inner["volumes"]}
    assert sources["/runs"] == {"persistentVolumeClaim": {"claimName": "my-claim"}}
    assert sources["/local"] == {"hostPath": {"path": "/mnt/disk"}}
    assert sources["/gcs"]["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": "bucket"},
    }  # fmt: skip
    annotations = jobs(made)["node"]["template"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"} and inner["serviceAccountName"] == "writer"
    assert inner["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and inner["tolerations"]


@pytest.mark.parametrize("verb", [*KINDS, "state", "logs", "stop", "delete"])
def test_the_dry_run_printed_into_bash_is_what_runs(desk, verb):
    if verb in KINDS:
        arguments, train = [*KINDS[verb], *FULL], ["--", *NASTY]
    else:
        arguments, train = [verb, "my-run", "--context", "c 1", *(["--yes"] if verb == "delete" else [])], []
    printed = desk.run("gke.py", *arguments, "--dry-run", *train)
    assert printed.returncode == 0 and not desk.calls(), printed.stderr
    assert desk.bash(printed.stdout).returncode == 0
    from_bash = desk.calls()
    assert desk.run("gke.py", *arguments, *train).returncode == 0
    really = desk.calls()
    for call in [*from_bash, *really]:
        call["stdin"] = call["stdin"].strip()
    assert really == from_bash != []


def test_stop_suspends_and_start_resumes(desk):
    desk.run("gke.py", "stop", "my-run")
    (call,) = desk.calls()
    assert call["argv"][-1] == '--patch={"spec": {"suspend": true}}' and "my-run" in call["argv"]
    assert manifest(desk, *TPU)["spec"]["suspend"] is False


@pytest.mark.parametrize("answer, deleted", [("y\n", True), ("\n", False), ("", False)])
def test_delete_asks(desk, answer, deleted):
    done = desk.run("gke.py", "delete", "my-run", "--context", "c-1", "--namespace", "team", stdin=answer)
    assert (done.returncode == 0) == deleted
    wanted = ["--context=c-1", "--namespace=team", "delete", "jobset", "my-run"]
    assert [call["argv"] for call in desk.calls()] == [wanted] * deleted


@pytest.mark.parametrize(
    "arguments, says",
    [
        (TPU[:-2], "--topology"),
        ([*TPU, "--nodes", "2"], "--topology"),
        ([*TPU[:-1], "4x4x3", "--per-host", "32"], "whole hosts"),
        ([*TPU[:-1], "4by4"], "4by4"),
        ([*TPU, "--pathways"], "--pathways-dir"),
        ([*GPU, "--pathways-dir", "gs://b"], "belong to --pathways"),
        ([*PATHWAYS, "--accelerator", "nvidia-l4"], "nvidia-l4"),
        ([*TPU, "--volume", "claim"], "SOURCE=/PATH"),
        ([*TPU, "--env", "NOVALUE"], "NAME=VALUE"),
        (["start", "My_Run", *TPU[2:]], "My_Run"),
        (["start", "a" * 55, *TPU[2:]], "63 at most"),
    ],
)
def test_mistakes_are_told(desk, arguments, says):
    done = desk.run("gke.py", *arguments, "--", "c.py")
    assert done.returncode == 2 and says in done.stderr and not desk.calls()
    assert "Traceback" not in done.stderr


# ---- Pathways --------------------------------------------------------------------------------------------------------


def test_pathways_servers_are_those_of_its_own_builder(desk):
    """Resource manager, proxy and workers, field by field, against pathwaysutils."""
    from pathwaysutils.experimental.gke.jobset import PathwaysJobSet

    builder = PathwaysJobSet(
        name="my-run", namespace="default", pathways_dir="gs://b/p", tpu_type="v5p", topology="4x4x8", num_slices=2,
        pathways_version="v-1", max_restarts=10, head_pod_spec_kwargs={"node_selector": {"cloud.google.com/gke-nodepool": "cpus"}},
    )  # fmt: skip
    reference = builder.add_user_workload(image="img:1", command=["paxlike", "train"], name="paxlike").to_dict()
    ours = manifest(desk, *PATHWAYS, "--pathways-version", "v-1")
    for field in ("coordinator", "successPolicy", "startupPolicy", "network"):
        assert ours["spec"][field] == reference["spec"][field]
    assert pod(ours, "pathways-head")["initContainers"] == pod(reference, "pathways-head")["initContainers"]
    assert pod(ours, "pathways-worker") == pod(reference, "pathways-worker")
    assert pod(ours, "pathways-head")["nodeSelector"] == pod(reference, "pathways-head")["nodeSelector"]
    for name in ("pathways-head", "pathways-worker"):
        mine, theirs = jobs(ours)[name], jobs(reference)[name]
        assert mine["replicas"] == theirs.get("replicas", 1)
        for field in ("parallelism", "completions", "completionMode", "backoffLimit"):
            assert mine["template"]["spec"][field] == theirs["template"]["spec"][field]
        where = [each["template"]["spec"]["template"]["metadata"]["annotations"] for each in (mine, theirs)]
        assert where[0] == where[1]
    client = environment(pod(ours, "pathways-head")["containers"][0])
    assert environment(pod(reference, "pathways-head")["containers"][0]).items() <= client.items()


def test_the_program_starts_through_pathways(tmp_path):
    """With the head's variables and nothing else changed, JAX's backend is the proxy."""
    program = (
        "from paxlike.parallel import runtime; runtime.start(); "
        "from jax._src.xla_bridge import _backend_factories as known; print('proxy' in known)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, timeout=300,
        env={"JAX_PLATFORMS": "proxy", "JAX_BACKEND_TARGET": "grpc://localhost:29000", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr


def test_without_pathwaysutils_the_remedy_is_told(tmp_path):
    (tmp_path / "pathwaysutils.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-m", "paxlike", "train", str(ROOT / "configs" / "tiny.py")], text=True, capture_output=True, timeout=300,
        env={"JAX_PLATFORMS": "proxy", "PYTHONPATH": f"{tmp_path}:{ROOT}", "HOME": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and "pip install '.[pathways]'" in done.stderr and "Traceback" not in done.stderr
