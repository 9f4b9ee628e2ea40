"""gke.py --pathways: the manifest matches Google's builder, and training uses the proxy."""

import subprocess
import sys

from .conftest import ROOT
from .test_gke import PATHWAYS, environment, jobs, manifest, pod


def test_pathways_servers_match_googles_builder(sandbox):
    """Compares resource manager, proxy and workers field by field with pathwaysutils."""
    from pathwaysutils.experimental.gke.jobset import PathwaysJobSet

    builder = PathwaysJobSet(
        name="my-run",
        namespace="default",
        pathways_dir="gs://b/p",
        tpu_type="v5p",
        topology="4x4x8",
        num_slices=2,
        pathways_version="v-1",
        max_restarts=10,
        head_pod_spec_kwargs={"node_selector": {"cloud.google.com/gke-nodepool": "cpus"}},
    )
    reference = builder.add_user_workload(
        image="img:1", command=["paxlike", "train"], name="paxlike"
    ).to_dict()
    ours = manifest(sandbox, *PATHWAYS, "--pathways-version", "v-1")
    for field in ("coordinator", "successPolicy", "startupPolicy", "network"):
        assert ours["spec"][field] == reference["spec"][field]
    assert (
        pod(ours, "pathways-head")["initContainers"]
        == pod(reference, "pathways-head")["initContainers"]
    )
    assert pod(ours, "pathways-worker") == pod(reference, "pathways-worker")
    assert (
        pod(ours, "pathways-head")["nodeSelector"]
        == pod(reference, "pathways-head")["nodeSelector"]
    )
    for name in ("pathways-head", "pathways-worker"):
        mine, theirs = jobs(ours)[name], jobs(reference)[name]
        assert mine["replicas"] == theirs.get("replicas", 1)
        for field in ("parallelism", "completions", "completionMode", "backoffLimit"):
            assert mine["template"]["spec"][field] == theirs["template"]["spec"][field]
        annotations = [
            each["template"]["spec"]["template"]["metadata"]["annotations"]
            for each in (mine, theirs)
        ]
        assert annotations[0] == annotations[1]
    client = environment(pod(ours, "pathways-head")["containers"][0])
    assert environment(pod(reference, "pathways-head")["containers"][0]).items() <= client.items()


def test_train_uses_the_pathways_proxy(tmp_path):
    """With the variables of the head pod, JAX registers the proxy backend."""
    program = (
        "from paxlike.parallel import runtime; runtime.start(); "
        "from jax._src.xla_bridge import _backend_factories as known; print('proxy' in known)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        text=True,
        capture_output=True,
        timeout=300,
        env={
            "JAX_PLATFORMS": "proxy",
            "JAX_BACKEND_TARGET": "grpc://localhost:29000",
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
        },
    )
    assert done.stdout.strip() == "True", done.stderr


def test_missing_pathwaysutils_is_reported_with_the_remedy(tmp_path):
    (tmp_path / "pathwaysutils.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-m", "paxlike", "train", str(ROOT / "configs" / "tiny.py")],
        text=True,
        capture_output=True,
        timeout=300,
        env={"JAX_PLATFORMS": "proxy", "PYTHONPATH": f"{tmp_path}:{ROOT}", "HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    assert (
        done.returncode == 2
        and "pip install '.[pathways]'" in done.stderr
        and "Traceback" not in done.stderr
    )
