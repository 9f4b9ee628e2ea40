"""Checks a manifest against the published JobSet API: fields, types, required fields, enums.

Unknown fields are errors. JobSet v1alpha2 is taken from kubernetes-sigs/jobset at commits
0336a8fd9fd3 (api/jobset/v1alpha2/jobset_types.go) and f22237acb005 (hack/python-sdk/swagger.json,
with Kubernetes 1.33.3); the Job inside it from the models of the `kubernetes` package. Where these
differ, the schema has the narrower definition, so that JobSet 0.8 accepts the manifest too.
"""

import re

import jsonschema
from kubernetes import client


def closed(required: tuple[str, ...] = (), **properties: dict) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def enum(*values: str) -> dict:
    return {"enum": list(values)}


TEXT, WHOLE, YES_NO = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
STRINGS = {"type": "object", "additionalProperties": TEXT}

RULE = closed(
    ("name", "action"),
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action=enum("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    onJobFailureReasons={
        "type": "array",
        "items": enum(
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        ),
    },
    targetReplicatedJobs=TEXTS,
)
REPLICATED_JOB = closed(
    ("name", "template"), name=LABEL, replicas=WHOLE, template={"type": "object"}, groupName=TEXT
)
SPEC = closed(
    ("replicatedJobs",),
    replicatedJobs={"type": "array", "items": REPLICATED_JOB, "minItems": 1},
    network=closed(enableDNSHostnames=YES_NO, publishNotReadyAddresses=YES_NO, subdomain=TEXT),
    successPolicy=closed(("operator",), operator=enum("All", "Any"), targetReplicatedJobs=TEXTS),
    failurePolicy=closed(
        maxRestarts={"type": "integer", "minimum": 0},
        restartStrategy=enum("Recreate", "BlockingRecreate"),
        rules={"type": "array", "items": RULE},
    ),
    startupPolicy=closed(("startupPolicyOrder",), startupPolicyOrder=enum("AnyOrder", "InOrder")),
    coordinator=closed(("replicatedJob",), replicatedJob=TEXT, jobIndex=WHOLE, podIndex=WHOLE),
    suspend=YES_NO,
    ttlSecondsAfterFinished=WHOLE,
)
JOBSET = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=enum("jobset.x-k8s.io/v1alpha2"),
    kind=enum("JobSet"),
    metadata=closed(("name",), name=LABEL, namespace=LABEL, annotations=STRINGS, labels=STRINGS),
    spec=SPEC,
)


def check(manifest: dict) -> None:
    """Raises an exception if the API server or JobSet's admission webhook would reject it."""
    jsonschema.validate(manifest, JOBSET)
    spec = manifest["spec"]
    names = [job["name"] for job in spec["replicatedJobs"]]
    assert len(set(names)) == len(names)
    assert set(spec.get("successPolicy", {}).get("targetReplicatedJobs", [])) <= set(names)
    assert spec.get("coordinator", {}).get("replicatedJob", names[0]) in names
    for job in spec["replicatedJobs"]:
        check_model(job["template"], "V1JobTemplateSpec", job["name"])
        inner = job["template"]["spec"]
        pod = inner["template"]["spec"]
        name = f"{manifest['metadata']['name']}-{job['name']}"
        assert len(f"{name}-{job['replicas'] - 1}-{inner['parallelism'] - 1}") <= 63
        assert "podFailurePolicy" not in inner or pod["restartPolicy"] == "Never"
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
            assert set(mounts) <= {volume["name"] for volume in pod.get("volumes", [])}


def check_model(value: object, kind: str, path: str) -> None:
    """Checks JSON against a model of the Kubernetes client: field names, types, required fields."""
    if inner := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        assert isinstance(value, list), (path, value)
        for number, item in enumerate(value):
            check_model(item, inner[1], f"{path}[{number}]")
    elif inner := re.fullmatch(r"[Dd]ict[\[(](.+), (.+)[\])]", kind):
        assert isinstance(value, dict), (path, value)
        for key, item in value.items():
            check_model(key, inner[1], f"{path} key")
            check_model(item, inner[2], f"{path}.{key}")
    elif hasattr(client, kind):
        model = getattr(client, kind)
        fields = {name: field for field, name in model.attribute_map.items()}
        unknown = set(value) - set(fields)
        assert not unknown, f"{path}: {kind} has no {unknown}"
        for name, item in value.items():
            check_model(item, model.openapi_types[fields[name]], f"{path}.{name}")
        # The constructor raises ValueError without a required field.
        model(**{fields[name]: item for name, item in value.items()})
    elif kind != "object":
        expected = {"str": str, "int": int, "bool": bool}[kind]
        assert type(value) is expected, f"{path}: {value!r} is not a {kind}"
