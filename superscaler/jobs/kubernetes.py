"""A manifest for Kubernetes: an Indexed Job with a pod per node, and the service that gives pods their names."""

from typing import Any

import yaml

from superscaler.jobs.job import Job

WORK = "/work"
"""Where pods see the volume of the claim."""
_LONGEST_NAME = 57
"""Of a job: a pod's host name is its name and its number, and has at most 63 characters."""


def kubernetes_manifest(job: Job, image: str, claim: str = "") -> str:
    """YAML that ``kubectl apply`` takes.

    Args:
        job: What it runs.
        image: Holds torch and superscaler.
        claim: A persistent volume claim that many pods can mount, seen under `WORK`.
    """
    name = job.name[:_LONGEST_NAME].strip("-")
    labels = {"app.kubernetes.io/name": name}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": dict(labels)},
        # pods must find one another before they are ready
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": dict(labels)},
    }
    batch = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": job.max_restarts * job.nodes,
            "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(job, name, image, claim)},
        },
    }
    return yaml.safe_dump_all([service, batch], sort_keys=False, width=1000)


def _pod(job: Job, name: str, image: str, claim: str) -> dict[str, Any]:
    number = "$JOB_COMPLETION_INDEX"
    command = job.torchrun(f"{name}-0.{name}", f"{name}-{number}.{name}", number)
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    # NCCL's rings between processes of a node lie in shared memory, of which a container has 64 MB
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    if claim:
        mounts.append({"name": "work", "mountPath": WORK})
        volumes.append({"name": "work", "persistentVolumeClaim": {"claimName": claim}})
    container: dict[str, Any] = {
        "name": "torchrun",
        "image": image,
        "command": ["bash", "-c", f"exec {command}"],
        "env": [{"name": key, "value": value} for key, value in job.environment.items()],
        "volumeMounts": mounts,
    }
    if job.is_gpu:
        container["resources"] = {"limits": {"nvidia.com/gpu": job.processes}}
    return {"subdomain": name, "restartPolicy": "Never", "containers": [container], "volumes": volumes}
