"""A pod is deleted: how much time it has, and when its experiment has had its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Options, Times
from sidecar.mounter.reporting.pod_deletion import PodDeletion, experiment_containers
from tests.reporting.conftest import POD, InPod
from tests.reporting.test_cluster import reasons
from tests.support.clouds import Cloud
from tests.support.kubernetes_api import KubernetesApi

SHARED = {"name": "mount-sidecar-shared", "mountPath": "/mnt/persistence"}


def deleted(grace_s: int | None, spec_grace_s: int = 90) -> dict[str, Any]:
    """A pod with two containers of the experiment, and three others."""
    containers = [
        {"name": "main", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, SHARED]},
        {"name": "istio-proxy", "volumeMounts": [{"name": "envoy", "mountPath": "/etc/istio"}]},
        {"name": "bare"},
    ]
    init = [
        {"name": "mount-sidecar", "volumeMounts": [SHARED]},
        {"name": "exporter", "restartPolicy": "Always", "volumeMounts": [SHARED]},
    ]
    spec = {"terminationGracePeriodSeconds": spec_grace_s, "containers": containers}
    metadata = {} if grace_s is None else {"deletionGracePeriodSeconds": grace_s}
    return {"metadata": metadata, "spec": {**spec, "initContainers": init}}


@pytest.mark.parametrize(
    ("grace_s", "own_s"),
    [
        pytest.param(90, 30, id="its own"),
        pytest.param(60, 30, id="less than both need"),
        pytest.param(5, 30, id="less than its own"),
        pytest.param(300, 240, id="more"),
    ],
)
def test_the_experiment_has_what_it_had_without_the_sidecar(grace_s: int, own_s: int) -> None:
    assert PodDeletion(60).look_at_pod(deleted(grace_s), 0.0) == {
        "event": "deleted",
        "grace_s": grace_s,
        "own_grace_s": own_s,
        "containers": ["exporter", "main"],
    }


def test_it_is_told_when_there_is_news_only() -> None:
    deletion = PodDeletion(60)
    assert deletion.is_due(0.0)
    assert deletion.look_at_pod(None, 0.0) is None
    assert not deletion.is_due(1.0)
    assert deletion.look_at_pod(deleted(None), 2.0) is None
    assert deletion.look_at_pod(deleted(90), 4.0) is not None
    assert deletion.look_at_pod(deleted(90), 6.0) is None
    shortened = deletion.look_at_pod(deleted(5), 8.0)
    assert shortened is not None
    assert shortened["grace_s"] == 5


def test_who_has_no_mounts_is_not_of_the_experiment() -> None:
    assert experiment_containers({"containers": [{"name": "main"}]}) == []


# --- a running sidecar ----------------------------------------------------------------------


def delete(api: KubernetesApi, grace_s: int, spec_grace_s: int) -> None:
    """As the API server keeps it."""
    with api.lock:
        pod = api.objects[POD]
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_s
        pod["spec"]["terminationGracePeriodSeconds"] = spec_grace_s
        pod["spec"]["containers"] = deleted(grace_s)["spec"]["containers"]


def test_the_node_is_asked_to_end_what_has_had_its_time(api: KubernetesApi, in_pod: InPod) -> None:
    with in_pod(times=Times(ready_timeout_s=30, grace_s=60)) as sidecar:
        delete(api, 61, 61)
        (sidecar.state / "stopping").write_text("61\n")
        overdue = sidecar.state / "overdue"
        sidecar.wait_for(overdue.exists)
        began_s = (sidecar.state / "stopping").stat().st_mtime
        assert overdue.stat().st_mtime - began_s >= 1 + 2, "its own second, and two of a kubelet's"
        assert overdue.read_text() == "main\n"
        assert sidecar.stop() == 0
    sidecar.start()  # a container that is started anew has not heard of the end
    assert not overdue.exists()
    assert sidecar.stop() == 0


def test_the_node_is_asked_for_nothing_of_a_pod_that_is_not_deleted(
    api: KubernetesApi, in_pod: InPod
) -> None:
    """A kubelet runs the hook, too, where it starts the sidecar's container anew."""
    with in_pod(times=Times(ready_timeout_s=30, grace_s=60)) as sidecar:
        (sidecar.state / "stopping").write_text("60\n")
        sidecar.wait_for(lambda: "the pod is ending" in sidecar.log())
        asked = len(api.requests("PATCH", "status"))
        api.wait_for(lambda: len(api.requests("PATCH", "status")) >= asked + 3, "it has looked")
        time.sleep(1)
        assert not (sidecar.state / "overdue").exists()
        assert sidecar.stop() == 0


@pytest.mark.parametrize(("spec_grace_s", "grace_s"), [(600, 9), (9, 600)], ids=["less", "more"])
def test_the_time_is_what_the_pod_was_deleted_with(
    api: KubernetesApi,
    in_pod: InPod,
    tmp_path: Path,
    s3: Cloud,
    spec_grace_s: int,
    grace_s: int,
) -> None:
    """And not what its spec says, which is all that the hook knows."""
    options, times = Options(save_s=3600), Times(ready_timeout_s=30, grace_s=600)
    with in_pod(options=options, times=times) as sidecar:
        file = os.open(tmp_path / "m/file", os.O_WRONLY | os.O_CREAT)
        os.write(file, b"content")
        s3.server.pause()
        try:
            delete(api, grace_s, spec_grace_s)
            (sidecar.state / "stopping").write_text(f"{spec_grace_s}\n")
            api.wait_for(lambda: "Saving" in reasons(api), "that it is ending")
            if grace_s < spec_grace_s:
                api.wait_for(lambda: "NotSaved" in reasons(api), "that it is over")
            else:
                time.sleep(spec_grace_s)
                assert "NotSaved" not in reasons(api)
        finally:
            s3.server.resume()
        os.close(file)
        assert sidecar.stop() == 0


def test_a_short_time_is_for_saving_too(in_pod: InPod, tmp_path: Path, s3: Cloud) -> None:
    """And not for unmounting alone, which takes most of a short grace period."""
    options, times = Options(save_s=3600), Times(ready_timeout_s=30, grace_margin_s=60)
    with in_pod(options=options, times=times) as sidecar:
        with (tmp_path / "m/file").open("wb", buffering=0) as file:
            file.write(b"content")
            (sidecar.state / "stopping").write_text("30\n")
            sidecar.wait_for(lambda: s3.keys() == ["file"])
        assert sidecar.stop() == 0
