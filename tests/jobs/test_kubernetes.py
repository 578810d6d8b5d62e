"""The manifest: the text, what its objects must hold to be accepted, and what a pod starts."""

import re
from dataclasses import replace

import pytest
import yaml

from superscaler.jobs.kubernetes import kubernetes_manifest
from tests.jobs.started import JOB, RESTARTED, expected, started

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""A name in DNS, as RFC 1035 has it."""


def test_the_manifest_is_a_service_and_an_indexed_job(golden, tmp_path):
    text = kubernetes_manifest(JOB, "registry/mine:1", "work")
    golden("jobs/kubernetes.yaml", text)
    service, job = yaml.safe_load_all(text)
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert service["spec"]["clusterIP"] == "None", "headless: a name per pod"
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, template = job["spec"], job["spec"]["template"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert template["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    pod = template["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert {one["name"]: one["value"] for one in container["env"]} == JOB.environment


@pytest.mark.parametrize("job", [JOB, RESTARTED])
def test_each_pod_starts_torchrun_under_its_own_name(job, tmp_path):
    _, manifest = yaml.safe_load_all(kubernetes_manifest(job, "mine:1"))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    shell, option, command = container["command"]
    assert (shell, option) == ("bash", "-c")
    for number in (0, 1):
        (found,) = started(tmp_path, command, JOB_COMPLETION_INDEX=str(number), **JOB.environment)
        assert found == expected(job, "gpt-0.gpt", f"gpt-{number}.gpt", number)


def test_names_of_pods_are_names_of_hosts():
    long = replace(JOB, name="a" * 56 + "-" + "b" * 30)
    for manifest in (kubernetes_manifest(JOB, "mine:1"), kubernetes_manifest(long, "mine:1")):
        service, job = yaml.safe_load_all(manifest)
        assert LABEL.fullmatch(service["metadata"]["name"])
        assert LABEL.fullmatch(f"{job['metadata']['name']}-1023")


def test_no_gpu_is_asked_for_where_none_is_used():
    assert "nvidia" not in kubernetes_manifest(replace(JOB, is_gpu=False), "mine:1")
