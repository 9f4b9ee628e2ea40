"""gke.py: manifests match the published API and the options; kubectl gets the right commands."""

import json
import re
import signal

import pytest

from .conftest import HARD_TO_QUOTE
from .jobset_schema import check

TPU = [
    "start",
    "my-run",
    "--image",
    "img:1",
    "--accelerator",
    "tpu-v5p-slice",
    "--topology",
    "4x4x8",
]
GPU = ["start", "my-run", "--image", "img:1", "--accelerator", "nvidia-h100-80gb", "--nodes", "16"]
PATHWAYS = [
    *TPU,
    "--slices",
    "2",
    "--pathways",
    "--pathways-dir",
    "gs://b/p",
    "--head-node-pool",
    "cpus",
]
FULL = [
    "--spot",
    *("--max-restarts", "3"),
    *("--service-account", "writer"),
    *("--context", "c-1"),
    *("--namespace", "team"),
    *("--volume", "gs://bucket=/gcs", "--volume", "/mnt/disk=/local", "--volume", "my-claim=/runs"),
    *("--env", "XLA_FLAGS=--a=1 --b=$(HOME)", "--env", "EMPTY="),
]
KINDS = {"tpu": TPU, "slices": [*TPU, "--slices", "3"], "gpu": GPU, "pathways": PATHWAYS}


def manifest(sandbox, *arguments: str, train=("configs/palm_8b.py",)) -> dict:
    done = sandbox.run("gke.py", *arguments, "--", *train)
    assert done.returncode == 0, done.stderr
    (call,) = sandbox.calls()
    assert call["argv"][-2:] == ["apply", "--filename=-"]
    return json.loads(call["stdin"])


def jobs(made: dict) -> dict[str, dict]:
    return {job["name"]: job for job in made["spec"]["replicatedJobs"]}


def pod(made: dict, name: str) -> dict:
    return jobs(made)[name]["template"]["spec"]["template"]["spec"]


def environment(container: dict) -> dict[str, str]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def expanded(text: str, variables: dict[str, str]) -> str:
    """Expands $(NAME) like Kubernetes in command, args and env.

    $$ becomes $; a reference to an unknown variable stays unchanged.
    """

    def replacement(match: re.Match) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replacement, text)


@pytest.mark.parametrize("more", [[], FULL], ids=["plain", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_manifests_match_the_api(sandbox, kind, more):
    check(manifest(sandbox, *KINDS[kind], *more))


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m["spec"].update(maxRestarts=3),
        lambda m: m["spec"]["failurePolicy"].update(maxRestarts="3"),
        lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda m: m["spec"]["replicatedJobs"][0].pop("template"),
        lambda m: pod(m, "slice")["containers"][0].pop("name"),
        lambda m: pod(m, "slice")["containers"][0].update(envs=[]),
        lambda m: pod(m, "slice")["containers"][0]["resources"]["limits"].update(
            {"google.com/tpu": 4}
        ),
        lambda m: pod(m, "slice").update(restartPolicy="OnFailure"),
    ],
)
def test_the_schema_check_rejects_invalid_manifests(sandbox, damage):
    made = manifest(sandbox, *TPU)
    check(made)
    damage(made)
    with pytest.raises(Exception):  # noqa: B017  jsonschema's, an assertion, or the model's ValueError
        check(made)


