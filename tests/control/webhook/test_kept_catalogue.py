"""A replica that starts while the catalogue is broken serves the last good one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.injection.golden import CATALOGUE
from tests.control.webhook.server import Webhook, recorded, review
from tests.support.kubernetes_api import KubernetesApi

PATH = "/api/v1/namespaces/mount-sidecar/configmaps/mount-sidecar-catalogue-kept"
KEEP = "--keep-in", "mount-sidecar-catalogue-kept"
BROKEN = b"data: {d: {store: s4}}"


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as server:
        metadata = {"name": "mount-sidecar-catalogue-kept", "namespace": "mount-sidecar"}
        server.put(PATH, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        yield server


def kept(api: KubernetesApi) -> str:
    return str(api.objects[PATH].get("data", {}).get("catalogue.yaml", ""))


def mounted(folder: Path, text: str) -> tuple[str, str]:
    """The arguments of a replica that finds the ConfigMap mounted."""
    file = folder / "kept.yaml"
    file.write_text(text)
    return "--kept-catalogue", str(file)


def test_a_restart_while_the_catalogue_is_broken(api: KubernetesApi, tmp_path: Path) -> None:
    kubeconfig = api.kubeconfig(tmp_path)
    with Webhook(tmp_path / "first", *KEEP, kubeconfig=kubeconfig) as first:
        first.wait_for_log("catalogue kept")
        assert kept(api) == CATALOGUE.read_text()
        first.catalogue.replace({"catalogue.yaml": BROKEN})
        first.wait_for_log("catalogue refused")
        assert "catalogueError" in first.page("/startupz")
    assert kept(api) == CATALOGUE.read_text()
    arguments = *KEEP, *mounted(tmp_path, kept(api))
    with Webhook(tmp_path / "next", *arguments, catalogue=BROKEN, kubeconfig=kubeconfig) as second:
        response = review(second.connect(), recorded("create-by-job-controller"))
        assert response["allowed"] is True
        assert "patch" in response
        assert "SC1002 CATALOGUE_INVALID" in json.loads(second.page("/startupz"))["catalogueError"]
        second.wait_for_log("catalogue refused, the last one holds")
        assert "mount_sidecar_webhook_catalogue_valid 0.0" in second.page("/metrics")
        text = CATALOGUE.read_text().replace("s3://images/train", "s3://images/validation")
        second.catalogue.replace({"catalogue.yaml": text.encode()})
        second.wait_for_log("catalogue kept")
        assert kept(api) == text
        assert json.loads(second.page("/startupz")) == {"ready": True, "catalogueError": None}
    assert {asked.method for asked in api.asked} == {"PATCH"}, "its Role allows nothing else"


def test_nothing_is_asked_while_the_kept_one_is_the_same(
    api: KubernetesApi, tmp_path: Path
) -> None:
    arguments = *KEEP, *mounted(tmp_path, CATALOGUE.read_text())
    with Webhook(tmp_path / "it", *arguments, kubeconfig=api.kubeconfig(tmp_path)) as webhook:
        webhook.catalogue.replace({"catalogue.yaml": BROKEN})
        webhook.wait_for_log("catalogue refused")
        assert api.asked == []


def test_a_catalogue_that_cannot_be_kept_is_told_once(api: KubernetesApi, tmp_path: Path) -> None:
    api.fail("PATCH", PATH, 403, times=100)
    with Webhook(tmp_path / "it", *KEEP, kubeconfig=api.kubeconfig(tmp_path)) as webhook:
        webhook.wait_for_log("the catalogue cannot be kept.*SC1100 API_FORBIDDEN")
        assert review(webhook.connect(), recorded("create-by-job-controller"))["allowed"] is True
        assert webhook.log().count("cannot be kept") == 1
