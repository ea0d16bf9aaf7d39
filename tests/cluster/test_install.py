"""docs/install.md, command by command, as a newcomer follows it.

The commands are the blocks marked ``bash``, in their order. Only what the document calls the
reader's own, the variables, is the test's: a bucket of an S3 in a pod.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.support.clouds import S3Cloud
from tests.support.cluster import MANIFESTS, Cluster, Json, find, kustomize
from tests.support.cluster_pods import NAMESPACE as STORES_NAMESPACE
from tests.support.cluster_pods import image
from tests.support.servers import REPOSITORY
from tests.support.stores_in_a_pod import S3_PORT, Stores

pytestmark = pytest.mark.timeout(400)

PREFIX = os.environ.get("CLUSTER_IMAGES", "localhost")
KUBELET = os.environ.get("CLUSTER_KUBELET", "/var/lib/kubelet")
TEXT = (REPOSITORY / "docs" / "install.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
[LAST_LINE] = re.findall(r"^```text\n(.*?)\n```$", TEXT, re.DOTALL | re.MULTILINE)
STAYS = "stays"


@dataclass(slots=True)
class Newcomer:
    """Somebody with a clone and a kubeconfig."""

    clone: Path
    environment: dict[str, str]
    said: list[str] = field(default_factory=list)

    def follow(self, block: str) -> str:
        """Run a block of the document; what it prints."""
        result = subprocess.run(
            ["bash", "-exuo", "pipefail", "-c", block],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        self.said.append(result.stdout + result.stderr)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
        return result.stdout


@pytest.fixture
def newcomer(cluster: Cluster, tmp_path: Path) -> Iterator[Newcomer]:
    shutil.copytree(MANIFESTS, tmp_path / "clone" / "manifests")
    janitor = tmp_path / "clone/manifests/components/janitor/daemonset.yaml"
    path = "path: /var/lib/kubelet/pods"
    assert path in janitor.read_text()  # what the document says where the kubelet has another root
    janitor.write_text(janitor.read_text().replace(path, f"path: {KUBELET}/pods"))
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    yield Newcomer(tmp_path / "clone", environment)
    cluster.delete(kustomize(MANIFESTS / "overlays" / "kind"))
    names = "namespace/experiments", f"namespace/{STORES_NAMESPACE}"
    cluster.kubectl("delete", "--ignore-not-found", *names)


@pytest.fixture
def stores(cluster: Cluster, newcomer: Newcomer, tmp_path: Path) -> Iterator[Stores]:
    """The reader's own S3, with two buckets."""
    cluster.apply([_namespace(STORES_NAMESPACE)])
    found = Stores(cluster, image(PREFIX, "test-stores"), tmp_path)
    try:
        found.start()
        for bucket in ("datasets", "runs"):
            found.s3.create_bucket(bucket)
        S3Cloud(found.s3, "datasets").write("one.txt", b"one")
        yield found
    finally:
        found.stop()


def _namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def test_what_the_document_says_works_as_it_stands(
    cluster: Cluster, newcomer: Newcomer, stores: Stores
) -> None:
    variables, *blocks, uninstall = BLOCKS
    own = {
        "S3_ENDPOINT": f"http://{stores.address}:{S3_PORT}",
        "S3_REGION": stores.s3.region,
        "S3_KEY_ID": stores.s3.access_key_id,
        "S3_SECRET_KEY": stores.s3.secret_access_key,
        "DATASETS_BUCKET": "datasets",
        "RUNS_BUCKET": "runs",
    }
    assert re.findall(r"^export (\w+)=\S+$", variables, re.MULTILINE) == list(own)
    assert len(variables.splitlines()) == len(own)
    newcomer.environment |= own
    for block in blocks:
        said = newcomer.follow(block)
    assert "datasets 1 entries in" in said
    assert said.splitlines()[-1] == LAST_LINE
    assert S3Cloud(stores.s3, "runs").read("user/project/experiments/1/done.txt")

    _restart_while_the_catalogue_is_broken(cluster, newcomer)
    _apply_again_with_another_image(newcomer)
    _start_one_that_stays(cluster)
    newcomer.follow(uninstall)
    assert cluster.kubectl("get", "namespace", "mount-sidecar", "--ignore-not-found") == ""
    in_namespace = "-n", "experiments"
    assert cluster.kubectl(*in_namespace, "get", "secret", "s3-secret")
    assert cluster.kubectl(*in_namespace, "get", "job", "experiment")
    read = "exec", STAYS, "-c", "experiment", "--", "cat", "/mnt/persistence/data/datasets/one.txt"
    assert cluster.kubectl(*in_namespace, *read) == "one"
    assert cluster.get(*in_namespace, "pod", STAYS)["status"]["phase"] == "Running"
    assert stores.s3.secret_access_key not in _everything_said(cluster, newcomer)


