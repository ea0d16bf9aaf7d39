"""A sidecar is killed and started again, and a container has its bucket by a sub-path."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from sidecar.mounter.reporting.pod_reports import CONDITION
from tests.reporting.conftest import POD, InPod
from tests.support.killer import kill_worker
from tests.support.kubernetes_api import KubernetesApi
from tests.support.sidecar import Sidecar

PATH = "/data/train"
MAIN = "c0"


def shown_at_a_path(sidecar: Sidecar) -> Sidecar:
    """The same, but the experiment has the bucket at ``PATH``."""
    [volume] = sidecar.spec.volumes
    changed = replace(volume, path=PATH, mountpoint=str(sidecar.shared / "data/train"))
    sidecar.spec = replace(sidecar.spec, volumes=(changed,))
    sidecar.spec_text = sidecar.spec.to_json()
    return sidecar


def start_main(api: KubernetesApi) -> None:
    """The container of the experiment starts now."""
    with api.lock:
        pod = api.objects[POD]
        [main] = [c for c in pod["spec"]["containers"] if c["name"] == MAIN]
        main["volumeMounts"] = [{"mountPath": PATH, "subPath": "data/train"}]
        [status] = [s for s in pod["status"]["containerStatuses"] if s["name"] == MAIN]
        # The next whole second, since the API has no parts of one.
        started = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
        status["state"] = {"running": {"startedAt": started.strftime("%Y-%m-%dT%H:%M:%SZ")}}


def condition(api: KubernetesApi) -> dict[str, Any]:
    found = api.objects[POD]["status"].get("conditions", [])
    return next((c for c in found if c["type"] == CONDITION), {})


def test_it_is_told_until_the_container_is_started_again(api: KubernetesApi, in_pod: InPod) -> None:
    sidecar = shown_at_a_path(in_pod())
    with sidecar:
        start_main(api)
        api.wait_for(lambda: condition(api).get("reason") == "Mounted", "ready")
        kill_worker(sidecar, "train")
        sidecar.wait_for(lambda: sidecar.volume_status("train")["healed"]["resend"])
        assert sidecar.get("/livez/experiment")[0] == 200
        # Started in an earlier second than the next mount.
        began = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
        sidecar.wait_for(lambda: dt.datetime.now(dt.UTC) > began)
        sidecar.kill()
        sidecar.start()
        api.wait_for(lambda: condition(api).get("reason") == "MountLost", "lost")
        told = condition(api)["message"]
        assert told.startswith("SC1095 MOUNT_LOST: volume data/train: container `c0` cannot reach")
        status, body = sidecar.get("/livez/experiment")
        assert status == 503
        assert '"data/train": ["c0"]' in body
        assert sidecar.get("/livez")[0] == 200
        start_main(api)
        api.wait_for(lambda: condition(api)["reason"] == "Mounted", "mended")
        assert sidecar.get("/livez/experiment")[0] == 200
        assert sidecar.stop() == 0
    assert [e["message"] for e in api.events() if e["reason"] == "MountLost"] == [told]
