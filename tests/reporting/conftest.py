"""An API server with a pod, and a sidecar with that pod's environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Times
from tests.mount.buckets import bucket_sidecar, make_cloud
from tests.reporting.test_pod_reports import pod
from tests.support.clouds import Cloud
from tests.support.kubernetes_api import KubernetesApi
from tests.support.servers import TlsFiles
from tests.support.sidecar import Sidecar

POD = "/api/v1/namespaces/team/pods/train"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    with KubernetesApi(TlsFiles(tmp_path / "tls")) as server:
        document = pod("OnFailure", [None])
        document["metadata"] = {"name": "train", "namespace": "team", "uid": "uid-of-the-pod"}
        server.put(POD, document)
        yield server


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request, monkeypatch, "s3")


class InPod:
    """Makes sidecars with the variables that a pod gives them."""

    def __init__(self, api: KubernetesApi, tmp_path: Path, s3: Cloud) -> None:
        self._api, self._tmp_path, self._s3 = api, tmp_path, s3

    def __call__(self, *, plain: bool = False, **settings: Any) -> Sidecar:
        environment = {
            **self._api.service_account(self._tmp_path / "account"),
            "SIDECAR_POD_NAME": "train",
            "SIDECAR_POD_NAMESPACE": "team",
            "SIDECAR_POD_UID": "uid-of-the-pod",
            "SIDECAR_NODE_NAME": "node-1",
        }
        if plain:
            environment["SIDECAR_STOP_WITH_EXPERIMENT"] = "true"
        settings.setdefault("times", Times(ready_timeout_s=30))
        sidecar = bucket_sidecar(self._tmp_path, self._s3, environment=environment, **settings)
        sidecar.state.mkdir(parents=True)  # An emptyDir exists before the container.
        return sidecar


@pytest.fixture
def in_pod(api: KubernetesApi, tmp_path: Path, s3: Cloud) -> InPod:
    return InPod(api, tmp_path, s3)