def _restart_while_the_catalogue_is_broken(cluster: Cluster, newcomer: Newcomer) -> None:
    """Every replica is a new one then, and pods get the sidecar all the same."""
    file = newcomer.clone / "manifests" / "overlays" / "mine" / "catalogue.yaml"
    before = file.read_text()
    kept = "-n", "mount-sidecar", "configmap", "mount-sidecar-catalogue-kept"
    cluster.wait_for(
        lambda: cluster.get(*kept).get("data", {}).get("catalogue.yaml") == before, "it is kept"
    )
    file.write_text(before.replace("store: s3", "store: s4"))
    restart = "-n mount-sidecar rollout restart deployment/mount-sidecar-webhook"
    status = "-n mount-sidecar rollout status deployment/mount-sidecar-webhook --timeout=120s"
    newcomer.follow(f"kubectl apply -k manifests/overlays/mine; kubectl {restart}")
    newcomer.follow(f"kubectl {status}")
    assert cluster.dry_run(_pod())["spec"]["initContainers"]
    told = "-n", "mount-sidecar", "logs", "-l", "app.kubernetes.io/name=mount-sidecar-webhook"
    assert "catalogue refused, the last one holds" in cluster.kubectl(*told)
    file.write_text(before)
    newcomer.follow("kubectl apply -k manifests/overlays/mine")


def _apply_again_with_another_image(newcomer: Newcomer) -> None:
    """An upgrade on the day of the install is accepted, and so is the way back."""
    file = newcomer.clone / "manifests" / "overlays" / "mine" / "kustomization.yaml"
    before = file.read_text()
    file.write_text(re.sub(r"newTag: .*", "newTag: 9.9.9", before))
    newcomer.follow("kubectl apply -k manifests/overlays/mine")
    file.write_text(before)
    newcomer.follow("kubectl apply -k manifests/overlays/mine")


def _pod() -> Json:
    """The example's, which goes on."""
    jobs = yaml.safe_load_all((MANIFESTS / "examples" / "experiment.yaml").read_text())
    template = find(list(jobs), "Job", "experiment")["spec"]["template"]
    template["spec"]["containers"][0]["command"] = ["sleep", "1000"]
    template["spec"]["terminationGracePeriodSeconds"] = 1
    metadata = template["metadata"] | {"name": STAYS, "namespace": "experiments"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _start_one_that_stays(cluster: Cluster) -> None:
    cluster.create(_pod())
    wait = "-n", "experiments", "wait", "--for=condition=Ready", "--timeout=100s", f"pod/{STAYS}"
    cluster.kubectl(*wait)


def _everything_said(cluster: Cluster, newcomer: Newcomer) -> str:
    """Except what `bash -x` repeats of the reader's own file."""
    ask: Callable[..., str] = cluster.kubectl
    pod = ask("-n", "experiments", "logs", STAYS, "--all-containers")
    return ask("-n", "experiments", "describe", "pods") + pod + newcomer.said[-1]
