"""One experiment on each cloud, from the webhook to its end."""

from __future__ import annotations

import pytest

from sidecar.contract.pod import CONTAINER_NAME as SIDECAR
from tests.cluster.pods.conftest import Run, cloud
from tests.support.node import Nodes
from tests.support.stores_in_a_pod import Stores

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", ["s3", "gcs", "azure"])
def test_what_it_writes_is_in_the_bucket(stores: Stores, nodes: Nodes, run: Run, name: str) -> None:
    command = ["sh", "-ec", 'echo done >"$POLYAXON_RUN_OUTPUTS_PATH/note.txt"; echo ended']
    pod = run(f"writes-{name}", command, outputs=name, run=f"example/{name}")
    assert pod.wait_until_ended() == "Succeeded", pod.described()
    assert pod.logs() == "ended\n"
    assert cloud(stores, name).read(f"example/{name}/note.txt") == b"done\n"
    assert pod.status(SIDECAR)["state"]["terminated"]["exitCode"] == 0
    pod.delete()
    assert nodes.mounts_of(pod.uid) == []