def test_each_tpu_slice_has_a_node_pool_and_one_pod_per_host(sandbox):
    made = manifest(sandbox, *TPU, "--slices", "3")
    (job,) = jobs(made).values()
    assert (
        job["replicas"] == 3
        and job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 32
    )
    assert made["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    inner = pod(made, "slice")
    assert inner["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x8",
    }
    assert inner["containers"][0]["resources"] == {"limits": {"google.com/tpu": "4"}}
    assert inner["hostNetwork"] and inner["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert "hostNetwork" not in pod(manifest(sandbox, *TPU), "slice")
    # JAX finds the processes from variables of GKE; the launcher must not set conflicting ones.
    assert inner["containers"][0]["env"] == [] and inner["containers"][0]["args"] == [
        "configs/palm_8b.py"
    ]
    one_host = manifest(sandbox, *TPU[:-1], "2x4", "--per-host", "8")
    assert jobs(one_host)["slice"]["template"]["spec"]["parallelism"] == 1


def test_gpu_nodes_get_coordinator_count_and_index(sandbox):
    made = manifest(sandbox, *GPU)
    job, inner = jobs(made)["node"], pod(made, "node")
    assert job["replicas"] == 1 and job["template"]["spec"]["completions"] == 16
    container = inner["containers"][0]
    index = {
        "fieldRef": {
            "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        }
    }
    (name,) = [name for name, value in environment(container).items() if value == index]
    flags = [expanded(word, {name: "7"}) for word in container["args"][1:]]
    # <jobSet>-<replicatedJob>-<job>-<pod>.<subdomain>; the subdomain is the JobSet's name.
    assert flags == [
        "--hosts.coordinator",
        "my-run-node-0-0.my-run:8482",
        "--hosts.count",
        "16",
        "--hosts.id",
        "7",
    ]
    assert made["spec"]["network"]["enableDNSHostnames"]
    assert job["template"]["spec"]["completionMode"] == "Indexed"
    assert inner["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert inner["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


@pytest.mark.parametrize(
    "kind, name", [("tpu", "slice"), ("gpu", "node"), ("pathways", "pathways-head")]
)
def test_arguments_and_variables_reach_the_container_unchanged(sandbox, kind, name):
    made = manifest(sandbox, *KINDS[kind], *FULL, train=HARD_TO_QUOTE)
    container = pod(made, name)["containers"][0]
    values = environment(container)
    assert container["command"] == ["paxlike", "train"]
    assert [expanded(word, {"HOME": "/root", "touch pwned": "bad"}) for word in container["args"]][
        : len(HARD_TO_QUOTE)
    ] == HARD_TO_QUOTE
    assert (
        expanded(values["XLA_FLAGS"], {"HOME": "/root"}) == "--a=1 --b=$(HOME)"
        and values["EMPTY"] == ""
    )


def test_restarts(sandbox):
    """Restarts are unlimited after preemption or SIGTERM, and --max-restarts after crashes."""
    made = manifest(sandbox, *GPU, *FULL)
    policy, job = made["spec"]["failurePolicy"], jobs(made)["node"]["template"]["spec"]
    assert policy["maxRestarts"] == 3
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    ]
    codes = [
        rule["onExitCodes"]["values"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert codes == [[128 + signal.SIGTERM]]
    conditions = [
        rule["onPodConditions"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onPodConditions" in rule
    ]
    assert [each["type"] for each in conditions[0]] == ["DisruptionTarget"]
    assert job["backoffLimit"] == 0


def test_volumes_and_spot_nodes(sandbox):
    made = manifest(sandbox, *GPU, *FULL)
    inner = pod(made, "node")
    paths = {mount["name"]: mount["mountPath"] for mount in inner["containers"][0]["volumeMounts"]}
    sources = {paths[volume.pop("name")]: volume for volume in inner["volumes"]}
    assert sources["/runs"] == {"persistentVolumeClaim": {"claimName": "my-claim"}}
    assert sources["/local"] == {"hostPath": {"path": "/mnt/disk"}}
    assert sources["/gcs"]["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {"bucketName": "bucket"},
    }
    annotations = jobs(made)["node"]["template"]["spec"]["template"]["metadata"]["annotations"]
    assert (
        annotations == {"gke-gcsfuse/volumes": "true"} and inner["serviceAccountName"] == "writer"
    )
    assert inner["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and inner["tolerations"]


@pytest.mark.parametrize("case", [*KINDS, "state", "logs", "stop", "delete"])
def test_running_the_dry_runs_output_makes_the_same_calls(sandbox, case):
    if case in KINDS:
        arguments, train = [*KINDS[case], *FULL], ["--", *HARD_TO_QUOTE]
    else:
        arguments, train = (
            [case, "my-run", "--context", "c 1", *(["--yes"] if case == "delete" else [])],
            [],
        )
    printed = sandbox.run("gke.py", *arguments, "--dry-run", *train)
    assert printed.returncode == 0 and not sandbox.calls(), printed.stderr
    assert sandbox.bash(printed.stdout).returncode == 0
    from_bash = sandbox.calls()
    assert sandbox.run("gke.py", *arguments, *train).returncode == 0
    direct = sandbox.calls()
    for call in [*from_bash, *direct]:
        call["stdin"] = call["stdin"].strip()
    assert direct == from_bash != []


def test_stop_suspends_and_start_resumes(sandbox):
    sandbox.run("gke.py", "stop", "my-run")
    (call,) = sandbox.calls()
    assert call["argv"][-1] == '--patch={"spec": {"suspend": true}}' and "my-run" in call["argv"]
    assert manifest(sandbox, *TPU)["spec"]["suspend"] is False


@pytest.mark.parametrize("answer, deleted", [("y\n", True), ("\n", False), ("", False)])
def test_delete_asks_for_confirmation(sandbox, answer, deleted):
    done = sandbox.run(
        "gke.py", "delete", "my-run", "--context", "c-1", "--namespace", "team", stdin=answer
    )
    assert (done.returncode == 0) == deleted
    wanted = ["--context=c-1", "--namespace=team", "delete", "jobset", "my-run"]
    assert [call["argv"] for call in sandbox.calls()] == [wanted] * deleted


@pytest.mark.parametrize(
    "arguments, message",
    [
        (TPU[:-2], "--topology"),
        ([*TPU, "--nodes", "2"], "--topology"),
        ([*TPU[:-1], "4x4x3", "--per-host", "32"], "chips per host"),
        ([*TPU[:-1], "4by4"], "4by4"),
        ([*TPU, "--pathways"], "--pathways-dir"),
        ([*GPU, "--pathways-dir", "gs://b"], "require --pathways"),
        ([*PATHWAYS, "--accelerator", "nvidia-l4"], "nvidia-l4"),
        ([*TPU, "--volume", "claim"], "SOURCE=/PATH"),
        ([*TPU, "--env", "NOVALUE"], "NAME=VALUE"),
        (["start", "My_Run", *TPU[2:]], "My_Run"),
        (["start", "a" * 55, *TPU[2:]], "63 at most"),
    ],
)
def test_invalid_arguments_are_reported(sandbox, arguments, message):
    done = sandbox.run("gke.py", *arguments, "--", "c.py")
    assert done.returncode == 2 and message in done.stderr and not sandbox.calls()
    assert "Traceback" not in done.stderr
