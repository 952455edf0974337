"""Errors that people make in manifests, each with a part of the sentence that must tell it."""

from __future__ import annotations

from typing import Any

from tests.infra.rules import RAY_VERSION

HEAD = "/spec/rayClusterSpec/headGroupSpec"
CPU = "/spec/rayClusterSpec/workerGroupSpecs/0"
SPOT = "/spec/rayClusterSpec/workerGroupSpecs/1"
SERVICE_HEAD = "/spec/rayClusterConfig/headGroupSpec"
RAY = "template/spec/containers/0"
PLANTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a misspelled field of RayJob": (
        *("RayJob", {"op": "add", "path": "/spec/backofLimit", "value": 1}),
        "'backofLimit' was unexpected",
    ),
    "a misspelled field of a group": (
        *("RayJob", {"op": "add", "path": f"{SPOT}/priorty", "value": 1}),
        "'priorty' was unexpected",
    ),
    "a misspelled field of RayService": (
        "RayService",
        {"op": "add", "path": "/spec/upgradeStrategy/clusterUpgradeOption", "value": {}},
        "'clusterUpgradeOption' was unexpected",
    ),
    "a wrong type": (
        *("RayJob", {"op": "replace", "path": f"{CPU}/maxReplicas", "value": "4"}),
        "maxReplicas: '4' is not of type 'integer'",
    ),
    "a number where Ray wants text": (
        *("RayJob", {"op": "replace", "path": f"{HEAD}/rayStartParams/num-cpus", "value": 0}),
        "num-cpus: 0 is not of type 'string'",
    ),
    "a value that does not exist": (
        *("RayJob", {"op": "replace", "path": "/spec/submissionMode", "value": "JobMode"}),
        "'JobMode' is not one of",
    ),
    "a misspelled field of a pod": (
        *("RayJob", {"op": "add", "path": f"{CPU}/template/spec/toleration", "value": []}),
        "toleration",
    ),
    "a misspelled field of the autoscaler's container": (
        "RayService",
        {"op": "add", "path": "/spec/rayClusterConfig/autoscalerOptions/env/0/vale", "value": "x"},
        "vale",
    ),
    "a misspelled field of a network policy": (
        *("NetworkPolicy", {"op": "add", "path": "/spec/ingres", "value": []}),
        "ingres",
    ),
    "a misspelled field of the pod monitor": (
        *("PodMonitor", {"op": "add", "path": "/spec/podMetricsEndpoints/0/ports", "value": "x"}),
        "'ports' was unexpected",
    ),
    "a misspelled field of the namespace": (
        *("Namespace", {"op": "add", "path": "/metadata/lables", "value": {}}),
        "lables",
    ),
    "a namespace that enforces nothing": (
        *("Namespace", {"op": "remove", "path": "/metadata/labels"}),
        "does not enforce the restricted level",
    ),
    "a misspelled field of a ConfigMap": (
        *("ConfigMap", {"op": "add", "path": "/binaryDatas", "value": {}}),
        "binaryDatas",
    ),
    "an option that Ray does not have": (
        *("RayJob", {"op": "add", "path": f"{HEAD}/rayStartParams/num-cpu", "value": "0"}),
        "RayJob, head: `ray start` has no --num-cpu",
    ),
    "a misspelled field of an account": (
        *("ServiceAccount", {"op": "add", "path": "/automountToken", "value": False}),
        "automountToken",
    ),
    "a priority that is no number": (
        *("PriorityClass", {"op": "replace", "path": "/value", "value": "high"}),
        "value",
    ),
    "another Ray": (
        *(
            "RayJob",
            {"op": "replace", "path": "/spec/rayClusterSpec/rayVersion", "value": "2.59.0"},
        ),
        f"rayVersion 2.59.0, but pyproject.toml says {RAY_VERSION}",
    ),
    "an image without a name for good": (
        "RayJob",
        {"op": "replace", "path": f"{SPOT}/{RAY}/image", "value": "YOUR-REGISTRY/historay:latest"},
        "historay:latest has not the tag",
    ),
    "an image of another Ray": (
        "RayService",
        {"op": "replace", "path": f"{SERVICE_HEAD}/{RAY}/image", "value": "h:0.1.0-ray2.59.0"},
        "h:0.1.0-ray2.59.0 has not the tag",
    ),
    "no limit of memory": (
        *("RayJob", {"op": "remove", "path": f"{SPOT}/{RAY}/resources/limits/memory"}),
        "RayJob, gpu-spot, ray-worker: no limits of memory",
    ),
    "no limits of the autoscaler": (
        *("RayJob", {"op": "remove", "path": "/spec/rayClusterSpec/autoscalerOptions/resources"}),
        "RayJob, head, autoscaler: no limits of cpu",
    ),
    "root": (
        "RayJob",
        {"op": "remove", "path": f"{CPU}/template/spec/securityContext/runAsNonRoot"},
        "RayJob, cpu: may run as root",
    ),
    "a file system that can be written": (
        "RayService",
        {
            "op": "replace",
            "path": f"{SERVICE_HEAD}/{RAY}/securityContext/readOnlyRootFilesystem",
            "value": False,
        },
        "RayService, head, ray-head: its securityContext",
    ),
    "a token of Kubernetes for workers": (
        "RayJob",
        {
            "op": "replace",
            "path": f"{CPU}/template/spec/automountServiceAccountToken",
            "value": True,
        },
        "RayJob, cpu: only heads",
    ),
    "a /dev/shm without a limit": (
        "RayJob",
        {"op": "remove", "path": f"{CPU}/template/spec/volumes/1/emptyDir/sizeLimit"},
        "RayJob, cpu: /dev/shm is no memory with a limit",
    ),
    "an object store larger than /dev/shm": (
        "RayJob",
        {
            "op": "replace",
            "path": f"{CPU}/rayStartParams/object-store-memory",
            "value": "20000000000",
        },
        "RayJob, cpu: Ray's object store is larger",
    ),
    "memory that is promised twice": (
        "RayJob",
        {"op": "replace", "path": f"{CPU}/rayStartParams/memory", "value": "34359738368"},
        "RayJob, cpu: memory for tasks and /dev/shm are more",
    ),
    "work on the head": (
        *("RayJob", {"op": "remove", "path": f"{HEAD}/rayStartParams/num-cpus"}),
        "RayJob, head: Ray would run tasks there",
    ),
    "pools that differ": (
        "RayJob",
        {"op": "replace", "path": f"{SPOT}/{RAY}/resources/limits/cpu", "value": "16"},
        "groups with GPUs offer different resources",
    ),
    "pools without an order": (
        *("RayJob", {"op": "replace", "path": f"{SPOT}/priority", "value": 0}),
        "no order of priority",
    ),
    "a secret in a variable": (
        "RayJob",
        {
            "op": "add",
            "path": f"{CPU}/{RAY}/env/-",
            "value": {"name": "AWS_SECRET_ACCESS_KEY", "value": "planted"},
        },
        "AWS_SECRET_ACCESS_KEY is written down",
    ),
    "a secret by its looks": (
        "ConfigMap",
        {"op": "add", "path": "/data/more.yaml", "value": "key: AKIAIOSFODNN7EXAMPLE"},
        "holds what looks like a secret",
    ),
    "Ray without a token": (
        "RayService",
        {
            "op": "replace",
            "path": "/spec/rayClusterConfig/authOptions/mode",
            "value": "disabled",
        },
        "Ray's ports are open",
    ),
    "a secret that nobody makes": (
        "RayJob",
        {"op": "replace", "path": "/spec/rayClusterSpec/authOptions/secretName", "value": "x"},
        "there is no secret x",
    ),
    "an account that does not exist": (
        "RayJob",
        {"op": "replace", "path": f"{CPU}/template/spec/serviceAccountName", "value": "jobs"},
        "there is no ServiceAccount jobs",
    ),
    "a label that no policy knows": (
        "RayJob",
        {
            "op": "replace",
            "path": f"{CPU}/template/metadata/labels/historay~1workload",
            "value": "batch",
        },
        "historay/workload batch: pods and network policies do not agree",
    ),
    "a network policy for everybody": (
        "NetworkPolicy",
        {"op": "add", "path": "/spec/ingress", "value": [{"ports": [{"port": 8000}]}]},
        "open to everybody",
    ),
    "everything out": (
        "NetworkPolicy",
        {"op": "add", "path": "/spec/egress", "value": [{}]},
        "lets everything out",
    ),
    "a time to live without an end": (
        *("RayJob", {"op": "replace", "path": "/spec/shutdownAfterJobFinishes", "value": False}),
        "ttlSecondsAfterFinished takes shutdownAfterJobFinishes",
    ),
    "steps above the surge": (
        "RayService",
        {
            "op": "replace",
            "path": "/spec/upgradeStrategy/clusterUpgradeOptions/stepSizePercent",
            "value": 50,
        },
        "stepSizePercent is above maxSurgePercent",
    ),
    "another command": (
        "RayJob",
        {"op": "replace", "path": "/spec/entrypoint", "value": "historay --config x"},
        "its entrypoint is not",
    ),
    "settings that nobody brings": (
        "RayJob",
        {
            "op": "replace",
            "path": "/spec/entrypoint",
            "value": "python -m ray_pipeline embed --config /etc/historay/x.yaml",
        },
        "no ConfigMap brings /etc/historay/x.yaml",
    ),
    "no time to stop": (
        "RayJob",
        {"op": "replace", "path": f"{HEAD}/{RAY}/env/2/value", "value": "3"},
        "Ray kills the driver after 3 s",
    ),
    "no time for the head": (
        "RayJob",
        {
            "op": "replace",
            "path": f"{HEAD}/template/spec/terminationGracePeriodSeconds",
            "value": 20,
        },
        "the head is killed before its driver stops",
    ),
    "no time for answers": (
        *(
            "RayService",
            {"op": "replace", "path": "/spec/rayClusterDeletionDelaySeconds", "value": 60},
        ),
        "an old cluster goes before drain_s",
    ),
    "fewer GPUs than replicas": (
        "RayService",
        {
            "op": "replace",
            "path": "/spec/rayClusterConfig/workerGroupSpecs/1/maxReplicas",
            "value": 1,
        },
        "4 GPUs may be wanted, and there are 1 at most",
    ),
}
"""Kind of the manifest, an operation of JSON Patch on it, and the words."""
WORDS: dict[str, tuple[str, str, str, str, str]] = {
    "a key of the job": ("ConfigMap", "/data/job.yaml", "readers:", "reader:", "'reader'"),
    "a value of the job": ("ConfigMap", "/data/job.yaml", "encoders: 8", "encoders: x", "encoders"),
    "encoders that nobody counts": (
        *("ConfigMap", "/data/job.yaml", "encoders: 8\n", ""),
        "encoders is not said",
    ),
    "a job for a cluster that stays": (
        *("ConfigMap", "/data/job.yaml", "autoscaling: true", "autoscaling: false"),
        "autoscaling is not set",
    ),
    "more encoders than GPUs": (
        *("ConfigMap", "/data/job.yaml", "encoders: 8", "encoders: 40"),
        "no node has room for an encoding actor",
    ),
    "more readers than CPUs": (
        *("ConfigMap", "/data/job.yaml", "readers: 48", "readers: 480"),
        "no node has room for a reading actor",
    ),
    "a grace longer than Ray's": (
        *("ConfigMap", "/data/job.yaml", "model:", "stop_grace_s: 55\nmodel:"),
        "it takes 65 s to stop",
    ),
    "a key of the service": (
        *("RayService", "/spec/serveConfigV2", "tokens_file:", "token_file:"),
        "'token_file': is no known key",
    ),
    "a key of a model": (
        *("RayService", "/spec/serveConfigV2", "max_replicas:", "max_replica:"),
        "max_replica': is no known key",
    ),
    "a key of Ray Serve's application": (
        *("RayService", "/spec/serveConfigV2", "route_prefix:", "route_prefx:"),
        "Ray Serve knows no applications.route_prefx",
    ),
    "a key of Ray Serve": (
        *("RayService", "/spec/serveConfigV2", "proxy_location:", "proxy_locations:"),
        "Ray Serve knows no proxy_locations",
    ),
    "a value of Ray Serve": (
        *("RayService", "/spec/serveConfigV2", "port: 8000", "port: http"),
        "serveConfigV2",
    ),
    "an import path": (
        *("RayService", "/spec/serveConfigV2", "serve_app.app:app", "serve_app.app:application"),
        "there is no serve_app.app:application",
    ),
    "no tokens": (
        "RayService",
        "/spec/serveConfigV2",
        "tokens_file: /etc/historay/tokens/tokens",
        "allow_anonymous: true",
        "no token is wanted",
    ),
    "tokens that are not there": (
        *("RayService", "/spec/serveConfigV2", "tokens/tokens", "tokens/token"),
        "no secret brings /etc/historay/tokens/token",
    ),
    "GPUs that nobody counts": (
        *("RayService", "/spec/serveConfigV2", "gpus: 1", "queue_tiles: 512"),
        "gpus of h-optimus-0 is not said",
    ),
    "a port that nobody reaches": (
        *("RayService", "/spec/serveConfigV2", "port: 8000", "port: 9000"),
        "its port is not that of http_options",
    ),
    "a replica that fits nowhere": (
        *("RayService", "/spec/serveConfigV2", "cpus: 2\n", "cpus: 12\n"),
        "no pool has room",
    ),
}
"""Kind of the manifest, path of a text in it, what is replaced, by what, and the words."""
