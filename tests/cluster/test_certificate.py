"""The certificate's job on a real API server, and what somebody with its token cannot do."""

from __future__ import annotations

import base64
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Json, Refused

CONFIGURATION = "mutatingwebhookconfiguration", "mount-sidecar"
SECRET = "mount-sidecar-webhook-tls"
NAMESPACE = "mount-sidecar"


@pytest.fixture
def job(policies: Cluster, tmp_path: Path) -> Cluster:
    """The API as it looks to the job."""
    arguments = "create", "token", "mount-sidecar-certificate", "-n", NAMESPACE
    return policies.with_token(policies.kubectl(*arguments).strip(), tmp_path)


def run(job: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", "webhook", "certificate", *arguments],
        env={**os.environ, "KUBECONFIG": str(job.kubeconfig)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def bundles(cluster: Cluster) -> list[str]:
    webhooks = cluster.get(*CONFIGURATION)["webhooks"]
    return [webhook["clientConfig"].get("caBundle", "") for webhook in webhooks]


def test_the_job_installs_and_renews(policies: Cluster, job: Cluster) -> None:
    done = run(job)
    assert (done.returncode, done.stdout) == (0, "installed\n"), done.stderr
    [first] = bundles(policies)
    assert "BEGIN CERTIFICATE" in base64.b64decode(first).decode()
    assert run(job).stdout == "nothing to do\n"
    done = run(job, "--days", "400", "--renew-before-days", "370")
    assert (done.returncode, done.stdout) == (0, "installed\n"), done.stderr
    assert bundles(policies) != [first]


def _to_elsewhere(webhook: Json) -> None:
    webhook["clientConfig"] = {"url": "https://example.com/mutate", "caBundle": "Cg=="}


def _to_another_service(webhook: Json) -> None:
    webhook["clientConfig"]["service"]["name"] = "another"


def _for_secrets(webhook: Json) -> None:
    webhook["rules"] = [{**webhook["rules"][0], "resources": ["secrets"]}]


def _ignored(webhook: Json) -> None:
    webhook["failurePolicy"] = "Ignore"


def _everywhere(webhook: Json) -> None:
    webhook["namespaceSelector"] = {}


def _for_every_pod(webhook: Json) -> None:
    webhook["objectSelector"] = {}


def _conditionally(webhook: Json) -> None:
    webhook["matchConditions"] = [{"name": "never", "expression": "false"}]


def _renamed(webhook: Json) -> None:
    webhook["name"] = "another.example.com"


@pytest.mark.parametrize(
    "change",
    [
        _to_elsewhere,
        _to_another_service,
        _for_secrets,
        _ignored,
        _everywhere,
        _for_every_pod,
        _conditionally,
        _renamed,
    ],
)
def test_it_changes_nothing_of_a_webhook_but_its_bundle(
    policies: Cluster, job: Cluster, change: Callable[[Json], None]
) -> None:
    before = policies.get(*CONFIGURATION)
    document = copy.deepcopy(before)
    change(document["webhooks"][0])
    with pytest.raises(Refused, match="nothing of a webhook but its CA bundle"):
        job.patch_configuration("mount-sidecar", document)
    assert policies.get(*CONFIGURATION) == before


def test_it_adds_and_removes_no_webhook(policies: Cluster, job: Cluster) -> None:
    before = policies.get(*CONFIGURATION)
    more = copy.deepcopy(before)
    more["webhooks"].append({**more["webhooks"][0], "name": "second.example.com"})
    none: list[Json] = []
    for webhooks in (more["webhooks"], none):
        with pytest.raises(Refused, match="the certificate's job changes nothing"):
            job.patch_configuration("mount-sidecar", {**before, "webhooks": webhooks})
    labels = {"metadata": {"labels": {"app.kubernetes.io/part-of": "another"}}}
    with pytest.raises(Refused, match="nothing but CA bundles"):
        job.patch_configuration("mount-sidecar", labels)
    assert policies.get(*CONFIGURATION) == before


def secret(name: str, kind: str) -> Json:
    metadata = {
        "name": name,
        "namespace": NAMESPACE,
        "annotations": {"kubernetes.io/service-account.name": "default"},
    }
    data = {"tls.crt": "", "tls.key": ""}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": kind,
        "data": {} if kind.endswith("token") else data,
    }


def test_it_makes_one_secret_and_no_token(policies: Cluster, job: Cluster) -> None:
    policies.kubectl("-n", NAMESPACE, "delete", "secret", SECRET, "--ignore-not-found")
    for refused in (
        secret("another", "kubernetes.io/tls"),
        secret(SECRET, "kubernetes.io/service-account-token"),
    ):
        with pytest.raises(Refused, match="one secret only"):
            job.create(refused)
    done = run(job)
    assert (done.returncode, done.stdout) == (0, "installed\n"), done.stderr


def test_an_admin_may_change_it(policies: Cluster) -> None:
    before = policies.get(*CONFIGURATION)
    changed = copy.deepcopy(before["webhooks"])
    changed[0]["timeoutSeconds"] = 6
    policies.patch_configuration("mount-sidecar", {"webhooks": changed})
    policies.patch_configuration("mount-sidecar", {"webhooks": before["webhooks"]})
